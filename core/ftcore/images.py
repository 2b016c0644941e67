"""Read picture files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
"""Endings of files that count as pictures."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(path: str | Path) -> Image.Image:
    """Decode a picture, upright, with 8 bits a channel.

    Raises:
        DataError: the file is missing, no picture, damaged, or absurdly large.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            upright = ImageOps.exif_transpose(image)
            return _eight_bit(upright)
    except _UNREADABLE as error:
        raise DataError(f"cannot read image {path}: {error}") from None


def check_image(path: str | Path) -> None:
    """Read a picture's header, which costs little and finds most files that are no pictures.

    Raises:
        DataError: as `read_image`, except for damage behind the header.
    """
    try:
        with Image.open(path, formats=_FORMATS):
            pass
    except _UNREADABLE as error:
        raise DataError(f"cannot read image {path}: {error}") from None


def is_image(path: Path) -> bool:
    """Whether a file's name says that it is a picture; hidden files are not."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def find_images(path: Path) -> list[Path]:
    """Return the pictures in a folder, sorted; a file stands for itself.

    Raises:
        DataError: a path that does not exist, or a folder without pictures.
    """
    if not path.exists():
        raise DataError(f"no such picture or folder: {path} (looked at {path.absolute()})")
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and is_image(file))
    if not found:
        raise DataError(f"no pictures in folder {path}; looked for {', '.join(sorted(SUFFIXES))}")
    return found


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit greyscale down; PIL's own conversion would clip it to white."""
    image.load()
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image
