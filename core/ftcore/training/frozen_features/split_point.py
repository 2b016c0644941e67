"""Where a network is cut in two: what comes before the cut is frozen, and gives the same for an image at any time."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import nn

from ftcore.model import freezing
from ftcore.model.freezing import is_submodule_of
from ftcore.model.shape_inference import as_tuple

from .module_calls import outermost, record_calls, record_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from ftcore.training.state import TrainingParts
    from ftcore.types.model import InputSpec


class HeadOnly(nn.Module):
    """What the head of a network sees (N, ...) -> what the network gives (N, K); the network goes along, unused."""

    def __init__(self, head: str, network: nn.Module) -> None:
        super().__init__()
        self.head, self.network = head, network

    def forward(self, features: Tensor) -> Tensor:
        """Call the head; a convolutional one gives (N, K, 1, 1)."""
        outputs: Tensor = self.network.get_submodule(self.head)(features)
        return outputs.flatten(1)


class TailNetwork(nn.Module):
    """What a module within a network sees (N, ...) -> what the network gives; modules before it compute nothing.

    They give what they gave for one image, whatever they get, and what comes of it ends where that module is fed with
    the features. Whether nothing else comes of it is tried before it is used.
    """

    def __init__(self, point: SplitPoint, network: nn.Module) -> None:
        super().__init__()
        self.point, self.network = point, network

    def forward(self, features: Tensor) -> Any:
        """Call the network, without what was computed already."""
        rows, given = len(features), self.point.recorded_outputs or {}
        passed: list[Any] = [self.network.get_submodule(path) for path in given]
        for module, output in zip(passed, given.values(), strict=True):
            module.forward = partial(_expand_rows, output, rows)  # in the place of the class's own
        at = self.network.get_submodule(self.point.module)
        handle = at.register_forward_pre_hook(lambda _, inputs: (features, *inputs[1:]))
        try:
            return self.network(_expand_rows(self.point.image, rows))
        finally:
            handle.remove()
            for module in passed:
                del module.forward


def _expand_rows(row: Tensor, rows: int, *_: Any, **__: Any) -> Tensor:
    """Tensor (1, ...) -> (N, ...), in the memory of one row."""
    return row.expand(rows, *row.shape[1:])


@frozen(eq=False)
class SplitPoint:
    """Where a network is cut in two.

    Attributes:
        module: path of the module whose input is kept: the head, or one before it.
        until_epoch: first epoch (from 0) in which something before it learns, or leaves eval mode.
        recorded_outputs: path of a module that is passed over -> what it gave for an image (1, ...); None where the
            head is called alone.
        image: (1, C, H, W), that one.
    """

    module: str
    until_epoch: int
    recorded_outputs: Mapping[str, Tensor] | None = None
    image: Any = None

    def tail(self, network: nn.Module) -> nn.Module:
        """Return what is kept -> what the network gives."""
        return HeadOnly(self.module, network) if self.recorded_outputs is None else TailNetwork(self, network)


def find_split_point(parts: TrainingParts, spec: InputSpec) -> SplitPoint | None:
    """Return where a network can be cut for its first epochs: at its head, or before the first block that learns."""
    until = _epochs_backbone_frozen(parts)
    head = SplitPoint(parts.heads[0], until) if until else None
    if not parts.plan.eval_modules or why_not_splittable(parts) or parts.train_config.precompute == "never":
        return head
    with preserve_module_state(parts), _randomise_zero_parameters(parts.network), parts.precision.autocast():
        images = spec.randn(2, parts.placement.device)
        if head and (len(parts.heads) > 1 or not _continues_after_head(parts, images)):
            return head
        return next((point for point in _split_points(parts, images) if _is_sound(parts, point, images)), head)


@contextmanager
def preserve_module_state(parts: TrainingParts) -> Iterator[None]:
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


@contextmanager
def _randomise_zero_parameters(network: nn.Module) -> Iterator[None]:
    """Put noise in the place of parameters that are zero: a new head says the same of anything."""
    zeros = [parameter for parameter in network.parameters() if not parameter.any()]
    try:
        for parameter in zeros:
            parameter.normal_()
        yield
    finally:
        for parameter in zeros:
            parameter.zero_()


def _split_points(parts: TrainingParts, images: Tensor) -> Iterator[SplitPoint]:
    """Yield cuts before the first module that learns, and before those that it lies in, the innermost first."""
    parts.network.eval()
    calls, replaceable = record_calls(parts.network, images)
    first = next((path for path, begins in calls if begins and not _is_fully_frozen(parts, path, 0, alone=True)), "")
    segments = first.split(".")
    paths = [".".join(segments[:depth]) for depth in range(len(segments) + 1)]
    for depth in range(len(segments), 0, -1):
        at = paths[depth]
        if (at, True) not in calls:  # a list of modules is never called
            continue
        done = [path for path, begins in calls[: calls.index((at, True))] if not begins]
        moves = _first_unfrozen_epoch(parts, outermost(done), paths[:depth])
        before = outermost([path for path in done if path in replaceable])
        if before and moves:
            yield SplitPoint(at, moves, record_outputs(parts.network, images, before), images[:1])


def _first_unfrozen_epoch(parts: TrainingParts, done: list[str], around: list[str]) -> int:
    """Return the first epoch in which a module that is done, or what one around has of its own, does not stand."""
    epochs = range(parts.train_config.epochs)
    for epoch in epochs:
        own = (_is_fully_frozen(parts, path, epoch, alone=True) for path in around)
        if not (all(own) and all(_is_fully_frozen(parts, path, epoch) for path in done)):
            return epoch
    return len(epochs)


def _is_fully_frozen(parts: TrainingParts, path: str, epoch: int, *, alone: bool = False) -> bool:
    """Whether nothing in a module learns in an epoch, or leaves eval mode; or nothing but what lies in others in it."""
    plan, module = parts.plan, parts.network.get_submodule(path)
    released = freezing.unfrozen_names(plan, epoch)
    prefix = f"{path}." if path else ""
    names = [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=not alone)]
    acts = not alone or next(module.children(), None) is None  # of a container, its parts say so themselves
    held = not acts or freezing.stays_in_eval(plan, path, released) or not (names or _differs_in_train_mode(module))
    return held and not any(freezing.is_trainable(plan, name, released) for name in names)


def _differs_in_train_mode(module: nn.Module) -> bool:
    """Whether a module without parameters is another in train mode: dropout, or a norm with running statistics."""
    kind = type(module).__name__.lower()
    return "drop" in kind or next(module.buffers(), None) is not None


def _is_sound(parts: TrainingParts, point: SplitPoint, images: Tensor) -> bool:
    """Try whether what lies behind a cut gives what the network does, in eval mode and in train mode."""
    try:
        return _gives_the_same(parts, point, images)
    except Exception:  # noqa: BLE001 - whatever a network says to what it was not made for
        return False


def _gives_the_same(parts: TrainingParts, point: SplitPoint, images: Tensor) -> bool:
    network = parts.network
    for mode in (False, True):
        network.train(mode)
        if mode:
            freezing.set_frozen_eval(network, parts.plan, 0)
        features: Any = module_input(parts, images, point.module)
        if not isinstance(features, torch.Tensor):  # such as one a branch, in a list
            return False
        given = []
        for model, fed in ((network, images), (point.tail(network), features)):
            torch.manual_seed(0)
            given.append(as_tuple(model(fed)))
        if not all(torch.equal(one, other) for one, other in zip(*given, strict=True)):
            return False
    return True


def _epochs_backbone_frozen(parts: TrainingParts) -> int:
    """Return how many epochs pass before something outside the heads learns or leaves eval mode; at most all."""
    epochs = range(parts.train_config.epochs)
    return next((epoch for epoch in epochs if not _is_backbone_frozen(parts, epoch)), len(epochs))


def _is_backbone_frozen(parts: TrainingParts, epoch: int) -> bool:
    network, plan, heads = parts.network, parts.plan, parts.heads
    released = freezing.unfrozen_names(plan, epoch)
    learning = [name for name, _ in network.named_parameters() if freezing.is_trainable(plan, name, released)]
    modules = [name for name, _ in network.named_modules() if not any(is_submodule_of(head, [name]) for head in heads)]
    moving = [name for name in modules if not freezing.stays_in_eval(plan, name, released)]
    return all(is_submodule_of(name, heads) for name in (*learning, *moving))


def why_not_splittable(parts: TrainingParts) -> str:
    """Say what keeps a network from being called in parts, if something does."""
    placement, kind = parts.placement, type(parts.placement.model).__name__
    if placement.model is not parts.network and not placement.rewrap:
        return f"the network is wrapped in {kind}"
    return "the network is compiled" if parts.network._compiled_call_impl else ""  # noqa: SLF001 - nothing else says so


def check_head_split(parts: TrainingParts, spec: InputSpec) -> str:
    """Try whether the network gives what its head does, and whether that sees the same in train mode at any time."""
    network = parts.network
    with preserve_module_state(parts), parts.precision.autocast():
        images = spec.randn(2, parts.placement.device)
        network.eval()
        features = module_input(parts, images, parts.heads[0])
        network.train()
        freezing.set_frozen_eval(network, parts.plan, 0)
        if _continues_after_head(parts, images):
            return f"layers follow the head {parts.heads[0]}"
        if not all(allclose_norm(module_input(parts, images, parts.heads[0]), features) for _ in range(3)):
            return "the features of an image are random in train mode"
    return ""


def _continues_after_head(parts: TrainingParts, images: Tensor) -> bool:
    """Whether a network changes what its head gives; tried with noise in its place, for a new head may give zeros."""
    network, head = parts.network, parts.heads[0]
    network.train()
    freezing.set_frozen_eval(network, parts.plan, 0)
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


def allclose_norm(some: Tensor, others: Tensor) -> bool:
    """Whether two tensors are the same but for the order of sums, which differs on some GPUs."""
    return some.shape == others.shape and bool((some - others).float().norm() <= 1e-4 * others.float().norm())


def module_input(parts: TrainingParts, images: Tensor, at: str) -> Tensor:
    """Images (N, C, H, W) -> what a module sees of them (N, ...)."""
    inputs: list[Tensor] = []
    handle = parts.network.get_submodule(at).register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        with torch.no_grad(), parts.precision.autocast():
            parts.network(images)
    finally:
        handle.remove()
    (features,) = inputs
    return features
