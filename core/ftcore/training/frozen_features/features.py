"""Compute the frozen part of the network once per image, cache the features, and train the rest on them.

A rewriting of the parts for the epochs in which everything before the head, or before some block, is frozen: other
batches and a smaller network, in the same loop. Full networks are evaluated and saved in name and in substance: only
what learns differs from epoch to epoch.
"""

from __future__ import annotations

import shutil
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import torch
from attrs import define, evolve, field, frozen

from ftcore.console import print_progress
from ftcore.data.batch_sharding import gather_batch, rank_slice
from ftcore.data.loader import Batch, EpochSampler
from ftcore.errors import UserError
from ftcore.system.user_cache import cache_folder
from ftcore.types.data import identity

from . import cache as frozen_features_cache
from .split_point import (
    allclose_norm,
    check_head_split,
    find_split_point,
    module_input,
    preserve_module_state,
    why_not_splittable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from ftcore.data.loader import EpochLoader
    from ftcore.model.build import Network
    from ftcore.training.state import TrainingParts
    from ftcore.types.data import Transforms
    from ftcore.types.distributed import Placement
    from ftcore.types.model import InputSpec

    from .cache import FeatureCache
    from .split_point import SplitPoint


MAX_IN_MEMORY_BYTES = 4 * 10**9
"""Bytes of features, of both splits, beyond which they are in a file that the system keeps in memory as it can."""

PROGRESS_S = 10.0
"""Seconds, at least, between two lines that say how much of a view is computed."""


@define(eq=False)
class FeatureStore:
    """What is kept of each image of a split.

    Attributes:
        batches: of images.
        compute: images (N, C, H, W) -> what is kept of them (N, ...).
        placement: of the processes, each of which computes its share, and keeps all.
        size: images in a batch that goes through it.
        views: of each image; epoch e learns from view e modulo that.
        in_memory: whether they are in main memory, not in a file.
        cache: where they are kept for later runs, or None.
        kept: view -> (features (N, ...), targets (N, ...)), in the order of the split.
    """

    batches: EpochLoader
    compute: Callable[[Tensor], Tensor]
    placement: Placement
    size: int
    views: int
    in_memory: bool
    cache: FeatureCache | None = None
    kept: dict[int, tuple[Tensor, Tensor]] = field(factory=dict)

    def loader_for_epoch(self, epoch: int, on_boundary: Callable[[], None]) -> EpochLoader:
        """Return the batches of an epoch (from 0), once its view is computed."""
        view = epoch % self.views
        if view not in self.kept:
            self.kept[view] = self._found(view) or self._computed(view, on_boundary)
        sampler = evolve(self.batches.sampler)
        loader: Any = FeatureLoader(sampler, *self.kept[view])
        return evolve(self.batches, loader=loader, sampler=sampler, on_device_transform=identity, pids=None)

    def _found(self, view: int) -> tuple[Tensor, Tensor] | None:
        """Return what an earlier run has kept of a view, if every process has it, and its first batch is that of now.

        The first batch is computed all the same: a file's name cannot tell what a plugin's code has changed.
        """
        if not self.cache:
            return None
        file = self.cache.file(self.batches, view, self.size)
        found = frozen_features_cache.read(file)
        good = found is not None and self._matches_first_batch(view, *found)
        if found and not good:
            structlog.get_logger().warning(
                "cached features of an earlier run differ; computing them again", file=str(file)
            )
        if float(self.placement.reduce(float(good))) < self.placement.world_size:
            return None
        structlog.get_logger().info("reused from an earlier run", view=view, file=str(file))
        return found

    def _matches_first_batch(self, view: int, features: Tensor, targets: Tensor) -> bool:
        if not len(features) == len(targets) == len(self.batches.samples):
            return False
        batch = next(self.batches.sequential(view, self.size))
        own = rank_slice(len(batch.indices), self.placement.rank, self.placement.world_size)
        same = torch.equal(targets[own], batch.targets.cpu()[: len(targets[own])])
        return same and allclose_norm(self.compute(batch.images).cpu()[: len(features[own])], features[own])

    def _computed(self, view: int, on_boundary: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Compute a view in batches that are the same at any time, for a batch's size may show in the last bits."""
        count, start, said = len(self.batches.samples), 0, time.monotonic()
        kept: list[Tensor] = []
        for batch in self.batches.sequential(view, self.size):
            on_boundary()
            own = self.compute(batch.images), batch.targets
            rows = [gather_batch(tensor, len(batch.indices), self.placement).cpu() for tensor in own]
            kept = kept or [frozen_features_cache.allocate(tensor, count, in_memory=self.in_memory) for tensor in rows]
            for tensor, part in zip(kept, rows, strict=True):
                tensor[start : start + len(part)] = part
            start += len(batch.indices)
            if self.placement.rank == 0 and time.monotonic() - said >= PROGRESS_S:
                said = time.monotonic()
                print_progress(f"caching features: {start:,} of {count:,} images")
        features, targets = kept
        if self.cache and self.placement.rank == 0:
            frozen_features_cache.write(self.cache.file(self.batches, view, self.size), features, targets)
        structlog.get_logger().info(
            "features cached", images=count, view=view, megabytes=round(features.nbytes / 1e6, 1)
        )
        return features, targets


@frozen(eq=False)
class FeatureLoader:
    """Batches of rows of features and targets, as a sampler orders them."""

    sampler: EpochSampler
    features: Tensor
    targets: Tensor

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.sampler:
            rows = torch.tensor([index for _, index in batch])
            yield Batch(self.features[rows], self.targets[rows], rows)


@frozen(eq=False)
class FrozenFeatures:
    """Which features are cached, and until which epoch.

    Attributes:
        train: what is kept of the images to learn from.
        val: likewise, of those to measure on.
        split_point: where.
        note: for the user.
    """

    train: FeatureStore
    val: FeatureStore
    split_point: SplitPoint
    note: str

    def parts_for_epoch(self, parts: TrainingParts, epoch: int, on_boundary: Callable[[], None]) -> TrainingParts:
        """Return the parts with which an epoch (from 0) is trained and evaluated: the same, or those behind the cut."""
        if epoch >= self.split_point.until_epoch:
            self.train.kept.clear()  # nobody needs them any more
            self.val.kept.clear()
            return parts
        network, placement, tail = parts.network, parts.placement, self.split_point.tail
        train, val = self.train.loader_for_epoch(epoch, on_boundary), self.val.loader_for_epoch(0, on_boundary)
        placed = placement.rewrap(tail(network)) if placement.rewrap else evolve(placement, model=tail(network))
        placed = evolve(placed, unwrap=lambda _: network)
        return evolve(parts, data=evolve(parts.data, train=train, val=val), to_trained_module=tail, placement=placed)


def plan_precompute(
    parts: TrainingParts,
    network: Network,
    origin: Callable[[str], str],
    cache: Callable[[SplitPoint, int], FeatureCache | None],
) -> tuple[FrozenFeatures | None, str]:
    """Return which features of a run are cached; or nothing, and why not, if its network is frozen before the head.

    Args:
        parts: of the run.
        network: with its transforms.
        origin: key -> where it was set.
        cache: cut and bytes -> where so many are kept for later runs, or None.

    Raises:
        UserError: ``train.precompute`` or ``train.views`` asks for it, and it cannot be.
    """
    settings, point = parts.train_config, find_split_point(parts, network.spec)
    asked = {"views": settings.views, "precompute": settings.precompute == "always"}
    keys = [key for key, value in asked.items() if value]
    if settings.precompute == "never" or not (point or keys):
        return None, ""
    reason = _why_not(parts, network.transforms, point) or _too_large_or_unstable(parts, network.spec, point)
    if reason and keys:
        raise UserError(
            f"train.{keys[0]} = {getattr(settings, keys[0])!r} ({origin(f'train.{keys[0]}')}), but "
            f"features cannot be cached: {reason}"
        )
    return (None, reason) if reason or point is None else (_build(parts, network.spec, point, cache), "")


def _why_not(parts: TrainingParts, transforms: Transforms, point: SplitPoint | None) -> str:
    if reason := why_not_splittable(parts):
        return reason
    views = parts.train_config.views
    random = transforms.train != transforms.evaluate
    reasons: dict[str, Any] = {
        "layers before the head are trainable from the first epoch on": not point,
        f"the network has {len(parts.heads)} heads": len(parts.heads) > 1
        and point is not None
        and point.recorded_outputs is None,
        "the network consists only of its head": parts.heads == ("",),
        "images are changed in batches": parts.data.batch_transforms,
        f"loss terms need the images: {', '.join(parts.objective.step.terms)}": parts.objective.step.terms,
        "training images are augmented; train.views = K caches K views of each": random and not views,
        "training images are not augmented, so all views would be the same": views and not random,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _too_large_or_unstable(parts: TrainingParts, spec: InputSpec, point: SplitPoint | None) -> str:
    """Say what else speaks against a cut: what is seen there is not the same at any time, or takes too much room."""
    if point is None:
        return ""
    size = _size(parts, spec, point.module)
    if point.recorded_outputs is None:
        return check_head_split(parts, spec) or _shortage(size)
    if point.module in parts.heads:
        return _shortage(size)
    return f"the input of {point.module} needs {size / 1e9:.1f} GB" if size > MAX_IN_MEMORY_BYTES else ""


def _probe_features(parts: TrainingParts, spec: InputSpec, at: str) -> Tensor:
    with preserve_module_state(parts):
        parts.network.eval()
        return module_input(parts, spec.zeros(1, parts.placement.device), at)


def _size(parts: TrainingParts, spec: InputSpec, at: str) -> int:
    """Return the bytes of all that is kept."""
    images = (parts.train_config.views or 1) * len(parts.data.train.samples) + len(parts.data.val.samples)
    return images * _probe_features(parts, spec, at).nbytes


def _build(
    parts: TrainingParts, spec: InputSpec, point: SplitPoint, cache: Callable[[SplitPoint, int], FeatureCache | None]
) -> FrozenFeatures:
    size, shape = (
        _size(parts, spec, point.module),
        " x ".join(map(str, _probe_features(parts, spec, point.module).shape[1:])),
    )
    in_memory, compute = size <= MAX_IN_MEMORY_BYTES, partial(_evaluated, parts, at=point.module)
    at_a_time = parts.train_config.effective_eval_batch_size
    splits = (parts.data.train, parts.train_config.views or 1), (parts.data.val, 1)
    later = cache(point, size) if in_memory else None
    train, val = (
        FeatureStore(batches, compute, parts.placement, at_a_time, views, in_memory, later) for batches, views in splits
    )
    epochs = f", up to epoch {point.until_epoch}" if point.until_epoch < parts.train_config.epochs else ""
    note = f"the input of {point.module} for each image, {shape} numbers, {size / 1e6:.1f} MB{epochs}"
    if later:
        note += f"; cached for later runs in {later.folder}"
    return FrozenFeatures(train, val, point, note)


def _evaluated(parts: TrainingParts, images: Tensor, at: str) -> Tensor:
    parts.network.eval()
    return module_input(parts, images, at)


def _shortage(size: int) -> str:
    """Say that there is no room for so many bytes, where there is not."""
    folder = cache_folder() if size > MAX_IN_MEMORY_BYTES else None
    free = shutil.disk_usage(folder).free if folder else 0
    full = size > MAX_IN_MEMORY_BYTES and free < size
    return f"they need {size / 1e9:.1f} GB, but {folder or 'the cache'} has {free / 1e9:.1f} GB free" if full else ""
