"""Awkward but valid pictures: each is read as numpy or another decoder reads it, within one grey level."""

from __future__ import annotations

import functools
import struct
import warnings
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torchvision.io import ImageReadMode, decode_image

from ftcore.data.decoding import check_image, read_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Pixels = np.ndarray[Any, np.dtype[Any]]
    Kind = tuple[bytes, Pixels]

WHITE = 255


@functools.cache
def photograph() -> Image.Image:
    from sklearn.datasets import load_sample_images

    return Image.fromarray(load_sample_images().images[0]).resize((96, 64))


@functools.cache
def colours() -> Pixels:
    return np.asarray(photograph())


@functools.cache
def greys() -> Pixels:
    return np.asarray(photograph().convert("L"))


@functools.cache
def deep() -> Pixels:
    """16-bit grey (H, W), whose high and low bytes differ."""
    return (np.arange(64 * 96, dtype=np.uint32) * 65535 // (64 * 96 - 1)).reshape(64, 96).astype(np.uint16)


@functools.cache
def opacity() -> Pixels:
    """A ramp (H, W) from 0 to 255."""
    return np.broadcast_to(np.linspace(0, 255, 96).astype(np.uint8), (64, 96))


def saved(kind: str, pixels: Pixels | Image.Image, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_torchvision(data: bytes, mode: ImageReadMode = ImageReadMode.RGB) -> Pixels:
    """Decode JPEG, PNG or WEBP -> (H, W, 3), or (H, W) where `mode` is grey."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        decoded = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode)
    pixels: Pixels = decoded.permute(1, 2, 0).squeeze(-1).numpy()
    return pixels


def over_white(pixels: Pixels, alpha: Pixels) -> Pixels:
    share = alpha.astype(float) / 255
    return pixels * (share[..., None] if pixels.ndim == 3 else share) + WHITE * (
        1 - (share[..., None] if pixels.ndim == 3 else share)
    )


def jpeg(**options: Any) -> Kind:
    data = saved("JPEG", photograph(), **options)
    return data, by_torchvision(data)


def spliced(*pieces: bytes, at: int = 2) -> Kind:
    """Put bytes into a JPEG, by default in front of its first segment, that change none of its pixels."""
    data, expected = jpeg()
    return data[:at] + b"".join(pieces) + data[at:], expected


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def turned(kind: str, orientation: int, **options: Any) -> Kind:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(kind, photograph(), exif=exif, **options)
    stored = by_torchvision(saved("JPEG", photograph())) if kind == "JPEG" else colours()
    return data, UPRIGHT[orientation](stored)


def grey_and_turned() -> Kind:
    """AVIF, which loses colour in every quality."""
    exif = Image.Exif()
    exif[0x0112] = 7
    return saved("AVIF", greys(), quality=100, exif=exif), UPRIGHT[7](greys())


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(pixels: Pixels, bits: int, colour: int, *before: bytes, after: bytes = b"") -> bytes:
    """Write rows of samples, which are already packed or big-endian, without PIL."""
    width = pixels.shape[1] * 8 // bits if bits < 8 else pixels.shape[1]
    header = struct.pack(">IIBBBBB", width, pixels.shape[0], bits, colour, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    chunks = [chunk(b"IHDR", header), *before, chunk(b"IDAT", rows), after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(pixels: Pixels, bits: tuple[int, ...], photometric: int, order: str = "<", **more: int) -> bytes:
    """Write an uncompressed TIFF of one strip without PIL; `more`: sample_format, extra_samples."""
    content = pixels.tobytes()
    listed = 8 + len(content)
    tags = [
        (256, 4, 1, more.get("width", pixels.shape[1])),
        (257, 4, 1, pixels.shape[0]),
        (258, 3, len(bits), listed if len(bits) > 2 else bits[0]),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 8),
        (277, 3, 1, len(bits)),
        (278, 4, 1, pixels.shape[0]),
        (279, 4, 1, len(content)),
    ]
    tags += [(338, 3, 1, more["extra_samples"])] if "extra_samples" in more else []
    tags += [(339, 3, 1, more["sample_format"])] if "sample_format" in more else []
    shorts = struct.pack(f"{order}{len(bits)}H", *bits)
    directory = struct.pack(f"{order}H", len(tags))
    for number, kind, count, value in tags:
        short = kind == 3 and count <= 2
        directory += struct.pack(f"{order}HHI", number, kind, count)
        directory += struct.pack(f"{order}HH", value, value * (count - 1)) if short else struct.pack(f"{order}I", value)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    start = listed + len(shorts) + len(shorts) % 2
    return (
        magic + struct.pack(f"{order}I", start) + content + shorts.ljust(start - listed, b"\0") + directory + bytes(4)
    )


def shares() -> Pixels:
    return (deep() / 65535).astype(np.float32)


def twelve_bits() -> Kind:
    low = deep() >> 4
    pairs = low.reshape(64, 48, 2).astype(np.uint32)
    packed = np.stack(
        [pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], axis=-1
    )
    return tiff(packed.astype(np.uint8).reshape(64, 144), (12,), 1, width=96), low >> 4


def palette(**options: Any) -> tuple[bytes, Pixels, Pixels]:
    """Return a PNG with 16 colours, its indices (H, W) and its colours (16, 3)."""
    image = photograph().quantize(16)
    table = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    return saved("PNG", image, **options), np.asarray(image), table


def palette_alpha(alpha: bytes) -> Kind:
    data, indices, table = palette(transparency=alpha)
    return data, over_white(table[indices], np.frombuffer(alpha, np.uint8)[indices])


def clear_gif() -> Kind:
    image = photograph().quantize(16)
    table = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    indices = np.asarray(image)
    expected = np.where((indices == 3)[..., None], WHITE, table[indices])
    return saved("GIF", image, transparency=3, optimize=False), expected


def palette_alpha_tiff() -> Kind:
    image = photograph().quantize(16)
    table = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    layers = Image.merge("LA", (Image.fromarray(np.asarray(image)), Image.fromarray(opacity().copy())))
    both = image.convert("PA")
    both.putalpha(layers.getchannel("A"))
    return saved("TIFF", both), over_white(table[np.asarray(image)], opacity())


def ink(pixels: Pixels) -> Pixels:
    """(..., 4) CMYK, 0 is no ink -> RGB."""
    part = 1 - pixels.astype(float) / 255
    return 255 * part[..., :3] * part[..., 3:]


def inks() -> Pixels:
    return np.concatenate([255 - colours(), greys()[..., None] // 3], axis=-1)


def cmyk_jpeg(transform: int) -> Kind:
    """Inks are stored inverted, as Adobe does; with transform 2 the first three as YCbCr."""
    data = saved("JPEG", Image.fromarray(inks(), mode="CMYK"), quality=95, subsampling=0)
    place = data.index(b"Adobe") + 11
    data = data[:place] + bytes([transform]) + data[place + 1 :]
    return data, by_torchvision(data)


def lab() -> Kind:
    """CIELAB of D50 -> sRGB, by the formulas of CIE 15 and IEC 61966-2-1, adapted after Bradford."""
    image = ImageCms.profileToProfile(
        photograph(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert image is not None
    bright = np.asarray(image)[..., 0] / 2.55
    green, blue = (np.asarray(image)[..., place].astype(np.int8).astype(float) for place in (1, 2))
    middle = (bright + 16) / 116
    roots = np.stack([middle + green / 500, middle, middle - blue / 200], axis=-1)
    xyz = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * [0.96422, 1.0, 0.82521]
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = np.clip(xyz @ np.array(matrix).T, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return saved("TIFF", image), 255 * curved


def luma_tiff() -> Kind:
    image = photograph().convert("YCbCr")
    y, cb, cr = (np.asarray(image).astype(float)[..., place] for place in range(3))
    red, blue = y + 1.402 * (cr - 128), y + 1.772 * (cb - 128)
    green = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
    return tiff(np.asarray(image), (8, 8, 8), 6), np.clip(np.stack([red, green, blue], axis=-1), 0, 255)


def frames(kind: str, **options: Any) -> Kind:
    others = [photograph().rotate(180), photograph().convert("L").convert("RGB")]
    data = saved(kind, photograph(), save_all=True, append_images=others, **options)
    return data, by_torchvision(saved("JPEG", photograph())) if kind == "MPO" else colours()


def animated_gif() -> Kind:
    image = photograph().quantize(16)
    table = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    data = saved("GIF", image, save_all=True, append_images=[image.rotate(180)], duration=50, loop=0)
    return data, table[np.asarray(image)]


def with_clear_colour(pixels: Pixels) -> Kind:
    """PNG without an alpha channel, one of whose colours is transparent."""
    chosen = pixels[10, 10]
    value = struct.pack(f">{max(chosen.ndim * 3, 1)}H", *np.atleast_1d(chosen).tolist())
    same = (pixels == chosen).all(axis=-1) if pixels.ndim == 3 else pixels == chosen
    expected = np.where(same[..., None] if pixels.ndim == 3 else same, WHITE, pixels)
    return png(pixels, 8, 2 if pixels.ndim == 3 else 0, chunk(b"tRNS", value)), expected


def premultiplied(pixels: Pixels, photometric: int) -> Kind:
    """TIFF whose colours were already weighted with their opacity."""
    alpha = np.maximum(opacity(), 128)
    share = (alpha[..., None] if pixels.ndim == 3 else alpha) / 255
    weighted = (pixels * share).round().astype(np.uint8)
    layers = np.dstack([weighted, alpha])
    expected = weighted + WHITE * (1 - share)
    return tiff(layers, (8,) * layers.shape[-1], photometric, extra_samples=1), expected


def bmp(pixels: bytes, bits: int, *, height: int = 64, compression: int = 0, table: bytes = b"") -> bytes:
    start = 54 + len(table)
    head = struct.pack(
        "<IiiHHIIiiII", 40, 96, height, 1, bits, compression, len(pixels), 2835, 2835, len(table) // 4, 0
    )
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + head + table + pixels


def run_length_bmp() -> Kind:
    grey = bytes(level for value in range(256) for level in (value, value, value, 0))
    runs = b"".join(b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in greys()[::-1].tolist()) + b"\0\1"
    return bmp(runs, 8, compression=1, table=grey), greys()


def motion_photo() -> Kind:
    data, expected = jpeg()
    return data + struct.pack(">I", 24) + b"ftypmp42" + np.random.default_rng(0).bytes(300_000), expected


def filled_jpeg() -> Kind:
    """Fill bytes in front of a marker are allowed, and so are many restarts."""
    data, expected = jpeg(restart_marker_blocks=1)
    return data[:-2] + b"\xff\xff\xff" + data[-2:], expected


def plain(pixels: Pixels, head: str) -> bytes:
    return (
        f"{head}\n# a comment\n96 64\n255\n".encode()
        + b" ".join(str(v).encode() for v in pixels.ravel().tolist())
        + b"\n"
    )


EXIF_6 = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
KINDS: dict[str, Callable[[], Kind]] = {
    **{f"exif_{n}.jpg": functools.partial(turned, "JPEG", n) for n in UPRIGHT},
    "exif_6.png": lambda: turned("PNG", 6),
    "exif_5.webp": lambda: turned("WEBP", 5, lossless=True),
    "exif_7.avif": grey_and_turned,
    "exif_8.tiff": lambda: turned("TIFF", 8),
    "exif_broken.jpg": lambda: spliced(segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(9))),
    "exif_of_noise.jpg": lambda: spliced(segment(0xE1, b"Exif\0\0" + bytes(range(256)))),
    "exif_empty.jpg": lambda: spliced(segment(0xE1, b"Exif\0\0")),
    "exif_unknown_orientation.jpg": lambda: spliced(segment(0xE1, EXIF_6.replace(b"\0\x06", b"\0\x63"))),
    "exif_broken.png": lambda: (png(colours(), 8, 2, chunk(b"eXIf", b"II*\0" + b"\xff" * 9)), colours()),
    "exif_of_text.png": lambda: (
        png(colours(), 8, 2, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 9\nnot hexadecimal")),
        colours(),
    ),
    "exif_broken.webp": lambda: (saved("WEBP", colours(), lossless=True, exif=b"Exif\0\0no tags"), colours()),
    "exif_behind_pixels.png": lambda: (
        png(colours(), 8, 2, after=chunk(b"eXIf", EXIF_6[6:])),
        UPRIGHT[6](colours()),
    ),
    "thumbnail_with_its_own_end.jpg": lambda: spliced(segment(0xE1, b"Exif\0\0" + saved("JPEG", greys()))),
    "comment_with_an_end.jpg": lambda: spliced(segment(0xFE, b"\xff\xd9 \xff\xda \xff\xd9")),
    "junk_between_segments.jpg": lambda: spliced(segment(0xFE, b"a comment"), b"\0\0\0"),
    "fill_bytes_and_restarts.jpg": filled_jpeg,
    "motion_photo.jpg": motion_photo,
    "zeros_behind_end.jpg": lambda: (jpeg()[0] + bytes(5000), jpeg()[1]),
    "progressive.jpg": lambda: jpeg(progressive=True),
    "half_colour.jpg": lambda: jpeg(subsampling="4:2:2"),
    "stored_as_rgb.jpg": lambda: jpeg(keep_rgb=True),
    "grey.jpg": lambda: (saved("JPEG", greys()), by_torchvision(saved("JPEG", greys()), ImageReadMode.GRAY)),
    "cmyk_inverted.jpg": lambda: cmyk_jpeg(0),
    "ycck.jpg": lambda: cmyk_jpeg(2),
    "cmyk.tif": lambda: (tiff(inks(), (8, 8, 8, 8), 5), ink(inks())),
    "lab.tif": lab,
    "ycbcr.tif": luma_tiff,
    "two_pictures.jpg": lambda: frames("MPO"),
    "profile.jpg": lambda: jpeg(icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()),
    "profile_broken.jpg": lambda: jpeg(icc_profile=b"no profile"),
    "profile.png": lambda: (saved("PNG", colours(), icc_profile=b"no profile"), colours()),
    "gamma.png": lambda: (png(colours(), 8, 2, chunk(b"gAMA", struct.pack(">I", 10000))), colours()),
    "png_named.jpg": lambda: (saved("PNG", colours()), colours()),
    "jpeg_named.png": jpeg,
    "deep.png": lambda: (png(deep().astype(">u2"), 16, 0), deep() >> 8),
    "deep_little_endian.tif": lambda: (tiff(deep().astype("<u2"), (16,), 1), deep() >> 8),
    "deep_big_endian.tif": lambda: (tiff(deep().astype(">u2"), (16,), 1, ">"), deep() >> 8),
    "deep_white_is_zero.tif": lambda: (tiff(deep().astype("<u2"), (16,), 0), (65535 - deep()) >> 8),
    "deep_signed.tif": lambda: (tiff((deep() // 2).astype("<i2"), (16,), 1, sample_format=2), deep() // 2 >> 8),
    "deep_twelve_bits.tif": twelve_bits,
    "deep.pgm": lambda: (b"P5 96 64 65535\n" + deep().astype(">u2").tobytes(), deep() >> 8),
    "deep_odd_maximum.pgm": lambda: (b"P5 96 64 4095\n" + (deep() >> 4).astype(">u2").tobytes(), deep() >> 8),
    "integers.tif": lambda: (tiff(deep().astype("<i4"), (32,), 1, sample_format=2), deep() >> 8),
    "integers_big_endian.tif": lambda: (tiff(deep().astype(">i4"), (32,), 1, ">", sample_format=2), deep() >> 8),
    "deep_colours.png": lambda: (png((colours() * 256.0 + 200).astype(">u2"), 16, 2), colours()),
    "float.tif": lambda: (tiff(shares().astype("<f4"), (32,), 1, sample_format=3), 255 * shares()),
    "float_big_endian.tif": lambda: (tiff(shares().astype(">f4"), (32,), 1, ">", sample_format=3), 255 * shares()),
    "float_upside_down.pgm": lambda: (b"Pf\n96 64\n-1.0\n" + shares()[::-1].astype("<f4").tobytes(), 255 * shares()),
    "one_bit.png": lambda: (png(np.packbits(greys() > 99, axis=1), 1, 0), 255 * (greys() > 99)),
    "one_bit_fax.tif": lambda: (saved("TIFF", greys() > 99, compression="group4"), 255 * (greys() > 99)),
    "one_bit.ppm": lambda: (b"P4 96 64\n" + np.packbits(greys() <= 99, axis=1).tobytes(), 255 * (greys() > 99)),
    "four_bits.png": lambda: (png(greys()[:, ::2] & 0xF0 | greys()[:, 1::2] >> 4, 4, 0), (greys() >> 4) * 17),
    "palette.png": lambda: (palette()[0], palette()[2][palette()[1]]),
    "palette_with_alpha.png": lambda: palette_alpha(bytes(range(0, 256, 17))),
    "palette_with_clear_colour.gif": clear_gif,
    "palette_with_alpha.tif": palette_alpha_tiff,
    "grey_with_alpha.png": lambda: (png(np.dstack([greys(), opacity()]), 8, 4), over_white(greys(), opacity())),
    "grey_with_clear_level.png": lambda: with_clear_colour(greys()),
    "colour_with_clear_colour.png": lambda: with_clear_colour(colours()),
    "alpha.png": lambda: (png(np.dstack([colours(), opacity()]), 8, 6), over_white(colours(), opacity())),
    "alpha.webp": lambda: (
        saved("WEBP", np.dstack([colours(), opacity()]), lossless=True, exact=True),
        over_white(colours(), opacity()),
    ),
    "alpha_premultiplied.tif": lambda: premultiplied(colours(), 2),
    "grey_alpha_premultiplied.tif": lambda: premultiplied(greys(), 1),
    "animated.gif": animated_gif,
    "animated.webp": lambda: frames("WEBP", lossless=True),
    "animated.png": lambda: frames("PNG"),
    "pages.tif": lambda: frames("TIFF", compression="tiff_lzw"),
    "lossy.webp": lambda: (saved("WEBP", photograph()), by_torchvision(saved("WEBP", photograph()))),
    "grey.avif": lambda: (saved("AVIF", greys(), quality=100), greys()),
    "one_pixel.png": lambda: (saved("PNG", colours()[:1, :1]), colours()[:1, :1]),
    "one_pixel.jpg": lambda: (saved("JPEG", colours()[:1, :1]), by_torchvision(saved("JPEG", colours()[:1, :1]))),
    "tall.png": lambda: (saved("PNG", colours().reshape(-1, 1, 3)[:5000]), colours().reshape(-1, 1, 3)[:5000]),
    "wide.png": lambda: (saved("PNG", colours().reshape(1, -1, 3)[:, :5000]), colours().reshape(1, -1, 3)[:, :5000]),
    "bytes_behind_end.png": lambda: (saved("PNG", colours()) + b"more" * 999, colours()),
    "without_trailer.gif": lambda: (animated_gif()[0][:-1], animated_gif()[1]),
    "top_down.bmp": lambda: (bmp(colours()[..., ::-1].tobytes(), 24, height=-64), colours()),
    "run_length.bmp": run_length_bmp,
    "plain.ppm": lambda: (plain(colours(), "P3"), colours()),
    "small_maximum.ppm": lambda: (b"P6 96 64 15\n" + (colours() >> 4).tobytes(), (colours() >> 4) * 17),
    "predictor.tif": lambda: (saved("TIFF", colours(), compression="tiff_adobe_deflate", tiffinfo={317: 2}), colours()),
}


def test_there_are_at_least_40_kinds() -> None:
    assert len(KINDS) >= 40


@pytest.mark.parametrize("name", KINDS)
def test_an_awkward_picture_is_read_as_the_reference_has_it(tmp_path: Path, name: str) -> None:
    data, expected = KINDS[name]()
    (tmp_path / name).write_bytes(data)

    image = read_image(tmp_path / name)
    check_image(tmp_path / name)

    pixels = np.asarray(image)
    assert image.mode == ("RGB" if expected.ndim == 3 else "L")
    assert pixels.shape == expected.shape
    assert np.abs(pixels - np.asarray(expected, dtype=float)).max() < 1.001
    assert image.info == {}


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("side", "scale"), [(None, 1), (3000, 1), (601, 1), (600, 2), (301, 2), (300, 4), (150, 8), (1, 8)]
)
def test_a_jpeg_is_decoded_small_while_its_shorter_side_is_long_enough(
    tmp_path: Path, orientation: int, side: int | None, scale: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph().resize((1920, 1200)).save(tmp_path / "large.jpg", exif=exif, quality=95)

    image = read_image(tmp_path / "large.jpg", side)

    whole = read_image(tmp_path / "large.jpg")
    means = np.asarray(whole, dtype=float).reshape(whole.height // scale, scale, whole.width // scale, scale, 3)
    assert image.size == ((1920 // scale, 1200 // scale) if orientation == 1 else (1200 // scale, 1920 // scale))
    assert np.abs(np.asarray(image) - means.mean(axis=(1, 3))).mean() < 1


def test_a_jpeg_below_two_megapixels_is_decoded_in_full(tmp_path: Path) -> None:
    photograph().resize((1920, 1040)).save(tmp_path / "small.jpg")

    assert read_image(tmp_path / "small.jpg", 8).size == (1920, 1040)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "PPM"])
def test_a_picture_that_is_no_jpeg_is_decoded_in_full(tmp_path: Path, kind: str) -> None:
    photograph().save(tmp_path / "picture", kind)

    assert read_image(tmp_path / "picture", 8).size == (96, 64)
