"""Pictures of every kind are read upright with 8 bits a channel, or named in an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from ftcore import DataError
from ftcore.data.decoding import check_image, find_images, is_image, read_image
from ftcore.testing import image_folder

if TYPE_CHECKING:
    from pathlib import Path


def corner(width: int = 40, height: int = 20) -> Image.Image:
    """Black, with a red upper left corner."""
    image = Image.new("RGB", (width, height))
    image.paste((255, 0, 0), (0, 0, 8, 8))
    return image


def red_corner(image: Image.Image) -> tuple[int, int]:
    """Return where the red corner is: (x, y), each 0 or 1."""
    red = np.asarray(image.convert("RGB"))[:, :, 0] > 128
    y, x = np.argwhere(red).mean(axis=0)
    return int(x > image.width / 2), int(y > image.height / 2)


@pytest.mark.parametrize(
    ("orientation", "size", "place"),
    [
        (1, (40, 20), (0, 0)),
        (2, (40, 20), (1, 0)),
        (3, (40, 20), (1, 1)),
        (4, (40, 20), (0, 1)),
        (5, (20, 40), (0, 0)),
        (6, (20, 40), (1, 0)),
        (7, (20, 40), (1, 1)),
        (8, (20, 40), (0, 1)),
    ],
)
def test_a_picture_is_turned_upright(
    tmp_path: Path, orientation: int, size: tuple[int, int], place: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner().save(tmp_path / "turned.jpg", exif=exif)

    image = read_image(tmp_path / "turned.jpg")

    assert (image.size, red_corner(image)) == (size, place)


def test_sixteen_bits_are_scaled_to_eight_and_not_cut_off(tmp_path: Path) -> None:
    ramp = (257 * np.arange(255) + 130).astype(np.uint16).reshape(15, 17)  # low and high bytes differ
    Image.fromarray(ramp).save(tmp_path / "deep.png")

    image = read_image(tmp_path / "deep.png")

    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), ramp >> 8)


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    corner().quantize(4).save(tmp_path / "palette.png")
    corner().quantize(4).save(tmp_path / "palette.gif")

    for name in ("palette.png", "palette.gif"):
        image = read_image(tmp_path / name).convert("RGB")
        assert (image.size, red_corner(image)) == ((40, 20), (0, 0))


def test_a_transparent_palette_is_read_without_a_warning(tmp_path: Path) -> None:
    corner().quantize(4).save(tmp_path / "clear.png", transparency=bytes([255, 0, 128, 255]))

    assert red_corner(read_image(tmp_path / "clear.png").convert("RGB")) == (0, 0)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "RGBA", "CMYK"])
def test_other_modes_can_be_converted_to_colour_and_to_grey(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    Image.new("L", (6, 4), 255).convert(mode).save(file)

    image = read_image(file)

    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert image.convert("L").getpixel((0, 0)) == 255


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "webp", "tif", "ppm", "avif"])
def test_each_format_is_read(tmp_path: Path, suffix: str) -> None:
    corner().save(tmp_path / f"picture.{suffix}")

    assert red_corner(read_image(tmp_path / f"picture.{suffix}")) == (0, 0)


def test_a_truncated_picture_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype("uint8")
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:-500])

    with pytest.raises(DataError, match=r"^cannot read image .*cut\.jpg: .*truncated"):
        read_image(file)


@pytest.mark.parametrize("content", [b"", b"no picture", b"GIF89a", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
@pytest.mark.parametrize("read", [read_image, check_image])
def test_a_file_that_is_no_picture_is_an_error_that_names_it(tmp_path: Path, read: type, content: bytes) -> None:
    (tmp_path / "text.jpg").write_bytes(content)

    with pytest.raises(DataError, match=r"^cannot read image .*text\.jpg: "):
        read(tmp_path / "text.jpg")


@pytest.mark.parametrize("read", [read_image, check_image])
def test_a_missing_picture_is_an_error_that_names_it(tmp_path: Path, read: type) -> None:
    with pytest.raises(DataError, match=r"^cannot read image .*gone\.jpg: .*No such file"):
        read(tmp_path / "gone.jpg")


def test_the_header_of_a_good_picture_passes(tmp_path: Path) -> None:
    corner().save(tmp_path / "good.png")

    check_image(tmp_path / "good.png")


@pytest.mark.parametrize(
    ("name", "expected"), [("a.jpg", True), ("a.JPEG", True), ("a.txt", False), ("a", False), (".a.jpg", False)]
)
def test_a_name_says_whether_a_file_is_a_picture(tmp_path: Path, name: str, expected: bool) -> None:  # noqa: FBT001 - a table
    assert is_image(tmp_path / name) is expected


def test_pictures_are_found_in_folders_sorted_and_files_kept_as_given(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "data", classes=("b", "a"), per_class=2)
    (folder / "a" / "notes.txt").write_text("no picture")
    other = tmp_path / "strange.name"
    other.write_bytes(b"")

    assert find_images(other) == [other]
    assert find_images(folder) == [folder / place for place in ("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg")]


def test_hidden_files_are_not_found(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "data", classes=("a", "b"), per_class=1)
    corner().save(folder / "a" / ".0.jpg")

    assert find_images(folder) == [folder / "a" / "0.jpg", folder / "b" / "0.jpg"]


def test_a_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^no such picture or folder: .*nowhere \(looked at .*nowhere\)$"):
        find_images(tmp_path / "nowhere")


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no pictures in folder .*; looked for .avif, .bmp"):
        find_images(tmp_path)
