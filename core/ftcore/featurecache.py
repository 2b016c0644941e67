"""What is computed once of each image, kept for later runs with the same images, transform and frozen weights."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

import platformdirs
import structlog
import torch
from attrs import frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import freezing
from .pixelcache import DEFAULT_GB

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from .backbone import InputSpec
    from .config import RunConfig
    from .cuts import Cut
    from .loading import Batches
    from .parts import Data
    from .state import Parts

LIBRARIES = ("torch", "torchvision", "pillow")


@frozen
class FeatureCache:
    """Files of features, named by all that these depend on.

    Attributes:
        depends: on what all of them do.
        folder: where they are.
        random: whether images to learn from are augmented, by the seed of the run.
    """

    depends: tuple[Any, ...]
    folder: Path
    random: bool

    def file(self, batches: Batches, view: int, size: int) -> Path:
        """Return the file for a view of a split, computed in batches of so many; named by the stamp of each image."""
        split: Any = batches.samples
        stamps = hashlib.sha256("\n".join(split.stamp(index) for index in range(len(split))).encode())
        dataset = batches.dataset
        drawn = dataset.seed if self.random else None
        prepared = shown(dataset.transform), shown(batches.finish), drawn, view, size
        parts = (*self.depends, *prepared, stamps.hexdigest())
        return self.folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.safetensors"


def make_feature_cache(
    config: RunConfig, data: Data, parts: Parts, spec: InputSpec, cut: Cut, size: int
) -> FeatureCache | None:
    """Make the cache that ``data.cache = "disk"`` asks for, if there is room in it for so many bytes."""
    if config.data.cache != "disk" or size > (config.data.cache_gb or DEFAULT_GB) * 1e9:
        return None
    depends = (
        data.fingerprint,
        config.model.name,
        spec,
        *_structure(parts, cut),
        *sorted(freezing.digests(parts.frozen(0)).items()),
        *(cut.at, parts.precision.name, str(parts.placement.device), torch.get_num_threads()),
        *((name, metadata.version(name)) for name in LIBRARIES),
    )
    folder = platformdirs.user_cache_path("ftcore") / "features"
    return FeatureCache(depends, folder, random=parts.settings.views is not None)


def _structure(parts: Parts, cut: Cut) -> list[tuple[str, str]]:
    """Return the modules that are not behind the cut, as they show themselves."""
    behind = parts.heads if cut.before is None else (cut.at, *parts.heads)
    named = parts.network.named_modules()
    return [
        (path, f"{type(module).__name__}({module.extra_repr()})")
        for path, module in named
        if not freezing.is_under(path, behind)
    ]


def shown(function: object) -> str:
    """Return how a transform shows itself, without its place in memory, which is another in each process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(function))


def read(file: Path) -> tuple[Tensor, Tensor] | None:
    """Return features (N, ...) and targets (N, ...) as they were written, or None for a file that is not whole."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            features, targets = opened.get_tensor("features"), opened.get_tensor("targets")
            checksum = (opened.metadata() or {}).get("crc32")
    except (SafetensorError, OSError, KeyError):
        return None
    return (features, targets) if checksum == _checksum(features) else None


def write(file: Path, features: Tensor, targets: Tensor) -> None:
    """Write a file in one instant; where it cannot be, say so and go on without."""
    new = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": features, "targets": targets}, new, {"crc32": _checksum(features)})
        new.replace(file)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            new.unlink()
        structlog.get_logger().warning("features are not kept for later runs", reason=str(error))


def _checksum(features: Tensor) -> str:
    numbers: Any = features.contiguous().view(torch.uint8).numpy()
    return str(zlib.crc32(numbers))
