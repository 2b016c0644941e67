"""What is computed once of each image, kept for later runs with the same images, transform and frozen weights."""

from __future__ import annotations

import hashlib
import re
import zlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

import platformdirs
import structlog
import torch
from attrs import frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ftcore.checkpoints.atomic import write_file
from ftcore.data.decoded_cache import DEFAULT_GB
from ftcore.model import freezing
from ftcore.plugins.libraries import library_versions

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ftcore.config.schema import RunConfig
    from ftcore.data.loader import EpochLoader
    from ftcore.training.state import TrainingParts
    from ftcore.types.data import Data
    from ftcore.types.model import InputSpec

    from .split_point import SplitPoint


LIBRARIES = ("torch", "pillow")
"""That any features are computed with, beside those of the plugins."""


@frozen
class FeatureCache:
    """Files of features, named by all that these depend on.

    Attributes:
        key_parts: on what all of them do.
        folder: where they are.
        is_augmented: whether images to learn from are augmented, by the seed of the run.
    """

    key_parts: tuple[Any, ...]
    folder: Path
    is_augmented: bool

    def file(self, batches: EpochLoader, view: int, size: int) -> Path:
        """Return the file for a view of a split, computed in batches of so many; named by the stamp of each image."""
        split: Any = batches.samples
        stamps = hashlib.sha256("\n".join(split.version(index) for index in range(len(split))).encode())
        dataset = batches.dataset
        drawn = dataset.seed if self.is_augmented else None
        prepared = stable_repr(dataset.transform), stable_repr(batches.on_device_transform), drawn, view, size
        parts = (*self.key_parts, *prepared, stamps.hexdigest())
        return self.folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.safetensors"


def make_feature_cache(
    config: RunConfig, data: Data, parts: TrainingParts, spec: InputSpec, point: SplitPoint, size: int
) -> FeatureCache | None:
    """Make the cache that ``data.cache = "disk"`` asks for, if there is room in it for so many bytes."""
    if config.data.cache != "disk" or size > (config.data.cache_gb or DEFAULT_GB) * 1e9:
        return None
    depends = (
        data.fingerprint,
        config.model.name,
        spec,
        *_structure(parts, point),
        *sorted(freezing.tensor_digests(parts.frozen_at(0)).items()),
        *(point.module, parts.precision.name, str(parts.placement.device), torch.get_num_threads()),
        *((name, metadata.version(name)) for name in LIBRARIES),
        *library_versions(config).items(),
    )
    folder = platformdirs.user_cache_path("ftcore") / "features"
    return FeatureCache(depends, folder, is_augmented=parts.train_config.views is not None)


def _structure(parts: TrainingParts, point: SplitPoint) -> list[tuple[str, str]]:
    """Return the modules that are not behind the cut, as they show themselves."""
    behind = parts.heads if point.recorded_outputs is None else (point.module, *parts.heads)
    named = parts.network.named_modules()
    return [
        (path, f"{type(module).__name__}({module.extra_repr()})")
        for path, module in named
        if not freezing.is_submodule_of(path, behind)
    ]


def stable_repr(function: object) -> str:
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
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors, metadata = {"features": features, "targets": targets}, {"crc32": _checksum(features)}
        write_file(file, lambda aside: save_file(tensors, aside, metadata))
    except (OSError, SafetensorError) as error:
        structlog.get_logger().warning("features are not kept for later runs", reason=str(error))


def _checksum(features: Tensor) -> str:
    numbers: Any = features.contiguous().view(torch.uint8).numpy()
    return str(zlib.crc32(numbers))
