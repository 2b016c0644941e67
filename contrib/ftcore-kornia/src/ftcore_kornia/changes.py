"""kornia's augmentations, as the options say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kornia import augmentation

if TYPE_CHECKING:
    from . import KorniaConfig

_BLUR = {"kernel_size": (5, 5), "sigma": (0.1, 2.0)}


def changes(config: KorniaConfig) -> list[Any]:
    """Return kornia's modules for what is not left out, in the order in which they are applied."""
    colours = (config.brightness, config.contrast, config.saturation, config.hue)
    moved: dict[str, Any] = {
        "degrees": config.degrees,
        "translate": (config.translate, config.translate) if config.translate else None,
        "scale": (1 / config.zoom, config.zoom) if config.zoom > 1 else None,
        "padding_mode": "border",
    }
    wanted = [
        (config.mirror, augmentation.RandomHorizontalFlip, {"p": config.mirror}),
        (config.upside_down, augmentation.RandomVerticalFlip, {"p": config.upside_down}),
        (config.degrees or config.translate or config.zoom > 1, augmentation.RandomAffine, {**moved, "p": 1.0}),
        (any(colours), augmentation.ColorJiggle, dict(zip(_COLOURS, colours, strict=True)) | {"p": 1.0}),
        (config.blur, augmentation.RandomGaussianBlur, {**_BLUR, "p": config.blur}),
        (config.erase, augmentation.RandomErasing, {"p": config.erase}),
    ]
    return [make(**options) for holds, make, options in wanted if holds]


_COLOURS = ("brightness", "contrast", "saturation", "hue")
