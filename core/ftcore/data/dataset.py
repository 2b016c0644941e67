"""From images with labels to a run's data: split, vocabulary, targets, counts. Every source of data is made with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from attrs import frozen

from ftcore.errors import DataError, UserError
from ftcore.types.abilities import Parsed, require
from ftcore.types.data import Data
from ftcore.types.task import SourceTargets, Task

from .splits import fraction_held_out, split_indices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from PIL.Image import Image

    from ftcore.config.schema import RunConfig
    from ftcore.types.context import Context
    from ftcore.types.data import ImageSource

    from .splits import SplitRows

    Numbers = np.ndarray[Any, np.dtype[Any]]


@frozen(eq=False)
class LabelledImages:
    """What a source knows.

    Attributes:
        images: all of them.
        task: its name, as ``data.task`` has it.
        values: of each image, as `ftcore.Task.fit` takes it: its class, its labels, a row with 0 or 1 for each of
            `names`, or one with numbers.
        fingerprint: see `ftcore.Data`.
        names: of labels or regression targets; empty for classes, and where `values` are labels: then they are those
            of the training split.
        splits: name of each image's split, where the source has its own.
        groups: of each image, e.g. the patient; a group is never cut by a split.
    """

    images: ImageSource
    task: str
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
        targets: what the task made of them: (N,) int64 class indices, (N, K) uint8 labels, or (N, T) float64 in their
            own unit.
        side: see `ImageSource.read`.
        groups: (N,) int64, which images belong together, such as those of a patient; None if each is alone.
    """

    images: ImageSource
    rows: Numbers
    targets: Numbers
    side: int | None = None
    groups: Numbers | None = None

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


def make_data(found: LabelledImages, config: RunConfig, ctx: Context) -> Data:
    """Split the images and turn their values into targets.

    With `RunConfig.measuring`, nothing is to be learnt: every split is taken as it is, classes are those of all
    images, and a source without splits is all in `Data.test`.

    Raises:
        UserError: no split can be made, a class is in validation alone, or the targets leave nothing to learn.
    """
    task = ctx.make_task(found.task)
    split = split_indices(
        len(found.images), config, classes=task.strata(found.values), groups=found.groups, given=found.splits
    )
    rows = {"train": split.train, "val": split.val, "test": split.test}
    skipped: list[tuple[str, str]] = []
    if config.data.on_corrupt == "skip":
        rows = {name: _drop_unreadable(found.images, some, name, skipped) for name, some in rows.items()}
    left_out = len(found.images) - sum(map(len, rows.values())) - len(skipped)
    if not config.measuring:
        _check_some(found, rows["train"], rows["val"], skipped)
    given = SourceTargets(found.values, found.names, rows, config.class_names, config.measuring)
    fitted = task.fit(given)
    rows, targets = dict(fitted.rows), fitted.targets
    if not config.measuring:
        _warn_of_case(fitted.task.names)
        _say_held_out(split, len(rows["test"]), config)
    if left_out:
        structlog.get_logger().warning("images of other splits are ignored", images=left_out)
    groups = None if found.groups is None else np.unique(found.groups, return_inverse=True)[1]
    parts = {
        name: ImageSplit(found.images, some, targets[some], groups=None if groups is None else groups[some])
        for name, some in rows.items()
    }
    return Data(
        train=parts["train"],
        val=parts["val"],
        test=parts["test"] if len(parts["test"]) else None,
        task=fitted.task,
        fingerprint=found.fingerprint,
        tables=fitted.tables,
        skipped=tuple(skipped),
        has_splits=found.splits is not None,
        total=len(found.images),
    )


def parse_targets(task: type[Task], rows: Iterable[Sequence[str]], where: Callable[[int], str]) -> list[Any]:
    """Read the target cells of each row of a table, or the folder of each picture, as `LabelledImages.values`.

    Args:
        task: from `ctx.make_task`.
        rows: cells of each image.
        where: place of a row -> what a person calls it.

    Raises:
        UserError: the task does not read cells.
        DataError: a row is none of its targets.
    """
    values, reader = [], require(task, Parsed, "a table")
    for place, cells in enumerate(rows):
        try:
            values.append(reader.parse(cells))
        except ValueError as error:
            raise DataError(f"{where(place)}: {error}, got {', '.join(map(repr, cells))[:80]}") from None
    return values


def _say_held_out(split: SplitRows, kept: int, config: RunConfig) -> None:
    """Say that a source with a training split and no validation split has images of the one held out for the other."""
    if not split.held_out:
        return
    folds, fold = config.data.folds, config.data.fold or 0
    how = {"data.fold": f"{fold} of {folds}"} if folds else {"data.val_fraction": fraction_held_out(config)}
    test = f"; its {kept} test images are not used for training" if kept else ""
    structlog.get_logger().warning(
        f"{config.data.source} has no validation split: {len(split.val)} of its {len(split.train) + len(split.val)} "
        f"training images are held out for validation{test}",
        **how,
    )


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
            raise UserError(f"no images left for {split}{reason}")


def _warn_of_case(names: Sequence[str]) -> None:
    folded = Counter(name.casefold() for name in names)
    alike = [name for name in names if folded[name.casefold()] > 1]
    if alike:
        structlog.get_logger().warning("names that differ only in case", names=", ".join(alike))


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
