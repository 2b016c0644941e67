"""Networks from torchvision: ``--model torchvision/resnet50``."""

from __future__ import annotations

import warnings
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

from attrs import evolve, field, frozen, validators

from ftcore import Backbone, HeadSlot, InputSpec, ModelInfo, UserError, did_you_mean, hookimpl, suggestions
from ftcore.model import is_weights_file, load_weights

if TYPE_CHECKING:
    from torch import nn

    from ftcore.config import RunConfig


_PYRAMID = (r"features\.0\.", r"features\.1\.", r"features\.[23]\.", r"features\.[45]\.", r"features\.[67]\.")

STAGES = {
    "ConvNeXt": _PYRAMID,
    "DenseNet": (r"features\.(?:conv|norm)0", r"features\.(?:denseblock|transition)(\d+)"),
    "GoogLeNet": ("conv", r"inception(\d)"),
    "Inception3": ("Conv2d", r"Mixed_(\d)"),
    "MNASNet": (r"layers\.[0-7]\.", r"layers\.([89]|1[0-3])\."),
    "SwinTransformer": _PYRAMID,
}
"""Patterns for the stages, by class, where they are not simply the modules that follow one another."""

AUX_WEIGHTS = {"googlenet": (0.3, 0.3), "inception_v3": (0.4,)}
"""Factors on the losses of the auxiliary classifiers: Szegedy et al. 2015 (arXiv:1409.4842, section 5), and
torchvision's reference training script for Inception."""

NO_DECAY = ("class_token", "pos_embedding", "relative_position_bias_table")
"""What torchvision's reference training script exempts from weight decay as transformer embeddings."""


@frozen
class TorchvisionConfig:
    """Options of `torchvision`.

    Attributes:
        drop_path: probability to drop the last block for an image in training, rising linearly from the first block
            (stochastic depth, Huang et al. 2016, arXiv:1603.09382), in [0, 1); for architectures that support it; by
            default that of torchvision.
    """

    drop_path: float | None = field(default=None, validator=validators.optional([validators.ge(0), validators.lt(1)]))


class Torchvision:
    """Networks of torchvision: ``torchvision/NAME``; `weights` may be an entry such as ``IMAGENET1K_V2``."""

    Config = TorchvisionConfig

    def __init__(self, config: TorchvisionConfig) -> None:
        self.config = config

    @hookimpl
    def build_model(self, name: str | None, weights: str, config: RunConfig) -> Backbone | None:
        """Build any classification network of torchvision."""
        provider, _, network = (name or "").partition("/")
        if provider != "torchvision":
            return None
        import torchvision

        from ftcore.model import find_heads

        known = torchvision.models.list_models(module=torchvision.models)
        if network not in known:
            near = suggestions(network, known, "torchvision/")
            raise UserError(f"torchvision has no classification network {network!r}; nearest: {near}")
        heads = find_heads(lambda classes: _build(network, num_classes=classes))
        entry = _entry(network, weights)
        module = _download(network, entry)
        if self.config.drop_path is not None:
            _set_drop_path(module, network, self.config.drop_path)
        if is_weights_file(weights):
            load_weights(module, weights, heads)
        spec = _resolve_input(module, _input(network, entry), network, trained=weights != "none")
        if config.model.image_size:
            module = _resized(module, network, config.model.image_size)
        if config.model.channels and config.model.channels != 3:
            spec = _with_channels(module, spec, config.model.channels)
        backbone = _make_backbone(module, network, heads, spec)
        if spec.channels != 3:  # which torchvision does not build
            return backbone
        return evolve(backbone, builder_code=partial(_builder_code, network, config.model.image_size))

    @hookimpl
    def list_models(self) -> list[ModelInfo]:
        """List the classification networks, with the entries of their weights."""
        import torchvision
        from torchvision.models import get_model_weights

        library = f"torchvision {metadata.version('torchvision')}"
        return [
            ModelInfo(
                name=f"torchvision/{network}",
                library=library,
                size=_input(network, None).size,
                weights=tuple(entry.name for entry in get_model_weights(network)),
                build=partial(_build, network),
            )
            for network in torchvision.models.list_models(module=torchvision.models)
        ]


def _set_drop_path(module: nn.Module, network: str, most: float) -> None:
    """Give each block the probability that it has in a network built with `most` as the last one's."""
    from torchvision.ops import StochasticDepth

    from ftcore.model import on_meta

    own = [part for part in module.modules() if isinstance(part, StochasticDepth)]
    if not own:
        raise UserError(f"torchvision/{network} has no stochastic depth, so torchvision.drop_path cannot be set")
    other = on_meta(lambda: _build(network, stochastic_depth_prob=most))
    wanted = [part for part in other.modules() if isinstance(part, StochasticDepth)]
    for part, like in zip(own, wanted, strict=True):
        part.p = like.p


def _make_backbone(module: nn.Module, network: str, heads: tuple[HeadSlot, ...], spec: InputSpec) -> Backbone:
    from ftcore.model import derive_stages

    kind = type(module).__name__
    known = _marked_stages(module) if kind.startswith("MobileNet") else STAGES.get(kind, ())
    stages, layers = derive_stages(module, [slot.path for slot in heads], known)
    names = [name for name, _ in module.named_parameters()]
    return Backbone(
        module,
        tuple(sorted(heads, key=lambda slot: "aux" in slot.path.lower())),
        spec,
        aux_loss_weights=AUX_WEIGHTS.get(network, ()),
        stages=stages,
        blocks=layers,
        no_decay=frozenset(name for name in names if name.endswith(NO_DECAY)),
    )


def _builder_code(network: str, size: int | tuple[int, int] | None, outputs: int) -> list[str]:
    options = {"num_classes": outputs, **(_size_options(network, size) if size else {})}
    shown = ", ".join(f"{name}={value}" for name, value in options.items())
    return ["import torchvision", "", f'model = torchvision.models.get_model("{network}", {shown})']


def _marked_stages(module: Any) -> list[str]:
    """Return patterns for the stages of a MobileNet, where torchvision marks the changes of resolution."""
    stages: list[list[str]] = [[]]
    for name, child in module.features.named_children():
        if getattr(child, "_is_cn", False):
            stages.append([])
        stages[-1].append(rf"features\.{name}\.")
    return ["|".join(stage) for stage in stages]


def _build(network: str, **options: Any) -> nn.Module:
    from torchvision.models import get_model

    if network in AUX_WEIGHTS:
        options["aux_logits"] = True
        if options.get("weights") is None:
            options["init_weights"] = False  # their own is slow, and is replaced by what is loaded or torch's defaults
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "auxiliary heads in the pretrained googlenet")  # they train from scratch here
        module: nn.Module = get_model(network, **options)
    return module


def _entry(network: str, weights: str) -> Any:
    """Return torchvision's weights entry: the default one, a named one, or None."""
    from torchvision.models import get_model_weights

    entries = get_model_weights(network)
    if weights == "none" or is_weights_file(weights):
        return None
    if weights == "default":
        return entries.DEFAULT
    names = [entry.name for entry in entries]
    if weights not in names:
        raise UserError(
            f"torchvision/{network} has no weights {weights!r}{did_you_mean(weights, names)}; it has {', '.join(names)}"
        )
    return entries[weights]


def _download(network: str, entry: Any) -> nn.Module:
    try:
        return _build(network, weights=entry)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot get the pre-trained weights of torchvision/{network}: {type(error).__name__}: {error}\n"
            "use a file (--set model.weights=FILE.pth) or random weights (--set model.weights=none)"
        ) from error


def _input(network: str, entry: Any) -> InputSpec:
    """Read the preset that belongs to the weights; without weights, that of the default ones."""
    from torchvision.models import get_model_weights

    return input_spec((entry or get_model_weights(network).DEFAULT).transforms())


def input_spec(preset: Any) -> InputSpec:
    """Say what images must look like, from the ``transforms()`` of torchvision's weights: shorter side, centre."""
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    return InputSpec(
        size=(crop, crop),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_fraction=crop / resize,
    )


def _resolve_input(module: Any, spec: InputSpec, network: str, *, trained: bool) -> InputSpec:
    """Take the normalisation out of the network, and the size that it was built for into the spec.

    With their pre-trained weights GoogLeNet and Inception turn ImageNet's mean and std into 0.5 themselves
    (``transform_input``), without them they do not: one network, two meanings of its input. Here the module never does
    it, and weights, from torchvision or from a file, mean that the spec has 0.5.
    """
    if network in AUX_WEIGHTS and trained:
        module.transform_input = False
        spec = evolve(spec, mean=(0.5,) * 3, std=(0.5,) * 3)
    fixed = getattr(module, "image_size", None)  # of vision transformers
    return evolve(spec, size=(fixed, fixed)) if fixed else spec


def _resized(module: nn.Module, network: str, size: int | tuple[int, int]) -> nn.Module:
    """Build the network for images of another size, where its tensors or its windows depend on that.

    Raises:
        UserError: the architecture does not take the size; the message says which it takes.
    """
    from torchvision.models.vision_transformer import interpolate_embeddings

    from ftcore.model import accepted_image_sizes, accepts_image_size

    build = partial(_for_size, network)
    if not accepts_image_size(build, size, channels=3):
        sizes = ", ".join(map(str, accepted_image_sizes(build, size, _input(network, None).size[0], channels=3)))
        asked = size if isinstance(size, int) else list(size)
        raise UserError(f"torchvision/{network} does not take model.image_size = {asked}; sizes it takes: {sizes}")
    if not network.startswith(("vit", "maxvit")):
        return module
    state = cast("Any", module.state_dict())
    if isinstance(size, int) and network.startswith("vit"):
        state = interpolate_embeddings(size, cast("int", module.patch_size), state)
    classes = next(len(t) for name, t in reversed(state.items()) if name.endswith("weight"))
    sized = _for_size(network, size, num_classes=classes)
    sized.load_state_dict(state)
    return sized


def _for_size(network: str, size: int | tuple[int, int], **options: Any) -> nn.Module:
    return _build(network, **options, **_size_options(network, size))


def _size_options(network: str, size: int | tuple[int, int]) -> dict[str, Any]:
    if network.startswith("vit"):  # which divides the size, so that a rectangle is refused here
        return {"image_size": size}
    return {"input_size": (size, size) if isinstance(size, int) else size} if network.startswith("maxvit") else {}


def _with_channels(module: nn.Module, spec: InputSpec, channels: int) -> InputSpec:
    """Give the first convolution another number of input channels, keeping what its weights respond to.

    One channel gets the sum over the colours; more get the colours in turn, scaled so that the response to grey stays.
    """
    import torch
    from torch import nn

    first = next(child for child in module.modules() if isinstance(child, nn.Conv2d))
    weight = first.weight.detach()
    turns = weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)
    with torch.no_grad():
        first.weight = nn.Parameter(weight.sum(1, keepdim=True) if channels == 1 else turns)
    first.in_channels = channels
    return evolve(spec, channels=channels, mean=_mean(spec.mean, channels), std=_mean(spec.std, channels))


def _mean(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return (sum(values) / len(values),) * channels
