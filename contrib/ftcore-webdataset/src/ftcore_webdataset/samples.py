"""From members of shards to images with labels, in a few arrays and with no Python object a sample."""

from __future__ import annotations

import math
import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen
from ftcore import DataError, UserError
from ftcore.data import SHOWN, LabelledImages, PackedStrings, decode_image, fingerprint

from .index import reason, shown
from .names import base_name, located, split_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import fsspec
    from ftcore.config import RunConfig
    from PIL.Image import Image

    from . import WebDatasetConfig
    from .index import Shard

    Numbers = np.ndarray[Any, np.dtype[np.int64]]

_WAITS = (0.5, 2.0, 8.0)
"""Seconds between two attempts to read a range."""


@frozen(eq=False)
class ShardImages:
    """Images in shards; see `ftcore.ImageSource`.

    Attributes:
        urls: of the shards.
        states: of each shard, what changes when it does.
        members: name of each image in its shard.
        places: (N, 3) int64, of each image: which shard, where it starts there, and its size in bytes.
    """

    urls: tuple[str, ...]
    states: tuple[str, ...]
    members: PackedStrings
    places: Numbers

    def __len__(self) -> int:
        return len(self.places)

    def read(self, row: int, side: int | None) -> Image:
        """Fetch the bytes of one image and decode them."""
        shard, start, size = self.places[row].tolist()
        return decode_image(fetch(self.urls[shard], start, size, self.name(row)), self.name(row), side)

    def name(self, row: int) -> str:
        """Return shard and member."""
        return f"{self.urls[int(self.places[row, 0])]}!{shown(self.members[row])}"

    def version(self, row: int) -> str:
        """Return the state of the shard when it was indexed, and the image's place there."""
        shard, start, size = self.places[row].tolist()
        return f"{self.states[shard]} {start} {size}"


def fetch(url: str, start: int, size: int, name: str) -> bytes:
    """Read a byte range of a shard; a server that does not answer is asked again.

    Raises:
        DataError: it cannot be read.
    """
    system, path = _located(url, os.getpid())
    for wait in (*_WAITS, None):
        try:
            data: bytes = system.cat_file(path, start=start, end=start + size)
            break
        except Exception as error:  # noqa: BLE001 - each file system raises errors of its own
            if wait is None or isinstance(error, FileNotFoundError | PermissionError):
                raise DataError(f"cannot read image {name}: {reason(error)}") from None
            time.sleep(wait)
    if len(data) != size:
        raise DataError(
            f"cannot read image {name}: got {len(data)} bytes and not {size}; the shard has changed since the start, "
            "or its server does not serve byte ranges"
        )
    return data


@lru_cache(maxsize=4096)
def _located(url: str, _process: int) -> tuple[fsspec.AbstractFileSystem, str]:
    """Open a file system once a process: connections and threads of one do not survive a fork."""
    return located(url)


@frozen
class _Row:
    """An image with its label."""

    shard: int
    member: str
    start: int
    size: int
    label: str


def labelled(shards: Sequence[Shard], options: WebDatasetConfig, config: RunConfig) -> LabelledImages:
    """Join members to samples; the split is in the names of the shards.

    Raises:
        DataError: naming samples without an image or without a label.
        UserError: some shards name a split and others do not.
    """
    problems: list[str] = []
    rows = [row for place, shard in enumerate(shards) for row in _rows(place, shard, options, problems)]
    if problems or not rows:
        raise DataError(_message(problems, shards))
    values = [row.label for row in rows]
    regression = config.data.task == "regression"
    splits = _splits([shard.url for shard in shards])
    return LabelledImages(
        images=ShardImages(
            tuple(shard.url for shard in shards),
            tuple(shard.state for shard in shards),
            PackedStrings.of([row.member for row in rows]),
            np.array([(row.shard, row.start, row.size) for row in rows], dtype=np.int64),
        ),
        task=config.data.task or "classification",
        values=_numbers(rows, shards) if regression else values,
        names=("target",),
        fingerprint=fingerprint((base_name(shards[r.shard].url), r.member, r.size, r.label) for r in rows),
        splits=[splits[row.shard] for row in rows] if splits else None,
    )


def _rows(place: int, shard: Shard, options: WebDatasetConfig, problems: list[str]) -> Iterator[_Row]:
    """Yield the samples of a shard that have an image and a label; what is wrong with others is added to `problems`."""
    for key, endings in _samples(shard).items():
        image = next((endings[ending] for ending in options.images if ending in endings), None)
        label = next((found for end in ("cls", "json", "txt") if (found := shard.labels.get(endings.get(end, "")))), "")
        if image is None:
            problems.append(f"{shard.url}!{shown(key)} has no image, only {', '.join(sorted(endings))}")
        elif not label:
            problems.append(
                f"{shard.url}!{shown(key)} has no label: no .cls, no .json with {options.label!r}, no .txt; or it is "
                "empty"
            )
        else:
            yield _Row(place, image, *shard.members[image], label)


def _samples(shard: Shard) -> dict[str, dict[str, str]]:
    """Return sample -> ending -> member. Hidden members and those without an ending belong to none."""
    samples: dict[str, dict[str, str]] = {}
    for name in shard.members:
        folder, slash, base = name.rpartition("/")
        stem, dot, ending = base.partition(".")
        if stem and dot and not stem.startswith("__"):
            samples.setdefault(f"{folder}{slash}{stem}", {}).setdefault(ending.lower(), name)
    return samples


def _message(problems: Sequence[str], shards: Sequence[Shard]) -> str:
    if not problems:
        return f"no samples in {len(shards)} shards, the first of them {shards[0].url}"
    more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "\n".join(problems[:SHOWN]) + more


def _splits(urls: Sequence[str]) -> list[str] | None:
    """Return the split of each shard; None where none is named, so that ftcore holds images out."""
    splits = [split_of(url) for url in urls]
    if not any(splits):
        return None
    if "" in splits:
        named = next(url for url, split in zip(urls, splits, strict=True) if split)
        raise UserError(f"shard {urls[splits.index('')]} names no split, and {named} does; give all or none a split")
    return splits


def _numbers(rows: Sequence[_Row], shards: Sequence[Shard]) -> np.ndarray[Any, np.dtype[np.float64]]:
    numbers = np.empty((len(rows), 1))
    for place, row in enumerate(rows):
        try:
            numbers[place] = float(row.label)
        except ValueError:
            numbers[place] = math.nan
        if not math.isfinite(numbers[place, 0]):
            raise DataError(
                f"{shards[row.shard].url}!{shown(row.member)}: the label must be a finite number, got {row.label!r}"
            )
    return numbers
