"""What is learnt, from the targets of a data set, and how many there are of each kind."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ftcore.errors import UserError
from ftcore.types.data import Task
from ftcore.types.table import Table

if TYPE_CHECKING:
    Numbers = np.ndarray[Any, np.dtype[Any]]


def make_task(
    kind: Literal["classification", "multilabel", "regression"], names: tuple[str, ...], train: Numbers
) -> Task:
    """Make the task from the targets of the training split.

    Raises:
        UserError: fewer than two classes or labels, one without an example, or a regression target without spread.
    """
    if kind == "regression":
        return _regression(names, train)
    if len(names) < 2:
        what = (
            "classification needs at least two classes" if kind == "classification" else "multilabel needs two labels"
        )
        raise UserError(f"{what}; there is {', '.join(names) or 'none'}")
    counts = images_per_name(train, kind, len(names))
    absent = [name for name, number in zip(names, counts, strict=True) if not number]
    if absent:
        raise UserError(f"no training image of {absent[0]!r}, so it could not be learnt")
    return Task(kind, names, counts=tuple(counts.tolist()), images=len(train))


def images_per_name(targets: Numbers, kind: str, outputs: int) -> Numbers:
    """Targets (N,) of classes or (N, K) of labels -> how many images each class or label has, (K,) int64."""
    return targets.sum(axis=0, dtype=np.int64) if kind == "multilabel" else np.bincount(targets, minlength=outputs)


def _regression(names: tuple[str, ...], train: Numbers) -> Task:
    low, high = train.min(axis=0), train.max(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = train.mean(axis=0), train.std(axis=0)
    useless = np.flatnonzero((low == high) | ~np.isfinite(std))
    if len(useless):
        at = useless[0]
        raise UserError(
            f"regression needs targets that differ, within reason; {names[at]!r} is {low[at]:g} to {high[at]:g} in all "
            f"{len(train)} training images"
        )
    return Task("regression", names, images=len(train), mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def significant_digits(mean: float, std: float) -> int:
    """Return with how many digits to spell a target so that six of them are within its spread, 15 at most."""
    return 6 + min(max(0, math.floor(math.log10(max(abs(mean), std) / std))), 9)


def target_table(train: Numbers, val: Numbers, task: Task) -> Table:
    """Show how many images each class or label has in each split, or how each regression target is spread."""
    if task.kind == "regression":
        spreads = []
        for name, c in zip(task.names, train.T, strict=True):
            mean, std, low, high = map(float, (c.mean(), c.std(), c.min(), c.max()))
            digits = significant_digits(mean, std) - 2
            spreads.append((name, f"{mean:.{digits}g}", f"{std:.4g}", f"{low:.{digits}g}", f"{high:.{digits}g}"))
        return Table(f"targets of {len(train)} images", ("target", "mean", "std", "min", "max"), tuple(spreads))
    there = images_per_name(val, task.kind, task.outputs)
    title = "images" if task.kind == "classification" else f"images with each label, of {len(train)} and {len(val)}"
    numbers = zip(task.names, task.counts, there.tolist(), strict=True)
    rows = [(name, str(here), str(number)) for name, here, number in numbers]
    return Table(title, ("class" if task.kind == "classification" else "label", "train", "val"), tuple(rows))
