"""One network whose weights are the mean of several checkpoints': a soup (Wortsman et al. 2022, arXiv:2203.05482)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from attrs import asdict, field, frozen
from safetensors.torch import save_model

from ftcore.checkpoints import atomic
from ftcore.config.load import load_config
from ftcore.errors import UserError
from ftcore.model.reference_outputs import reference_outputs
from ftcore.training.assemble import select_monitor
from ftcore.training.monitoring import comparable
from ftcore.training.state import higher_is_better
from ftcore.types.table import Table

from .ensemble import require_empty_dir, warn_if_splits_differ, write_derived_model
from .evaluate import compute_metrics, prepare
from .load import load_tensors, read_saved

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from .evaluate import Evaluation
    from .load import SavedModel


@frozen
class SoupCandidate:
    """One checkpoint that may go into a soup.

    Attributes:
        file: its weights.
        alone: its monitored metric.
        soup: that of the soup with it; nan where that was not measured.
        kept: whether it is in the soup.
    """

    file: Path
    alone: float
    soup: float
    kept: bool


@frozen(eq=False)
class SoupEvaluator:
    """A network that weights are put into, and what they are measured with.

    Attributes:
        evaluation: of the first run.
        network: its network, without a wrapper.
        monitor: name of the metric that decides.
        higher_is_better: which way it should go.
    """

    evaluation: Evaluation
    network: nn.Module
    monitor: str
    higher_is_better: bool

    def weights(self, file: Path) -> dict[str, Tensor]:
        """Read a checkpoint: name of each parameter and buffer -> a copy on the CPU."""
        load_tensors(self.network, file, "of the first run")
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.network.state_dict().items()}

    def measure(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Put weights into the network, rounded to its dtypes, and measure them."""
        self.network.load_state_dict(weights)
        return compute_metrics(self.evaluation)

    def value(self, metrics: Mapping[str, Any]) -> float:
        """Return the monitored metric so that higher is better; see `ftcore.training.monitoring.comparable`."""
        return comparable(metrics[self.monitor], higher_is_better=self.higher_is_better)


@frozen(eq=False)
class RunningMean:
    """A running mean of weights in double precision; where all are equal it is what they are, bit for bit.

    Batch norm's running statistics are averaged like weights. What is not a floating-point number, such as batch
    norm's count of batches, stays that of the first checkpoint.

    Attributes:
        weights: name -> mean, in float64 or complex128; other dtypes as they were.
        count: of the checkpoints.
    """

    weights: Mapping[str, Tensor] = field(factory=dict)
    count: int = 0

    def add(self, weights: Mapping[str, Tensor]) -> RunningMean:
        """Return the mean of these checkpoints and another."""
        if not self.count:
            return RunningMean({name: _to_float64(tensor) for name, tensor in weights.items()}, 1)
        count = self.count + 1
        return RunningMean(
            {name: _update_mean(mean, weights[name], count) for name, mean in self.weights.items()}, count
        )


def _is_averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _to_float64(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float64)) if _is_averaged(tensor) else tensor


def _update_mean(mean: Tensor, tensor: Tensor, count: int) -> Tensor:
    """Move the mean of count - 1 tensors to that of `count`; equal numbers stay, infinite ones too."""
    if not _is_averaged(mean):
        return mean
    wide = tensor.to(mean.dtype)
    return torch.where(wide == mean, mean, mean + (wide - mean) / count)


def make_soup(runs: Sequence[Path], out: Path, *, uniform: bool = False) -> Table:
    """Write the soup of all checkpoints of some runs as a folder that `predict` and `evaluate` take like a run.

    The greedy soup (recipe 1 of the paper): from the best checkpoint down, each is added if the mean with it is no
    worse in the monitored metric, measured on the validation split of the first run. Where a run evaluates an average
    of its network (`ftcore.WeightAverage`), that is what counts. Batch norm's running statistics are averaged
    like weights.

    Args:
        runs: of one architecture, input and task.
        out: the folder to write; it may exist if it is empty.
        uniform: take every checkpoint, whatever comes of it.

    Returns:
        A row for each checkpoint, the best first.

    Raises:
        UserError: runs that do not belong together, a run without checkpoints, or a metric that compares nothing.
    """
    require_empty_dir(out)
    saved = [_read_single_model(run) for run in runs]
    for run, other in zip(runs[1:], saved[1:], strict=True):
        _check_alike(runs[0], saved[0], run, other)
    files = [file for run in runs for file in checkpoints(run)]
    warn_if_splits_differ(runs)
    trial = _trial(runs[0])
    if not uniform:
        _check_monitors(runs, trial)
    found, soup, metrics = (_uniform if uniform else _greedy)(trial, files)
    trial.network.load_state_dict(soup.weights)
    recipe = {"uniform": uniform, "checkpoints": [str(one.file.parent) for one in found if one.kept]}
    description = {key: value for key, value in saved[0].description.items() if key not in {"epoch", "reference"}}
    description |= {"metrics": metrics, "soup": recipe}
    evaluation = trial.evaluation
    said = reference_outputs(evaluation.model.members[0].module, saved[0].spec, evaluation.precision.autocast)
    description |= {"reference": asdict(said)} if said else {}
    write_derived_model(runs[0], out, lambda aside: _write(aside, trial.network, description))
    return _table(found, trial)


def checkpoints(run: Path) -> list[Path]:
    """Return the weights of each checkpoint that were evaluated: those of the average where there is one."""
    folders = sorted((run / "checkpoints").glob("step-*"))
    if not folders:
        raise UserError(f"{run} has no checkpoints: no {run / 'checkpoints'}/step-*")
    files = [(folder / "average.safetensors", folder / "model.safetensors") for folder in folders]
    return [average if average.is_file() else network for average, network in files]


def _read_single_model(run: Path) -> SavedModel:
    saved = read_saved(run)
    if len(saved) > 1:
        raise UserError(f"{run} is an ensemble; a soup needs the checkpoints of runs")
    return saved[0]


def _check_alike(first: Path, saved: SavedModel, run: Path, other: SavedModel) -> None:
    """Refuse runs whose weights do not mean the same; their shapes are compared when they are loaded."""
    pairs = {
        "network": (saved.config.model.name, other.config.model.name),
        "task": (saved.task.name, other.task.name),
        **{what: (ours, other.task.meaning().get(what)) for what, ours in saved.task.meaning().items()},
        "input": (saved.spec, other.spec),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UserError(
                f"cannot average {first} and {run}: {what} {_text(ours)} in the first, {_text(theirs)} in the second"
            )


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value if isinstance(value, str) else repr(value)


def _trial(run: Path) -> SoupEvaluator:
    """Build the network of the first run, and what measures it."""
    evaluation = prepare(run)
    metrics = dict(evaluation.metrics)
    monitor = select_monitor(evaluation.config, metrics)
    if monitor == "loss" and evaluation.loss is None:
        raise UserError(f"{run} monitors the loss, which cannot be built, so checkpoints cannot be compared")
    up = higher_is_better(monitor, metrics)
    return SoupEvaluator(evaluation, evaluation.model.members[0].network.module, monitor, up)


def _check_monitors(runs: Sequence[Path], trial: SoupEvaluator) -> None:
    """Refuse runs that were told to watch different metrics."""
    for run in runs[1:]:
        monitor = load_config(run / "config.toml").train.monitor or trial.monitor
        if monitor != trial.monitor:
            raise UserError(
                f"checkpoints cannot be compared: {runs[0]} monitors {trial.monitor}, but {run} monitors {monitor}; "
                "--uniform needs no metric"
            )


def _greedy(trial: SoupEvaluator, files: Sequence[Path]) -> tuple[list[SoupCandidate], RunningMean, dict[str, Any]]:
    """Recipe 1: return what became of each checkpoint, the soup and its metrics."""
    alone = {file: trial.measure(trial.weights(file)) for file in files}
    best, *others = sorted(files, key=lambda file: -trial.value(alone[file]))
    if trial.value(alone[best]) == -math.inf:
        raise UserError(f"checkpoints cannot be compared: {trial.monitor} is not a number for any of them")
    soup, metrics = RunningMean().add(trial.weights(best)), alone[best]
    found = [SoupCandidate(best, metrics[trial.monitor], metrics[trial.monitor], kept=True)]
    for file in others:
        tried = soup.add(trial.weights(file))
        reached = trial.measure(tried.weights)
        kept = trial.value(reached) >= trial.value(metrics)
        found.append(SoupCandidate(file, alone[file][trial.monitor], reached[trial.monitor], kept))
        soup, metrics = (tried, reached) if kept else (soup, metrics)
    return found, soup, metrics


def _uniform(trial: SoupEvaluator, files: Sequence[Path]) -> tuple[list[SoupCandidate], RunningMean, dict[str, Any]]:
    """Take every checkpoint; the soup is measured once it is complete."""
    alone, soup = {}, RunningMean()
    for file in files:
        weights = trial.weights(file)
        alone[file] = trial.measure(weights)
        soup = soup.add(weights)
    metrics = trial.measure(soup.weights)
    ranked = sorted(files, key=lambda file: -trial.value(alone[file]))
    last = [math.nan] * (len(files) - 1) + [metrics[trial.monitor]]
    pairs = zip(ranked, last, strict=True)
    return [SoupCandidate(f, alone[f][trial.monitor], value, kept=True) for f, value in pairs], soup, metrics


def _write(folder: Path, network: nn.Module, description: dict[str, Any]) -> None:
    save_model(network, str(folder / "model.safetensors"))
    atomic.write_json(folder / "model.json", description)


def _table(found: Sequence[SoupCandidate], trial: SoupEvaluator) -> Table:
    rows = [
        (
            str(one.file.parent),
            f"{one.alone:.6g}",
            "" if math.isnan(one.soup) else f"{one.soup:.6g}",
            "yes" if one.kept else "no",
        )
        for one in found
    ]
    kept = sum(one.kept for one in found)
    title = f"soup of {kept} of {len(found)} checkpoints, on {trial.evaluation.images} validation images"
    return Table(title, ("checkpoint", trial.monitor, "soup with it", "kept"), tuple(rows))
