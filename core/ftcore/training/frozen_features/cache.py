"""What is computed once of each image, kept for later runs with the same images, transform and frozen weights."""

from __future__ import annotations

import hashlib
import os
import re
from importlib import metadata
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ftcore.checkpoints.atomic import write_file
from ftcore.data.decoded_cache import DEFAULT_GB
from ftcore.errors import UserError
from ftcore.model import freezing
from ftcore.plugins.libraries import library_versions
from ftcore.system.user_cache import cache_folder, open_private, reserve, seal, warn_unusable

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
    folder = cache_folder("features")
    return FeatureCache(depends, folder, is_augmented=parts.train_config.views is not None) if folder else None


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
    """Return features (N, ...) and targets (N, ...) as this user's runs wrote them, or None for any other file."""
    if not file.is_file():
        return None
    try:
        os.close(open_private(file))  # which refuses what is somebody else's
        with safe_open(file, "pt") as opened:
            features, targets = opened.get_tensor("features"), opened.get_tensor("targets")
            sealed = (opened.metadata() or {}).get("seal")
    except (SafetensorError, OSError, KeyError) as error:
        warn_unusable(file, error)
        return None
    if sealed != _seal(file, features, targets):
        warn_unusable(file, ValueError("it was not written by a run of this user"))
        return None
    return features, targets


def write(file: Path, features: Tensor, targets: Tensor) -> None:
    """Write a file of the user alone in one instant; where it cannot be, say so and go on without."""
    try:
        tensors, metadata = {"features": features, "targets": targets}, {"seal": _seal(file, features, targets)}
        write_file(file, lambda aside: save_file(tensors, aside, metadata))
        os.close(open_private(file))  # which makes it so
    except (OSError, SafetensorError) as error:
        warn_unusable(file, error)


def _seal(file: Path, *tensors: Tensor) -> str:
    """Return the seal of tensors in a file of this name, which says what they depend on."""
    arrays: list[Any] = [tensor.contiguous().view(torch.uint8).numpy() for tensor in tensors]
    facts = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in tensors]
    return seal(f"{file.name} {facts}".encode(), *arrays).hex()


def allocate(like: Tensor, rows: int, *, in_memory: bool) -> Tensor:
    """Make a tensor of so many rows, in main memory or in a file that nobody else sees, gone with the process.

    Raises:
        UserError: the disk has no room for it, as is found out before anything is written.
    """
    shape, dtype = (rows, *like.shape[1:]), like.dtype
    if in_memory:
        return torch.empty(shape, dtype=dtype)
    count = torch.Size(shape).numel()
    try:
        with NamedTemporaryFile(dir=cache_folder()) as file:
            reserve(file.fileno(), count * dtype.itemsize)
            return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)
    except OSError as error:
        hint = "--set train.precompute=never computes features in each epoch"
        raise UserError(f"not enough space for cached features: {error}; {hint}") from None
