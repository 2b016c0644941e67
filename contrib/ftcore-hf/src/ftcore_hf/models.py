"""Classifiers of transformers as networks that ftcore fine-tunes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from ftcore import Backbone, InputSpec, TokenSpec, UserError
from ftcore.model import find_heads, is_weights_file, load_weights
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig
from transformers import AutoModelForImageClassification as ForImages
from transformers import AutoModelForSequenceClassification as ForTexts

from .hub import RESAMPLING, TransformersHub
from .texts import found, padding_of, tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from . import HuggingFaceConfig

LENGTH = 128
"""Tokens of a text, where nothing else is said."""


class Images(nn.Module):
    """Images (N, C, H, W) float32 -> logits (N, K)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Call the network."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


class Texts(nn.Module):
    """Token ids (N, L) int64 -> logits (N, K); what fills a text up is not looked at."""

    def __init__(self, model: nn.Module, padding: int) -> None:
        super().__init__()
        self.model, self.padding = model, padding

    def forward(self, tokens: Tensor) -> Tensor:
        """Call the network."""
        mask = tokens.ne(self.padding).long()
        logits: Tensor = self.model(input_ids=tokens, attention_mask=mask).logits
        return logits


def build(network: str, weights: str, options: HuggingFaceConfig, kept: Mapping[str, Any]) -> Backbone:
    """Build a network with its own head.

    Args:
        network: a folder, or a name on the hub.
        weights: ``default``, ``none`` or a file.
        options: of the plugin.
        kept: what a run kept of the network, to build it again; then `network` need not be there.

    Raises:
        UserError: there is no such network, it classifies neither images nor texts, or its weights are no safetensors.
    """
    config = AutoConfig.for_model(**kept["config"]) if kept else found(AutoConfig, network)
    kind = _kind(config, network)
    settings: Any = {"attn_implementation": options.attention, "dtype": torch.float32}
    if weights == "default":
        model = found(kind, network, config=config, use_safetensors=True, **settings)
    else:
        model = kind.from_config(config, **settings)
    tokenizer = tokenizer_of(network, kept) if kind is ForTexts else None
    wrap: Callable[[nn.Module], nn.Module] = partial(Texts, padding=padding_of(config)) if tokenizer else Images
    heads = find_heads(lambda classes: wrap(kind.from_config(_with(config, classes), **settings)))
    module = wrap(model)
    if is_weights_file(weights):
        load_weights(module, weights, heads)
    elif weights not in {"default", "none"}:
        raise UserError(f"model.weights = {weights!r}: hf/{network} has 'default', 'none', or a file")
    architecture = {"config": _plain(config), **({"tokenizer": tokenizer.to_str()} if tokenizer else {})}
    spec = _tokens(config, options) if tokenizer else InputSpec() if kept else _images(network, config)
    hub = TransformersHub(kind, wrap, tokenizer)
    return Backbone(module, heads, spec, architecture=architecture, hub=hub)


def _kind(config: PreTrainedConfig, network: str) -> Any:
    """Return the class of transformers' classifiers that an architecture belongs to."""
    for kind in (ForImages, ForTexts):
        if type(config) in kind._model_mapping:  # noqa: SLF001 - what the class itself looks into
            return kind
    raise UserError(
        f"hf/{network} is a {config.model_type}, of which transformers has no classifier of images or texts"
    )


def _with(config: PreTrainedConfig, classes: int) -> PreTrainedConfig:
    """Return a copy for another number of classes."""
    changed: PreTrainedConfig = type(config).from_dict(config.to_dict())
    changed.num_labels = classes
    return changed


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a configuration as plain values, with no name of a place or a version."""
    return {key: value for key, value in config.to_dict().items() if value is not None and not key.startswith("_")}


def _tokens(config: PreTrainedConfig, options: HuggingFaceConfig) -> TokenSpec:
    most = getattr(config, "max_position_embeddings", None) or LENGTH
    length = options.length or min(LENGTH, most)
    if length > most:
        raise UserError(f"hf.length = {length}: this network takes at most {most} tokens")
    return TokenSpec(length=length, vocabulary=config.vocab_size, padding=padding_of(config))


def _images(network: str, config: PreTrainedConfig) -> InputSpec:
    """Read what a network's own processor does: size, mean, std, resampling and crop.

    A `size` of height and width squashes, one of the shortest edge keeps proportions. A `crop_pct` is ConvNeXt's, which
    squashes from 384 pixels on.
    """
    processor = found(AutoImageProcessor, network).to_dict()
    names, before = {number: name for name, number in RESAMPLING.items()}, processor["size"]
    cut = (processor.get("crop_size") if processor.get("do_center_crop", True) else None) or before
    side, share = cut.get("shortest_edge"), processor.get("crop_pct")
    size = (cut.get("height", side), cut.get("width", side))
    squashes = "height" in before or bool(share and side >= 384)
    edge = before["height"] if "height" in before else before["shortest_edge"]
    return InputSpec(
        size=size,
        channels=getattr(config, "num_channels", 3),
        mean=tuple(processor["image_mean"]),
        std=tuple(processor["image_std"]),
        interpolation=names.get(processor.get("resample", 2), "bilinear"),
        crop_fraction=share if share and not squashes else size[0] / edge,
        crop_mode="squash" if squashes else "center",
    )
