"""Pictures of every kind are read upright with 8 bits a channel, or named in an error."""

from __future__ import annotations

import io
import tempfile
import urllib.request
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ftcore import DataError, UserError
from ftcore.data.decoding import check_image, find_images, image_reader, is_image, is_one_picture, read_image
from ftcore.testing import image_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
    with pytest.raises(DataError, match=r"^no such image or folder: .*nowhere \(looked at .*nowhere\)$"):
        find_images(tmp_path / "nowhere")


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images in folder .*; looked for .avif, .bmp"):
        find_images(tmp_path)


def noise(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode) if mode != "P" else Image.fromarray(pixels[:, :, :3]).quantize(16)


def turned(code: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = code
    return {"exif": exif}


DEEP = (np.arange(600, dtype=np.uint16) * 100).reshape(20, 30)
LARGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).resize((2000, 1200))

TREATED: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    **{f"exif {code}": (noise(), "a.jpg", turned(code)) for code in range(1, 9)},
    "16 bit": (Image.fromarray(DEEP), "a.png", {}),
    "float": (Image.fromarray((DEEP / 65535).astype(np.float32)), "a.tif", {}),
    "cmyk": (noise("CMYK"), "a.jpg", {}),
    "clear palette": (noise("P"), "a.png", {"transparency": bytes([0, 128] * 8)}),
    "clear colour": (corner(), "a.png", {"transparency": (255, 0, 0)}),
    "large": (LARGE, "a.jpg", {}),
    **{mode: (noise(mode), "a.png", {}) for mode in ("RGB", "RGBA", "LA", "L", "P", "1")},
}
"""Pictures that must be treated in some way before they are 8 bits a channel, upright: one, its file, its options."""


def saved_as(folder: Path, kind: str) -> Path:
    image, name, options = TREATED[kind]
    image.save(folder / name, **options)
    return folder / name


class Upload:
    """As Streamlit and Flask hand one over: read already, with a name of its own; it is no file of `io`."""

    def __init__(self, data: bytes) -> None:
        self.stream, self.filename = io.BytesIO(data), "upload.png"
        self.stream.read()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def spooled(path: Path) -> Any:
    """Return a file as FastAPI's `UploadFile.file` is one."""
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115 - closed as it goes
    file.write(path.read_bytes())
    return file


def pil_in_memory(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


FORMS: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "upload": lambda path: Upload(path.read_bytes()),
    "spooled": spooled,
    "url": lambda path: urllib.request.urlopen(path.as_uri()),
    "PIL": Image.open,
    "PIL of bytes": lambda path: Image.open(io.BytesIO(path.read_bytes())),
}


@pytest.mark.parametrize("kind", TREATED)
@pytest.mark.parametrize("form", [*FORMS, "PIL in memory"])
def test_a_picture_says_the_same_in_every_form(tmp_path: Path, kind: str, form: str) -> None:
    path = saved_as(tmp_path, kind)
    given = pil_in_memory(path) if form == "PIL in memory" else FORMS[form](path)

    with closing(given) if hasattr(given, "close") else nullcontext():
        for side in (None, 50):
            found = read_image(given, side)
            expected = read_image(path, None if (kind, form) == ("large", "PIL in memory") else side)
            assert (found.mode, found.size) == (expected.mode, expected.size)
            assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "L", "RGB", "1", "16 bit"])
def test_the_array_that_numpy_makes_of_a_picture_says_the_same(tmp_path: Path, kind: str) -> None:
    path = saved_as(tmp_path, kind)

    found = read_image(np.asarray(Image.open(path)))

    assert np.array_equal(np.asarray(found), np.asarray(read_image(path)))


def test_what_was_given_stays_as_it_was(tmp_path: Path) -> None:
    path = saved_as(tmp_path, "exif 6")

    with Image.open(path) as waiting, path.open("rb") as file:
        decoded = pil_in_memory(path)
        file.seek(7)
        for given in (decoded, waiting, file):
            read_image(given)

        assert (decoded.size, decoded.getexif()[0x0112], file.tell()) == ((30, 20), 6, 7)
        assert np.array_equal(np.asarray(waiting), np.asarray(decoded))


def test_a_picture_that_pil_has_turned_already_is_not_turned_again(tmp_path: Path) -> None:
    path = saved_as(tmp_path, "exif 6")

    found = read_image(ImageOps.exif_transpose(pil_in_memory(path)))

    assert np.array_equal(np.asarray(found), np.asarray(read_image(path)))


def test_what_can_be_read_once_is_decoded_at_any_number_of_scales(tmp_path: Path) -> None:
    path = saved_as(tmp_path, "large")
    with urllib.request.urlopen(path.as_uri()) as stream:
        read = image_reader(stream)

    assert [read(side).size for side in (None, 50, None)] == [(2000, 1200), (250, 150), (2000, 1200)]


def test_an_error_names_the_file_that_was_uploaded() -> None:
    with pytest.raises(DataError, match=r"^cannot read image upload\.png: "):
        read_image(Upload(b"no picture"))
    with pytest.raises(DataError, match=r"^cannot read image of 10 bytes: "):
        read_image(io.BytesIO(b"no picture"))
    with pytest.raises(DataError, match=r"^cannot read image of 0 bytes: the file is empty"):
        read_image(b"")


def test_a_file_that_is_open_for_text_is_an_error_that_says_how_to_open_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")

    with (
        (tmp_path / "a.txt").open() as file,
        pytest.raises(UserError, match=r"read\(\) returns str.*open\(path, 'rb'\)"),
    ):
        read_image(file)


def test_an_asynchronous_upload_is_an_error_that_names_its_file() -> None:
    class UploadFile:
        async def read(self) -> bytes:
            return b""

    with pytest.raises(UserError, match=r"UploadFile\.read is asynchronous; pass its \.file, or the bytes"):
        read_image(UploadFile())


def test_another_order_of_channels_is_an_error_that_names_both() -> None:
    with pytest.raises(UserError, match="channels = 'brg': expected 'rgb', or 'bgr'"):
        read_image(np.zeros((4, 4, 3), np.uint8), channels="brg")  # type: ignore[arg-type]


def test_one_picture_is_told_from_several() -> None:
    one = ["a.jpg", b"", io.BytesIO(), noise(), np.zeros((4, 4)), np.zeros((4, 4, 3)), torch.zeros(3, 4, 4)]
    several = [["a.jpg"], (), np.zeros((2, 4, 4, 3)), torch.zeros(2, 3, 4, 4), np.array(["a.jpg", "b.jpg"]), iter([])]

    assert [is_one_picture(item) for item in one] == [True] * 7
    assert [is_one_picture(item) for item in several] == [False] * 6
