"""Build a `Data` from samples with labels: vocabulary, held-out split, counts, fingerprint."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any

from ftcore import Table, Task, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def hold_out(labels: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split 0..N-1 into training and validation, each class in the same proportion.

    Args:
        labels: of each sample.
        fraction: of the samples to hold out, in (0, 1).
        seed: of the choice.

    Raises:
        UserError: a class has a single sample, or too few are held out for one of each class.
    """
    from sklearn.model_selection import train_test_split

    counts = Counter(labels)
    rare = sorted(label for label, count in counts.items() if count < 2)
    if rare:
        raise UserError(f"class {rare[0]!r} has one image; it takes two to train on one and validate on the other")
    try:
        train, val = train_test_split(range(len(labels)), test_size=fraction, stratify=labels, random_state=seed)
    except ValueError as error:
        raise UserError(f"data.val_fraction = {fraction} does not suit {len(labels)} images: {error}") from None
    return sorted(train), sorted(val)


def classification(train: Sequence[str]) -> Task:
    """Make the task: classes are the labels of the training split, sorted."""
    counts = Counter(train)
    names = tuple(sorted(counts))
    if len(names) < 2:
        raise UserError(f"classification needs at least two classes; there is {', '.join(names) or 'none'}")
    return Task("classification", names, tuple(counts[name] for name in names))


def regression(name: str, train: Sequence[float]) -> Task:
    """Make the task of one target, standardised over the training split."""
    if len(set(train)) < 2:
        raise UserError(
            f"regression needs targets that differ; all {len(train)} are {train[0] if train else 'missing'}"
        )
    return Task("regression", (name,), mean=(statistics.fmean(train),), std=(statistics.pstdev(train),))


def task_of(kind: str, target: str, train: Sequence[str]) -> tuple[Task, Callable[[str], Any]]:
    """Make the task from the training split's labels, and the function from a label to what a sample gives.

    Args:
        kind: ``classification`` or ``regression``.
        target: name of a regression's target.
        train: labels of the training split; numbers, for regression.
    """
    if kind == "regression":
        return regression(target, [number(label) for label in train]), number
    task = classification(train)
    return task, {name: index for index, name in enumerate(task.names)}.__getitem__


def number(label: str) -> float:
    """Read a label as the target of a regression."""
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"data.task = 'regression' needs numbers as labels, got {label!r}")
    return value


def fingerprint(rows: Iterable[tuple[object, ...]]) -> str:
    """SHA-256 over rows in any order."""
    digest = hashlib.sha256()
    for line in sorted(repr(row) for row in rows):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def count_table(train: Sequence[str], val: Sequence[str]) -> Table:
    """Show how many images each class has in each split."""
    here, there = Counter(train), Counter(val)
    rows = tuple((name, str(here[name]), str(there[name])) for name in sorted(here | there))
    return Table("images", ("class", "train", "val"), rows)
