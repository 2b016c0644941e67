"""From a picture to the tensor that the network's weights were trained to see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen, validators

from ftcore import TokenSpec, Transforms, TwoStageTransform, UserError, hookimpl

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ftcore import InputSpec


_MODES = {1: "L", 3: "RGB"}

DECODE_MARGIN = 2
"""Pictures are decoded at a smaller scale while they stay this many times larger than they will be."""


class PlainTransforms:
    """Resize, crop or pad, and normalise; the same in training and evaluation, without randomness."""

    @hookimpl
    def make_transforms(self, spec: InputSpec) -> Transforms:
        """Answer always."""
        plain = eval_transform(spec)
        return Transforms(train=plain, evaluate=plain, on_device=Normalize(spec))


def eval_transform(spec: InputSpec) -> TwoStageTransform:
    """Resize to size / crop_fraction as the crop mode says, and cut out the centre."""
    if isinstance(spec, TokenSpec):
        raise UserError(
            f"plain_transforms and augment produce images, but this network takes {spec}; "
            "enable a plugin that turns text into tokens"
        )
    if spec.channels not in _MODES:
        raise UserError(
            f"plain_transforms and augment support 1 or 3 channels, not {spec.channels}; enable another plugin for that"
        )
    return TwoStageTransform(Resize(spec), to_uint8, min_decode_side=DECODE_MARGIN * max(spec.resize_size))


def to_uint8(image: Image) -> Tensor:
    """PIL image -> (C, H, W) uint8."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    tensor: Tensor = pil_to_tensor(image)
    return tensor


@frozen
class Normalize:
    """Images (N, C, H, W) uint8 -> float32: values in [0, 1], minus mean, over std.

    Attributes:
        spec: the input of the network.
    """

    spec: InputSpec

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise a batch."""
        import torch

        mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (self.spec.mean, self.spec.std))
        return images.float().div_(255).sub_(mean).div_(std)


def resized(image: Image, size: list[int], interpolation: str) -> Image:
    """Resize a picture of mode L or RGB: to (height, width), or its shorter side to the one number given.

    Bilinear and bicubic on torch's integers: three times as fast as PIL, and at most one grey level from it; bicubic at
    most two, more only beside hard edges of black and white, where it is cut off at 0 and 255 between two passes, whose
    order is PIL's own choice.
    """
    from PIL import Image as PILImage
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    mode = InterpolationMode(interpolation)
    if mode not in {InterpolationMode.BILINEAR, InterpolationMode.BICUBIC}:
        by_pil: Image = functional.resize(image, size, mode)
        return by_pil
    import numpy as np
    import torch

    pixels = np.array(image)
    tensor = torch.from_numpy(pixels if pixels.ndim > 2 else pixels[..., None]).permute(2, 0, 1)
    smaller = functional.resize(tensor, size, mode, antialias=True).permute(1, 2, 0)
    return PILImage.fromarray(
        smaller.contiguous().numpy().squeeze(2) if pixels.ndim == 2 else smaller.contiguous().numpy()
    )


@frozen
class Resize:
    """PIL image -> PIL image, L or RGB, of the size that the network wants.

    Attributes:
        spec: the input of the network.
    """

    spec: InputSpec

    def __call__(self, image: Image) -> Image:
        """Transform one picture."""
        from torchvision.transforms.v2.functional import center_crop

        spec, image = self.spec, image.convert(_MODES[self.spec.channels])
        image = resized(image, self.resized_size(image.height, image.width), spec.interpolation)
        cut: Image = center_crop(_padded(image, spec) if spec.crop_mode == "pad" else image, list(spec.size))
        return cut

    def resized_size(self, height: int, width: int) -> list[int]:
        """Size of a picture -> height and width before the crop, or the shorter side alone; rounded as timm does."""
        tall, wide = self.spec.resize_size
        if self.spec.crop_mode == "squash":
            return [tall, wide]
        if self.spec.crop_mode == "center" and tall == wide:
            return [tall]
        fit = max if self.spec.crop_mode == "pad" else min
        ratio = fit(height / tall, width / wide)
        return [max(1, round(side / ratio)) for side in (height, width)]


def _padded(image: Image, spec: InputSpec) -> Image:
    """Put a picture in the middle of one that is at least as large as the input, of the colour that becomes 0."""
    from PIL import Image as PILImage

    height, width = max(spec.size[0], image.height), max(spec.size[1], image.width)
    padded = PILImage.new(image.mode, (width, height), spec.fill if spec.channels > 1 else spec.fill[0])
    padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return padded


@frozen
class AugmentConfig:
    """Options of `augment`.

    Attributes:
        preset: ``light`` (crops of at least 35 % of the area, mirrored), ``medium`` (20 %, and TrivialAugment) or
            ``heavy`` (8 %, RandAugment, and random erasing of one image in four).
        scale: minimum fraction of the image area in a random crop, in (0, 1]; by default that of the preset.
        mirror: whether to flip half of the images left to right; turn it off if left and right have a meaning.
        upside_down: whether to flip half of the images top to bottom, e.g. for aerial and microscope images.
        erase: probability of random erasing, in [0, 1]; by default that of the preset.
    """

    preset: Literal["light", "medium", "heavy"] = "medium"
    scale: float | None = field(default=None, validator=validators.optional([validators.gt(0), validators.le(1)]))
    mirror: bool = True
    upside_down: bool = False
    erase: float | None = field(default=None, validator=validators.optional([validators.ge(0), validators.le(1)]))


_SCALE = {"light": 0.35, "medium": 0.2, "heavy": 0.08}

_ERASE = {"light": 0.0, "medium": 0.0, "heavy": 0.25}


class Augment:
    """Random crops, flips and colours in training, for any crop mode; evaluation as in `plain_transforms`."""

    Config = AugmentConfig

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    @hookimpl
    def make_transforms(self, spec: InputSpec) -> Transforms:
        """Answer always."""
        plain = eval_transform(spec)
        side = DECODE_MARGIN * max(spec.size)
        train = TwoStageTransform(ResizeShorterSide(spec, side), RandomAugment(spec, self.config), side)
        return Transforms(train=train, evaluate=plain, on_device=Normalize(spec))


@frozen
class ResizeShorterSide:
    """PIL image -> PIL image, L or RGB, its shorter side no more than `side` pixels: crops need not be larger.

    Attributes:
        spec: the input of the network.
        side: pixels.
    """

    spec: InputSpec
    side: int

    def __call__(self, image: Image) -> Image:
        """Transform one picture."""
        image = image.convert(_MODES[self.spec.channels])
        return image if min(image.size) <= self.side else resized(image, [self.side], self.spec.interpolation)


@frozen
class RandomAugment:
    """PIL image -> (C, H, W) uint8, random.

    Attributes:
        spec: the input of the network.
        config: the options of `augment`.
    """

    spec: InputSpec
    config: AugmentConfig
    _steps: Any = field(init=False, eq=False, repr=False)

    @_steps.default
    def _make_steps(self) -> Any:
        from torchvision.transforms import InterpolationMode, v2

        config, mode = self.config, InterpolationMode(self.spec.interpolation)
        scale = _SCALE[config.preset] if config.scale is None else config.scale
        erase = _ERASE[config.preset] if config.erase is None else config.erase
        colours = {
            "light": [],
            "medium": [v2.TrivialAugmentWide(interpolation=mode)],
            "heavy": [v2.RandAugment(interpolation=mode)],
        }
        return v2.Compose(
            [
                v2.RandomResizedCrop(list(self.spec.size), (scale, 1.0), interpolation=mode),
                v2.RandomHorizontalFlip(0.5 * config.mirror),
                v2.RandomVerticalFlip(0.5 * config.upside_down),
                *colours[config.preset],
                v2.PILToTensor(),
                v2.RandomErasing(erase, value=[round(255 * mean) for mean in self.spec.mean]),
            ]
        )

    def __call__(self, image: Image) -> Tensor:
        """Transform one picture."""
        view: Tensor = self._steps(image)
        return view
