"""Several runs joined into one folder."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING, Any

import structlog

from ftcore.checkpoints import atomic, manifest
from ftcore.errors import UserError, format_names
from ftcore.runs.manifest import read_manifest
from ftcore.types.abilities import Averaged, require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ftcore.config.schema import DataConfig
    from ftcore.types.task import Task

    from .load import SavedModel


def create_ensemble(
    runs: Sequence[Path], out: Path, weights: Sequence[float] | None = None, *, check_splits: bool = True
) -> None:
    """Write an ensemble, which `predict` and `evaluate` take like a run: all that they need of its members is in it.

    ``model/`` holds each network's weights, and their descriptions with their shares in one ``model.json``; config and
    manifest are those of the first run, so that `evaluate` measures on its validation split.

    Args:
        runs: at least two folders of runs, ensembles or soups. Architecture, input and normalisation may differ.
        out: the folder to write; it may exist if it is empty.
        weights: of each run, > 0; they count in proportion. By default all count the same.
        check_splits: whether to warn of runs that were validated on other images.

    Raises:
        UserError: members that do not belong together, weights that do not fit, or a folder that is not empty.
    """
    from .load import read_saved

    if len(runs) < 2:
        raise UserError(f"an ensemble needs at least two runs, not {', '.join(map(str, runs)) or 'none'}")
    require_empty_dir(out)
    shares = _normalise_weights(weights, len(runs))
    found = [read_saved(run) for run in runs]
    for run, saved in zip(runs, found, strict=True):
        _check_agree(runs[0], found[0][0].task, run, saved[0].task)
        _require_weight_files(saved)
    if check_splits:
        warn_if_splits_differ(runs)
    members = [(one, share * one.share) for saved, share in zip(found, shares, strict=True) for one in saved]
    write_derived_model(runs[0], out, lambda aside: _write(aside, members))


def parse_weights(text: str) -> list[float]:
    """Read the weights of runs, e.g. ``2,1,1``."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--weights {text}: expected comma-separated numbers, e.g. 2,1,1") from None


def _normalise_weights(weights: Sequence[float] | None, runs: int) -> list[float]:
    """Scale weights so that they add up to 1."""
    weights = [1.0] * runs if weights is None else weights
    if len(weights) != runs:
        raise UserError(f"--weights has {len(weights)} weights for {runs} runs; set one per run")
    wrong = [weight for weight in weights if not (weight > 0 and math.isfinite(weight))]
    if wrong:
        raise UserError(f"--weights: a weight must be > 0, got {wrong[0]:g}; to give a run no weight, leave it out")
    return [weight / sum(weights) for weight in weights]


def _check_agree(first: Path, task: Task, run: Path, other: Task) -> None:
    """Refuse two tasks whose names, or those of their outputs, differ; the order of the names may."""
    if task.name != other.name:
        raise UserError(f"{first} is for {task.name}, but {run} for {other.name}; an ensemble needs one task")
    require(task, Averaged, "an ensemble")
    ours, theirs = set(task.names), set(other.names)
    if ours != theirs:
        raise UserError(
            f"{first} and {run} have different class names: only in {first}: {format_names(ours - theirs)}; "
            f"only in {run}: {format_names(theirs - ours)}"
        )


def _require_weight_files(saved: Sequence[SavedModel]) -> None:
    missing = [one.file for one in saved if not one.file.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing; the folder is incomplete")


def _write(folder: Path, members: Sequence[tuple[SavedModel, float]]) -> None:
    described = []
    for place, (saved, share) in enumerate(members):
        name = f"model-{place}.safetensors"
        shutil.copyfile(saved.file, folder / name)
        described.append({**saved.description, "file": name, "share": share})
    atomic.write_json(folder / "model.json", {"format": manifest.MODEL_FORMAT, "members": described})


def require_empty_dir(out: Path) -> None:
    """Refuse a folder that holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not empty; choose another")


def write_derived_model(run: Path, out: Path, write: Callable[[Path], None]) -> None:
    """Write ``model/`` of a new folder, whole or not at all, beside the config and the manifest of a run."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.toml", "manifest.json"):
        if (run / name).is_file():
            shutil.copyfile(run / name, out / name)
    atomic.write_dir_atomic(out / "model", write)


def warn_if_splits_differ(runs: Sequence[Path]) -> None:
    """Warn where runs were validated on other images: the first one's may be what another was trained on."""
    from ftcore.config.load import load_config

    known = [run for run in runs if (run / "config.toml").is_file()]
    splits = {run: _split(run, load_config(run / "config.toml").data) for run in known}
    others = [str(run) for run in known[1:] if splits[run] != splits[known[0]]]
    if others:
        structlog.get_logger().warning(
            "these runs used another split: metrics on the validation images of the first run may be too good",
            first=str(known[0]),
            others=", ".join(others),
        )


def _split(run: Path, data: DataConfig) -> tuple[Any, ...]:
    """Return what decides who is in which split, and how many that were."""
    written = read_manifest(run)["data"] if (run / "manifest.json").is_file() else {}
    numbers = (written.get("train"), written.get("val"))
    return data.source, data.val_fraction, data.split_seed, data.folds, data.fold, numbers
