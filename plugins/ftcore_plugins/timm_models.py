"""Networks from timm: ``--model timm/resnet50``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ftcore import Backbone, InputSpec, UserError, hookimpl, nearest
from ftcore.heads import find_heads
from ftcore.weights import is_file, load_weights

if TYPE_CHECKING:
    from torch import nn

    from ftcore.config import RunConfig


class Timm:
    """Answers for ``timm/NAME`` and ``timm/NAME.TAG``; a tag names pre-trained weights."""

    @hookimpl
    def build_model(self, name: str | None, weights: str, config: RunConfig) -> Backbone | None:
        """Build any network of `timm.list_models`."""
        provider, _, network = (name or "").partition("/")
        if provider != "timm":
            return None
        import timm

        _check_name(network, timm.list_models(), timm.list_pretrained(), weights)
        options = {
            "in_chans": config.model.channels,
            "img_size": _fixed_size(network, config.model.image_size),
        }
        build = partial(timm.create_model, network, **{k: v for k, v in options.items() if v is not None})
        heads = find_heads(lambda classes: build(num_classes=classes))
        if not heads:
            raise UserError(f"timm/{network} has no classifier to replace; choose another network")
        module = _with_weights(build, weights, network)
        if not all(_is_leaf(module, slot.path) for slot in heads):
            module = _with_weights(partial(build, num_classes=1), weights, network)
        if is_file(weights):
            load_weights(module, weights, heads)
        return Backbone(module, heads, _input(module, config.model.channels))


def _check_name(network: str, models: list[str], pretrained: list[str], weights: str) -> None:
    base = network.partition(".")[0]
    if base not in models:
        from difflib import get_close_matches

        close = ", ".join(f"timm/{match}" for match in get_close_matches(base, models, n=5))
        raise UserError(f"timm has no network {network!r}; nearest: {close or 'none'}")
    tagged = [name for name in pretrained if name.partition(".")[0] == base]
    if "." in network and network not in tagged:
        raise UserError(f"timm/{base} has no weights {network!r}{nearest(network, tagged)}; it has {', '.join(tagged)}")
    if weights not in {"default", "none"} and not is_file(weights):
        raise UserError(
            f"model.weights = {weights!r}: with timm the name carries the entry, --model timm/{base}.TAG; "
            f"it has {', '.join(tagged) or 'none'}"
        )


def _fixed_size(network: str, image_size: int | None) -> int | None:
    """Pass a size on only to networks that are built for one."""
    import timm

    fixed = timm.get_pretrained_cfg(network)
    return image_size if image_size and fixed is not None and fixed.fixed_input_size else None


def _with_weights(build: partial[nn.Module], weights: str, network: str) -> nn.Module:
    if weights != "default":
        return build()
    try:
        return build(pretrained=True)
    except Exception as error:  # whatever the hub's client raises
        raise UserError(
            f"cannot get the pre-trained weights of timm/{network}: {type(error).__name__}: {error}\n"
            "give a file, --set model.weights=FILE.safetensors, or start from random ones, --set model.weights=none"
        ) from error


def _is_leaf(module: nn.Module, path: str) -> bool:
    from torch import nn

    return isinstance(dict(module.named_modules()).get(path), nn.Linear | nn.Conv2d)


def _input(module: Any, channels: int | None) -> InputSpec:
    from timm.data import resolve_model_data_config

    wanted = resolve_model_data_config(module)
    usual, height, width = wanted["input_size"]
    channels = channels or usual
    return InputSpec(
        size=(height, width),
        channels=channels,
        mean=_per_channel(wanted["mean"], channels),
        std=_per_channel(wanted["std"], channels),
        interpolation=wanted["interpolation"],
        crop_fraction=wanted["crop_pct"],
    )


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Statistics of three colours -> of `channels`: their mean, where the numbers differ."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
