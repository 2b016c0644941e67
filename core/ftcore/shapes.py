"""Networks without memory: what shapes they give, and which images they take."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from .errors import UserError
from .freezing import all_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from .parts import InputSpec


T = TypeVar("T")


class _ParametersOnMeta(TorchFunctionMode):
    """Lets modules make their parameters without memory, and compute with all other tensors as they like."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network on the meta device: shapes, no memory."""
    return without_memory(build).to("meta")


def without_memory(build: Callable[[], T]) -> T:
    """Build something whose parameters, at least, are on the meta device."""
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, NotImplementedError):  # a constructor that reads a number from a tensor, such as RegNet's
        with _ParametersOnMeta():
            return build()


def output_shapes(module: nn.Module, spec: InputSpec, *, training: bool) -> list[tuple[int, ...]]:
    """Return the shapes of a network's outputs for two images of `spec`, computing nothing where that is possible.

    Raises:
        UserError: the network does not take such images.
    """
    size = (2, spec.channels, *spec.size)
    modes = {child: child.training for child in module.modules()}
    try:
        return _shapes(_called_on_meta(module.train(training), size))
    except Exception:  # noqa: BLE001 - not every network runs without memory: then a copy must
        return _shapes(_called(copy.deepcopy(module), size, _mode(training)))
    finally:
        for child, mode in modes.items():
            child.training = mode


def _called_on_meta(module: nn.Module, size: tuple[int, ...]) -> Any:
    tensors = {name: tensor.to("meta") for name, tensor in all_tensors(module).items()}
    with torch.no_grad():
        return functional_call(module, tensors, torch.empty(size, device="meta"))


@torch.no_grad()
def _called(module: nn.Module, size: tuple[int, ...], mode: str) -> Any:
    device = next(iter(all_tensors(module).values())).device
    try:
        return module(torch.zeros(size, device=device))
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        raise UserError(
            f"{type(module).__name__} does not take images of {' x '.join(map(str, size[1:]))} in {mode} mode: "
            f"{type(error).__name__}: {error}"
        ) from error


def as_tuple(outputs: Any) -> tuple[Any, ...]:
    """Outputs of a network -> a tuple of them: itself alone, unless it is a tuple or a named tuple."""
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def _shapes(outputs: Any) -> list[Any]:
    return [tuple(o.shape) if isinstance(o, torch.Tensor) else type(o).__name__ for o in as_tuple(outputs)]


def _mode(training: bool) -> str:  # noqa: FBT001 - the mode itself
    return "train" if training else "eval"


def sizes_taken(build: Callable[[int], nn.Module], asked: int, usual: int, channels: int) -> list[int]:
    """Return image sides near the one asked for that an architecture takes, and its usual one.

    Args:
        build: side in pixels -> the network.
        asked: the side that it refused.
        usual: the side of its weights.
        channels: of the input.
    """
    nearby = {asked // step * step + offset for step in (32, 28, 16, 14) for offset in (0, step)}
    tried = sorted(nearby - {asked, 0}, key=lambda side: abs(side - asked))[:6]
    tried += [usual // 2, usual * 2]
    return sorted({usual, *(side for side in tried if takes(build, side, channels))})


def takes(build: Callable[[int], nn.Module], side: int, channels: int) -> bool:
    """Whether an architecture can be built for images of this side, and trained on them."""
    try:
        _called_on_meta(on_meta(lambda: build(side)).train(), (2, channels, side, side))
    except Exception:  # noqa: BLE001 - each architecture refuses in its own way
        return False
    return True
