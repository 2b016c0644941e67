"""What is frozen is computed once: what learns is fed with what it sees of each image, which is kept.

A rewriting of the parts for the epochs in which everything before the head, or before some block, is frozen: other
batches and a smaller network, in the same loop. Full networks are evaluated and saved in name and in substance: only
what learns differs from epoch to epoch.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
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


class Behind(nn.Module):
    """What a module within a network sees (N, ...) -> what the network gives; modules before it hand on what they get.

    Where `before` is all that changes an input on its way to that module, which is tried before it is used.
    """

    def __init__(self, before: tuple[str, ...], network: nn.Module) -> None:
        super().__init__()
        self.before, self.network = before, network

    def forward(self, features: Tensor) -> Any:
        """Call the network, without what was computed already."""
        passed: list[Any] = [self.network.get_submodule(path) for path in self.before]
        for module in passed:
            module.forward = as_is  # in the place of the class's own
        try:
            return self.network(features)
        finally:
            for module in passed:
                del module.forward


@frozen
class Cut:
    """Where a network is cut in two.

    Attributes:
        at: path of the module whose input is kept: the head, or one before it.
        before: paths of the modules that are passed over; None where the head is called alone.
        until: first epoch (from 0) in which something before it learns, or leaves eval mode.
    """

    at: str
    before: tuple[str, ...] | None
    until: int

    def through(self, network: nn.Module) -> nn.Module:
        """Return what is kept -> what the network gives."""
        return HeadAlone(self.at, network) if self.before is None else Behind(self.before, network)


@define(eq=False)
class Features:
    """What is kept of each image of a split.

    Attributes:
        batches: of images.
        compute: images (N, C, H, W) -> what is kept of them (N, ...).
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
    network, through = parts.network, once.cut.through
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
    settings, cut = parts.settings, _cut(parts, network.spec)
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
    return (None, reason) if reason or cut is None else (_made(parts, network.spec, cut), "")


def _cut(parts: Parts, spec: InputSpec) -> Cut | None:
    """Return where a network can be cut for its first epochs: at its head, or before the first block that learns."""
    if until := _until(parts):
        return Cut(parts.heads[0], None, until)
    if not parts.plan.held or _wrapped(parts) or parts.settings.precompute == "never":
        return None
    with _as_it_was(parts), parts.precision.autocast():
        images = spec.drawn(2, parts.placement.device)
        return next((cut for cut in _cuts(parts, images) if _is_sound(parts, cut, images)), None)


@contextmanager
def _as_it_was(parts: Parts) -> Iterator[None]:
    """Leave modes, running statistics and random generators as they are."""
    network = parts.network
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with torch.random.fork_rng(), torch.no_grad():
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, before in buffers:
                buffer.copy_(before)


def _cuts(parts: Parts, images: Tensor) -> Iterator[Cut]:
    """Yield cuts before the first module that learns, and before those that it lies in, the innermost first."""
    parts.network.eval()
    calls = _calls(parts.network, images)
    first = next((path for path, begins in calls if begins and not _stands(parts, path, 0, alone=True)), "")
    segments = first.split(".")
    for depth in range(len(segments), 0, -1):
        at = ".".join(segments[:depth])
        done = [path for path, begins in calls[: calls.index((at, True))] if not begins]
        before = tuple(path for path in done if not is_under(path, [other for other in done if other != path]))
        epochs = range(parts.settings.epochs)
        moves = (epoch for epoch in epochs if not all(_stands(parts, path, epoch) for path in before))
        until = next(moves, len(epochs))
        if before and until:
            yield Cut(at, before, until)


def _calls(network: nn.Module, images: Tensor) -> list[tuple[str, bool]]:
    """Return the modules that a pass calls, as (path, True) where one begins and (path, False) where it is done."""
    calls: list[tuple[str, bool]] = []
    handles = []
    for path, module in network.named_modules():
        if path:
            handles.append(module.register_forward_pre_hook(lambda _, __, path=path: calls.append((path, True))))
            handles.append(module.register_forward_hook(lambda _, __, ___, path=path: calls.append((path, False))))
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _stands(parts: Parts, path: str, epoch: int, *, alone: bool = False) -> bool:
    """Whether nothing in a module learns in an epoch, or leaves eval mode; or nothing but what lies in others in it."""
    plan, module = parts.plan, parts.network.get_submodule(path)
    released = freezing.thawed(plan, epoch)
    names = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=not alone)]
    acts = not alone or next(module.children(), None) is None  # of a container, its parts say so themselves
    held = not acts or freezing.is_held(plan, path, released) or not (names or _changes(module))
    return held and not any(freezing.learns(plan, name, released) for name in names)


def _changes(module: nn.Module) -> bool:
    """Whether a module without parameters is another in train mode: dropout, or a norm with running statistics."""
    kind = type(module).__name__.lower()
    return "drop" in kind or next(module.buffers(), None) is not None


def _is_sound(parts: Parts, cut: Cut, images: Tensor) -> bool:
    """Try whether what lies behind a cut gives what the network does, in eval mode and in train mode."""
    try:
        return _gives_the_same(parts, cut, images)
    except Exception:  # noqa: BLE001 - whatever a network says to what it was not made for
        return False


def _gives_the_same(parts: Parts, cut: Cut, images: Tensor) -> bool:
    network = parts.network
    for mode in (False, True):
        network.train(mode)
        if mode:
            freezing.hold(network, parts.plan, 0)
        seen = _seen(parts, images, cut.at)
        given = []
        for model, fed in ((network, images), (cut.through(network), seen)):
            torch.manual_seed(0)
            given.append(as_tuple(model(fed)))
        if not all(torch.equal(one, other) for one, other in zip(*given, strict=True)):
            return False
    return True


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


def _wrapped(parts: Parts) -> str:
    """Say what keeps a network from being called in parts, if something does."""
    placement, kind = parts.placement, type(parts.placement.model).__name__
    if placement.world_size > 1:
        return f"{placement.world_size} processes share each batch"
    if placement.model is not parts.network:
        return f"the network is wrapped in {kind}"
    return "the network is compiled" if parts.network._compiled_call_impl else ""  # noqa: SLF001 - nothing else says so


def _obstacle(parts: Parts, transforms: Transforms, cut: Cut | None) -> str:
    if wrapped := _wrapped(parts):
        return wrapped
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
        return _difference(parts, spec) or _shortage(size)
    return f"what {cut.at} sees takes {size / 1e9:.1f} GB" if size > IN_MEMORY else ""


def _difference(parts: Parts, spec: InputSpec) -> str:
    """Try whether the network gives what its head does, and whether that sees the same in train mode at any time."""
    network = parts.network
    with _as_it_was(parts), parts.precision.autocast():
        images = spec.drawn(2, parts.placement.device)
        network.eval()
        features = _seen(parts, images, parts.heads[0])
        network.train()
        freezing.hold(network, parts.plan, 0)
        if _goes_on(network, parts.heads[0], images):
            return f"the network goes on behind its head {parts.heads[0]}"
        if not all(_near(_seen(parts, images, parts.heads[0]), features) for _ in range(3)):
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


def _seen(parts: Parts, images: Tensor, at: str) -> Tensor:
    """Images (N, C, H, W) -> what a module sees of them (N, ...)."""
    seen: list[Tensor] = []
    handle = parts.network.get_submodule(at).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        with torch.no_grad(), parts.precision.autocast():
            parts.network(images)
    finally:
        handle.remove()
    (features,) = seen
    return features


def _one(parts: Parts, spec: InputSpec, at: str) -> Tensor:
    with _as_it_was(parts):
        parts.network.eval()
        return _seen(parts, spec.blank(1, parts.placement.device), at)


def _size(parts: Parts, spec: InputSpec, at: str) -> int:
    """Return the bytes of all that is kept."""
    images = (parts.settings.views or 1) * len(parts.train.samples) + len(parts.val.samples)
    return images * _one(parts, spec, at).nbytes


def _made(parts: Parts, spec: InputSpec, cut: Cut) -> Precomputed:
    size, shape = _size(parts, spec, cut.at), " x ".join(map(str, _one(parts, spec, cut.at).shape[1:]))
    in_memory, compute = size <= IN_MEMORY, partial(_evaluated, parts, at=cut.at)
    train = Features(parts.train, compute, parts.settings.views or 1, in_memory)
    epochs = f", up to epoch {cut.until}" if cut.until < parts.settings.epochs else ""
    note = f"what {cut.at} sees of each image, {shape} numbers, {size / 1e6:.1f} MB{epochs}"
    return Precomputed(train, Features(parts.val, compute, 1, in_memory), cut, note)


def _evaluated(parts: Parts, images: Tensor, at: str) -> Tensor:
    parts.network.eval()
    return _seen(parts, images, at)


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
