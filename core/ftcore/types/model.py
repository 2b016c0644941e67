"""A network as plugins describe it: its head, input and stages; and what of it is frozen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from attrs import field, frozen, validators

from ftcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from .task import Task


def _names(names: Iterable[str]) -> frozenset[str]:
    """Any collection of names -> a set of them; a text is no collection."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise UserError(f"FreezePlan needs sets of names, not {names!r}")
    return frozenset(names)


def _releases(at: Mapping[int, Iterable[str]]) -> dict[int, frozenset[str]]:
    wrong = [epoch for epoch in at if type(epoch) is not int or epoch < 0]
    if wrong:
        raise UserError(f"FreezePlan.unfreeze_at: an epoch must be an integer >= 0, not {wrong[0]!r}")
    return {epoch: _names(names) for epoch, names in at.items()}


@frozen
class FreezePlan:
    """The answer of `freeze`; the host applies it, no plugin touches ``requires_grad``.

    Attributes:
        frozen: names of parameters that do not learn, and of buffers that nothing may change.
        eval_modules: names of modules held in eval mode, they and all below them, so that running statistics stay.
        unfreeze_at: epoch (from 0) -> modules or parameters that start to learn there, e.g. ``{3: {"layer4"}}``.
        never_unfreeze: names of modules that neither learn nor leave eval mode, whatever `unfreeze_at` releases.
    """

    frozen: frozenset[str] = field(default=frozenset(), converter=_names)
    eval_modules: frozenset[str] = field(default=frozenset(), converter=_names)
    unfreeze_at: Mapping[int, frozenset[str]] = field(factory=dict, converter=_releases)
    never_unfreeze: frozenset[str] = field(default=frozenset(), converter=_names)


CROP_MODES = ("center", "squash", "pad")

_ROUNDING = 1e-12
"""Relative: a fraction of two whole numbers gives them back."""


@frozen
class InputSpec:
    """What a network wants to see, images if it is no `TokenSpec`; comes with its weights.

    Attributes:
        size: (height, width) in pixels.
        channels: 1 (greyscale) or 3 (RGB) for the built-in transforms.
        mean: per channel, of pixel values in [0, 1].
        std: per channel, as `mean`; > 0.
        interpolation: ``nearest``, ``bilinear`` or ``bicubic``; ``box``, ``hamming`` and ``lanczos`` of PIL.
        crop_fraction: side of the crop over side of the resized image, > 0; above 1 a margin is added.
        crop_mode: how an image of other proportions comes to `size`: ``center`` cuts off what sticks out, ``squash``
            resizes height and width each by its own factor, ``pad`` adds margins of the colour `mean`. With a
            `crop_fraction` of 1 the latter two show the whole image.
    """

    size: tuple[int, int] = (224, 224)
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_fraction: float = field(default=0.875, validator=validators.gt(0))
    crop_mode: str = field(default="center", validator=validators.in_(CROP_MODES))

    @property
    def resize_size(self) -> tuple[int, int]:
        """(height, width) in pixels that `size` is cut out of: floored, but not by rounding."""
        height, width = (int(side / self.crop_fraction * (1 + _ROUNDING)) for side in self.size)
        return height, width

    @property
    def fill(self) -> tuple[int, ...]:
        """Colour of the margins that ``pad`` adds, 0 to 255 per channel: what becomes about 0."""
        return tuple(min(max(round(255 * value), 0), 255) for value in self.mean)

    @property
    def preprocessing(self) -> str:
        """What happens to an image, in words."""
        height, width = self.resize_size
        cut = "" if self.resize_size == self.size else f" of {height} x {width}"
        shown = {"center": f"centre crop{cut}", "squash": f"squashed{cut and ', centre'}{cut}", "pad": f"padded{cut}"}
        return f"{self}, {self.interpolation}, {shown[self.crop_mode]}"

    def data_config(self) -> dict[str, Any]:
        """Return the description in the terms of timm's ``create_transform``, with the same meaning."""
        floored = tuple(math.floor(side / self.crop_fraction) for side in self.size)
        exact = self.crop_fraction if floored == self.resize_size else self.crop_fraction / (1 + 2 * _ROUNDING)
        return {
            "input_size": (self.channels, *self.size),
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
            "crop_pct": exact,
            "crop_mode": "border" if self.crop_mode == "pad" else self.crop_mode,
        }

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.channels} x {height} x {width}"

    def zeros(self, count: int, device: Any) -> Tensor:
        """Return `count` black images (count, C, H, W) float32."""
        import torch

        return torch.zeros(count, self.channels, *self.size, device=device)

    def randn(self, count: int, device: Any) -> Tensor:
        """Return `count` images of noise (count, C, H, W) float32, from torch's global generator."""
        return self.zeros(count, device).normal_()


@frozen(kw_only=True)
class TokenSpec(InputSpec):
    """What a network that reads texts wants: token ids (N, length) int64; what `InputSpec` says of images has no part.

    Attributes:
        length: tokens in a text, padding included.
        vocabulary: ids are below it.
        padding: id of what fills a text up.
    """

    length: int = field(validator=validators.gt(0))
    vocabulary: int = field(validator=validators.gt(0))
    padding: int = 0

    @property
    def preprocessing(self) -> str:
        """What a text becomes, in words."""
        return str(self)

    def data_config(self) -> dict[str, Any]:
        """Return nothing, as a text is not an image."""
        return {}

    def __str__(self) -> str:
        return f"{self.length} tokens of {self.vocabulary}"

    def zeros(self, count: int, device: Any) -> Tensor:
        """Return `count` texts of the first token (count, length) int64."""
        import torch

        return torch.zeros(count, self.length, dtype=torch.int64, device=device)

    def randn(self, count: int, device: Any) -> Tensor:
        """Return `count` texts of random tokens (count, length) int64, from torch's global generator."""
        return self.zeros(count, device).random_(0, self.vocabulary)


def input_spec_from_dict(values: Mapping[str, Any]) -> InputSpec:
    """Make what a network wants of the values that a file holds; before there was a crop mode, a rectangle squashed."""
    if "vocabulary" in values:
        return TokenSpec(**values)
    height, width = values["size"]
    return InputSpec(**{"crop_mode": "center" if height == width else "squash", **values})


@frozen
class HeadSlot:
    """Where a network's classifier sits: a Linear or Conv2d leaf that the host replaces.

    Attributes:
        path: dotted name of the module, e.g. ``classifier.1``.
        in_features: features (or channels) that it sees.
        convolutional: whether it is a Conv2d and sees (N, C, H, W) instead of (N, ..., C).
        bias: whether it has one.
        rectifier: dotted name of a ReLU that takes what the classifier gives, as in SqueezeNet; the host finds it. A
            new head that gives nothing above zero never learns.
    """

    path: str
    in_features: int
    convolutional: bool = False
    bias: bool = True
    rectifier: str = ""


class HubExporter(Protocol):
    """How a network becomes a folder for the Hugging Face hub, which a library loads by name."""

    @property
    def library(self) -> str:
        """Name of the library, as the hub spells it."""
        ...

    def write(self, network: nn.Module, folder: Path, task: Task, spec: InputSpec) -> None:
        """Write the network, with its new head and input specification, to an empty folder."""
        ...

    def read(self, folder: Path) -> nn.Module:
        """Load the network of a folder with the library alone, in eval mode.

        It takes and returns what `Backbone.module` does.
        """
        ...

    def usage_code(self, folder: str) -> Sequence[str]:
        """Return lines of Python, imports first, that load the network of a folder and its preprocessing."""
        ...


@frozen
class Backbone:
    """The result of `build_model`: a network with its original head.

    Attributes:
        module: images (N, C, H, W) float32, normalised, or token ids (N, L) int64 -> outputs (N, K); in train mode
            perhaps a tuple of them.
        heads: every head to replace; most networks have one.
        input: the network's input specification.
        aux_loss_weights: if the network returns a tuple in train mode, the weight of the loss of each output except the
            first.
        stages: parameter or buffer name -> its stage as the architecture defines them, 0 is the stem; parameters not
            listed are after the last stage. Empty: derived from the modules.
        blocks: as `stages`, but every block counts, for layer-wise learning rates.
        no_decay: names of parameters that the architecture exempts from weight decay, in addition to vectors.
        architecture: what `build_model` needs to rebuild the network without its original source: plain values, which a
            run saves with its model, and `predict` passes as ``config.architecture``.
        hub: how to export the network as a folder for the Hugging Face hub, if supported.
        builder_code: number of outputs -> lines of Python, imports first, that build `module` with that number of
            outputs as ``model``, using its library and without ftcore; None if not possible. Export runs them.
    """

    module: nn.Module
    heads: tuple[HeadSlot, ...]
    input: InputSpec = InputSpec()
    aux_loss_weights: tuple[float, ...] = ()
    stages: Mapping[str, int] = field(factory=dict)
    blocks: Mapping[str, int] = field(factory=dict)
    no_decay: frozenset[str] = frozenset()
    architecture: Mapping[str, Any] = field(factory=dict)
    hub: HubExporter | None = None
    builder_code: Callable[[int], Sequence[str]] | None = None

    @property
    def num_features(self) -> int:
        """Number of input features of the (first) head."""
        return self.heads[0].in_features


@frozen
class ModelInfo:
    """One network that a provider can build; an item of the answer of `list_models`.

    Attributes:
        name: as in ``model.name``, with the provider.
        library: where it comes from, with the version, e.g. ``timm 1.0.31``.
        size: (height, width) of its input, in pixels.
        channels: of its input.
        weights: names of the pre-trained weights that there are.
        build: makes the network with random weights; called on the meta device where only shapes are wanted.
    """

    name: str
    library: str
    size: tuple[int, int]
    weights: tuple[str, ...]
    build: Callable[[], nn.Module] = field(repr=False, eq=False)
    channels: int = 3
