"""What is frozen is computed once: the head learns from what it sees of each image, which is kept.

A rewriting of the parts for the epochs in which everything before the head is frozen: other batches and a smaller
network, in the same loop. Full networks are evaluated and saved in name and in substance: only the head differs from
epoch to epoch.
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
from torch import nn

from . import freezing
from .errors import UserError
from .freezing import is_under
from .loading import Batch, EpochSampler
from .parts import as_is
from .shapes import as_tuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from .assemble import Network
    from .backbone import InputSpec
    from .loading import Batches
    from .parts import Transforms
    from .state import Parts

IN_MEMORY = 4 * 10**9
"""Bytes of features, of both splits, beyond which they are in a file that the system keeps in memory as it can."""


class HeadAlone(nn.Module):
    """What the head of a network sees (N, ...) -> what the network gives (N, K); the network goes along, unused."""

    def __init__(self, head: str, network: nn.Module) -> None:
        super().__init__()
        self.head, self.network = head, network

    def forward(self, features: Tensor) -> Tensor:
        """Call the head; a convolutional one gives (N, K, 1, 1)."""
        outputs: Tensor = self.network.get_submodule(self.head)(features)
        return outputs.flatten(1)


@define(eq=False)
class Features:
    """What the head sees of each image of a split.

    Attributes:
        batches: of images.
        compute: images (N, C, H, W) -> what the head sees of them (N, ...).
        views: of each image; epoch e learns from view e modulo that.
        in_memory: whether they are in main memory, not in a file.
        kept: view -> (features (N, ...), targets (N, ...)), in the order of the split.
    """

    batches: Batches
    compute: Callable[[Tensor], Tensor]
    views: int
    in_memory: bool
    kept: dict[int, tuple[Tensor, Tensor]] = field(factory=dict)

    def ready(self, epoch: int, between: Callable[[], None]) -> Batches:
        """Return the batches of an epoch (from 0), once its view is computed."""
        view = epoch % self.views
        if view not in self.kept:
            self.kept[view] = self._computed(view, between)
        sampler = evolve(self.batches.sampler)
        loader: Any = Rows(sampler, *self.kept[view])
        return evolve(self.batches, loader=loader, sampler=sampler, finish=as_is, pids=None)

    def _computed(self, view: int, between: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Compute a view in batches that are the same at any time, for a batch's size may show in the last bits."""
        count, start = len(self.batches.samples), 0
        kept: list[Tensor] = []
        for batch in self.batches.in_order(view):
            between()
            rows = [self.compute(batch.images).cpu(), batch.targets.cpu()]
            kept = kept or [_room(tensor, count, in_memory=self.in_memory) for tensor in rows]
            for tensor, part in zip(kept, rows, strict=True):
                tensor[start : start + len(part)] = part
            start += len(batch.targets)
        features, targets = kept
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
        train: what the head sees of the images to learn from.
        val: likewise, of those to measure on.
        head: path of the head.
        until: first epoch (from 0) in which something before the head learns.
        note: for the user.
    """

    train: Features
    val: Features
    head: str
    until: int
    note: str


def parts_in(parts: Parts, epoch: int, between: Callable[[], None] = lambda: None) -> Parts:
    """Return the parts with which an epoch (from 0) is trained and evaluated: the same, or those of the head alone."""
    once = parts.precomputed
    if once is None:
        return parts
    if epoch >= once.until:
        once.train.kept.clear()  # nobody needs them any more
        once.val.kept.clear()
        return parts
    network, through = parts.network, partial(HeadAlone, once.head)
    return evolve(
        parts,
        train=once.train.ready(epoch, between),
        val=once.val.ready(0, between),
        through=through,
        placement=evolve(parts.placement, model=through(network), unwrap=lambda _: network),
    )


def precomputed(parts: Parts, network: Network, origin: Callable[[str], str]) -> tuple[Precomputed | None, str]:
    """Return what of a run is computed once; or nothing, and why, if its network is frozen before the head.

    Args:
        parts: of the run.
        network: with its transforms.
        origin: key -> where it was set.

    Raises:
        UserError: ``train.precompute`` or ``train.views`` asks for it, and it cannot be.
    """
    settings, until = parts.settings, _until(parts)
    asked = {"views": settings.views, "precompute": settings.precompute == "always"}
    keys = [key for key, value in asked.items() if value]
    if settings.precompute == "never" or not (until or keys):
        return None, ""
    reason = (
        _obstacle(parts, network.transforms, until)
        or _difference(parts, network.spec)
        or _shortage(_size(parts, network.spec))
    )
    if reason and keys:
        raise UserError(
            f"train.{keys[0]} = {getattr(settings, keys[0])!r} ({origin(f'train.{keys[0]}')}), but nothing can be "
            f"computed once: {reason}"
        )
    return (None, reason) if reason else (_made(parts, network.spec, until), "")


def _until(parts: Parts) -> int:
    """Return how many epochs pass before something outside the heads learns or leaves eval mode; at most all."""
    epochs = range(parts.settings.epochs)
    return next((epoch for epoch in epochs if not _is_still(parts, epoch)), len(epochs))


def _is_still(parts: Parts, epoch: int) -> bool:
    network, plan, heads = parts.network, parts.plan, parts.heads
    released = freezing.thawed(plan, epoch)
    learning = [name for name, _ in network.named_parameters() if freezing.learns(plan, name, released)]
    modules = [name for name, _ in network.named_modules() if not any(is_under(head, [name]) for head in heads)]
    moving = [name for name in modules if not freezing.is_held(plan, name, released)]
    return all(is_under(name, heads) for name in (*learning, *moving))


def _obstacle(parts: Parts, transforms: Transforms, until: int) -> str:
    placement, views = parts.placement, parts.settings.views
    random = transforms.train != transforms.evaluate
    reasons: dict[str, Any] = {
        "something before the head learns from the first epoch on": not until,
        f"the network has {len(parts.heads)} heads": len(parts.heads) > 1,
        "the network is nothing but its head": parts.heads == ("",),
        f"{placement.world_size} processes share each batch": placement.world_size > 1,
        f"the network is wrapped in {type(placement.model).__name__}": placement.model is not parts.network,
        "the network is compiled": parts.network._compiled_call_impl,  # noqa: SLF001 - nothing else says so
        "images are changed in batches": parts.batch_transforms,
        f"the step looks at images: {', '.join(parts.step.terms)}": parts.step.terms,
        "training images are augmented; train.views = K learns from K views of each": random and not views,
        "training images are not augmented, so all views would be the same": views and not random,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _difference(parts: Parts, spec: InputSpec) -> str:
    """Try whether the network gives what its head does, and whether that sees the same in train mode at any time."""
    network = parts.network
    with torch.random.fork_rng(), torch.no_grad(), parts.precision.autocast():
        images = spec.drawn(2, parts.placement.device)
        network.eval()
        features = _seen(parts, images)
        network.train()
        freezing.hold(network, parts.plan, 0)
        if _goes_on(network, parts.heads[0], images):
            return f"the network goes on behind its head {parts.heads[0]}"
        if not all(_near(_seen(parts, images), features) for _ in range(3)):
            return "what the head sees of an image is not always the same in train mode"
    return ""


def _goes_on(network: nn.Module, head: str, images: Tensor) -> bool:
    """Whether a network changes what its head gives; tried with noise in its place, for a new head may give zeros."""
    noise: list[Tensor] = []

    def replaced(_module: nn.Module, _given: Any, outputs: Tensor) -> Tensor:
        noise.append(torch.randn_like(outputs))
        return noise[-1]

    handle = network.get_submodule(head).register_forward_hook(replaced)
    try:
        given = as_tuple(network(images))
    finally:
        handle.remove()
    return len(given) > 1 or not torch.equal(given[0], noise[-1].flatten(1))


def _near(some: Tensor, others: Tensor) -> bool:
    """Whether two tensors are the same but for the order of sums, which differs on some GPUs."""
    return some.shape == others.shape and bool((some - others).float().norm() <= 1e-4 * others.float().norm())


def _seen(parts: Parts, images: Tensor) -> Tensor:
    """Images (N, C, H, W) -> what the head sees of them (N, ...)."""
    seen: list[Tensor] = []
    head = parts.network.get_submodule(parts.heads[0])
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        with torch.no_grad(), parts.precision.autocast():
            parts.network(images)
    finally:
        handle.remove()
    (features,) = seen
    return features


def _one(parts: Parts, spec: InputSpec) -> Tensor:
    return _seen(parts, spec.blank(1, parts.placement.device))


def _size(parts: Parts, spec: InputSpec) -> int:
    """Return the bytes of all features."""
    images = (parts.settings.views or 1) * len(parts.train.samples) + len(parts.val.samples)
    return images * _one(parts, spec).nbytes


def _made(parts: Parts, spec: InputSpec, until: int) -> Precomputed:
    size, shape = _size(parts, spec), " x ".join(map(str, _one(parts, spec).shape[1:]))
    in_memory, compute = size <= IN_MEMORY, partial(_evaluated, parts)
    train = Features(parts.train, compute, parts.settings.views or 1, in_memory)
    epochs = f", up to epoch {until}" if until < parts.settings.epochs else ""
    note = f"what {parts.heads[0]} sees of each image, {shape} numbers, {size / 1e6:.1f} MB{epochs}"
    return Precomputed(train, Features(parts.val, compute, 1, in_memory), parts.heads[0], until, note)


def _evaluated(parts: Parts, images: Tensor) -> Tensor:
    parts.network.eval()
    return _seen(parts, images)


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
