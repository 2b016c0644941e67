"""Every class is drawn alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from pathlib import Path


def test_balanced_sampling_draws_every_class_alike(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos", ("common",), per_class=40)
    image_folder(tmp_path / "photos", ("rare",), per_class=5)
    arguments = ("explain", "--data", tmp_path / "photos", "--model", "digits/cnn", "--plugin", "balanced_sampling")

    even = invoke(*arguments)
    root = invoke(*arguments, "--set", "balanced_sampling.power=0.5")

    assert "common  50.0%" in even.out
    assert "rare    50.0%" in even.out
    assert "common  73.9%" in root.out  # sqrt(32) / (sqrt(32) + sqrt(4))


@pytest.mark.parametrize("weighted", ["weighted_ce", "weighted_ce@ftcore"])
def test_rare_classes_that_count_twice_are_said(weighted: str) -> None:
    arguments = ("explain", "--data", "digits:5-6", "--model", "digits/cnn", "--plugin", "balanced_sampling")

    assert "rare classes count twice" not in invoke(*arguments).err
    assert "rare classes count twice" in invoke(*arguments, "--plugin", weighted).err
