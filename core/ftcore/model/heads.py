"""Find a network's classifiers, and put new ones in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve
from torch import nn

from ftcore.errors import UserError, did_you_mean
from ftcore.types.model import Backbone, HeadSlot

from .freezing import is_submodule_of, named_tensors, tensor_digests
from .shape_inference import modules_fed_by, on_meta, output_shapes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ftcore.types.task import Task


RECTIFIERS = (nn.ReLU, nn.ReLU6)
"""Modules that let nothing below zero through, neither forwards nor backwards."""


def find_heads(build: Callable[[int], nn.Module]) -> tuple[HeadSlot, ...]:
    """Find every classifier of an architecture: the modules whose tensors change shape with the class count.

    The architecture is built twice without memory, on the meta device.

    Args:
        build: number of classes -> the network.
    """
    one, other = on_meta(lambda: build(7)), on_meta(lambda: build(11))
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    changed = {name for name, tensor in one.state_dict().items() if shapes.get(name) != tensor.shape}
    paths = dict.fromkeys(name.rpartition(".")[0] for name in one.state_dict() if name in changed)
    return tuple(head_slot_at(one, path) for path in paths)


def head_slot_at(model: nn.Module, path: str, named: str = "model.head") -> HeadSlot:
    """Describe the Linear or Conv2d at `path`; `named` is what named it, for messages.

    Raises:
        UserError: there is no such module, or it is of another kind.
    """
    modules, leaves = dict(model.named_modules()), _leaves(model)
    if path not in leaves:
        what = f"is a {type(modules[path]).__name__}" if path in modules else "does not exist"
        raise UserError(
            f"{named} = {path!r} {what}{did_you_mean(path, leaves)}; a head must be a Linear or "
            f"Conv2d\n{head_candidates_message(model)}"
        )
    leaf = leaves[path]
    bias = "bias" in dict(leaf.named_parameters())
    if isinstance(leaf, nn.Linear):
        return HeadSlot(path, leaf.in_features, bias=bias)
    return HeadSlot(path, leaf.in_channels, convolutional=True, bias=bias)


def _leaves(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


def head_candidates_message(model: nn.Module) -> str:
    """List what may be a head, the last first, with the setting that names it."""
    leaves = list(_leaves(model).items())[:-6:-1]
    lines = [f'  model.head = "{name}"  {type(leaf).__name__} {_shape(leaf)}' for name, leaf in leaves]
    return "\n".join(["candidates, the last of the network first:", *lines])


def _shape(leaf: nn.Linear | nn.Conv2d) -> str:
    if isinstance(leaf, nn.Linear):
        return f"{leaf.in_features} -> {leaf.out_features}"
    return f"{leaf.in_channels} -> {leaf.out_channels}, kernel {' x '.join(map(str, leaf.kernel_size))}"


def check_backbone(backbone: Backbone) -> None:
    """Check that what a provider says of its network is true.

    Raises:
        UserError: no head, a head that is not there, or a number or an exemption for a tensor that is not there.
    """
    kind = type(backbone.module).__name__
    if not backbone.heads:
        raise UserError(f"build_model: the Backbone of {kind} has no heads\n{head_candidates_message(backbone.module)}")
    for slot in backbone.heads:
        head_slot_at(backbone.module, slot.path, f"build_model: a head of the Backbone of {kind}")
    tensors = named_tensors(backbone.module)
    for field, names in {"stages": backbone.stages, "layers": backbone.blocks, "no_decay": backbone.no_decay}.items():
        strange = [name for name in names if name not in tensors]
        if strange:
            raise UserError(
                f"build_model: {field} of the Backbone of {kind} names {strange[0]!r}, which is not a parameter or "
                f"buffer"
                f"{did_you_mean(strange[0], tensors)}"
            )


def derive_backbone(model: nn.Module, head: str | None) -> Backbone:
    """Make a `Backbone` of a bare module: the head is the one named, or the last Linear or Conv2d."""
    leaves = list(_leaves(model))
    if not leaves:
        raise UserError(f"{type(model).__name__} has no Linear or Conv2d, so there is no head to replace")
    return Backbone(model, (head_slot_at(model, head or leaves[-1]),))


def choose_head(backbone: Backbone, head: str | None) -> Backbone:
    """Let ``model.head`` beat what the provider found."""
    return backbone if head is None else evolve(backbone, heads=(head_slot_at(backbone.module, head),))


def find_rectifiers(backbone: Backbone) -> Backbone:
    """Say in each head slot which ReLU takes what the head gives, where one does."""
    modules, paths = dict(backbone.module.named_modules()), [slot.path for slot in backbone.heads]
    if not any(isinstance(module, RECTIFIERS) for module in modules.values()):
        return backbone
    fed = modules_fed_by(backbone.module, paths, backbone.input)
    found = [next((path for path in fed[head] if isinstance(modules[path], RECTIFIERS)), "") for head in paths]
    heads = tuple(evolve(slot, rectifier=path) for slot, path in zip(backbone.heads, found, strict=True))
    return evolve(backbone, heads=heads)


def drop_rectifiers(backbone: Backbone, task: Task) -> Backbone:
    """Leave out what is behind a head and cuts off all below zero, where the task needs that.

    Labels below one half and standardised numbers below the mean do; classes are told apart by differences, which a
    ReLU leaves.
    """
    if not task.crosses_zero:
        return backbone
    for slot in backbone.heads:
        if slot.rectifier:
            backbone.module.set_submodule(slot.rectifier, nn.Identity())
    return evolve(backbone, heads=tuple(evolve(slot, rectifier="") for slot in backbone.heads))


def replace_module(model: nn.Module, slot: HeadSlot, head: nn.Module) -> nn.Module:
    """Put `head` where `slot` says, and return the network: `head` itself if the network was a single layer."""
    if not slot.path:
        return head
    model.set_submodule(slot.path, head)
    return model


def replace_heads(backbone: Backbone, make: Callable[[HeadSlot], nn.Module]) -> nn.Module:
    """Replace every head by a new one, and check that nothing else changed.

    Raises:
        UserError: a tensor outside the heads is new, gone, or not what it was, bit for bit.
    """
    paths = [slot.path for slot in backbone.heads]
    module, before = backbone.module, tensor_digests(_tensors_outside_heads(backbone.module, paths))
    for slot in backbone.heads:
        module = replace_module(module, slot, make(slot))
    after = tensor_digests(_tensors_outside_heads(module, paths))
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if changed:
        raise UserError(
            f"build_head changed {len(changed)} tensors outside the heads {', '.join(paths)}: {', '.join(changed[:5])}"
        )
    return module


def _tensors_outside_heads(model: nn.Module, paths: list[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in named_tensors(model).items() if not is_submodule_of(name, paths)}


def check_outputs(backbone: Backbone, outputs: int, shown: str) -> None:
    """Check that a network with its new heads takes its images, and gives as many numbers as there are classes.

    Args:
        backbone: with the new heads in its module.
        outputs: numbers per image.
        shown: what else may have been the head, for the message.

    Raises:
        UserError: it does not.
    """
    heads = ", ".join(repr(slot.path) for slot in backbone.heads)
    for training in (True, False):
        wanted = [(2, outputs)] * (1 + (len(backbone.aux_loss_weights) if training else 0))
        try:
            given = output_shapes(backbone.module, backbone.input, training=training)
        except UserError as error:
            if all(tensor.is_meta for tensor in named_tensors(backbone.module).values()):
                return  # cannot be known without memory; a run has it, and checks
            raise UserError(f"with {heads} replaced, {error}\n{shown}") from error
        if given != wanted:
            cause = "its head seems to be another module"
            if len(given) != len(wanted):
                cause = "`aux_loss_weights` of its Backbone must have one weight for each output except the first"
            mode = "train" if training else "eval"
            raise UserError(
                f"with {heads} replaced, the network returns {given} for 2 images in {mode} mode, not {wanted}; "
                f"{cause}\n{shown}"
            )
