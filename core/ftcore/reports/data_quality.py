"""What is wrong with a data set, as tables: unreadable, duplicate, contradictory and unusual images."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from ftcore.data.dataset import ImageSplit
from ftcore.data.scan import MAX_HAMMING_DISTANCE, near_duplicate_pairs, scan_images
from ftcore.errors import UserError
from ftcore.types.abilities import Counted
from ftcore.types.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ftcore.config.schema import RunConfig
    from ftcore.data.scan import ImageScan
    from ftcore.types.data import Data
    from ftcore.types.task import Task


MIN_SIDE = 32
"""Pixels; images with a shorter side are reported."""

MAX_ASPECT = 4
"""Images whose longer side is more than so many times the shorter are reported."""


@frozen
class ScannedSample:
    """One image of a data set.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        name: its path.
        label: its class, labels or numbers.
        seen: what decoding it showed.
    """

    split: str
    name: str
    label: str
    seen: ImageScan


@frozen
class DataReport:
    """The result of a check.

    Attributes:
        tables: for people.
        errors: number of images that cannot be read, that have two labels, or that are in two splits.
    """

    tables: tuple[Table, ...]
    errors: int


def check(config: RunConfig) -> DataReport:
    """Decode every image of a run's data and compare them with each other.

    Raises:
        UserError: the data cannot be indexed, or its samples are not of `ftcore.data.ImageSplit`.
    """
    from ftcore.plugins.calls import HookCalls
    from ftcore.plugins.startup import activate

    host = activate(evolve(config, data=evolve(config.data, on_corrupt="skip")))
    data = HookCalls(host).build_data(host.config.data.source)
    found = [sample for name in data.splits for sample in _looked_at(data, name)]
    same, alike = _exact_duplicates(found), _near_duplicates(found)
    tables = {
        "unreadable": Table("cannot be read", ("split", "reason"), data.skipped),
        "labels": _pairs("identical images with different labels", [p for p in same if p[0].label != p[1].label]),
        "across": _pairs("identical images in two splits", [p for p in same if p[0].split != p[1].split]),
        "within": _pairs("identical images in one split", [p for p in same if p[0].split == p[1].split]),
        "alike": _pairs("near-duplicates across splits", [p for p in alike if p[0].split != p[1].split]),
        "alike_within": _pairs("near-duplicates within a split", [p for p in alike if p[0].split == p[1].split]),
        "unusual": _unusual(found),
        "absent": _names_missing_in(_image_split(data, "val"), data.task),
    }
    errors = sum(len(tables[name].rows) for name in ("unreadable", "labels", "across"))
    shown = [table for table in tables.values() if table.rows]
    return DataReport((*data.tables, _sizes(found), *shown, _summary(found, tables.values())), errors)


def _image_split(data: Data, name: str) -> ImageSplit:
    split = getattr(data, name)
    if not isinstance(split, ImageSplit):
        raise UserError(f"only samples of ftcore.data.ImageSplit can be checked, not {type(split).__name__}")
    return split


def _looked_at(data: Data, name: str) -> list[ScannedSample]:
    split = _image_split(data, name)
    seen = scan_images(split.images, split.rows.tolist())
    return [ScannedSample(name, split.name(i), data.task.spell(split.target(i)), found) for i, found in enumerate(seen)]


def _exact_duplicates(found: Sequence[ScannedSample]) -> list[tuple[ScannedSample, ScannedSample]]:
    groups: defaultdict[str, list[ScannedSample]] = defaultdict(list)
    for item in found:
        groups[item.seen.digest].append(item)
    return [pair for group in groups.values() for pair in combinations(group[:20], 2)]


def _near_duplicates(found: Sequence[ScannedSample]) -> list[tuple[ScannedSample, ScannedSample]]:
    """Pair pictures that look alike but are not the same; a picture without any contrast is like none."""
    looking = [item for item in found if item.seen.dhash]
    across, down = ([getattr(item.seen, which) for item in looking] for which in ("dhash", "dhash_vertical"))
    pairs = [
        (looking[a], looking[b])
        for a, b in near_duplicate_pairs(across)
        if (down[a] ^ down[b]).bit_count() <= MAX_HAMMING_DISTANCE
    ]
    return [(a, b) for a, b in pairs if a.seen.digest != b.seen.digest]


def _pairs(title: str, pairs: Iterable[tuple[ScannedSample, ScannedSample]]) -> Table:
    rows = tuple((f"{a.split} {a.name}", a.label, f"{b.split} {b.name}", b.label) for a, b in pairs)
    return Table(title, ("image", "label", "and", "its label"), rows)


def _unusual(found: Iterable[ScannedSample]) -> Table:
    rows = []
    for item in found:
        short, long = sorted((item.seen.width, item.seen.height))
        if short < MIN_SIDE or long > MAX_ASPECT * short:
            rows.append((item.name, f"{item.seen.width} x {item.seen.height}"))
    return Table(
        f"shorter side below {MIN_SIDE} pixels, or longer than {MAX_ASPECT} times it", ("image", "size"), tuple(rows)
    )


def _names_missing_in(split: ImageSplit, task: Task) -> Table:
    if not isinstance(task, Counted):
        return Table("", (), ())
    counts = zip(task.names, task.count(split.targets), strict=True)
    rows = tuple((name,) for name, number in counts if not number)
    return Table("not in validation, so never evaluated", ("name",), rows)


def _sizes(found: Sequence[ScannedSample]) -> Table:
    rows = []
    for name in ("width", "height"):
        values = sorted(getattr(item.seen, name) for item in found)
        rows.append((name, str(values[0]), str(values[len(values) // 2]), str(values[-1])))
    return Table("size in pixels", ("", "least", "median", "most"), tuple(rows))


def _summary(found: Sequence[ScannedSample], tables: Iterable[Table]) -> Table:
    rows = [("readable images", str(len(found)))]
    return Table("summary", ("what", "number"), (*rows, *((t.title, str(len(t.rows))) for t in tables if t.title)))
