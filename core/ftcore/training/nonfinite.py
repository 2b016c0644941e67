"""A step whose loss or gradient is not finite: what is kept of it, and how it is done again."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from attrs import asdict, frozen

from ftcore.checkpoints import atomic, checkpoint, manifest
from ftcore.errors import UserError
from ftcore.model import freezing
from ftcore.types.table import Table

from . import resume_state
from .loop import accumulation_windows, compute_gradient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from .gradients import NotFiniteError
    from .state import Progress, TrainingParts


NONFINITE_DIR = "nonfinite"
"""In the run folder: a checkpoint of before the step, with what came of it."""


def save_failing_step(run: Path, parts: TrainingParts, progress: Progress, failed: NotFiniteError) -> Path:
    """Save the state in which a step failed; its update was not made."""
    groups = parts.optimization.optimizer.param_groups
    step = {
        "terms": failed.terms,
        "norm": failed.norm,
        "scale": parts.precision.scaler.get_scale(),
        "scales": progress.scale_history,
        "learning_rates": [float(group["lr"]) for group in groups],
        "indices": failed.indices,
        "samples": [parts.data.train.samples.name(index) for index in failed.indices],
    }
    captured = resume_state.capture(parts, progress, step=step)
    with atomic.wrap_write_errors(run):
        checkpoint.CheckpointWriter().write(captured, run / NONFINITE_DIR)
    return run / NONFINITE_DIR


@frozen
class ReplayResult:
    """What a step did, when it was done again.

    Attributes:
        step: number of the step in the run, from 1.
        epoch: from 1.
        terms: name -> loss and what was added to it, then.
        again: the same, now.
        samples: name of each sample of the step.
        bad_samples: those whose images or targets are not finite.
        bad_weights: names of the parameters and buffers that are not finite.
        module: path of the first module whose output is not finite; empty if all are.
        gradients: names of the parameters whose gradient is not finite, in the order of the network.
        scales: (step, loss scale after it), of the last steps that changed it.
    """

    step: int
    epoch: int
    terms: dict[str, float]
    again: dict[str, float]
    samples: list[str]
    bad_samples: list[str]
    bad_weights: list[str]
    module: str
    gradients: list[str]
    scales: list[tuple[int, float]]

    @property
    def reproduced(self) -> bool:
        """Whether the loss and its terms are what they were, bit for bit."""
        return {name: str(term) for name, term in self.terms.items()} == {n: str(t) for n, t in self.again.items()}


def replay(parts: TrainingParts, folder: Path) -> ReplayResult:
    """Do the step of a black box again, up to its gradient, and look where it goes wrong.

    Raises:
        UserError: there is no black box, or it is damaged, or of another run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder.parent} has no {folder.name}/: the run had no step with NaN or Inf")
    reason = manifest.find_damage(folder)
    if reason:
        raise UserError(f"{folder} is damaged: {reason}")
    progress, kept = resume_state.restore_state(parts, folder), checkpoint.load_state(folder)["step"]
    parts = parts.for_epoch(progress.epoch)
    bad_weights = [name for name, tensor in parts.network.state_dict().items() if not _is_finite(tensor)]
    epoch, settings = progress.epoch, parts.train_config
    parts.placement.model.train()
    freezing.set_frozen_eval(parts.network, parts.plan, epoch)
    size = settings.accumulate
    window = next(accumulation_windows(parts.data.train.epoch(epoch, progress.current.step * size), size))
    with _record_nonfinite_modules(parts.network) as modules:
        terms, _ = compute_gradient(parts, window, progress)
    bad = [
        int(index)
        for batch in window
        for index, image, target in zip(batch.indices, batch.images, batch.targets, strict=True)
        if not (_is_finite(image) and _is_finite(target))
    ]
    gradients = [n for n, p in parts.network.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
    parts.optimization.optimizer.zero_grad(set_to_none=True)
    return ReplayResult(
        step=progress.step + 1,
        epoch=epoch + 1,
        terms=dict(kept["terms"]),
        again={name: float(term) for name, term in terms.items()},
        samples=list(kept["samples"]),
        bad_samples=[parts.data.train.samples.name(index) for index in bad],
        bad_weights=bad_weights,
        module=modules[0] if modules else "",
        gradients=gradients,
        scales=[(int(step), float(scale)) for step, scale in kept["scales"]],
    )


@contextmanager
def _record_nonfinite_modules(network: nn.Module) -> Iterator[list[str]]:
    """Note the modules whose output is not finite, in the order in which they are done; inner ones come first."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, list | tuple) else [output]
            if not all(_is_finite(tensor) for tensor in tensors if isinstance(tensor, torch.Tensor)):
                found.append(name)

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def to_dict(found: ReplayResult) -> dict[str, Any]:
    """Return what `ftcore replay --json` prints."""
    return {**asdict(found), "reproduced": found.reproduced}


def table(found: ReplayResult) -> Table:
    """Show what a step did."""
    wrong = {name: term for name, term in found.again.items() if not math.isfinite(term)}
    rows = [
        ("then", _terms(found.terms)),
        ("now", f"{_terms(found.again)} ({'the same' if found.reproduced else 'NOT the same'})"),
        ("non-finite loss terms", ", ".join(wrong) or "nothing"),
        ("samples", _some(found.samples)),
        ("non-finite samples", _some(found.bad_samples)),
        ("non-finite weights", _some(found.bad_weights)),
        ("first module with a non-finite output", found.module or "none"),
        ("parameters with a non-finite gradient", _some(found.gradients)),
        (
            "loss scale",
            ", ".join(f"{scale:g} from step {step + 1}" for step, scale in found.scales) or "constant",
        ),
    ]
    return Table(f"step {found.step}, epoch {found.epoch}", ("what", "which"), tuple(rows))


def _terms(terms: dict[str, float]) -> str:
    return ", ".join(f"{name} {term:.6g}" for name, term in terms.items())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) + more) or "none"
