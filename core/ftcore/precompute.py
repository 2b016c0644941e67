"""What is frozen is computed once: what learns is fed with what it sees of each image, which is kept.

A rewriting of the parts for the epochs in which everything before the head, or before some block, is frozen: other
batches and a smaller network, in the same loop. Full networks are evaluated and saved in name and in substance: only
what learns differs from epoch to epoch.
"""

from __future__ import annotations

import shutil
from functools import partial
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import platformdirs
import structlog
import torch
from attrs import define, evolve, field, frozen

from . import featurecache
from .cuts import as_it_was, difference, find_cut, near, seen, wrapped
from .errors import UserError
from .loading import Batch, EpochSampler, share, whole
from .parts import as_is

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from .assemble import Network
    from .backbone import InputSpec
    from .cuts import Cut
    from .featurecache import FeatureCache
    from .loading import Batches
    from .parts import Placement, Transforms
    from .state import Parts

IN_MEMORY = 4 * 10**9
"""Bytes of features, of both splits, beyond which they are in a file that the system keeps in memory as it can."""


@define(eq=False)
class Features:
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

    batches: Batches
    compute: Callable[[Tensor], Tensor]
    placement: Placement
    size: int
    views: int
    in_memory: bool
    cache: FeatureCache | None = None
    kept: dict[int, tuple[Tensor, Tensor]] = field(factory=dict)

    def ready(self, epoch: int, between: Callable[[], None]) -> Batches:
        """Return the batches of an epoch (from 0), once its view is computed."""
        view = epoch % self.views
        if view not in self.kept:
            self.kept[view] = self._found(view) or self._computed(view, between)
        sampler = evolve(self.batches.sampler)
        loader: Any = Rows(sampler, *self.kept[view])
        return evolve(self.batches, loader=loader, sampler=sampler, finish=as_is, pids=None)

    def _found(self, view: int) -> tuple[Tensor, Tensor] | None:
        """Return what an earlier run has kept of a view, if every process has it, and its first batch is that of now.

        The first batch is computed all the same: a file's name cannot tell what a plugin's code has changed.
        """
        if not self.cache:
            return None
        file = self.cache.file(self.batches, view, self.size)
        found = featurecache.read(file)
        good = found is not None and self._agrees(view, *found)
        if found and not good:
            structlog.get_logger().warning("features of an earlier run are not those of now", file=str(file))
        if float(self.placement.reduce(float(good))) < self.placement.world_size:
            return None
        structlog.get_logger().info("computed by an earlier run", view=view, file=str(file))
        return found

    def _agrees(self, view: int, features: Tensor, targets: Tensor) -> bool:
        if not len(features) == len(targets) == len(self.batches.samples):
            return False
        batch = next(self.batches.in_order(view, self.size))
        own = share(len(batch.indices), self.placement.rank, self.placement.world_size)
        same = torch.equal(targets[own], batch.targets.cpu()[: len(targets[own])])
        return same and near(self.compute(batch.images).cpu()[: len(features[own])], features[own])

    def _computed(self, view: int, between: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Compute a view in batches that are the same at any time, for a batch's size may show in the last bits."""
        count, start = len(self.batches.samples), 0
        kept: list[Tensor] = []
        for batch in self.batches.in_order(view, self.size):
            between()
            own = self.compute(batch.images), batch.targets
            rows = [whole(tensor, len(batch.indices), self.placement).cpu() for tensor in own]
            kept = kept or [_room(tensor, count, in_memory=self.in_memory) for tensor in rows]
            for tensor, part in zip(kept, rows, strict=True):
                tensor[start : start + len(part)] = part
            start += len(batch.indices)
        features, targets = kept
        if self.cache and self.placement.rank == 0:
            featurecache.write(self.cache.file(self.batches, view, self.size), features, targets)
        structlog.get_logger().info("computed once", images=count, view=view, megabytes=round(features.nbytes / 1e6, 1))
        return features, targets


@frozen(eq=False)
class Rows:
    """Batches of rows of features and targets, as a sampler orders them."""

    sampler: EpochSampler
    features: Tensor
    targets: Tensor

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.sampler:
            rows = torch.tensor([index for _, index in batch])
            yield Batch(self.features[rows], self.targets[rows], rows)


@frozen(eq=False)
class Precomputed:
    """What is computed once, and for how long.

    Attributes:
        train: what is kept of the images to learn from.
        val: likewise, of those to measure on.
        cut: where.
        note: for the user.
    """

    train: Features
    val: Features
    cut: Cut
    note: str


def parts_in(parts: Parts, epoch: int, between: Callable[[], None] = lambda: None) -> Parts:
    """Return the parts with which an epoch (from 0) is trained and evaluated: the same, or those behind the cut."""
    once = parts.precomputed
    if once is None:
        return parts
    if epoch >= once.cut.until:
        once.train.kept.clear()  # nobody needs them any more
        once.val.kept.clear()
        return parts
    network, placement, through = parts.network, parts.placement, once.cut.through
    train, val, behind = once.train.ready(epoch, between), once.val.ready(0, between), through(network)
    placed = placement.around(behind) if placement.around else evolve(placement, model=behind)
    return evolve(parts, train=train, val=val, through=through, placement=evolve(placed, unwrap=lambda _: network))


def precomputed(
    parts: Parts, network: Network, origin: Callable[[str], str], cache: Callable[[Cut, int], FeatureCache | None]
) -> tuple[Precomputed | None, str]:
    """Return what of a run is computed once; or nothing, and why, if its network is frozen before the head.

    Args:
        parts: of the run.
        network: with its transforms.
        origin: key -> where it was set.
        cache: cut and bytes -> where so many are kept for later runs, or None.

    Raises:
        UserError: ``train.precompute`` or ``train.views`` asks for it, and it cannot be.
    """
    settings, cut = parts.settings, find_cut(parts, network.spec)
    asked = {"views": settings.views, "precompute": settings.precompute == "always"}
    keys = [key for key, value in asked.items() if value]
    if settings.precompute == "never" or not (cut or keys):
        return None, ""
    reason = _obstacle(parts, network.transforms, cut) or _too_much(parts, network.spec, cut)
    if reason and keys:
        raise UserError(
            f"train.{keys[0]} = {getattr(settings, keys[0])!r} ({origin(f'train.{keys[0]}')}), but nothing can be "
            f"computed once: {reason}"
        )
    return (None, reason) if reason or cut is None else (_made(parts, network.spec, cut, cache), "")


def _obstacle(parts: Parts, transforms: Transforms, cut: Cut | None) -> str:
    if reason := wrapped(parts):
        return reason
    views = parts.settings.views
    random = transforms.train != transforms.evaluate
    reasons: dict[str, Any] = {
        "something before the head learns from the first epoch on": not cut,
        f"the network has {len(parts.heads)} heads": len(parts.heads) > 1 and cut is not None and cut.before is None,
        "the network is nothing but its head": parts.heads == ("",),
        "images are changed in batches": parts.batch_transforms,
        f"the step looks at images: {', '.join(parts.step.terms)}": parts.step.terms,
        "training images are augmented; train.views = K learns from K views of each": random and not views,
        "training images are not augmented, so all views would be the same": views and not random,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _too_much(parts: Parts, spec: InputSpec, cut: Cut | None) -> str:
    """Say what else speaks against a cut: what is seen there is not the same at any time, or takes too much room."""
    if cut is None:
        return ""
    size = _size(parts, spec, cut.at)
    if cut.before is None:
        return difference(parts, spec) or _shortage(size)
    return f"what {cut.at} sees takes {size / 1e9:.1f} GB" if size > IN_MEMORY else ""


def _one(parts: Parts, spec: InputSpec, at: str) -> Tensor:
    with as_it_was(parts):
        parts.network.eval()
        return seen(parts, spec.blank(1, parts.placement.device), at)


def _size(parts: Parts, spec: InputSpec, at: str) -> int:
    """Return the bytes of all that is kept."""
    images = (parts.settings.views or 1) * len(parts.train.samples) + len(parts.val.samples)
    return images * _one(parts, spec, at).nbytes


def _made(parts: Parts, spec: InputSpec, cut: Cut, cache: Callable[[Cut, int], FeatureCache | None]) -> Precomputed:
    size, shape = _size(parts, spec, cut.at), " x ".join(map(str, _one(parts, spec, cut.at).shape[1:]))
    in_memory, compute = size <= IN_MEMORY, partial(_evaluated, parts, at=cut.at)
    at_a_time = parts.settings.evaluated
    splits = (parts.train, parts.settings.views or 1), (parts.val, 1)
    later = cache(cut, size) if in_memory else None
    train, val = (
        Features(batches, compute, parts.placement, at_a_time, views, in_memory, later) for batches, views in splits
    )
    epochs = f", up to epoch {cut.until}" if cut.until < parts.settings.epochs else ""
    note = f"what {cut.at} sees of each image, {shape} numbers, {size / 1e6:.1f} MB{epochs}"
    if later:
        note += f"; kept for later runs in {later.folder}"
    return Precomputed(train, val, cut, note)


def _evaluated(parts: Parts, images: Tensor, at: str) -> Tensor:
    parts.network.eval()
    return seen(parts, images, at)


def _shortage(size: int) -> str:
    """Say that there is no room for so many bytes, where there is not."""
    folder = platformdirs.user_cache_path("ftcore", ensure_exists=True)
    free = shutil.disk_usage(folder).free
    full = size > IN_MEMORY and free < size
    return f"it takes {size / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free" if full else ""


def _room(like: Tensor, rows: int, *, in_memory: bool) -> Tensor:
    """Make a tensor of so many rows, in main memory or in a file that nobody else sees, gone with the process."""
    shape, dtype = (rows, *like.shape[1:]), like.dtype
    if in_memory:
        return torch.empty(shape, dtype=dtype)
    folder = platformdirs.user_cache_path("ftcore", ensure_exists=True)
    count = torch.Size(shape).numel()
    with NamedTemporaryFile(dir=folder) as file:
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)
