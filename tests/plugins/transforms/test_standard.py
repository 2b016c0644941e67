"""The plain transforms against PIL and numpy; and augmentation."""

from __future__ import annotations

import pickle
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from attrs import evolve
from PIL import Image
from torchvision.transforms import v2

from ftcore import InputSpec, UserError
from ftcore_plugins.transforms.standard import Augment, AugmentConfig, PlainTransforms

if TYPE_CHECKING:
    from collections.abc import Callable

ONE_LEVEL = 1 / 255 / 0.224 + 1e-6
"""A grey level of 255, normalised by the smallest of ImageNet's standard deviations."""

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def plain(spec: InputSpec) -> Callable[[Image.Image], torch.Tensor]:
    """All that happens to one picture, from the loader to the network."""
    made = PlainTransforms().make_transforms(spec)
    return lambda image: made.on_device(made.evaluate(image)[None])[0]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def by_hand(image: Image.Image, spec: InputSpec, resized: tuple[int, int], corner: tuple[int, int]) -> torch.Tensor:
    """Resize to (width, height), cut out from (left, top), normalise."""
    small = image.convert("L" if spec.channels == 1 else "RGB").resize(resized, FILTERS[spec.interpolation])
    left, top = corner
    pixels = np.asarray(small, dtype=np.float64)[top : top + spec.size[0], left : left + spec.size[1]]
    channels = pixels.reshape(*spec.size, spec.channels) / 255
    return torch.from_numpy(((channels - spec.mean) / spec.std).transpose(2, 0, 1)).float()


@pytest.mark.parametrize("interpolation", FILTERS)
def test_colour_equals_resize_crop_and_normalise_by_hand(interpolation: str) -> None:
    image, spec = picture(40, 30), InputSpec((16, 16), interpolation=interpolation, crop_fraction=0.8)

    found = plain(spec)(image)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_hand(image, spec, (26, 20), (5, 2)), rtol=0, atol=1e-6)


def test_a_tall_picture_is_cut_above_and_below() -> None:
    image, spec = picture(30, 40), InputSpec((16, 16), crop_fraction=0.8)

    torch.testing.assert_close(plain(spec)(image), by_hand(image, spec, (20, 26), (2, 5)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_equals_resize_crop_and_normalise_by_hand(mode: str) -> None:
    image = picture(40, 30, mode)
    spec = InputSpec((16, 16), channels=1, mean=(0.3,), std=(0.4,), crop_fraction=0.8)

    found = plain(spec)(image)

    assert found.shape == (1, 16, 16)
    torch.testing.assert_close(found, by_hand(image, spec, (26, 20), (5, 2)), rtol=0, atol=1e-6)


def test_a_grey_picture_is_three_equal_colours() -> None:
    found = plain(InputSpec((8, 8), mean=(0.5,) * 3, std=(0.5,) * 3))(picture(20, 20, "L"))

    assert found.shape == (3, 8, 8)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_an_input_that_is_not_square_keeps_the_proportions_of_the_picture() -> None:
    image, spec = picture(50, 50), InputSpec((12, 20), crop_fraction=0.5)

    found = plain(spec)(image)

    assert found.shape == (3, 12, 20)
    torch.testing.assert_close(found, by_hand(image, spec, (40, 40), (10, 14)), rtol=0, atol=ONE_LEVEL)


def test_a_squashed_picture_is_distorted_and_whole() -> None:
    image, spec = picture(50, 30), InputSpec((16, 20), crop_fraction=1.0, crop_mode="squash")

    torch.testing.assert_close(plain(spec)(image), by_hand(image, spec, (20, 16), (0, 0)), rtol=0, atol=ONE_LEVEL)


def test_a_padded_picture_is_whole_within_margins_that_become_zero() -> None:
    image, spec = picture(40, 20), InputSpec((16, 16), crop_fraction=1.0, crop_mode="pad")

    found = plain(spec)(image)

    whole = by_hand(image, evolve(spec, size=(8, 16)), (16, 8), (0, 0))
    torch.testing.assert_close(found[:, 4:12], whole, rtol=0, atol=ONE_LEVEL)
    assert found[:, [0, 1, 2, 3, 12, 13, 14, 15]].abs().max() <= 0.5 * ONE_LEVEL


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["center", "squash", "pad"])
@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1)])
def test_a_strip_of_one_pixel_comes_to_the_size_of_the_input(channels: int, mode: str, size: tuple[int, int]) -> None:
    spec = InputSpec((16, 24), channels, (0.5,) * channels, (0.5,) * channels, crop_mode=mode)

    assert plain(spec)(picture(*size)).shape == (channels, 16, 24)


def test_a_picture_that_is_smaller_than_the_input_is_enlarged() -> None:
    image, spec = picture(10, 10), InputSpec((16, 16), crop_fraction=0.8)

    torch.testing.assert_close(plain(spec)(image), by_hand(image, spec, (20, 20), (2, 2)), rtol=0, atol=1e-6)


def test_a_picture_of_the_inputs_own_size_is_only_normalised() -> None:
    image, spec = picture(16, 16), InputSpec((16, 16), mean=(0.0,) * 3, std=(1.0,) * 3, crop_fraction=1.0)

    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())

    torch.testing.assert_close(plain(spec)(image), pixels / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("resized", [224, 232, 256, 354, 375, 400])
def test_the_resized_side_is_that_of_the_fraction_that_it_gave(resized: int) -> None:
    spec = InputSpec((224, 224), crop_fraction=224 / resized)

    assert spec.resize_size == (resized, resized)


def test_every_colour_mode_of_a_picture_is_taken() -> None:
    transform = plain(InputSpec((8, 8)))

    assert {transform(picture(20, 20, mode)).shape for mode in ("RGBA", "P", "CMYK", "LA", "1", "L")} == {(3, 8, 8)}


def test_it_survives_the_way_to_another_process() -> None:
    made, image = PlainTransforms().make_transforms(InputSpec((16, 16))), picture(40, 30)

    again = pickle.loads(pickle.dumps(made))

    assert torch.equal(again.train(image), made.train(image))
    assert torch.equal(again.evaluate(image), made.evaluate(image))


def test_training_sees_what_evaluation_sees() -> None:
    made, image = PlainTransforms().make_transforms(InputSpec((16, 16))), picture(40, 30)

    assert torch.equal(made.train(image), made.evaluate(image))


@pytest.mark.parametrize("channels", [2, 4])
def test_another_number_of_channels_is_refused(channels: int) -> None:
    with pytest.raises(UserError, match=f"support 1 or 3 channels, not {channels}; enable another plugin"):
        PlainTransforms().make_transforms(InputSpec(channels=channels))


@pytest.mark.parametrize("preset", ["light", "medium", "heavy"])
def test_each_preset_gives_other_views_and_evaluates_as_plain_does(preset: str) -> None:
    spec = InputSpec((32, 32))
    pixels = np.random.default_rng(0).integers(0, 256, size=(80, 100, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    made = Augment(AugmentConfig(preset=preset)).make_transforms(spec)  # type: ignore[arg-type]

    views = [made.train(image) for _ in range(4)]

    assert {(view.shape, view.dtype) for view in views} == {((3, 32, 32), torch.uint8)}
    assert not torch.equal(views[0], views[1])
    assert torch.equal(made.evaluate(image), PlainTransforms().make_transforms(spec).evaluate(image))


@pytest.mark.parametrize("preset", ["light", "medium", "heavy"])
def test_augmented_pictures_are_cut_out_at_random_whatever_the_crop_mode_and_may_be_rectangles(preset: str) -> None:
    image, views = picture(100, 80), []
    for mode in ("center", "squash", "pad"):
        made = Augment(AugmentConfig(preset=preset)).make_transforms(InputSpec((24, 40), crop_mode=mode))  # type: ignore[arg-type]
        torch.manual_seed(0)
        random.seed(0)
        views.append(made.train(image))

    assert views[0].shape == (3, 24, 40)
    assert all(torch.equal(view, views[0]) for view in views)


def test_flips_can_be_switched_off_and_on() -> None:
    config = AugmentConfig(preset="light", scale=1.0, mirror=False, upside_down=True)
    image = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8))
    made = Augment(config).make_transforms(InputSpec((32, 32)))
    crop = v2.Compose([step for step in made.train.to_tensor._steps.transforms if "Crop" in type(step).__name__])  # type: ignore[attr-defined]

    found = set()
    for seed in range(20):
        torch.manual_seed(seed)
        view = made.train(image)
        torch.manual_seed(seed)
        plain = v2.functional.pil_to_tensor(crop(image))
        found.add("as is" if torch.equal(view, plain) else "down" if torch.equal(view, plain.flip(1)) else "other")

    assert found == {"as is", "down"}
