"""Which modules a network calls, in which order, and what they give."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ftcore.model.freezing import is_submodule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor


def outermost(paths: list[str]) -> list[str]:
    """Leave out what lies in another."""
    known = set(paths)
    return [path for path in dict.fromkeys(paths) if not is_submodule_of(path, known - {path})]


def record_calls(network: nn.Module, images: Tensor) -> tuple[list[tuple[str, bool]], set[str]]:
    """Return the modules that a pass calls, as (path, True) where one begins and (path, False) where it is done.

    And those that are called once and give a tensor: not such as an activation that is one module in many places.
    """
    calls: list[tuple[str, bool]] = []
    tensors: set[str] = set()

    def begins(path: str) -> None:
        calls.append((path, True))

    def ends(path: str, output: Any) -> None:
        calls.append((path, False))
        if isinstance(output, torch.Tensor) and output.dim():
            tensors.add(path)

    paths = [path for path, _ in network.named_modules() if path]
    with on_module_calls(network, paths, begins, ends):
        network(images)
    often = Counter(path for path, begins in calls if begins)
    return calls, {path for path in tensors if often[path] == 1}


def record_outputs(network: nn.Module, images: Tensor, paths: list[str]) -> dict[str, Tensor]:
    """Return what modules give for the first image, (1, ...)."""
    found: dict[str, Tensor] = {}

    def ends(path: str, output: Tensor) -> None:
        found[path] = output[:1].clone()

    with on_module_calls(network, paths, lambda _: None, ends):
        network(images)
    return found


@contextmanager
def on_module_calls(
    network: nn.Module, paths: list[str], begins: Callable[[str], None], ends: Callable[[str, Any], None]
) -> Iterator[None]:
    """Call functions with the path where a module begins, and with path and output where it is done."""
    handles = []
    for path in paths:
        module = network.get_submodule(path)
        handles.append(module.register_forward_pre_hook(lambda _, __, path=path: begins(path)))
        handles.append(module.register_forward_hook(lambda _, __, output, path=path: ends(path, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
