"""Several networks that answer as one: their probabilities are averaged."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from attrs import frozen

from . import checkpoint
from .backbone import Tokens
from .errors import UserError, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from .assemble import Network
    from .config import DataConfig
    from .parts import Task, Transforms
    from .predict import Prediction, Saved


@frozen(eq=False)
class Member:
    """One network, in eval mode.

    Attributes:
        module: images (N, C, H, W) float32, normalised -> outputs (N, task.outputs).
        network: as it was built: its architecture and transforms.
        task: what its outputs mean.
        share: of its say, > 0; all members' add up to 1.
    """

    module: nn.Module
    network: Network
    task: Task
    share: float = 1.0

    @property
    def transforms(self) -> Transforms:
        """PIL image -> tensor; only `evaluate` and `finish` are used."""
        return self.network.transforms

    def outputs(self, images: Tensor, task: Task) -> Tensor:
        """Images (N, C, H, W) float32, normalised -> outputs (N, K) float32 as `task` means them.

        That is: in the order of its names; numbers in its standardisation.
        """
        from .shapes import as_tuple

        outputs: Tensor = as_tuple(self.module(images))[0].float()
        if self.task.names != task.names:
            outputs = outputs[:, [self.task.names.index(name) for name in task.names]]
        return _standardised(outputs, self.task, task) if task.kind == "regression" else outputs


@frozen(eq=False)
class Model:
    """One network as it was at the best epoch of its run, or several whose answers are averaged.

    Attributes:
        members: the networks; each has its own transforms.
        task: what the outputs mean.
        thresholds: probability from which a label counts, for each label; chosen on the validation split, for several
            members the mean of theirs by share.
    """

    members: tuple[Member, ...]
    task: Task
    thresholds: tuple[float, ...] = ()

    @property
    def reads_texts(self) -> bool:
        """Whether it reads texts, not pictures."""
        return any(isinstance(member.network.spec, Tokens) for member in self.members)

    @property
    def module(self) -> nn.Module:
        """The one network: images (N, C, H, W) float32, normalised -> outputs (N, task.outputs)."""
        return self.only.module

    @property
    def transforms(self) -> Transforms:
        """Those of the one network."""
        return self.only.transforms

    @property
    def only(self) -> Member:
        """The one network, as it was built.

        Raises:
            UserError: there are several.
        """
        if len(self.members) != 1:
            raise UserError(f"this takes one network, and an ensemble has {len(self.members)}; name one of its runs")
        return self.members[0]

    def predict(self, images: Any, batch_size: int = 32) -> list[Prediction]:
        """Say what is on pictures: class or label -> probability, most probable first, or numbers in their own unit.

        Args:
            images: one picture, or any number of them: a path, the bytes of a file, a PIL image, an array (H, W) or
                (H, W, C) or a tensor (C, H, W), both of uint8 with 1, 3 or 4 channels; one of four dimensions holds
                several.
                Of a model that reads texts: a text, a `Path` of a file with one, or any number of them.
            batch_size: pictures per forward pass.

        Raises:
            UserError: something that is no picture.
            DataError: a file that cannot be read.
        """
        from .predict import answers

        single = isinstance(images, str | bytes | Path) or hasattr(images, "getbands") or getattr(images, "ndim", 4) < 4
        return list(answers(self, [images] if single else images, batch_size))

    def outputs(self, images: Sequence[Tensor], *, tta: bool = False) -> Tensor:
        """Return outputs (N, K) float32 as those of one network, which say what all members say on average.

        Args:
            images: of the same pictures for each member, (N, C, H, W) float32, normalised as it wants them.
            tta: let each member see every picture and its mirror image, half of its say for each.
        """
        if tta and not all(batch.is_floating_point() for batch in images):
            raise UserError("tta looks at the mirror image of each picture, and this network reads texts")
        passes = [
            (member.outputs(seen, self.task), member.share / (1 + tta))
            for member, batch in zip(self.members, images, strict=True)
            for seen in ([batch, batch.flip(-1)] if tta else [batch])
        ]
        return average([outputs for outputs, _ in passes], [share for _, share in passes], self.task)


def average(outputs: Sequence[Tensor], shares: Sequence[float], task: Task) -> Tensor:
    """Return outputs (N, K) whose `ftcore.loading.probabilities` are the mean of those of several outputs.

    Probabilities p = sum_m w_m p_m (Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4, with weights), given
    as log p for classes and log p - log(1 - p) for labels: so losses and metrics take them as they take a network's,
    and nothing rounds to 0 or 1 on the way. Numbers are averaged as they are.

    Args:
        outputs: M times (N, K) float32.
        shares: M numbers > 0 that add up to 1.
        task: what the outputs mean.
    """
    import torch
    from torch.nn.functional import logsigmoid

    if len(outputs) == 1:
        return outputs[0]
    stacked = torch.stack(list(outputs))
    weights = torch.tensor(shares, device=stacked.device)[:, None, None]
    if task.kind == "regression":
        return (weights * stacked).sum(0)
    if task.kind == "classification":
        return (stacked.log_softmax(-1) + weights.log()).logsumexp(0)
    there, absent = ((logsigmoid(scores) + weights.log()).logsumexp(0) for scores in (stacked, -stacked))
    return there - absent


def _standardised(outputs: Tensor, own: Task, task: Task) -> Tensor:
    """Numbers (N, T) in the standardisation of one task -> in that of another, both over the same targets."""
    import torch

    theirs = {name: (mean, std) for name, mean, std in zip(own.names, own.mean, own.std, strict=True)}
    pairs = [(*theirs[name], mean, std) for name, mean, std in zip(task.names, task.mean, task.std, strict=True)]
    scale = torch.tensor([std / wanted for _, std, _, wanted in pairs], device=outputs.device)
    shift = torch.tensor([(mean - wanted) / std for mean, _, wanted, std in pairs], device=outputs.device)
    return outputs * scale + shift


def join(runs: Sequence[Path], out: Path, weights: Sequence[float] | None = None) -> None:
    """Write an ensemble, which `predict` and `evaluate` take like a run: all that they need of its members is in it.

    ``model/`` holds each network's weights, and their descriptions with their shares in one ``model.json``; config and
    manifest are those of the first run, so that `evaluate` measures on its validation split.

    Args:
        runs: at least two folders of runs, ensembles or soups. Architecture, input and normalisation may differ.
        out: the folder to write; it may exist if it is empty.
        weights: of each run, > 0; they count in proportion. By default all count the same.

    Raises:
        UserError: members that do not belong together, weights that do not fit, or a folder that is not empty.
    """
    from .predict import read

    if len(runs) < 2:
        raise UserError(f"an ensemble takes at least two runs, not {', '.join(map(str, runs)) or 'none'}")
    check_new(out)
    shares = _shares(weights, len(runs))
    found = [read(run) for run in runs]
    for run, saved in zip(runs, found, strict=True):
        _check_agree(runs[0], found[0][0].task, run, saved[0].task)
        _check_there(saved)
    warn_of_splits(runs)
    members = [(one, share * one.share) for saved, share in zip(found, shares, strict=True) for one in saved]
    write_like(runs[0], out, lambda aside: _write(aside, members))


def parse_weights(text: str) -> list[float]:
    """Read the weights of runs, e.g. ``2,1,1``."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--weights {text}: expected numbers with commas between them, e.g. 2,1,1") from None


def _shares(weights: Sequence[float] | None, runs: int) -> list[float]:
    """Scale weights so that they add up to 1."""
    weights = [1.0] * runs if weights is None else weights
    if len(weights) != runs:
        raise UserError(f"--weights has {len(weights)} weights for {runs} runs; give one for each")
    wrong = [weight for weight in weights if not (weight > 0 and math.isfinite(weight))]
    if wrong:
        raise UserError(f"--weights: a weight must be a number > 0, got {wrong[0]:g}; a run of weight 0 is left out")
    return [weight / sum(weights) for weight in weights]


def _check_agree(first: Path, task: Task, run: Path, other: Task) -> None:
    """Refuse two tasks whose kind or names differ; the order of the names may."""
    if task.kind != other.kind:
        raise UserError(f"{first} is for {task.kind}, and {run} for {other.kind}; an ensemble takes one task")
    ours, theirs = set(task.names), set(other.names)
    if ours != theirs:
        raise UserError(
            f"{first} and {run} do not know the same names: only in {first}: {listed(ours - theirs)}; "
            f"only in {run}: {listed(theirs - ours)}"
        )


def _check_there(saved: Sequence[Saved]) -> None:
    missing = [one.file for one in saved if not one.file.is_file()]
    if missing:
        raise UserError(f"there is no {missing[0]}; the folder is not whole")


def _write(folder: Path, members: Sequence[tuple[Saved, float]]) -> None:
    described = []
    for place, (saved, share) in enumerate(members):
        name = f"model-{place}.safetensors"
        shutil.copyfile(saved.file, folder / name)
        described.append({**saved.description, "file": name, "share": share})
    checkpoint.write_json(folder / "model.json", {"format": checkpoint.FORMAT, "members": described})


def check_new(out: Path) -> None:
    """Refuse a folder that holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not empty; choose another")


def write_like(run: Path, out: Path, write: Callable[[Path], None]) -> None:
    """Write ``model/`` of a new folder, whole or not at all, beside the config and the manifest of a run."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.toml", "manifest.json"):
        if (run / name).is_file():
            shutil.copyfile(run / name, out / name)
    checkpoint.write_folder(out / "model", write)


def warn_of_splits(runs: Sequence[Path]) -> None:
    """Warn where runs were validated on other images: the first one's may be what another was trained on."""
    from .config import load

    known = [run for run in runs if (run / "config.toml").is_file()]
    splits = {run: _split(load(run / "config.toml").data) for run in known}
    others = [str(run) for run in known[1:] if splits[run] != splits[known[0]]]
    if others:
        structlog.get_logger().warning(
            "these were trained on another split: what is measured on validation images of the first may be too good",
            first=str(known[0]),
            others=", ".join(others),
        )


def _split(data: DataConfig) -> tuple[Any, ...]:
    return data.source, data.val_fraction, data.split_seed, data.folds, data.fold
