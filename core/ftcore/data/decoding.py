"""Read picture files: whole, upright, 8 bits a channel; or say by name what is wrong with one."""

from __future__ import annotations

import os
import re
import stat
import warnings
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from threading import current_thread, main_thread
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ftcore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from PIL import ImageFile


SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Endings of files that count as pictures."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF")

_KINDS = {stat.S_IFDIR: "directory", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}

_MOST_BYTES = 2**30

_MOST_PIXELS = 2**30 // 12
"""Where PIL begins to warn; a number of our own, for PIL's is a global variable that any library may lift."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends entropy-coded data of a JPEG: neither a stuffed 0xFF, nor a restart, nor a fill byte."""

_MARKERS_BETWEEN_SCANS = frozenset({0xC4, 0xCC, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE})

_EXIF_TRANSPOSE = {code: Image.Transpose(turn) for code, turn in zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True)}


def read_image(path: str | Path, side: int | None = None) -> Image.Image:
    """Decode a picture: upright, mode L where the file is grey and RGB where it is not, 8 bits a channel.

    Transparent parts show white. 16-bit grey loses its low byte; floating-point grey means 0 to 1. Of an animation or
    of several pages the first counts. Colour profiles are ignored.

    Args:
        path: the file; what kind of picture it is, its content says and not its name.
        side: see `decode_image`.

    Raises:
        DataError: the file is missing, no regular file, no picture, damaged, or absurdly large.
    """
    with _as_data_error(path), open(path, "rb", opener=_open) as file:
        data = file.read()
    return decode_image(data, path, side)


def decode_image(data: bytes, name: str | Path, side: int | None = None) -> Image.Image:
    """Decode a picture that is in memory, as `read_image` does a file.

    Args:
        data: the content of a picture file.
        name: what a person calls it, for messages.
        side: a JPEG may be decoded at a half, quarter or eighth of its size, its shorter side at least this long.

    Raises:
        DataError: it is no picture, damaged, or absurdly large.
    """
    with _as_data_error(name):
        if not data:
            raise ValueError("it is empty")
        if data.startswith(b"\xff\xd8\xff"):
            _check_jpeg_complete(data)
        elif data.startswith(b"\x89PNG"):
            _header(BytesIO(data)).verify()  # checksums, which decoding leaves out
        with _header(BytesIO(data)) as image:
            if side:
                image.draft(None, (side, side))
            image.load()
            return _apply_exif_orientation(_to_uint8(image), image.getexif)


def check_image(path: str | Path) -> None:
    """Read a picture's header, which costs little and finds most files that are no pictures.

    Raises:
        DataError: as `read_image`, except for damage behind the header.
    """
    with _as_data_error(path), open(path, "rb", opener=_open) as file, _header(file):
        pass


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


@contextmanager
def ignore_warnings() -> Iterator[None]:
    """Silence warnings; the filter is one for all threads, so only the main thread may, for itself and the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _as_data_error(path: str | Path) -> Iterator[None]:
    """Turn whatever goes wrong into a `DataError` that names the file, in letters that any terminal can print."""
    try:
        with ignore_warnings() if current_thread() is main_thread() else nullcontext():
            yield
    except Exception as error:  # noqa: BLE001 - hostile bytes can raise anything in a decoder
        name = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(path))
        raise DataError(f"cannot read image {name}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(_FORMATS)}, or its header is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, OSError | ValueError | SyntaxError | Image.DecompressionBombError) and str(error):
        return str(error)
    return f"damaged ({type(error).__name__}: {error})"


def _open(path: str, flags: int) -> int:
    """Open a regular file; anything else could block for ever, or be changed by opening it."""
    status = os.stat(path)  # noqa: PTH116 - a path as `open` hands it on
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"it is a {_KINDS.get(stat.S_IFMT(status.st_mode), 'device')}, not a file")
    if not 0 < status.st_size <= _MOST_BYTES:
        raise ValueError(f"no picture holds {status.st_size} bytes")
    return os.open(path, flags | os.O_NONBLOCK)  # were it exchanged for a pipe just now, this would not wait


def _header(file: IO[bytes]) -> ImageFile.ImageFile:
    image = Image.open(file, formats=_FORMATS)
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than {_MOST_PIXELS}")
    return image


def _check_jpeg_complete(data: bytes) -> None:
    """Follow the markers of a JPEG to its end; libjpeg fills up what is missing with grey, and says nothing."""
    position, in_scans = 2, False
    while found := _MARKER.search(data, position):
        marker, position = found[0][1], found.end()
        if in_scans and marker not in _MARKERS_BETWEEN_SCANS:
            raise ValueError(f"JPEG data is damaged at byte {found.start()}")
        if marker == 0xD9:
            return
        in_scans = in_scans or marker == 0xDA
        position += int.from_bytes(data[position : position + 2], "big")
    raise ValueError(f"image file is truncated: its {len(data)} bytes hold no end of the JPEG data")


def _apply_exif_orientation(image: Image.Image, exif: Callable[[], Image.Exif]) -> Image.Image:
    """Turn a picture, and drop the tags that would have it turned once more."""
    turn = None
    with suppress(Exception):  # damaged EXIF can raise anything, and says nothing about the pixels
        turn = _EXIF_TRANSPOSE.get(exif()[ExifTags.Base.Orientation])
    if turn is not None:
        image = image.transpose(turn)
    image.info = {}
    return image


def _to_uint8(image: Image.Image) -> Image.Image:
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
        raise ValueError(f"grey values of mode {image.mode} must be 0 to {most}; these are {low} to {high}")
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
