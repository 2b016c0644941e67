"""Put adapters into a network, and freeze all around them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from attrs import evolve
from ftcore import Backbone, FreezePlan, UserError
from ftcore.model import choose_head, derive_backbone, derive_stages, is_submodule_of, named_tensors, output_shapes
from peft import PeftType, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import Conv2d

from .targets import chosen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ftcore import InputSpec
    from torch import nn


def config_class(method: str) -> Any:
    """Return PEFT's class of settings for a method."""
    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method.upper())]


def adapted(
    network: Backbone | nn.Module,
    head: str | None,
    method: str,
    settings: Mapping[str, Any],
    patterns: Sequence[str] | None,
    plugin: str = "lora",
) -> Backbone:
    """Put adapters into a network, in place.

    PEFT moves a layer ``qkv`` to ``qkv.base_layer``. What is said of tensors by name moves along, and an adapter counts
    to the stage of its layer.

    Args:
        network: the answer of `build_model`.
        head: ``model.head``, which beats what the network says of itself.
        method: of PEFT.
        settings: of PEFT's class for the method.
        patterns: the layers, as in `chosen`.
        plugin: for messages.

    Raises:
        UserError: the layers cannot be found, or PEFT refuses them or the settings.
    """
    backbone = _numbered(network, head)
    module, heads = backbone.module, _heads(backbone, head)
    names = chosen(module, heads, patterns, f"{plugin}.target_modules")
    _check_kinds(module, names, method, plugin)
    if settings.get("feedforward_modules"):
        settings = {**settings, "feedforward_modules": _feedforward(module, heads, settings, names)}
    before = named_tensors(module)
    _inject(module, method, settings, names, plugin)
    now = {id(tensor): name for name, tensor in named_tensors(module).items()}
    moved = {name: now[id(tensor)] for name, tensor in before.items()}
    return evolve(
        backbone,
        stages=_moved(backbone.stages, moved, names, now),
        blocks=_moved(backbone.blocks, moved, names, now),
        no_decay=frozenset(moved[name] for name in backbone.no_decay),
    )


def _numbered(network: Backbone | nn.Module, head: str | None) -> Backbone:
    """Return the network with its stages, which adapters would hide from who derives them later."""
    backbone = network if isinstance(network, Backbone) else derive_backbone(network, head)
    if backbone.stages and backbone.blocks:
        return backbone
    stages, layers = derive_stages(backbone.module, _heads(backbone, head))
    return evolve(backbone, stages=backbone.stages or stages, blocks=backbone.blocks or layers)


def _heads(backbone: Backbone, head: str | None) -> list[str]:
    return [slot.path for slot in choose_head(backbone, head).heads]


def _check_kinds(module: nn.Module, names: list[str], method: str, plugin: str) -> None:
    """Refuse convolutions where PEFT's OFT would change the network before it learns: it leaves out their padding."""
    convolutions = [name for name in names if isinstance(module.get_submodule(name), Conv2d)]
    if method == "oft" and convolutions:
        raise UserError(f"{plugin}.target_modules: oft is for Linear, and {convolutions[0]} is a Conv2d")


def _feedforward(module: nn.Module, heads: list[str], settings: Mapping[str, Any], names: list[str]) -> str:
    """Return the pattern for those of the layers whose input IA3 scales, not their output; PEFT would skip mistakes."""
    option = "peft.options.feedforward_modules"
    found = chosen(module, heads, settings["feedforward_modules"], option)
    if not set(found) <= set(names):
        raise UserError(f"{option}: {min(set(found) - set(names))} is not among peft.target_modules")
    return _pattern(found)


def _pattern(names: Sequence[str]) -> str:
    """Return what matches these names as a whole, and no other."""
    return "|".join(map(re.escape, names))


def _inject(module: nn.Module, method: str, settings: Mapping[str, Any], names: list[str], plugin: str) -> None:
    """Let PEFT wrap the layers of these names, and no other: it takes a text for a pattern of the whole name."""
    try:
        inject_adapter_in_model(config_class(method)(target_modules=_pattern(names), **settings), module)
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{plugin}: PEFT cannot put {method} into this network: {error}") from error


def _moved(
    numbers: Mapping[str, int], moved: Mapping[str, str], names: list[str], now: Mapping[int, str]
) -> dict[str, int]:
    """Return the numbers by the new names; those of the adapters are that of their layer's weight."""
    found = {moved[name]: number for name, number in numbers.items()}
    new = set(now.values()) - set(moved.values())
    for layer in names:
        number = next((numbers[name] for name in moved if is_submodule_of(name, [layer]) and name in numbers), None)
        if number is not None:
            found |= dict.fromkeys((name for name in new if is_submodule_of(name, [layer])), number)
    return found


def tuners(model: nn.Module) -> dict[str, BaseTunerLayer]:
    """Return the adapted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def only_adapters(model: nn.Module, heads: tuple[str, ...]) -> FreezePlan:
    """Freeze all saved tensors but those of adapters and heads, and hold all that has running statistics in eval mode.

    Dropout and stochastic depth of the architecture stay on in training. What PEFT itself keeps fixed in an adapter is
    frozen too.
    """
    layers = tuple(tuners(model))
    bases = tuple(f"{name}.base_layer" for name in layers)
    tensors = named_tensors(model)
    learning = {
        n
        for n, t in tensors.items()
        if is_submodule_of(n, layers) and not is_submodule_of(n, bases) and t.requires_grad
    }
    frozen = {
        n for n in tensors.keys() & model.state_dict().keys() if n not in learning and not is_submodule_of(n, heads)
    }
    held = {name for name, module in model.named_modules() if any(True for _ in module.buffers(recurse=False))}
    return FreezePlan(frozenset(frozen), frozenset(n for n in held if not _holds(n, (*layers, *heads))))


def _holds(name: str, paths: tuple[str, ...]) -> bool:
    """Whether a module is one of `paths`, in one or around one; eval mode would reach their dropout."""
    return is_submodule_of(name, paths) or any(is_submodule_of(path, [name]) for path in paths)


def check_called(model: nn.Module, spec: InputSpec, plugin: str) -> None:
    """Check that the network calls each adapted layer; some read the weight of a layer and compute with it themselves.

    Raises:
        UserError: an adapter would do nothing.
    """
    called: set[str] = set()
    handles = [layer.register_forward_pre_hook(_noting(name, called)) for name, layer in tuners(model).items()]
    try:
        for training in (True, False):
            output_shapes(model, spec, training=training)
    finally:
        for handle in handles:
            handle.remove()
    idle = [name for name in tuners(model) if name not in called]
    if idle:
        raise UserError(
            f"{plugin}.target_modules: the network never calls {len(idle)} of the layers, but reads their weights or "
            f"leaves them out, so their adapters would do nothing: {', '.join(idle[:5])}; leave them out"
        )


def _noting(name: str, called: set[str]) -> Any:
    """Make a hook that notes a call; a closure, which copies of the network share."""

    def note(*_: Any) -> None:
        called.add(name)

    return note
