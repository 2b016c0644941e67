"""Which layers get an adapter."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ftcore import UserError, did_you_mean, format_names
from ftcore.model import is_submodule_of
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
"""The linear layers of attention and MLP in the vision transformers of timm; an MLP alone in its ConvNeXt."""

READ_INSIDE = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that read the weights of their layers instead of calling them, at least in eval mode."""


def chosen(model: nn.Module, heads: Sequence[str], patterns: Sequence[str] | None, option: str) -> list[str]:
    """Return the names of the layers that patterns choose, in the order of the network.

    Args:
        model: the network.
        heads: paths of its heads, which learn as a whole and get no adapter.
        patterns: as in `LoraOptions.target_modules`; each must match. None: what there is of `DEFAULT_TARGETS`.
        option: what the patterns were given to, for messages.

    Raises:
        UserError: nothing matches, or what matches cannot take an adapter.
    """
    layers = _layers(model, heads)
    wanted = DEFAULT_TARGETS if patterns is None else patterns
    found = {pattern: {name for name in layers if _ends(name, pattern)} for pattern in wanted}
    if patterns is None and not any(found.values()):
        raise UserError(
            f"{option}: the network has none of {', '.join(DEFAULT_TARGETS)}, so say which layers are adapted; "
            f"{_known(layers)}"
        )
    if patterns is not None:
        _check(model, heads, [pattern for pattern in patterns if not found[pattern]], layers, option)
    names = [name for name in layers if any(name in matches for matches in found.values())]
    if not names:
        raise UserError(f"{option} is empty, so nothing would be adapted; {_known(layers)}")
    _check_read_inside(model, names, option)
    return names


def _layers(model: nn.Module, heads: Sequence[str]) -> list[str]:
    kinds = (nn.Linear, nn.Conv2d)
    return [
        name for name, layer in model.named_modules() if isinstance(layer, kinds) and not is_submodule_of(name, heads)
    ]


def _ends(name: str, pattern: str) -> bool:
    """Whether the last segments of a name match those of a pattern: ``attn.*`` matches ``blocks.0.attn.qkv``."""
    segments, wanted = name.split("."), pattern.split(".")
    return len(wanted) <= len(segments) and all(map(fnmatchcase, segments[-len(wanted) :], wanted))


def _check(model: nn.Module, heads: Sequence[str], unmatched: list[str], layers: list[str], option: str) -> None:
    """Refuse patterns that match no layer, and say what they do match."""
    for pattern in unmatched:
        others = {type(module).__name__ for name, module in model.named_modules() if name and _ends(name, pattern)}
        endings = {".".join(name.split(".")[-depth:]) for name in layers for depth in range(1, name.count(".") + 2)}
        if any(_ends(head, pattern) for head in heads):
            cause = "matches the head alone, which learns as a whole"
        else:
            cause = f"matches {format_names(others)}, and no Linear or Conv2d" if others else "matches no layer"
        raise UserError(f"{option}: {pattern!r} {cause}{did_you_mean(pattern, endings)}; {_known(layers)}")


def _check_read_inside(model: nn.Module, names: list[str], option: str) -> None:
    inside = {path: type(module).__name__ for path, module in model.named_modules() if isinstance(module, READ_INSIDE)}
    for name in names:
        for path, kind in inside.items():
            if is_submodule_of(name, [path]):
                raise UserError(
                    f"{option}: {name} is in a {kind}, which reads the weights of its layers instead of calling "
                    "them, so its adapter would have no effect; remove it"
                )


def _known(layers: list[str]) -> str:
    """List the last segments of the names of all layers that could be adapted."""
    return f"layers: {format_names({name.rpartition('.')[2] for name in layers})}"
