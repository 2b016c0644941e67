"""Makes over a hundred files that no reader may take for a picture, each broken in its own way.

Left out, because they are pictures in truth or because nothing in the file tells the damage:

- a wrong ending of the name, a wrong checksum behind the last byte of the pixels (PNG's IEND, GIF's trailer)
- pixels that were overwritten in a format without a checksum: a zero-filled or flipped BMP, PPM, uncompressed TIFF,
  WEBP or AVIF, a flip in JPEG data that is another valid code
- a PNG whose checksums are right and whose pixels are too few, which no accident makes and only decoding twice finds
- JPEG without Huffman tables, which decoders take for the standard ones, as in a film of JPEGs
- a file that its owner may not read: root may
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

TRUNCATED = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")
BOMBS = (
    *("png_12000", "png_65500", "jpeg_12000", "jpeg_65500", "gif_65500", "bmp_12000", "ppm_12000", "tiff_65500"),
    *("webp_16383", "png_text", "sparse"),
)
"""Kinds that are small, and large once they are decoded."""


def malformed(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write every kind into a folder and return their paths by kind; the same bytes for the same seed."""
    random = np.random.default_rng(seed)
    contents = {
        **truncated(),
        **no_pictures(random),
        **headers(),
        **flipped(),
        **zero_filled(),
        **zero_sized(),
        **bombs(),
        **foreign(),
        **structures(),
        **out_of_range(),
    }
    paths = {}
    for kind, content in contents.items():
        paths[kind] = folder / f"{kind}.jpg"
        paths[kind].write_bytes(content)
    return {**paths, **no_files(folder), **odd_names(folder)}


def photograph(width: int = 96, height: int = 64) -> Image.Image:
    from sklearn.datasets import load_sample_images

    return Image.fromarray(load_sample_images().images[0]).resize((width, height))


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = BytesIO()
    (image or photograph()).save(buffer, kind, **options)
    return buffer.getvalue()


def segment(data: bytes, marker: int) -> int:
    """Return where a JPEG's first segment of a kind starts: the place of its 0xFF."""
    position = 2
    while data[position + 1] != marker:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


def pixels_of(data: bytes) -> int:
    """Return where a JPEG's entropy-coded data starts."""
    scan = segment(data, 0xDA)
    return scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")


def without(data: bytes, marker: int) -> bytes:
    """Cut all segments of a kind out of a JPEG's header."""
    kept, position = data[:2], 2
    while data[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        kept += b"" if data[position + 1] == marker else data[position:end]
        position = end
    return kept + data[position:]


def replaced(data: bytes, position: int, content: bytes) -> bytes:
    return data[:position] + content + data[position + len(content) :]


def sized_jpeg(width: int, height: int) -> bytes:
    data = encoded("JPEG")
    return replaced(data, segment(data, 0xC0) + 5, struct.pack(">HH", height, width))


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *between: bytes, pixels: bytes | None = None) -> bytes:
    """Make an 8-bit RGB PNG of any stated size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + 3 * width)) if pixels is None else pixels)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(between) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def tag(data: bytes, number: int, value: int) -> bytes:
    """Change a tag of a small little-endian TIFF."""
    directory = int.from_bytes(data[4:8], "little")
    for entry in range(directory + 2, len(data), 12):
        if int.from_bytes(data[entry : entry + 2], "little") == number:
            return replaced(data, entry + 2, struct.pack("<HII", 4, 1, value))
    raise LookupError(number)


def truncated() -> dict[str, bytes]:
    whole = {kind.lower(): encoded(kind) for kind in TRUNCATED}
    whole["progressive"] = encoded("JPEG", progressive=True)
    whole["lossless_webp"] = encoded("WEBP", lossless=True)
    whole["lzw_tiff"] = encoded("TIFF", compression="tiff_lzw")
    whole["ppm"] = encoded("PPM")
    return {
        f"{kind}_cut_at_{share}": data[: len(data) * share // 100]
        for kind, data in whole.items()
        for share in (10, 50, 90, 99)
    }


def no_pictures(random: np.random.Generator) -> dict[str, bytes]:
    return {
        "empty": b"",
        "one_byte": b"\xff",
        "text": b"This is not a picture.\n",
        "html": b"<!doctype html><html><body><h1>404 Not Found</h1></body></html>\n",
        "random": random.bytes(4000),
        "random_behind_jpeg_magic": b"\xff\xd8\xff" + random.bytes(4000),
        "random_behind_png_magic": b"\x89PNG\r\n\x1a\n" + random.bytes(4000),
        "zeros": bytes(4000),
        "zeros_behind_jpeg_magic": b"\xff\xd8\xff" + bytes(2_000_000),
    }


def headers() -> dict[str, bytes]:
    jpeg = encoded("JPEG")
    return {
        "jpeg_header_only": jpeg[: pixels_of(jpeg)],
        "jpeg_header_and_end": jpeg[: segment(jpeg, 0xDA)] + b"\xff\xd9",
        "png_header_only": encoded("PNG")[:33],
        "gif_header_only": encoded("GIF")[:13],
        "bmp_header_only": encoded("BMP")[:54],
        "webp_header_only": encoded("WEBP")[:20],
    }


def flipped() -> dict[str, bytes]:
    jpeg, photo = encoded("JPEG", quality=95), encoded("PNG")
    palette = encoded("PNG", photograph().quantize(16))
    stuffed = jpeg.index(b"\xff\x00", pixels_of(jpeg) + 500)
    middle, data = photo.index(b"IDAT"), bytearray(zlib.compress(photograph().tobytes()))
    data[len(data) // 2] ^= 0x10
    tiff, gif = encoded("TIFF"), encoded("GIF")
    descriptor = gif.index(b",", 13 + 3 * 256)
    return {
        "jpeg_precision": replaced(jpeg, segment(jpeg, 0xC0) + 4, b"\x0c"),
        "jpeg_components": replaced(jpeg, segment(jpeg, 0xC0) + 9, b"\x07"),
        "jpeg_huffman_counts": replaced(jpeg, segment(jpeg, 0xC4) + 5, b"\xff"),
        "jpeg_huffman_length": replaced(jpeg, segment(jpeg, 0xC4) + 2, b"\xff\xff"),
        "jpeg_stuffing": replaced(jpeg, stuffed + 1, b"\x45"),
        "jpeg_frame_in_scan": replaced(jpeg, stuffed + 1, b"\xc0"),
        "png_header_checksum": replaced(photo, 29, bytes([photo[29] ^ 1])),
        "png_palette_checksum": replaced(palette, palette.index(b"PLTE") + 6, b"\x55"),
        "png_pixels_checksum": replaced(photo, middle + 400, bytes([photo[middle + 400] ^ 1])),
        "png_pixels_behind_good_checksum": png(96, 64)[:33] + chunk(b"IDAT", bytes(data)) + chunk(b"IEND", b""),
        "tiff_compression": tag(tiff, 259, 60000),
        "tiff_strip_offset": tag(tiff, 273, 2**31),
        "gif_code_size": replaced(gif, descriptor + 10, b"\x3f"),
        "webp_chunk": encoded("WEBP").replace(b"VP8 ", b"VP9 "),
        "avif_brand": encoded("AVIF").replace(b"ftypavif", b"ftypxvif"),
        "avif_box": encoded("AVIF").replace(b"iloc", b"jloc"),
        "bmp_compression": replaced(encoded("BMP"), 30, b"\x63"),
    }


def zero_filled() -> dict[str, bytes]:
    """Make what a crash leaves of a file whose length was on the disk before its content."""
    whole = {
        "jpeg": encoded("JPEG", quality=95),
        "progressive": encoded("JPEG", quality=95, progressive=True),
        "png": encoded("PNG"),
        "gif": encoded("GIF"),
    }
    thumbnail = b"Exif\0\0" + encoded("JPEG", photograph(48, 32))
    whole["jpeg_with_thumbnail"] = (
        b"\xff\xd8\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + whole["jpeg"][2:]
    )
    halves = {f"{kind}_half_zeros": data[: len(data) // 2] + bytes(len(data) // 2) for kind, data in whole.items()}
    jpeg = whole["jpeg"]
    return {
        **halves,
        "jpeg_last_bytes_zeros": jpeg[:-60] + bytes(60),
        "jpeg_runs_into_another": jpeg[: len(jpeg) // 2] + jpeg,
        "jpeg_without_end": jpeg[:-2],
    }


def zero_sized() -> dict[str, bytes]:
    return {
        "jpeg_no_width": sized_jpeg(0, 64),
        "jpeg_no_height": sized_jpeg(96, 0),
        "png_no_size": png(0, 0, pixels=b""),
        "gif_no_size": replaced(encoded("GIF"), 6, bytes(4))[:13] + b";",
        "bmp_no_size": replaced(encoded("BMP"), 18, bytes(8)),
        "ppm_no_size": b"P6 0 0 255\n",
    }


def bombs() -> dict[str, bytes]:
    return {
        "png_12000": png(12000, 12000, pixels=bytes(1000)),
        "png_65500": png(65500, 65500, pixels=bytes(1000)),
        "jpeg_12000": sized_jpeg(12000, 12000),
        "jpeg_65500": sized_jpeg(65500, 65500),
        "gif_65500": replaced(encoded("GIF"), 6, struct.pack("<HH", 65500, 65500)),
        "bmp_12000": replaced(encoded("BMP"), 18, struct.pack("<ii", 12000, 12000)),
        "ppm_12000": b"P6 12000 12000 255\n" + bytes(1000),
        "tiff_65500": tag(tag(encoded("TIFF"), 256, 65500), 257, 65500),
        "webp_16383": vp8(16383, 16383),
        "png_text": png(8, 8, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000)))),
    }


def vp8(width: int, height: int) -> bytes:
    data = encoded("WEBP")
    return replaced(data, data.index(b"\x9d\x01\x2a") + 3, struct.pack("<HH", width, height))


def foreign() -> dict[str, bytes]:
    """Make files of other kinds; some of them other programs would be started for."""
    return {
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 64\n%%EndComments\nshowpage\n%%EOF\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="96" height="64"><rect width="9" height="9"/></svg>',
        "psd": b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 64, 96, 8, 3) + bytes(4000),
        "fits": b"".join(
            line.ljust(80).encode() for line in ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 9", "END")
        ),
        "pdf": b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n",
        "zip": b"PK\x03\x04" + bytes(100),
        "film": struct.pack(">I", 24) + b"ftypisom" + bytes(100),
        "icon": b"\0\0\1\0\1\0" + bytes(100),
    }


def structures() -> dict[str, bytes]:
    jpeg, whole = encoded("JPEG"), png(96, 64)
    tiff, gif = encoded("TIFF"), encoded("GIF")
    return {
        "jpeg_without_start": jpeg[2:],
        "jpeg_without_quantization": without(jpeg, 0xDB),
        "jpeg_without_frame": without(jpeg, 0xC0),
        "jpeg_segment_beyond_end": replaced(jpeg, 4, b"\xff\xff"),
        "png_without_pixels": whole[:33] + chunk(b"IEND", b""),
        "png_without_header": whole[:8] + whole[33:],
        "png_without_end": whole[:-12],
        "png_chunk_beyond_end": replaced(whole, 33, b"\x7f\xff\xff\xff"),
        "png_line_ends_changed": encoded("PNG").replace(b"\r\n", b"\n"),
        "tiff_directory_beyond_end": replaced(tiff, 4, struct.pack("<I", 2**31)),
        "tiff_without_pixels": tiff[: int.from_bytes(tiff[4:8], "little")] if tiff[4:8] != b"\x08\0\0\0" else tiff[:8],
        "gif_without_picture": gif[:13] + gif[13 : 13 + 3 * 256] + b";",
        "ppm_letters": b"P6 many few 255\n" + bytes(1000),
        "ppm_plain_too_short": b"P3 96 64 255\n" + b"1 2 3\n" * 100,
        "webp_without_chunk": b"RIFF\x04\0\0\0WEBP",
    }


def out_of_range() -> dict[str, bytes]:
    """Make grey pictures whose scale nobody can know."""
    ramp = np.linspace(0, 1, 96 * 64, dtype=np.float32).reshape(64, 96)
    hole = np.where(ramp > 0.5, np.nan, ramp).astype(np.float32)
    return {
        "float_to_255": encoded("TIFF", Image.fromarray(255 * ramp)),
        "float_below_zero": encoded("TIFF", Image.fromarray(ramp - 0.5)),
        "float_not_a_number": encoded("TIFF", Image.fromarray(hole)),
        "integers_above_65535": encoded("TIFF", Image.fromarray((70000 * ramp).astype(np.int32))),
        "integers_below_zero": encoded("TIFF", Image.fromarray((1000 * ramp - 500).astype(np.int32))),
    }


def no_files(folder: Path) -> dict[str, Path]:
    kinds = ("directory", "dangling_link", "link_loop", "named_pipe", "socket", "device", "gone", "sparse")
    paths = {kind: folder / f"{kind}.jpg" for kind in kinds}
    paths["directory"].mkdir()
    paths["dangling_link"].symlink_to(folder / "nowhere.jpg")
    paths["link_loop"].symlink_to(paths["link_loop"])
    os.mkfifo(paths["named_pipe"])
    os.mknod(paths["socket"], stat.S_IFSOCK | 0o600)
    paths["device"].symlink_to("/dev/zero")
    paths["sparse"].write_bytes(encoded("JPEG"))
    os.truncate(paths["sparse"], 2**36)
    return paths


def odd_names(folder: Path) -> dict[str, Path]:
    damaged = encoded("JPEG")[:-400]
    names = {
        "newline_in_name": "two\nlines.jpg",
        "bytes_in_name": os.fsdecode(b"not \xff utf-8 \xe4.jpg"),
        "escape_in_name": "\x1b[31mred.jpg",
        "percent_in_name": "%s {0} 100%.jpg",
    }
    for name in names.values():
        (folder / name).write_bytes(damaged)
    return {**{kind: folder / name for kind, name in names.items()}, "name_too_long": folder / ("x" * 300 + ".jpg")}


def printable(path: Path) -> str:
    """Return a path as a message shows it."""
    return re.sub(r"[^ -~]", lambda found: ascii(found[0])[1:-1], str(path))
