"""Decode every image once, in parallel, and say what is wrong with a data set; what was seen is remembered."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import astuple, frozen

from ftcore.console import console
from ftcore.errors import DataError
from ftcore.system.cpu import available_cpus
from ftcore.system.text import printable
from ftcore.system.user_cache import cache_folder, open_private, seal, warn_unusable

from .decoding import ignore_warnings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image

    from ftcore.types.data import ImageSource


FORMAT = 2
"""Version of `ImageScan`; another starts anew."""

MAX_HAMMING_DISTANCE = 3
"""Bits of a difference hash in which pictures that look alike may differ; below 4, see `near_duplicate_pairs`."""

_CHUNK = 64
"""Images that one thread decodes at a time."""


@frozen
class ImageScan:
    """What decoding an image showed.

    Attributes:
        error: why it cannot be read; empty if it can.
        width: pixels.
        height: pixels.
        digest: of size, mode and pixels, in hex; equal for equal pictures.
        dhash: difference hash, 64 bits: of 9 x 8 grey pixels, which are brighter than their right neighbour.
        dhash_vertical: the same of 8 x 9 pixels and the neighbour below; both are near for pictures that look alike.
    """

    error: str = ""
    width: int = 0
    height: int = 0
    digest: str = ""
    dhash: int = 0
    dhash_vertical: int = 0


def scan_images(images: ImageSource, rows: Sequence[int]) -> list[ImageScan]:
    """Decode images, those that were not seen before or have changed since; with a progress bar on a terminal."""
    from rich.progress import track

    keys = [_key(images, row) for row in rows]
    with closing(_Memory()) as store:
        known = store.read(keys)
        todo = [place for place, key in enumerate(keys) if key not in known]
        chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
        with ignore_warnings(), ThreadPoolExecutor(available_cpus()) as threads:
            results = threads.map(lambda chunk: [(place, _seen(images, rows[place])) for place in chunk], chunks)
            err = console(sys.stderr)
            shown = track(results, "decoding", total=len(chunks), console=err, disable=not err.is_terminal)
            for found in shown:
                known |= {keys[place]: seen for place, seen in found}
                store.keep([(keys[place], seen) for place, seen in found])
    return [known[key] for key in keys]


def _key(images: ImageSource, row: int) -> str:
    """Name an image and its state; one that is not even there has a key that is never kept."""
    try:
        return printable(f"{Path(images.name(row)).absolute()} {images.version(row)}")
    except DataError:
        return f"{_MISSING_KEY}{row}"


_MISSING_KEY = "gone "


def _seen(images: ImageSource, row: int) -> ImageScan:
    try:
        image = images.read(row, None)
    except DataError as error:
        return ImageScan(error=str(error))
    digest = hashlib.blake2b(f"{image.mode}{image.size}".encode() + image.tobytes(), digest_size=16)
    return ImageScan("", *image.size, digest.hexdigest(), *difference_hashes(image))


def difference_hashes(image: Image) -> tuple[int, int]:
    """Return the difference hash (dHash, N. Krawetz 2013), 64 bits, along a picture's rows and down its columns."""
    grey = image.convert("L")
    across, down = (np.asarray(grey.resize(size, reducing_gap=2.0)) for size in ((9, 8), (8, 9)))
    return _bits(across[:, :-1] > across[:, 1:]), _bits(down[:-1] > down[1:])


def _bits(flags: np.ndarray[Any, Any]) -> int:
    return int.from_bytes(np.packbits(flags).tobytes(), "big")


class _Memory:
    """What was seen, by this version of the decoder; where it cannot be kept, it is for this process alone."""

    def __init__(self) -> None:
        """Open it."""
        folder = cache_folder()
        versions = "-".join(metadata.version(name) for name in ("ftcore", "pillow"))
        self.file = folder and folder / f"seen-{FORMAT}-{versions}.sqlite"
        self.store = sqlite3.connect(":memory:")
        try:
            if self.file:
                os.close(open_private(self.file, os.O_RDWR | os.O_CREAT))
                self.store = sqlite3.connect(self.file, timeout=60)
            self._make_table()
        except (sqlite3.Error, OSError) as error:
            self._forget(error)

    def _make_table(self) -> None:
        columns = "key TEXT PRIMARY KEY, value TEXT, seal BLOB"
        self.store.execute(f"CREATE TABLE IF NOT EXISTS seen ({columns}) WITHOUT ROWID")

    def _forget(self, error: Exception) -> None:
        """Go on without the file."""
        warn_unusable(self.file or Path(":memory:"), error)
        self.store.close()
        self.store = sqlite3.connect(":memory:")
        self._make_table()

    def read(self, keys: Sequence[str]) -> dict[str, ImageScan]:
        """Return what is known of images, as this user's commands wrote it."""
        found: dict[str, ImageScan] = {}
        try:
            for start in range(0, len(keys), 500):
                some = keys[start : start + 500]
                marks = ",".join("?" * len(some))
                rows = self.store.execute(f"SELECT key, value, seal FROM seen WHERE key IN ({marks})", some)
                for key, value, sealed in rows:
                    if sealed == _seal(key, value):
                        found[key] = ImageScan(*json.loads(value))
        except (sqlite3.Error, ValueError, TypeError) as error:
            self._forget(error)
            return {}
        return found

    def keep(self, seen: Sequence[tuple[str, ImageScan]]) -> None:
        """Write down what was seen of images."""
        values = [
            (key, json.dumps(astuple(value), allow_nan=False))
            for key, value in seen
            if not key.startswith(_MISSING_KEY)
        ]
        rows = [(key, value, _seal(key, value)) for key, value in values]
        try:
            with self.store:
                self.store.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._forget(error)

    def close(self) -> None:
        """Close the file."""
        self.store.close()


def _seal(key: object, value: object) -> bytes:
    return seal(b"seen", str(key).encode(), str(value).encode())


def near_duplicate_pairs(looks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield places (a, b), a < b, whose 64 bits differ in at most `MAX_HAMMING_DISTANCE` places.

    Such pairs agree in at least one of four bands of 16 bits, so only those that share a band are compared. Of places
    with equal bits, at most 20 are paired with each other, and the first stands for all beside the others.
    """
    codes, places = np.unique(np.array(looks, dtype=np.uint64), return_inverse=True)
    members: list[list[int]] = [[] for _ in codes]
    for place, code in enumerate(places.tolist()):
        members[code].append(place)
    found: set[tuple[int, int]] = set()
    for band in range(4):
        keys = (codes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        boundaries = np.flatnonzero(np.diff(keys[order])) + 1
        for group in np.split(order, boundaries):
            for place, first in enumerate(group[:-1]):
                others = group[place + 1 :]
                close = others[np.bitwise_count(codes[others] ^ codes[first]) <= MAX_HAMMING_DISTANCE]
                found |= {(int(first), int(other)) for other in close}
    alike = [pair for group in members for pair in combinations(group[:20], 2)]
    firsts = [group[0] for group in members]
    across = [(min(firsts[a], firsts[b]), max(firsts[a], firsts[b])) for a, b in found]
    yield from sorted({*alike, *across})
