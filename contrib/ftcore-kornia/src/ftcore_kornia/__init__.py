"""Augmentation of whole batches on the device: ``--plugin kornia``.

kornia is imported inside functions, so that naming the plugin costs no more than reading its options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen, validators
from ftcore import BatchImageTransform, UserError, hookimpl

if TYPE_CHECKING:
    from ftcore import InputSpec
    from torch import Tensor

__all__ = ["Kornia", "KorniaConfig"]

_share: Any = [validators.ge(0.0), validators.le(1.0)]


@frozen
class KorniaConfig:
    """Options of `kornia`; 0 leaves a change out.

    Attributes:
        mirror: probability that an image is mirrored left to right, in [0, 1].
        upside_down: probability that it is mirrored top to bottom, in [0, 1].
        degrees: maximum rotation, in [0, 180]; what comes into view repeats the edge.
        translate: it is moved by at most this share of its width and height, in [0, 1].
        zoom: it is enlarged or made smaller by at most this factor, >= 1.
        brightness: changed by at most this share, in [0, 1].
        contrast: as `brightness`.
        saturation: as `brightness`; for images of three channels.
        hue: maximum rotation as a fraction of the colour circle, in [0, 0.5]; for images of three channels.
        blur: probability of a Gaussian blur of 5 x 5 pixels, in [0, 1].
        erase: probability that a rectangle of 2 to 33 % of the image is made black, in [0, 1] (Zhong et al. 2017,
            arXiv:1708.04896).
    """

    mirror: float = field(default=0.5, validator=_share)
    upside_down: float = field(default=0.0, validator=_share)
    degrees: float = field(default=10.0, validator=[validators.ge(0.0), validators.le(180.0)])
    translate: float = field(default=0.0, validator=_share)
    zoom: float = field(default=1.0, validator=validators.ge(1.0))
    brightness: float = field(default=0.2, validator=_share)
    contrast: float = field(default=0.2, validator=_share)
    saturation: float = field(default=0.0, validator=_share)
    hue: float = field(default=0.0, validator=[validators.ge(0.0), validators.le(0.5)])
    blur: float = field(default=0.0, validator=_share)
    erase: float = field(default=0.0, validator=_share)


class Kornia:
    """Changes each image of a training batch by itself, where the network runs."""

    Config = KorniaConfig

    def __init__(self, config: KorniaConfig) -> None:
        self.config = config

    @hookimpl
    def batch_transforms(self, spec: InputSpec) -> list[BatchImageTransform]:
        """Answer always.

        Raises:
            UserError: all changes are left out, or colours of images that have none are to change.
        """
        if (self.config.saturation or self.config.hue) and spec.channels != 3:
            raise UserError(
                f"kornia.saturation and kornia.hue change colours, and images have {spec.channels} channels"
            )
        from .changes import changes

        found = changes(self.config)
        if not found:
            raise UserError("kornia: all of its changes are left out; set one of its options, or do not name it")
        return [BatchImageTransform(Augment(found, spec))]


class Augment:
    """Normalised images (N, C, H, W) -> the same, changed; draws from torch's generator of the processor."""

    def __init__(self, changes: list[Any], spec: InputSpec) -> None:
        from kornia.augmentation import AugmentationSequential

        self.changes = AugmentationSequential(*changes, data_keys=["input"])
        self.mean, self.std = spec.mean, spec.std

    def __call__(self, images: Tensor) -> Tensor:
        """Change a batch: kornia's colours are in [0, 1]."""
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        pixels = (images * std + mean).clamp(0, 1)
        changed: Tensor = self.changes(pixels)
        return (changed - mean) / std
