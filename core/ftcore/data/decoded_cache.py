"""Decoded images at the size of training, kept in shared memory or in a file; whoever has one need not decode it."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import zlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import structlog
import torch
from attrs import define, field
from PIL import Image

from ftcore.errors import UserError
from ftcore.plugins.libraries import library_versions
from ftcore.system.user_cache import cache_folder, open_private, seal, user_key, warn_unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ftcore.config.schema import RunConfig
    from ftcore.types.data import Data, TwoStageTransform


DEFAULT_GB = 4.0
"""Size of the cache of both splits, in 10^9 bytes, where nothing else is said."""

FORMAT = 2
"""Version of the files; another starts anew."""

_COLUMNS = 6
"""Of the index, int64: start of the pixels plus 1 (0: not there), height, width, channels, stamp, seal."""


@define(eq=False)
class DecodedImageCache:
    """The images of one split; every loader process reads and adds.

    An image comes back as it was put in, or not at all: each has a seal, and the stamp of the file it came from.

    Attributes:
        pixels: (B,) uint8, all images one behind the other, in the order in which they came.
        index: (N + 1, 6) int64; the last row starts with the number of bytes in use.
        folder: of the files that both are mapped from, None in shared memory.
        key: of the seals, see `ftcore.system.user_cache.seal`.
        lock: held while room is reserved; works across processes.
        has_room: False once the disk has refused to take an image.
    """

    pixels: torch.Tensor
    index: torch.Tensor
    folder: Path | None = None
    key: bytes = field(factory=lambda: secrets.token_bytes(32), repr=False)
    lock: Any = field(factory=lambda: torch.multiprocessing.get_context("spawn").Lock())
    has_room: bool = True

    def get(self, place: int, stamp: str, make: Callable[[], Image.Image]) -> Image.Image:
        """Return an image of mode L or RGB, and keep it if there is room."""
        mark = zlib.crc32(stamp.encode())
        start, *facts, sealed = self.index[place].tolist()
        height, width, channels, kept = facts
        end = start - 1 + height * width * channels
        if min(start, height, width, channels) > 0 and end <= len(self.pixels) and kept == mark:
            pixels: Any = self.pixels[start - 1 : end].numpy()
            if self._seal(place, facts, pixels) == sealed:
                return Image.fromarray(pixels.reshape((height, width, channels) if channels > 1 else (height, width)))
        image = make()
        if self.has_room:
            try:
                self._put(place, mark, np.ascontiguousarray(image))
            except OSError as error:
                self.has_room = False
                warn_unusable(self.folder or Path("/dev/shm"), error)
        return image

    def _put(self, place: int, mark: int, array: Any) -> None:
        with self.lock:
            start = int(self.index[-1, 0])
            if not 0 <= start <= len(self.pixels) - array.size:
                return
            self._write("index", self.index[-1, :1], [start + array.size])
        facts = [*array.shape[:2], array.shape[2] if array.ndim == 3 else 1, mark]
        self._write("pixels", self.pixels[start : start + array.size], array.ravel())
        self._write("index", self.index[place], [start + 1, *facts, self._seal(place, facts, array)])

    def _seal(self, place: int, facts: list[int], pixels: Any) -> int:
        return int.from_bytes(seal(np.array([place, *facts]), pixels, key=self.key)[:8], "big", signed=True)

    def _write(self, name: str, where: torch.Tensor, values: Any) -> None:
        """Write to one of the two; to a file as such, for a mapped one that finds the disk full kills its process.

        Raises:
            OSError: there is no room on the disk.
        """
        numbers: Any = where.numpy()
        if self.folder is None:
            numbers[:] = values
            return
        content, at = np.asarray(values, dtype=numbers.dtype).tobytes(), where.storage_offset()
        descriptor = open_private(self.folder / name, os.O_WRONLY)
        try:
            if os.pwrite(descriptor, content, at * numbers.itemsize) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def make_image_cache(config: RunConfig, data: Data, split: str, steps: TwoStageTransform) -> DecodedImageCache | None:
    """Make the cache that ``data.cache`` asks for; half of ``data.cache_gb`` is for each split.

    None where there is to be none, or where none can be on this disk, which is said.

    Raises:
        UserError: the samples or the transform have nothing that could be kept, there is no room in main memory, or no
            cache to limit.
    """
    from ftcore.types.data import identity

    from .dataset import ImageSplit

    if config.data.cache is None:
        if config.data.cache_gb is not None:
            raise UserError(f"data.cache_gb has no effect without data.cache ({config.origin('data.cache_gb')})")
        return None
    samples, origin = getattr(data, split), config.origin("data.cache")
    if not isinstance(samples, ImageSplit):
        raise UserError(f"data.cache needs samples of ftcore.data.ImageSplit, not {type(samples).__name__} ({origin})")
    if steps.resize is identity:
        raise UserError(f"data.cache needs an ftcore.TwoStageTransform as the {split} transform ({origin})")
    shape = (len(samples) + 1, _COLUMNS)
    size = int((config.data.cache_gb or DEFAULT_GB) * 1e9 / 2)
    if config.data.cache == "ram":
        _check_room(Path("/dev/shm"), 2 * size, origin)  # for both splits: room is taken only when it is written to
        return DecodedImageCache(
            _shared(torch.empty(size, dtype=torch.uint8)), _shared(torch.zeros(shape, dtype=torch.int64))
        )
    folder = cache_folder("pixels", _name(data, split, steps, library_versions(config)))
    return _on_disk(folder, size, shape) if folder else None


def _on_disk(folder: Path, size: int, shape: tuple[int, int]) -> DecodedImageCache | None:
    """Map the files of a cache; room among the pixels that nothing is written to takes no place on the disk."""
    length = shape[0] * shape[1] * 8
    try:
        pixels, index = (
            os.fdopen(open_private(folder / n, os.O_RDWR | os.O_CREAT), "r+b") for n in ("pixels", "index")
        )
        with pixels, index:
            there = index.seek(0, os.SEEK_END)
            index.write(bytes(max(0, length - there)))
            pixels.truncate(max(size, pixels.seek(0, os.SEEK_END)))
    except OSError as error:
        warn_unusable(folder, error)
        return None
    structlog.get_logger().info("decoded images are cached", folder=str(folder))
    mapped, rows = (
        torch.from_file(str(folder / name), shared=True, size=count, dtype=dtype)
        for name, count, dtype in (("pixels", size, torch.uint8), ("index", length // 8, torch.int64))
    )
    return DecodedImageCache(mapped, rows.view(shape), folder, user_key())


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    shared: torch.Tensor = cast("Any", tensor).share_memory_()
    return shared


def _check_room(folder: Path, size: int, origin: str) -> None:
    if folder.is_dir() and shutil.disk_usage(folder).free < size:
        free = shutil.disk_usage(folder).free / 1e9
        raise UserError(
            f"not enough space for the cache: {folder} has {free:.1f} GB free; lower data.cache_gb ({origin})"
        )


def _name(data: Data, split: str, steps: TwoStageTransform, libraries: Mapping[str, str]) -> str:
    """Return the name of a cache on disk, which depends on all that the pixels depend on."""
    parts = (
        FORMAT,
        data.fingerprint,
        split,
        len(getattr(data, split)),
        repr(steps),
        metadata.version("pillow"),
        *libraries.items(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
