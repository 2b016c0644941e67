"""Networks without memory: what shapes they give, and which images they take."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from ftcore.errors import UserError
from ftcore.types.model import InputSpec, TokenSpec

from .freezing import named_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn


T = TypeVar("T")

_STEPS = (32, 28, 16, 14)
"""Usual patches, strides and windows, in pixels."""


class _ParametersOnMeta(TorchFunctionMode):
    """Lets modules make their parameters without memory, and compute with all other tensors as they like."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network on the meta device: shapes, no memory."""
    return build_on_meta(build).to("meta")


def build_on_meta(build: Callable[[], T]) -> T:
    """Build something whose parameters, at least, are on the meta device."""
    import torch._dynamo

    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, NotImplementedError):  # a constructor that reads a number from a tensor
        with _ParametersOnMeta():
            return build()


def output_shapes(module: nn.Module, spec: InputSpec, *, training: bool) -> list[tuple[int, ...]]:
    """Return the shapes of a network's outputs for two inputs like `spec`, computing nothing where that is possible.

    Works on a copy: the network and its modes stay as they are.

    Raises:
        UserError: the network does not take such.
    """
    try:
        return _shapes(_forward_zeros(meta_copy(module).train(training), spec))
    except Exception:  # noqa: BLE001 - not every network runs without memory
        with _deepcopy_or_restore(module) as twin:
            return _shapes(_called_or_refused(twin.train(training), spec))


@contextmanager
def _deepcopy_or_restore(module: nn.Module) -> Iterator[nn.Module]:
    """Lend a copy; or, where hooks of old (`torch.nn.utils.weight_norm`) forbid one, the network, and put it right."""
    try:
        twin = copy.deepcopy(module)
    except RuntimeError:
        twin = module
    modes = {child: child.training for child in twin.modules()}
    buffers = {name: buffer.clone() for name, buffer in twin.named_buffers()}
    try:
        yield twin
    finally:
        for name, buffer in twin.named_buffers():
            buffer.copy_(buffers[name])
        for child, mode in modes.items():
            child.training = mode


def meta_copy(module: nn.Module) -> nn.Module:
    """Copy a network without the memory of its parameters and buffers; what shares one still does."""
    memo = {
        id(tensor): torch.nn.Parameter(tensor.detach().to("meta"), tensor.requires_grad)
        if isinstance(tensor, torch.nn.Parameter)
        else tensor.detach().to("meta")
        for tensor in named_tensors(module).values()
    }
    return copy.deepcopy(module, memo)


@torch.no_grad()
def _forward_zeros(module: nn.Module, spec: InputSpec) -> Any:
    device = next(iter(named_tensors(module).values())).device
    return module(spec.zeros(2, device))


def _called_or_refused(module: nn.Module, spec: InputSpec) -> Any:
    try:
        return _forward_zeros(module, spec)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        raise UserError(
            f"{type(module).__name__} does not take {_named(spec)} in "
            f"{'train' if module.training else 'eval'} mode: {type(error).__name__}: {error}"
        ) from error


def _named(spec: InputSpec) -> str:
    return str(spec) if isinstance(spec, TokenSpec) else f"images of {spec}"


def as_tuple(outputs: Any) -> tuple[Any, ...]:
    """Outputs of a network -> a tuple of them: itself alone, unless it is a tuple or a named tuple."""
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def _shapes(outputs: Any) -> list[Any]:
    return [tuple(o.shape) if isinstance(o, torch.Tensor) else type(o).__name__ for o in as_tuple(outputs)]


def accepted_image_sizes(
    build: Callable[[Any], nn.Module], asked: int | tuple[int, int], usual: int, channels: int
) -> list[Any]:
    """Return image sizes near the one asked for that an architecture takes, and its usual one, as one would type them.

    Args:
        build: side in pixels, or (height, width) -> the network.
        asked: what it refused.
        usual: the side of its weights.
        channels: of the input.

    Returns:
        Sides of squares, sorted; where a rectangle was asked for, before them ``[height, width]`` of those near it.
    """
    if isinstance(asked, tuple):
        near = [size for size in _near_rectangles(asked) if accepts_image_size(build, size, channels)]
        own = {side for side in asked if accepts_image_size(build, side, channels)}
        return [*map(list, near), *sorted({*own, *accepted_image_sizes(build, max(asked), usual, channels)})]
    nearby = {asked // step * step + offset for step in _STEPS for offset in (0, step)}
    tried = sorted(nearby - {asked, 0}, key=lambda side: abs(side - asked))[:6]
    tried += [usual // 2, usual * 2]
    return sorted({usual, *(side for side in tried if accepts_image_size(build, side, channels))})


def _near_rectangles(asked: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the six sizes nearest the one asked for whose sides are multiples of a usual patch or stride."""
    height, width = asked
    found = {
        (height // step * step + more, width // step * step + wider)
        for step in _STEPS
        for more in (0, step)
        for wider in (0, step)
    }
    wanted = [size for size in found if 0 not in size and size != asked and size[0] != size[1]]
    return sorted(wanted, key=lambda size: (abs(size[0] - height) + abs(size[1] - width), size))[:6]


def accepts_image_size(build: Callable[[Any], nn.Module], size: int | tuple[int, int], channels: int) -> bool:
    """Whether an architecture can be built for images of this size, and trained on them.

    Args:
        build: `size` -> the network.
        size: side of a square in pixels, or (height, width).
        channels: of the input.
    """
    height, width = (size, size) if isinstance(size, int) else size
    try:
        _forward_zeros(on_meta(lambda: build(size)).train(), InputSpec((height, width), channels))
    except Exception:  # noqa: BLE001 - each architecture refuses in its own way
        return False
    return True
