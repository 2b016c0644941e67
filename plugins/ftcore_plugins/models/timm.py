"""Networks from timm: ``--model timm/resnet50``."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

from attrs import evolve, field, frozen, validators

from ftcore import Backbone, HeadSlot, InputSpec, ModelInfo, UserError, did_you_mean, hookimpl, suggestions
from ftcore.model import is_submodule_of, is_weights_file, load_weights, named_tensors

from .timm_hub import TimmHub

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from ftcore.config import ModelConfig, RunConfig


@frozen
class TimmConfig:
    """Options of `timm`.

    Attributes:
        drop_path: probability to drop the last block for an image in training, rising linearly from the first block
            (stochastic depth, Huang et al. 2016, arXiv:1603.09382), in [0, 1); for architectures that support it.
    """

    drop_path: float = field(default=0.0, validator=[validators.ge(0), validators.lt(1)])


class Timm:
    """Networks of timm: ``timm/NAME``, or ``timm/NAME.TAG``, where a tag names pre-trained weights."""

    Config = TimmConfig

    def __init__(self, config: TimmConfig) -> None:
        self.config = config

    @hookimpl
    def build_model(self, name: str | None, weights: str, config: RunConfig) -> Backbone | None:
        """Build any network of `timm.list_models`."""
        provider, _, network = (name or "").partition("/")
        if provider != "timm":
            return None
        import timm
        from timm.data import resolve_model_data_config

        from ftcore.model import find_heads

        _check_name(network, timm.list_models(), timm.list_pretrained(), weights)
        build = _constructor(network, config.model, self.config.drop_path)
        heads = find_heads(lambda classes: build(num_classes=classes))
        module = _with_weights(build, weights, network, heads)
        backbone = Backbone(
            module,
            heads,
            input_spec(resolve_model_data_config(module), config.model.channels),
            stages=_stage_numbers(module, heads, coarse=True),
            blocks=_stage_numbers(module, heads, coarse=False),
            no_decay=_no_decay(module),
            hub=TimmHub(),
            builder_code=partial(_builder_code, network, build.keywords),
        )
        return backbone if heads else with_pooling(backbone)

    @hookimpl
    def list_models(self) -> list[ModelInfo]:
        """List `timm.list_models`, with the tags of their weights."""
        import timm

        tags: dict[str, list[str]] = {}
        for name in timm.list_pretrained():
            base, _, tag = name.partition(".")
            tags.setdefault(base, []).append(tag or "default")
        library = f"timm {metadata.version('timm')}"
        return [
            ModelInfo(
                name=f"timm/{name}",
                library=library,
                size=timm.get_pretrained_cfg(name).input_size[1:],
                weights=tuple(tags.get(name, ())),
                build=partial(timm.create_model, name),
            )
            for name in timm.list_models()
        ]


def _check_name(network: str, models: list[str], pretrained: list[str], weights: str) -> None:
    base = network.partition(".")[0]
    if base not in models:
        raise UserError(f"timm has no network {network!r}; nearest: {suggestions(base, models, 'timm/')}")
    tagged = [name for name in pretrained if name.partition(".")[0] == base]
    if "." in network and network not in tagged:
        raise UserError(
            f"timm/{base} has no weights {network!r}{did_you_mean(network, tagged)}; it has {', '.join(tagged)}"
        )
    if weights not in {"default", "none"} and not is_weights_file(weights):
        raise UserError(
            f"model.weights = {weights!r}: with timm, the entry is part of the name: --model timm/{base}.TAG; "
            f"it has {', '.join(tagged) or 'none'}"
        )


def _constructor(network: str, model: ModelConfig, drop_path: float) -> partial[nn.Module]:
    """Make the function that builds a network for the channels and the image size that were asked for.

    Raises:
        UserError: the architecture cannot be built for them; the message says what it takes.
    """
    import timm

    from ftcore.model import on_meta, output_shapes

    build = partial(timm.create_model, network)
    if drop_path:
        build = partial(build, drop_path_rate=drop_path)
        _check_drop_path(build, network)
    if model.channels:
        build = partial(build, in_chans=model.channels)
        spec = InputSpec(timm.get_pretrained_cfg(network).input_size[1:], model.channels)
        try:
            output_shapes(on_meta(build), spec, training=False)
        except Exception as error:
            raise UserError(
                f"timm/{network} does not take model.channels = {model.channels}: {type(error).__name__}: {error}"
            ) from error
    return _for_image_size(build, network, model.image_size) if model.image_size else build


def _check_drop_path(build: partial[nn.Module], network: str) -> None:
    """Refuse a network that has no stochastic depth; some take the argument and do not use it."""
    from ftcore.model import on_meta

    try:
        dropping = any(getattr(module, "drop_prob", 0) for module in on_meta(build).modules())
    except TypeError:  # an argument that the constructor does not have
        dropping = False
    if not dropping:
        raise UserError(f"timm/{network} has no stochastic depth, so timm.drop_path cannot be set")


def _for_image_size(build: partial[nn.Module], network: str, size: int | tuple[int, int]) -> partial[nn.Module]:
    """Let the network be built for the size, where it is: one that takes any size has no such argument."""
    import timm

    from ftcore.model import accepted_image_sizes, accepts_image_size

    usual = timm.get_pretrained_cfg(network).input_size
    channels = build.keywords.get("in_chans", usual[0])
    if accepts_image_size(lambda size: build(img_size=size), size, channels):
        return partial(build, img_size=size)
    if accepts_image_size(lambda _: build(), size, channels):
        return build
    sizes = ", ".join(map(str, accepted_image_sizes(lambda size: build(img_size=size), size, usual[1], channels)))
    asked = size if isinstance(size, int) else list(size)
    raise UserError(f"timm/{network} does not take model.image_size = {asked}; sizes it takes: {sizes}")


def _with_weights(build: partial[nn.Module], weights: str, network: str, heads: tuple[HeadSlot, ...]) -> nn.Module:
    module = _build(build, weights, network)
    if not all(_is_leaf(module, slot.path) for slot in heads):  # weights without a classifier: an Identity stands there
        build = partial(build, num_classes=1)
        module = _build(build, weights, network)
    return _from_file(build, module, weights, heads) if is_weights_file(weights) else module


def _build(build: partial[nn.Module], weights: str, network: str) -> nn.Module:
    if weights != "default":
        return build()
    try:
        return build(pretrained=True)
    except Exception as error:  # whatever the hub's client raises
        raise UserError(
            f"cannot get the pre-trained weights of timm/{network}: {type(error).__name__}: {error}\n"
            "use a file (--set model.weights=FILE.safetensors) or random weights (--set model.weights=none)"
        ) from error


def _from_file(build: partial[nn.Module], module: nn.Module, file: str, heads: tuple[HeadSlot, ...]) -> nn.Module:
    """Load a file made for this network; or for its usual channels and size, and let timm adapt it as its own."""
    changed = {"in_chans", "img_size"} & build.keywords.keys()
    try:
        load_weights(module, file, heads)
    except UserError:
        if not changed:
            raise
        usual = partial(build.func, *build.args, **{k: v for k, v in build.keywords.items() if k not in changed})()
        load_weights(usual, file, heads)
        module = build(pretrained=True, pretrained_cfg_overlay={"state_dict": usual.state_dict()})
        cast("Any", module).pretrained_cfg.pop("state_dict")
    return module


def _is_leaf(module: nn.Module, path: str) -> bool:
    from torch import nn

    return isinstance(dict(module.named_modules()).get(path), nn.Linear | nn.Conv2d)


def _stage_numbers(module: Any, heads: tuple[HeadSlot, ...], *, coarse: bool) -> dict[str, int]:
    """Number tensors as the architecture's own `group_matcher` does; what it puts beside the head is left out."""
    from timm.models._manipulate import group_with_matcher

    from ftcore.model import derive_stages

    paths = [slot.path for slot in heads]
    try:
        matcher = module.group_matcher(coarse=coarse)
    except (AttributeError, AssertionError):  # it has none, or none that is coarse
        return derive_stages(module, paths)[0 if coarse else 1]
    numbers = group_with_matcher(((name, None) for name in named_tensors(module)), matcher, reverse=True)
    last = max(numbers.values())
    beside = any(number == last and is_submodule_of(name, paths) for name, number in numbers.items())
    before = {name: number for name, number in numbers.items() if not beside or number != last}
    if len(set(before.values())) < 2:  # a matcher that fits none of the names, as RepViT's in timm 1.0.21
        return derive_stages(module, paths)[0 if coarse else 1]
    return before


def _no_decay(module: Any) -> frozenset[str]:
    """Names of the parameters that the network lists, by name, by glob or by their last segment."""
    patterns = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()
    names = [name for name, _ in module.named_parameters()]
    return frozenset(n for n in names for p in patterns if fnmatchcase(n, p) or n.rpartition(".")[2] == p)


def _builder_code(network: str, options: Mapping[str, Any], outputs: int) -> list[str]:
    given = {"num_classes": outputs, **{name: options[name] for name in ("in_chans", "img_size") if name in options}}
    shown = ", ".join(f"{name}={value}" for name, value in given.items())
    return ["import timm", "", f'model = timm.create_model("{network}", {shown})']


def with_pooling(encoder: Backbone) -> Backbone:
    """Give an encoder without a classifier one: the mean over its tokens or its feature map, then a linear layer."""
    from ftcore.model import output_shapes

    from .pooled import Pooled

    [shape] = output_shapes(encoder.module, encoder.input, training=False)
    features = shape[1] if len(shape) == 4 else shape[-1]
    return evolve(
        encoder,
        module=Pooled(encoder.module, features),
        heads=(HeadSlot("head", features),),
        stages={f"encoder.{name}": number for name, number in encoder.stages.items()},
        blocks={f"encoder.{name}": number for name, number in encoder.blocks.items()},
        no_decay=frozenset(f"encoder.{name}" for name in encoder.no_decay),
        builder_code=None,
    )


def input_spec(wanted: Mapping[str, Any], channels: int | None = None) -> InputSpec:
    """Say what images must look like.

    Args:
        wanted: what timm's `resolve_data_config` makes of a network's pre-trained configuration.
        channels: where they are not to be the configuration's own.
    """
    usual, height, width = wanted["input_size"]
    channels = channels or usual
    return InputSpec(
        size=(height, width),
        channels=channels,
        mean=_per_channel(wanted["mean"], channels),
        std=_per_channel(wanted["std"], channels),
        interpolation=wanted["interpolation"],
        crop_fraction=wanted["crop_pct"],
        crop_mode={"border": "pad"}.get(wanted["crop_mode"], wanted["crop_mode"]),
    )


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Statistics of three colours -> of `channels`: their mean, where the numbers differ."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
