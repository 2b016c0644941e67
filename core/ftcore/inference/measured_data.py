"""Which pictures of which data a model is measured on, and their targets in the order of its names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from attrs import evolve, frozen

from ftcore.config.schema import DataConfig
from ftcore.data.dataset import ImageSplit
from ftcore.errors import UserError, format_names
from ftcore.runs.manifest import data_record, read_manifest, validated_on_test
from ftcore.types.abilities import Counted, Matched, require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ftcore.config.schema import RunConfig
    from ftcore.types.data import Data, SampleDataset
    from ftcore.types.task import Task


SPLIT_NAMES = ("train", "val", "test", "all")
"""What may be measured on; ``all`` is every picture of the three splits, or of data that has none."""


@frozen(eq=False)
class MeasuredData:
    """What a model is measured on.

    Attributes:
        samples: of the splits that are measured.
        task: of their data; targets are in the order of its names.
        names: those of the task's names that the samples have.
        split: one of `SPLIT_NAMES`.
        total: number of pictures in the data.
        other_splits: what else could have been measured, where nobody said what to.
        unreadable: number of pictures of these splits that were left out, for they cannot be read.
    """

    samples: tuple[SampleDataset, ...]
    task: Task
    names: tuple[str, ...]
    split: str
    total: int
    other_splits: tuple[str, ...] = ()
    unreadable: int = 0

    @property
    def which(self) -> str:
        """Say which split of the data these are, and what is left out of it; to be put behind the name of the data."""
        split = "" if self.split == "all" else f", split {self.split}"
        unreadable = f", {self.unreadable} cannot be read" if self.unreadable else ""
        return split + unreadable + (f" (also: --split {', '.join(self.other_splits)})" if self.other_splits else "")


def config_to_measure(config: RunConfig, source: str | None, split: str | None, task: Task) -> RunConfig:
    """Ask for what is measured on: other data for the same kind of task, or the run's own.

    Nothing is held out of other data, nor of the run's own where the test split or all of it is measured.
    """
    if source is None:
        return evolve(config, measuring=split in {"test", "all"})
    data = DataConfig(source=source, task=task.name, on_corrupt=config.data.on_corrupt)
    origins = {**config.origins, "data.source": f"--data {source}"}
    return evolve(config, data=data, origins=origins, measuring=True)


def choose_split(data: Data, split: str | None, config: RunConfig) -> MeasuredData:
    """Take a split of data that was built with `config`, or all of it.

    Args:
        data: to measure on.
        split: one of `SPLIT_NAMES`; None: the validation split of a run's own data, and of other data all where it has
            no more than one split, else the first that it has of ``val``, ``test`` and ``train``.
        config: of `config_to_measure`.

    Raises:
        UserError: there is no such split.
    """
    there, source = data.splits, config.data.source
    chosen = split or (_default_split(data) if config.measuring else "val")
    if config.measuring and not data.has_splits and chosen != "all":
        raise UserError(
            f"--split {chosen}: {source} has no splits; remove --split, or use --split all for its {data.total} images"
        )
    samples = [samples for name, samples in there.items() if chosen in {name, "all"}]
    if not samples:
        numbers = ", ".join(f"{name} ({len(found)} images)" for name, found in there.items()) or "no images"
        raise UserError(f"--split {chosen}: {source} has no such split; it has {numbers}")
    others = [name for name in (*there, "all") if name != chosen] if config.measuring and split is None else []
    return MeasuredData(
        samples=tuple(samples),
        task=data.task,
        names=_names_in(samples, data.task),
        split=chosen,
        total=sum(map(len, there.values())) if data.total is None else data.total,
        other_splits=tuple(others) if len(there) > 1 else (),
        unreadable=sum(chosen in {name, "all"} for name, _ in data.skipped),
    )


def _default_split(data: Data) -> str:
    splits = data.splits
    return next(name for name in ("val", "test", "train") if name in splits) if len(splits) > 1 else "all"


def _names_in(splits: Sequence[SampleDataset], task: Task) -> tuple[str, ...]:
    """Return the classes or labels of some samples, where that is known without decoding; else all of the data."""
    parts = [samples for samples in splits if isinstance(samples, ImageSplit)]
    if not isinstance(task, Counted) or len(parts) < len(splits):
        return task.names
    counts = [task.count(samples.targets) for samples in parts]
    return tuple(name for name, numbers in zip(task.names, zip(*counts, strict=True), strict=True) if any(numbers))


def check_names(folder: Path, task: Task, source: str | None, measured: MeasuredData) -> None:
    """Refuse data that the model cannot answer for: of another kind, or with names that it does not know."""
    if task.name != measured.task.name:
        raise UserError(f"{folder} was trained for {task.name}, but {source} is for {measured.task.name}")
    if measured.task.names != task.names:
        require(task, Matched, f"measuring {folder} on {source}, whose {task.noun[1]} differ or have another order,")
    unknown, missing = set(measured.names) - set(task.names), set(task.names) - set(measured.names)
    if unknown or (missing and isinstance(task, Matched) and task.needs_all):
        raise UserError(
            f"the {task.noun[1]} differ: {source} has {format_names(measured.names)}; {folder} knows "
            f"{format_names(task.names)}; unknown: {format_names(unknown)}"
        )


def check_learnt(folder: Path, data: Data, measured: MeasuredData, source: str | None) -> None:
    """Say where a run's own data is no longer what it was, and where other data is what the run has learnt.

    Raises:
        UserError: what is validation now was learnt, by a run of an ftcore that validated on the test split.
    """
    known, log = _written(folder), structlog.get_logger()
    is_same = known.get("fingerprint") == data.fingerprint
    if not known or source is not None:
        if is_same and measured.split in {"train", "all"}:
            log.warning("the run was trained on this data; without --data, its validation split is evaluated")
    elif not is_same:
        log.warning("the data has changed since the run", folder=str(folder))
    elif measured.split == "val" and (reason := validated_on_test(known, data_record(data))):
        raise UserError(
            f"{folder} has no validation split: {reason}; --split test evaluates the images it was validated on"
        )


def _written(folder: Path) -> Mapping[str, Any]:
    """Return what the manifest of a run says of its data, nothing where there is none."""
    return read_manifest(folder)["data"] if (folder / "manifest.json").is_file() else {}


@frozen(eq=False)
class RemappedTargets:
    """Samples of other data with their targets in the order of a model's names.

    Attributes:
        samples: of the data.
        places: for each of the data's names, its place among the model's; None for one that no sample has.
        task: of the model.
    """

    samples: SampleDataset
    places: tuple[int | None, ...]
    task: Task

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, target = self.samples[index]
        return image, require(self.task, Matched, "evaluate").move(target, self.places)

    def name(self, index: int) -> str:
        """Return what a person calls the sample."""
        return self.samples.name(index)
