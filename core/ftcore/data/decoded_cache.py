"""Decoded images at the size of training, kept in shared memory or in a file; whoever has one need not decode it."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import platformdirs
import structlog
import torch
from attrs import define, field
from PIL import Image

from ftcore.errors import UserError
from ftcore.plugins.libraries import library_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ftcore.config.schema import RunConfig
    from ftcore.types.data import Data, TwoStageTransform


DEFAULT_GB = 4.0
"""Size of the cache of both splits, in 10^9 bytes, where nothing else is said."""

_COLUMNS = 6
"""Of the index, int64: start of the pixels plus 1 (0: not there), height, width, channels, stamp, checksum."""


@define(eq=False)
class DecodedImageCache:
    """The images of one split; every loader process reads and adds.

    An image comes back as it was put in, or not at all: each has a checksum, and the stamp of the file it came from.

    Attributes:
        pixels: (B,) uint8, all images one behind the other, in the order in which they came.
        index: (N + 1, 6) int64; the last row starts with the number of bytes in use.
        lock: held while room is reserved; works across processes.
    """

    pixels: torch.Tensor
    index: torch.Tensor
    lock: Any = field(factory=lambda: torch.multiprocessing.get_context("spawn").Lock())

    def get(self, place: int, stamp: str, make: Callable[[], Image.Image]) -> Image.Image:
        """Return an image of mode L or RGB, and keep it if there is room."""
        mark = zlib.crc32(stamp.encode())
        row: Any = self.index[place].numpy()
        start, height, width, channels, kept, checksum = row.tolist()
        if start and kept == mark:
            shape = (height, width, channels) if channels > 1 else (height, width)
            pixels: Any = self.pixels[start - 1 : start - 1 + height * width * channels].numpy()
            if zlib.crc32(pixels) == checksum:
                return Image.fromarray(pixels.reshape(shape))
        image = make()
        self._put(row, mark, image)
        return image

    def _put(self, row: Any, version_crc: int, image: Image.Image) -> None:
        array: Any = np.ascontiguousarray(image)
        with self.lock:
            start = int(self.index[-1, 0])
            if start + array.size > len(self.pixels):
                return
            self.index[-1, 0] = start + array.size
        self.pixels[start : start + array.size].numpy()[:] = array.ravel()
        channels = array.shape[2] if array.ndim == 3 else 1
        row[1:] = (array.shape[0], array.shape[1], channels, version_crc, zlib.crc32(array))
        row[0] = start + 1  # last, for now it can be read


def make_image_cache(config: RunConfig, data: Data, split: str, steps: TwoStageTransform) -> DecodedImageCache | None:
    """Make the cache that ``data.cache`` asks for; half of ``data.cache_gb`` is for each split.

    Raises:
        UserError: the samples or the transform have nothing that could be kept, there is no room, or no cache to limit.
    """
    from ftcore.types.data import identity

    from .dataset import ImageSplit

    if config.data.cache is None:
        if config.data.cache_gb is not None:
            raise UserError(f"data.cache_gb does nothing without data.cache ({config.origin('data.cache_gb')})")
        return None
    samples, origin = getattr(data, split), config.origin("data.cache")
    if not isinstance(samples, ImageSplit):
        raise UserError(f"data.cache needs samples of ftcore.data.ImageSplit, not {type(samples).__name__} ({origin})")
    if steps.resize is identity:
        raise UserError(
            f"data.cache has nothing to keep: the {split} transform is not ftcore.TwoStageTransform ({origin})"
        )
    shape = (len(samples) + 1, _COLUMNS)
    size = int((config.data.cache_gb or DEFAULT_GB) * 1e9 / 2)
    if config.data.cache == "ram":
        _check_room(Path("/dev/shm"), 2 * size, origin)  # for both splits: room is taken only when it is written to
        return DecodedImageCache(
            _shared(torch.empty(size, dtype=torch.uint8)), _shared(torch.zeros(shape, dtype=torch.int64))
        )
    folder = _folder(data, split, steps, library_versions(config))
    folder.mkdir(parents=True, exist_ok=True)
    structlog.get_logger().info("decoded images are kept", folder=str(folder))
    index = _memory_map(folder / "index", shape[0] * _COLUMNS * 8, origin)
    return DecodedImageCache(_memory_map(folder / "pixels", size, origin), index.view(torch.int64).view(shape))


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    shared: torch.Tensor = cast("Any", tensor).share_memory_()
    return shared


def _check_room(folder: Path, size: int, origin: str) -> None:
    if folder.is_dir() and shutil.disk_usage(folder).free < size:
        free = shutil.disk_usage(folder).free / 1e9
        raise UserError(f"no room for the cache: {folder} has {free:.1f} GB free; set data.cache_gb lower ({origin})")


def _folder(data: Data, split: str, steps: TwoStageTransform, libraries: Mapping[str, str]) -> Path:
    """Return the folder of a cache on disk; its name depends on all that the pixels depend on."""
    parts = (
        data.fingerprint,
        split,
        len(getattr(data, split)),
        repr(steps),
        metadata.version("pillow"),
        *libraries.items(),
    )
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    return platformdirs.user_cache_path("ftcore") / "pixels" / name


def _memory_map(path: Path, size: int, origin: str) -> torch.Tensor:
    """Map a file into memory; room that nothing is written to takes no place on the disk."""
    if not path.exists():
        _check_room(path.parent, 2 * size, origin)
    with path.open("ab"):
        os.truncate(path, max(size, path.stat().st_size))
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
