"""What a source knows of its images; the names of classes and labels, their order, and targets as numbers."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import structlog
from attrs import frozen

from ftcore.errors import UserError
from ftcore.types.data import Task

from .task import images_per_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ftcore.config.schema import RunConfig
    from ftcore.types.data import ImageSource

    Numbers = np.ndarray[Any, np.dtype[Any]]


Kind = Literal["classification", "multilabel", "regression"]
"""What a target is: one class per image, any number of labels, or numbers."""


@frozen(eq=False)
class LabelledImages:
    """What a source knows.

    Attributes:
        images: all of them.
        kind: of the task.
        values: of each image: its class, its labels, a row with 0 or 1 for each of `names`, or one with numbers.
        fingerprint: see `ftcore.Data`.
        names: of labels or regression targets; empty for classes, and where `values` are labels: then they are those
            of the training split.
        splits: name of each image's split, where the source has its own.
        groups: of each image, e.g. the patient; a group is never cut by a split.
    """

    images: ImageSource
    kind: Kind
    values: Sequence[Any] | Numbers
    fingerprint: str
    names: tuple[str, ...] = ()
    splits: Sequence[str] | None = None
    groups: Sequence[str] | None = None


_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def order_names(names: Iterable[str], recorded: Sequence[str] | None = None) -> tuple[str, ...]:
    """Put classes in order: by their value where all are numbers (2 before 10), else as texts.

    Args:
        names: of the classes.
        recorded: of a run that is read back, see `RunConfig.class_names`: if these are the same names, their order
            stays; where it wrote none, names are sorted as texts, for that is how it did.
    """
    texts = sorted(names)
    if recorded and sorted(recorded) == texts:
        return tuple(recorded)
    is_older_run = recorded is not None and not recorded
    if not is_older_run and all(map(_NUMBER.fullmatch, texts)):
        texts.sort(key=Decimal)
    return tuple(texts)


def encode_labels(
    found: LabelledImages, train: Numbers, val: Numbers, config: RunConfig
) -> tuple[tuple[str, ...], Numbers]:
    """Return the names, and the targets of every image as numbers; of images in neither split they mean nothing."""
    if found.names:
        return found.names, np.asarray(found.values)
    here, there = _names_in(found, train), _names_in(found, val)
    only = sorted(there - here)
    if only:
        what = "label" if found.kind == "multilabel" else "class"
        raise UserError(f"{what} {only[0]!r} is in validation but not in training, so it could not be learnt")
    names = order_names(here, config.class_names)
    return names, _encode(found, names)


def encode_all(found: LabelledImages, rows: Numbers, config: RunConfig) -> tuple[Task, Numbers]:
    """Return what some images are of, be it one class, and the targets of every image as numbers."""
    names = found.names or order_names(_names_in(found, rows), config.class_names)
    targets = np.asarray(found.values) if found.names else _encode(found, names)
    if found.kind == "regression":
        return Task(found.kind, names, images=len(rows)), targets
    counts = images_per_name(targets[rows], found.kind, len(names))
    return Task(found.kind, names, counts=tuple(counts.tolist()), images=len(rows)), targets


def without_unknown(found: LabelledImages, test: Numbers, names: Sequence[str]) -> Numbers:
    """Return the rows of the test split; none where one of its classes was never learnt, which `evaluate` refuses."""
    unknown = set() if found.names else _names_in(found, test) - set(names)
    if not unknown:
        return test
    structlog.get_logger().warning(
        "the test split cannot be measured: it has classes that are not in training", classes=", ".join(sorted(unknown))
    )
    return test[:0]


def _encode(found: LabelledImages, names: Sequence[str]) -> Numbers:
    """Return (N,) class indices or an (N, K) matrix of labels; a name that is not known is 0 in either."""
    code = {name: index for index, name in enumerate(names)}
    if found.kind == "multilabel":
        return _matrix(found.values, code)
    return np.fromiter((code.get(value, 0) for value in found.values), np.int64, len(found.values))


def _names_in(found: LabelledImages, rows: Numbers) -> set[str]:
    """Return the classes or labels of some images."""
    return {name for row in rows for name in _labels_of(found, row)}


def _labels_of(found: LabelledImages, row: int) -> Sequence[str]:
    """Return the labels of an image, or its one class."""
    value = found.values[row]
    return value if found.kind == "multilabel" else (value,)


def _matrix(values: Sequence[Any] | Numbers, code: Mapping[str, int]) -> Numbers:
    matrix = np.zeros((len(values), len(code)), dtype=np.uint8)
    for row, labels in enumerate(values):
        matrix[row, [code[label] for label in labels if label in code]] = 1
    return matrix
