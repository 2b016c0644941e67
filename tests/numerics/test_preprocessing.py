"""Preprocessing for evaluation against timm's and torchvision's own transforms, for all of their weights.

Both libraries resize with PIL; ftcore with torch's integers, whose weights have fewer bits: a grey level may differ by
one.
"""

from __future__ import annotations

import json
from operator import truediv
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.models import get_model_weights

from ftcore import InputSpec
from ftcore_plugins.models import timm as from_timm
from ftcore_plugins.models import torchvision as from_torchvision
from ftcore_plugins.transforms.standard import PlainTransforms

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ONE_LEVEL = 1 + 1e-4


def ramp(width: int, height: int) -> Image.Image:
    """From 0 to 255 along the longer side in red, back in green, and along the other one in blue."""
    if height > width:
        return ramp(height, width).transpose(Image.Transpose.TRANSPOSE)
    across, down = (np.linspace(0, 255, side).round().astype(np.uint8) for side in (width, height))
    return Image.fromarray(np.stack(np.broadcast_arrays(across, 255 - across, down[:, None]), axis=-1))


WIDE, TALL, TINY = ramp(640, 320), ramp(320, 640), ramp(37, 23)


def ours(spec: InputSpec) -> Callable[[Image.Image], Tensor]:
    """All that happens to one picture, from the decoder to the network."""
    made = PlainTransforms().make_transforms(spec)
    return lambda image: made.on_device(made.evaluate(image)[None])[0]


def levels(spec: InputSpec, theirs: Callable[[Image.Image], Tensor], image: Image.Image) -> float:
    """Return the largest difference between what two preprocessings make of a picture, in grey levels of 255."""
    found, expected = ours(spec)(image), theirs(image)
    assert found.shape == expected.shape
    return float(((found - expected).abs() * torch.tensor(spec.std)[:, None, None] * 255).max())


def configs_of_timm() -> list[dict[str, Any]]:
    """What timm says of all of its weights, once for those that are alike."""
    names = timm.list_pretrained()
    found = [resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()) for name in names]
    assert len(found) >= 1_800
    assert {config["crop_mode"] for config in found} == {"center", "squash", "border"}
    return list({repr(sorted(config.items())): config for config in found}.values())


def presets_of_torchvision() -> list[Any]:
    networks = torchvision.models.list_models(module=torchvision.models)
    presets = [entry.transforms() for network in networks for entry in get_model_weights(network)]
    assert len(presets) >= 110
    assert all(preset.antialias for preset in presets)  # else it would not be PIL's way
    return list({repr(vars(preset)): preset for preset in presets}.values())


@pytest.mark.parametrize(
    "image", [WIDE, pytest.param(TALL, marks=pytest.mark.slow), pytest.param(TINY, marks=pytest.mark.slow)]
)
def test_all_weights_of_timm_see_what_timm_shows_them(image: Image.Image) -> None:
    far = {
        repr(config): levels(from_timm.input_spec(config), create_transform(**config), image)
        for config in configs_of_timm()
    }

    assert max(far.values()) <= ONE_LEVEL, max(far, key=far.__getitem__)


@pytest.mark.parametrize("image", [WIDE, TALL, TINY])
def test_all_weights_of_torchvision_see_what_torchvision_shows_them(image: Image.Image) -> None:
    far = {
        repr(preset): levels(from_torchvision.input_spec(preset), preset, image) for preset in presets_of_torchvision()
    }

    assert max(far.values()) <= ONE_LEVEL, max(far, key=far.__getitem__)


@pytest.mark.parametrize(("mode", "seen"), [("center", (64, 191)), ("squash", (0, 255)), ("pad", (0, 255))])
def test_of_a_ramp_the_middle_or_the_whole_is_seen(mode: str, seen: tuple[int, int]) -> None:
    spec = InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3, crop_fraction=1.0, crop_mode=mode)

    row = (ours(spec)(WIDE)[0, 112] * 255).round()

    assert (row.min(), row.max()) == pytest.approx(seen, abs=1)


SPECS = st.builds(
    InputSpec,
    size=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    mean=st.just((0.485, 0.456, 0.406)),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    crop_fraction=st.one_of(st.floats(0.5, 1.2), st.builds(truediv, st.integers(40, 60), st.integers(60, 80))),
    crop_mode=st.sampled_from(["center", "squash", "pad"]),
)


@settings(max_examples=150, deadline=None)
@given(SPECS, st.integers(9, 90), st.integers(9, 90))
def test_what_is_written_is_read_by_timm_as_it_is_meant(spec: InputSpec, width: int, height: int) -> None:
    written = json.loads(json.dumps(spec.data_config()))

    assert levels(spec, create_transform(**written), ramp(width, height)) <= ONE_LEVEL


@given(SPECS)
def test_what_is_written_for_timm_is_read_back(spec: InputSpec) -> None:
    again = from_timm.input_spec(spec.data_config())

    assert evolve(again, crop_fraction=spec.crop_fraction) == spec
    assert again.resize_size == spec.resize_size
