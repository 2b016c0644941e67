"""From images with labels to a run's data: split, vocabulary, targets, counts. Every source of data is made with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import structlog
from attrs import evolve, frozen

from ftcore.errors import UserError
from ftcore.types.data import Data

from .splits import split_indices
from .task import make_task, target_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from PIL.Image import Image

    from ftcore.config.schema import RunConfig
    from ftcore.types.data import ImageSource, Task

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


@frozen(eq=False)
class ImageSplit:
    """The images of one split with their targets: a `Samples`, with no Python object a sample.

    Attributes:
        images: of the whole source.
        rows: (N,) int64, which of them.
        targets: (N,) int64 class indices, (N, K) uint8 labels, or (N, T) float64 in their own unit.
        side: see `ImageSource.read`.
    """

    images: ImageSource
    rows: Numbers
    targets: Numbers
    side: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image, Any]:
        return self.images.read(int(self.rows[index]), self.side), self.target(index)

    def target(self, index: int) -> int | float | tuple[float, ...]:
        """Return a sample's target without decoding its image."""
        found: Any = self.targets[index].tolist()
        return found if not isinstance(found, list) else found[0] if len(found) == 1 else tuple(found)

    def name(self, index: int) -> str:
        """Return what a person calls the image."""
        return self.images.name(int(self.rows[index]))

    def version(self, index: int) -> str:
        """Return what changes when the image does."""
        return self.images.version(int(self.rows[index]))


def make_data(found: LabelledImages, config: RunConfig) -> Data:
    """Split the images and turn their values into targets.

    Raises:
        UserError: no split can be made, a class is in validation alone, or the targets leave nothing to learn.
    """
    classes = list(found.values) if found.kind == "classification" else None
    train, val = split_indices(len(found.images), config, classes=classes, groups=found.groups, given=found.splits)
    skipped: list[tuple[str, str]] = []
    if config.data.on_corrupt == "skip":
        train = _drop_unreadable(found.images, train, "train", skipped)
        val = _drop_unreadable(found.images, val, "val", skipped)
    _check_some(found, train, val, skipped)
    names, targets = _encode_labels(found, train, val)
    _warn_of_case(names)
    data = build_data_object(
        ImageSplit(found.images, train, targets[train]),
        ImageSplit(found.images, val, targets[val]),
        make_task(found.kind, names, targets[train]),
        found.fingerprint,
    )
    data = evolve(data, skipped=tuple(skipped))
    left_out = len(found.images) - len(train) - len(val) - len(skipped)
    if left_out:
        structlog.get_logger().warning("images of other splits are left out", images=left_out)
    return data


def _drop_unreadable(images: ImageSource, rows: Numbers, split: str, skipped: list[tuple[str, str]]) -> Numbers:
    """Return the rows whose images can be decoded; the others are added to `skipped`."""
    from .scan import scan_images

    seen = scan_images(images, rows.tolist())
    skipped += [(split, image.error) for image in seen if image.error]
    return rows[[not image.error for image in seen]]


def _check_some(found: LabelledImages, train: Numbers, val: Numbers, skipped: Sequence[tuple[str, str]]) -> None:
    for split, rows in (("training", train), ("validation", val)):
        if not len(rows):
            reason = f"; the first of {len(skipped)}: {skipped[0][1]}" if skipped else f" of {len(found.images)}"
            raise UserError(f"no image is left for {split}{reason}")


def _warn_of_case(names: Sequence[str]) -> None:
    folded = Counter(name.casefold() for name in names)
    alike = [name for name in names if folded[name.casefold()] > 1]
    if alike:
        structlog.get_logger().warning("names that differ in nothing but case", names=", ".join(alike))


def build_data_object(train: ImageSplit, val: ImageSplit, task: Task, mark: str) -> Data:
    """Put splits, task and fingerprint together, with a table of the targets."""
    return Data(train, val, task, mark, (target_table(train.targets, val.targets, task),))


def _encode_labels(found: LabelledImages, train: Numbers, val: Numbers) -> tuple[tuple[str, ...], Numbers]:
    """Return the names, and the targets of every image as numbers; of images in neither split they mean nothing."""
    if found.names:
        return found.names, np.asarray(found.values)
    several = found.kind == "multilabel"
    here, there = ({name for row in rows for name in _labels_of(found, row)} for rows in (train, val))
    only = sorted(there - here)
    if only:
        what = "label" if several else "class"
        raise UserError(f"{what} {only[0]!r} is in validation but not in training, so it could not be learnt")
    names = tuple(sorted(here))
    code = {name: index for index, name in enumerate(names)}
    if several:
        return names, _matrix(found.values, code)
    return names, np.fromiter((code.get(value, 0) for value in found.values), np.int64, len(found.values))


def _labels_of(found: LabelledImages, row: int) -> Sequence[str]:
    """Return the labels of an image, or its one class."""
    value = found.values[row]
    return value if found.kind == "multilabel" else (value,)


def _matrix(values: Sequence[Any] | Numbers, code: Mapping[str, int]) -> Numbers:
    matrix = np.zeros((len(values), len(code)), dtype=np.uint8)
    for row, labels in enumerate(values):
        matrix[row, [code[label] for label in labels if label in code]] = 1
    return matrix


def fingerprint(rows: Iterable[tuple[object, ...]]) -> str:
    """SHA-256 over rows in any order."""
    digest = hashlib.sha256()
    for line in sorted(repr(row) for row in rows):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@frozen(eq=False)
class PackedStrings:
    """Many texts in one piece of memory: about as many bytes as they have letters, and 8 more each.

    Attributes:
        text: (L,) uint8, all of them in UTF-8, one behind the other.
        ends: (N,) int64, where each ends.
    """

    text: Numbers
    ends: Numbers

    @classmethod
    def of(cls, names: Sequence[str]) -> PackedStrings:
        """Pack a list of texts."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        start = int(self.ends[row - 1]) if row else 0
        return self.text[start : int(self.ends[row])].tobytes().decode("utf-8", "surrogateescape")
