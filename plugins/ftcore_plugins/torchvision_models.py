"""Networks from torchvision: ``--model torchvision/resnet50``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from ftcore import Backbone, InputSpec, UserError, hookimpl, nearest
from ftcore.heads import find_heads
from ftcore.weights import is_file, load_weights

if TYPE_CHECKING:
    from torch import nn

    from ftcore.config import RunConfig


class Torchvision:
    """Answers for ``torchvision/NAME``; `weights` may be an entry such as ``IMAGENET1K_V2``."""

    @hookimpl
    def build_model(self, name: str | None, weights: str, config: RunConfig) -> Backbone | None:
        """Build any classification network of torchvision."""
        provider, _, network = (name or "").partition("/")
        if provider != "torchvision":
            return None
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if network not in known:
            raise UserError(f"torchvision has no classification network {network!r}{nearest(network, known)}")
        if config.model.channels not in {None, 3}:
            raise UserError(f"torchvision's networks take 3 channels, not model.channels = {config.model.channels}")
        heads = find_heads(lambda classes: _build(network, num_classes=classes))
        entry = _entry(network, weights)
        module = _download(network, entry)
        if is_file(weights):
            load_weights(module, weights, heads)
        _leave_out(module, network)
        present = dict(module.named_modules())
        spec = _input(network, entry)
        fixed = getattr(module, "image_size", None)  # vision transformers take one size
        if fixed and config.model.image_size not in {None, fixed}:
            raise UserError(
                f"torchvision/{network} takes {fixed} pixels, not model.image_size = {config.model.image_size}; "
                "timm's transformers can be built for other sizes"
            )
        spec = evolve(spec, size=(fixed, fixed)) if fixed else spec
        return Backbone(module, tuple(slot for slot in heads if slot.path in present), spec)


def _build(network: str, **options: Any) -> nn.Module:
    from torchvision.models import get_model

    if network in {"googlenet", "inception_v3"} and options.get("weights") is None:
        options["init_weights"] = False  # their own warns, and is replaced by what is loaded or by torch's defaults
    module: nn.Module = get_model(network, **options)
    return module


def _entry(network: str, weights: str) -> Any:
    """Return torchvision's weights entry: the default one, a named one, or None."""
    from torchvision.models import get_model_weights

    entries = get_model_weights(network)
    if weights == "none" or is_file(weights):
        return None
    if weights == "default":
        return entries.DEFAULT
    names = [entry.name for entry in entries]
    if weights not in names:
        raise UserError(
            f"torchvision/{network} has no weights {weights!r}{nearest(weights, names)}; it has {', '.join(names)}"
        )
    return entries[weights]


def _download(network: str, entry: Any) -> nn.Module:
    try:
        return _build(network, weights=entry)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot get the pre-trained weights of torchvision/{network}: {type(error).__name__}: {error}\n"
            "give a file, --set model.weights=FILE.pth, or start from random ones, --set model.weights=none"
        ) from error


def _leave_out(module: Any, network: str) -> None:
    """Take away what a new head cannot use.

    SqueezeNet's ReLU behind the classifier would cut off every negative logit. The auxiliary classifiers of GoogLeNet
    and Inception only serve training from scratch, as torchvision's own ``aux_logits=False`` has it.
    """
    from torch import nn

    if network.startswith("squeezenet"):
        module.set_submodule("classifier.2", nn.Identity())
    if network in {"googlenet", "inception_v3"}:
        module.aux_logits = False
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(module, name):
                setattr(module, name, None)


def _input(network: str, entry: Any) -> InputSpec:
    """Read the preset that belongs to the weights; without weights, that of the default ones."""
    from torchvision.models import get_model_weights

    preset = (entry or get_model_weights(network).DEFAULT).transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    return InputSpec(
        size=(crop, crop),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_fraction=min(1.0, crop / resize),
    )
