"""What the description of a saved model may hold: somebody else may have written it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ftcore.types.model import CROP_MODES

MAX_SIDE = 8192
"""Pixels of an input's height or width, resized for the crop."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def check_input(spec: Any) -> None:
    """Refuse an input that no network of a run can have had; of one that reads texts, its class does so.

    Raises:
        ValueError: the message names the key, the value and what is allowed.
    """
    _must(isinstance(spec, Mapping), "input", spec, "an object")
    if "vocabulary" in spec:
        return
    size, channels, crop = spec.get("size"), spec.get("channels", 3), spec.get("crop_fraction", 0.875)
    _must(_is_list(size, int) and len(size) == 2, "input.size", size, "[height, width]")
    _must(_is_number(crop) and 0.01 <= crop <= 100, "input.crop_fraction", crop, "a number from 0.01 to 100")
    sides = [side / min(crop, 1) for side in size]
    _must(min(size) > 0 and max(sides) <= MAX_SIDE, "input.size", size, f"at most {MAX_SIDE} pixels, resized")
    _must(type(channels) is int and 0 < channels <= 1024, "input.channels", channels, "an integer from 1 to 1024")
    used = spec.get("interpolation", "bilinear")
    _must(used in INTERPOLATIONS, "input.interpolation", used, f"one of {', '.join(INTERPOLATIONS)}")
    mode = spec.get("crop_mode", "center")
    _must(mode in CROP_MODES, "input.crop_mode", mode, f"one of {', '.join(CROP_MODES)}")
    for key in ("mean", "std"):  # one number for each channel
        if key in spec:
            numbers: Any = spec[key]
            fits = _is_list(numbers, int, float) and len(numbers) == channels and all(map(_is_number, numbers))
            wanted = f"{channels} finite numbers{' > 0' * (key == 'std')}"
            _must(fits and (key == "mean" or min(numbers) > 0), f"input.{key}", numbers, wanted)


def check_share(share: Any) -> None:
    """Refuse a share of an ensemble that is none.

    Raises:
        ValueError: as `check_input`.
    """
    _must(_is_number(share) and 0 < share <= 1, "share", share, "a number above 0 and at most 1")


def _is_list(value: Any, *kinds: type) -> bool:
    return isinstance(value, list) and all(type(item) in kinds for item in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def _must(holds: object, key: str, value: Any, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{key} is {value!r:.80}; expected {wanted}")
