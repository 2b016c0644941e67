"""Read pictures in whatever form they come: whole, upright, 8 bits a channel; or say by name what is wrong with one."""

from __future__ import annotations

import os
import re
import stat
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial
from inspect import iscoroutinefunction
from io import BytesIO
from threading import current_thread, main_thread
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from ftcore.errors import DataError, UserError

from .pixels import apply_exif_orientation, check_channels, from_pixels, to_uint8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from PIL import ImageFile

    from .pixels import Channels

SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Endings of files that count as pictures."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF")

_KINDS = {stat.S_IFDIR: "directory", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}

_MOST_BYTES = 2**30

_MOST_PIXELS = 2**30 // 12
"""Where PIL begins to warn; a number of our own, for PIL's is a global variable that any library may lift."""

_MOST_SCANS = 100
"""Of a progressive JPEG: encoders write about 10, and each costs as much as a picture, however few its bytes are."""

_MIN_SCALED_PIXELS = 2_000_000
"""A JPEG of fewer is decoded in full: a smaller scale saves milliseconds there, and is not the same picture: resized to
its size in training it differs by grey levels where the scale does not divide its sides."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends entropy-coded data of a JPEG: neither a stuffed 0xFF, nor a restart, nor a fill byte."""

_MARKERS_BETWEEN_SCANS = frozenset({0xC4, 0xCC, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE})


def read_image(picture: Any, side: int | None = None, *, channels: Channels = "rgb") -> Image.Image:
    """Decode a picture: upright, mode L where it is grey and RGB where it is not, 8 bits a channel.

    Transparent parts show white. 16-bit grey loses its low byte; floating-point grey means 0 to 1. Of an animation or
    of several pages the first counts. Colour profiles are ignored. All forms of one picture say the same; only a JPEG
    of two megapixels or more, decoded elsewhere and so at its full size, differs by a grey level or two once resized.

    Args:
        picture: a path; the content of a file as ``bytes``, ``bytearray`` or ``memoryview``; a file that is open for
            reading bytes, or anything else with such a ``read()``, which is read from its beginning; a PIL image; or
            pixels, see `ftcore.data.pixels.from_pixels`. What kind of picture it is, its content says and not its name.
        side: see `decode_image`.
        channels: order of the colours of pixels, ``rgb``, or ``bgr`` as OpenCV has them; all else says it by itself.

    Raises:
        DataError: the file is missing, no regular file, no picture, damaged, or absurdly large.
        UserError: this is no form of a picture.
    """
    return image_reader(picture, channels)(side)


def image_reader(picture: Any, channels: Channels = "rgb") -> Callable[[int | None], Image.Image]:
    """Return what decodes a picture at a scale, any number of times; see `read_image`.

    What can be read only once is read here.
    """
    check_channels(channels)
    if isinstance(picture, str | os.PathLike):
        return partial(_read_file, picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        return partial(_read_content, bytes(picture), None)
    source = _undecoded_file(picture) if isinstance(picture, Image.Image) else picture
    if hasattr(source, "read"):
        return partial(_read_content, _stream_content(source), _stream_name(source))
    image = _from_image(picture) if isinstance(picture, Image.Image) else from_pixels(picture, channels)
    return lambda _side: image


def is_one_picture(item: Any) -> bool:
    """Whether something is a picture, in a form that `read_image` takes, and not several."""
    if isinstance(item, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or hasattr(item, "read"):
        return True
    kind = getattr(getattr(item, "dtype", None), "kind", "u")  # rows of paths are no pixels
    return 0 < getattr(item, "ndim", 4) < 4 and kind in "biuf"


def _read_file(path: str | os.PathLike[str], side: int | None) -> Image.Image:
    with _as_data_error(path), open(path, "rb", opener=_open) as file:
        data = file.read()
    return decode_image(data, path, side)


def _read_content(data: bytes, name: str | None, side: int | None) -> Image.Image:
    return decode_image(data, name or f"of {len(data):,} bytes", side)


def _undecoded_file(image: Image.Image) -> Any:
    """Return the file of an image of which PIL has read no more than the header: it may be decoded as any file."""
    file = getattr(image, "fp", None)
    waits = image.format in {*_FORMATS, "MPO"} and bool(getattr(image, "tile", None)) and not image.tell()
    return file if waits and not getattr(file, "closed", False) else None


def _from_image(image: Image.Image) -> Image.Image:
    """Treat the pixels of a PIL image, which stays as it is, as those of a file."""
    with _as_data_error(f"of PIL ({image.mode}, {image.width} x {image.height})"):
        image.load()
        found = to_uint8(image)
        return apply_exif_orientation(found.copy() if found is image else found, image.getexif)


def _stream_content(file: Any) -> bytes:
    """Read a file from its beginning, as PIL does, and leave it where it was.

    Raises:
        UserError: it gives no bytes.
        DataError: it cannot be read.
    """
    name = _stream_name(file) or type(file).__name__
    if iscoroutinefunction(file.read):
        raise UserError(f"{type(file).__name__}.read is asynchronous; pass its .file, or the bytes that it returns")
    with _as_data_error(name):
        place = file.tell() if hasattr(file, "seek") and _can_seek(file) else None
        if place is not None:
            file.seek(0)
        data = file.read()
        if place is not None:
            file.seek(place)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UserError(f"{name}: read() returns {type(data).__name__}, not bytes; open the file with open(path, 'rb')")
    return bytes(data)


def _can_seek(file: Any) -> bool:
    return bool(file.seekable()) if hasattr(file, "seekable") else hasattr(file, "tell")


def _stream_name(file: Any) -> str | None:
    """Return what a person calls an open file, if it says so; an upload has a `filename`."""
    names = [getattr(file, key, None) for key in ("filename", "name")]
    return next((name for name in names if isinstance(name, str) and name), None)


def decode_image(
    data: bytes, name: str | os.PathLike[str], side: int | None = None, *, max_pixels: int = _MOST_PIXELS
) -> Image.Image:
    """Decode a picture that is in memory, as `read_image` does a file.

    Args:
        data: the content of a picture file.
        name: what a person calls it, for messages.
        side: a JPEG of two megapixels or more may be decoded at a half, quarter or eighth of its size, its shorter side
            at least this long.
        max_pixels: width times height, at most.

    Raises:
        DataError: it is no picture, damaged, or has too many pixels, or scans.
    """
    with _as_data_error(name):
        if not 0 < len(data) <= _MOST_BYTES:
            raise ValueError(f"{len(data)} bytes cannot be an image" if data else "the file is empty")
        if data.startswith(b"\xff\xd8\xff"):
            _count_scans(data)
        elif data.startswith(b"\x89PNG"):
            _header(BytesIO(data), max_pixels).verify()  # checksums, which decoding leaves out
        with _header(BytesIO(data), max_pixels) as image:
            if side and image.width * image.height >= _MIN_SCALED_PIXELS:
                image.draft(None, (side, side))
            image.load()
            return apply_exif_orientation(to_uint8(image), image.getexif)


def estimate_work(data: bytes, name: str) -> int:
    """Return what decoding a picture that is in memory costs: its pixels, and a quarter more for each further scan.

    Raises:
        DataError: it is no picture, absurdly large, or a damaged JPEG.
    """
    with _as_data_error(name), _header(BytesIO(data)) as image:
        scans = _count_scans(data) if data.startswith(b"\xff\xd8\xff") else 1
        return image.width * image.height * (3 + scans) // 4


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
        raise DataError(f"no such image or folder: {path} (looked at {path.absolute()})")
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and is_image(file))
    if not found:
        raise DataError(f"no images in folder {path}; looked for {', '.join(sorted(SUFFIXES))}")
    return found


@contextmanager
def ignore_warnings() -> Iterator[None]:
    """Silence warnings; the filter is one for all threads, so only the main thread may, for itself and the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _as_data_error(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever goes wrong into a `DataError` that names the file, in letters that any terminal can print."""
    try:
        with ignore_warnings() if current_thread() is main_thread() else nullcontext():
            yield
    except Exception as error:  # noqa: BLE001 - hostile bytes can raise anything in a decoder
        name = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(path))
        raise DataError(f"cannot read image {name}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is not one of {', '.join(_FORMATS)}, or its header is corrupt"
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
        raise ValueError(f"{status.st_size} bytes cannot be an image")
    return os.open(path, flags | os.O_NONBLOCK)  # were it exchanged for a pipe just now, this would not wait


def _header(file: IO[bytes], max_pixels: int = _MOST_PIXELS) -> ImageFile.ImageFile:
    image = Image.open(file, formats=_FORMATS)
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width} x {image.height} pixels are more than {max_pixels}")
    return image


def _count_scans(data: bytes) -> int:
    """Follow the markers of a JPEG to its end; libjpeg fills up what is missing with grey, and says nothing."""
    position, scans = 2, 0
    while found := _MARKER.search(data, position):
        marker, position = found[0][1], found.end()
        if scans and marker not in _MARKERS_BETWEEN_SCANS:
            raise ValueError(f"JPEG data is damaged at byte {found.start()}")
        if marker == 0xD9:
            return scans
        scans += marker == 0xDA
        if scans > _MOST_SCANS:
            raise ValueError(f"it has more than {_MOST_SCANS} scans")
        position += int.from_bytes(data[position : position + 2], "big")
    raise ValueError(f"image file is truncated: its {len(data)} bytes do not contain the end of the JPEG data")
