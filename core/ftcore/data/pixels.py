"""Pixels of every kind as pictures of 8 bits a channel, grey or red, green and blue, upright."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from PIL import ExifTags, Image

from ftcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable


Channels = Literal["rgb", "bgr"]
"""Order of the colours in an array."""

_DEPTHS = {"uint8": (1, 2, 3, 4), "uint16": (1,), "bool": (1,)}
"""Type of an array's values -> numbers of channels that it may have."""

_EXIF_TRANSPOSE = {code: Image.Transpose(turn) for code, turn in zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True)}


def check_channels(channels: str) -> None:
    """Refuse an order of colours that there is not.

    Raises:
        UserError: naming the two that there are.
    """
    if channels not in get_args(Channels):
        raise UserError(f"channels = {channels!r}: expected 'rgb', or 'bgr' for arrays from OpenCV")


def from_pixels(pixels: Any, channels: Channels = "rgb") -> Image.Image:
    """Make a picture, of mode L or RGB, of what numpy makes of a PIL image: (H, W) or (H, W, C).

    Args:
        pixels: uint8 with 1 (grey), 2 (grey, alpha), 3 (colour) or 4 (colour, alpha) channels; uint16 (H, W), deep
            grey; or bool (H, W). A torch tensor is uint8, and has its channels first: (C, H, W).
        channels: order of the colours: red first, or blue first.

    Raises:
        UserError: it is none of these.
    """
    is_tensor = hasattr(pixels, "detach")
    array = pixels.detach().cpu().numpy() if is_tensor else np.asarray(pixels)
    shape, kind = array.shape, str(array.dtype)
    if is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    depth = array.shape[2] if array.ndim == 3 else 1
    if depth not in _DEPTHS.get(kind, ()) or array.ndim not in {2, 3} or 0 in shape:
        wanted = "a tensor (C, H, W)" if is_tensor else "an array (H, W) or (H, W, C)"
        scaled = "; of values from 0 to 1: (255 * pixels).round() as uint8" if array.dtype.kind == "f" else ""
        raise UserError(
            f"an image must be a path, the bytes of a file, an open file, a PIL image, or {wanted} of uint8 with 1 to "
            f"4 "
            f"channels, not {type(pixels).__name__} {shape} of {kind}{scaled}"
        )
    if depth == 1:
        array = array.reshape(array.shape[:2])
    elif channels == "bgr" and depth > 2:
        array = array[..., [2, 1, 0, *range(3, depth)]]
    return to_uint8(Image.fromarray(np.ascontiguousarray(array)))


def apply_exif_orientation(image: Image.Image, exif: Callable[[], Image.Exif]) -> Image.Image:
    """Turn a picture, and drop the tags that would have it turned once more."""
    turn = None
    with suppress(Exception):  # damaged EXIF can raise anything, and says nothing about the pixels
        turn = _EXIF_TRANSPOSE.get(exif()[ExifTags.Base.Orientation])
    if turn is not None:
        image = image.transpose(turn)
    image.info = {}
    return image


def to_uint8(image: Image.Image) -> Image.Image:
    """Bring a picture of any mode to L where it is grey and RGB where it is not; such a one is returned as it is.

    Transparent parts become white.

    Raises:
        ValueError: deep grey values outside their range.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_scaled(image))
    if image.has_transparency_data:
        return _flatten_alpha_on_white(image)
    if image.mode == "LAB":
        return _from_lab(image)
    return image if image.mode in {"L", "RGB"} else image.convert("L" if image.mode == "1" else "RGB")


def _scaled(image: Image.Image) -> np.ndarray:
    """Scale deep grey; PIL's own conversion would clip it to white, and floating-point grey to black."""
    values = np.asarray(image)
    low, high, most = values.min(), values.max(), 1 if image.mode == "F" else 65535
    if not (low >= 0 and high <= most):  # NaN is outside, too
        raise ValueError(f"grey values of mode {image.mode} must be 0 to {most}, got {low} to {high}")
    if image.mode == "F":
        return (values * 255).round().astype(np.uint8)
    tags = getattr(image, "tag_v2", {})  # TIFF; PIL leaves to us that white may be 0, or a sample 12 bits
    deep = 65535 - values if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else values
    return (deep >> (4 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 8)).astype(np.uint8)


def _flatten_alpha_on_white(image: Image.Image) -> Image.Image:
    layers = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    mode = "L" if image.mode in {"1", "L", "LA", "La"} else "RGB"
    white = Image.new(mode, image.size, "white")
    white.paste(layers.convert(mode), mask=layers.getchannel("A"))
    return white


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    exact = ImageCms.Flags.NOOPTIMIZE  # its shortcut is 5 grey levels off in the shadows
    return ImageCms.buildTransform(lab, rgb, "LAB", "RGB", flags=exact).apply(image)
