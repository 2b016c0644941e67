"""Arrays and tensors are pictures: what PIL makes of them, and numpy of PIL's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ftcore import UserError
from ftcore.data.pixels import from_pixels

if TYPE_CHECKING:
    from PIL import Image

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image)


def test_an_arrays_colours_are_red_green_and_blue() -> None:
    assert np.array_equal(pixels(from_pixels(COLOURS)), COLOURS)
    assert np.array_equal(pixels(from_pixels(torch.from_numpy(COLOURS).permute(2, 0, 1))), COLOURS)


def test_an_array_of_opencv_has_blue_first() -> None:
    frame = COLOURS[:, :, ::-1]
    clear = np.dstack([frame, np.full((6, 5), 255, np.uint8)])

    for given in (frame, clear, torch.from_numpy(frame.copy()).permute(2, 0, 1)):
        assert np.array_equal(pixels(from_pixels(given, "bgr")), COLOURS)


def test_grey_has_no_order_of_colours() -> None:
    grey = COLOURS[:, :, 0]

    for given in (grey, grey[:, :, None], torch.from_numpy(grey.copy()), torch.from_numpy(grey.copy())[None]):
        image = from_pixels(given, "bgr")
        assert image.mode == "L"
        assert np.array_equal(pixels(image), grey)


def test_deep_grey_is_scaled_and_one_bit_is_black_or_white() -> None:
    deep = np.arange(30, dtype=np.uint16).reshape(6, 5) * 2000

    assert np.array_equal(pixels(from_pixels(deep)), deep >> 8)
    assert np.array_equal(pixels(from_pixels(deep > 20_000)), (deep > 20_000) * np.uint8(255))


def test_what_is_transparent_in_an_array_is_white() -> None:
    clear = np.zeros((6, 5, 1), np.uint8)

    assert pixels(from_pixels(np.dstack([COLOURS, clear]))).min() == 255
    assert pixels(from_pixels(np.dstack([COLOURS[:, :, :1], clear]))).min() == 255


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (COLOURS / 255, r"not ndarray \(6, 5, 3\) of float64; of values from 0 to 1: \(255 \* pixels\)\.round\(\)"),
        (COLOURS.astype(np.int64), r"not ndarray \(6, 5, 3\) of int64$"),
        (np.zeros((4, 4, 5), np.uint8), r"with 1 to 4 channels, not ndarray \(4, 4, 5\) of uint8$"),
        (np.zeros((0, 4, 3), np.uint8), r"not ndarray \(0, 4, 3\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"not ndarray \(2, 4, 4, 3\)"),
        (torch.zeros(5, 4, 4, dtype=torch.uint8), r"a tensor \(C, H, W\) of uint8 .* not Tensor \(5, 4, 4\) of uint8$"),
        (torch.zeros(3, 4, 4), r"a tensor \(C, H, W\) of uint8 .* not Tensor \(3, 4, 4\) of float32; of values"),
        (
            None,
            r"^an image must be a path, the bytes of a file, an open file, a PIL image, or an array .*not NoneType "
            r"\(\)",
        ),
    ],
)
def test_what_is_no_picture_is_one_error_that_says_what_is(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_pixels(given)
