"""Find a network's classifiers, and put new ones in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from .errors import UserError, nearest
from .parts import Backbone, HeadSlot

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def find_heads(build: Callable[[int], nn.Module]) -> tuple[HeadSlot, ...]:
    """Find every classifier of an architecture: the modules whose tensors change shape with the class count.

    The architecture is built twice without memory, on the meta device.

    Args:
        build: number of classes -> the network.
    """
    import torch

    with torch.device("meta"):
        one, other = build(7), build(11)
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    changed = {name for name, tensor in one.state_dict().items() if shapes.get(name) != tensor.shape}
    paths = dict.fromkeys(name.rpartition(".")[0] for name in one.state_dict() if name in changed)
    return tuple(slot_at(one, path) for path in paths)


def slot_at(model: nn.Module, path: str) -> HeadSlot:
    """Describe the Linear or Conv2d at `path`.

    Raises:
        UserError: there is no such module, or it is of another kind.
    """
    from torch import nn

    modules = dict(model.named_modules())
    leaves = {name: module for name, module in modules.items() if isinstance(module, nn.Linear | nn.Conv2d)}
    if path not in leaves:
        what = f"is a {type(modules[path]).__name__}" if path in modules else "does not exist"
        shown = "\n".join(f"  {name}: {module}" for name, module in list(leaves.items())[-5:])
        raise UserError(
            f"model.head = {path!r} {what}{nearest(path, leaves)}; a head is a Linear or Conv2d, "
            f"the last of this network are\n{shown}"
        )
    leaf = leaves[path]
    if isinstance(leaf, nn.Linear):
        return HeadSlot(path, leaf.in_features)
    return HeadSlot(path, leaf.in_channels, convolutional=True)


def derive_backbone(model: nn.Module, head: str | None) -> Backbone:
    """Make a `Backbone` of a bare module: the head is the one named, or the last Linear or Conv2d."""
    from torch import nn

    leaves = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not leaves:
        raise UserError(f"{type(model).__name__} has no Linear or Conv2d, so there is no head to replace")
    return Backbone(model, (slot_at(model, head or leaves[-1]),))


def choose_head(backbone: Backbone, head: str | None) -> Backbone:
    """Let ``model.head`` beat what the provider found."""
    return backbone if head is None else evolve(backbone, heads=(slot_at(backbone.module, head),))


def attach(model: nn.Module, slot: HeadSlot, head: nn.Module) -> nn.Module:
    """Put `head` where `slot` says, and return the network: `head` itself if the network was a single layer."""
    if not slot.path:
        return head
    model.set_submodule(slot.path, head)
    return model
