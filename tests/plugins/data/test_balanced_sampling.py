"""Every class is drawn alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcore.testing import image_folder, invoke


def test_balanced_sampling_draws_every_class_alike(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos", ("common",), per_class=40)
    image_folder(tmp_path / "photos", ("rare",), per_class=5)
    arguments = ("explain", "--data", tmp_path / "photos", "--model", "digits/cnn", "--plugin", "balanced_sampling")

    even = invoke(*arguments)
    root = invoke(*arguments, "--set", "balanced_sampling.power=0.5")

    assert "common  50.0%" in even.out
    assert "rare    50.0%" in even.out
    assert "common  73.9%" in root.out  # sqrt(32) / (sqrt(32) + sqrt(4))


WEIGHTED = {
    "weighted_ce": (),
    "weighted_ce@ftcore": (),
    "ftcore_plugins.losses.cross_entropy:WeightedCrossEntropy": (),
    "logit_adjustment": (),
    "focal": ("focal.alpha={rare = 5}",),
}
"""Plugin, in every form -> settings with which its loss favours rare classes."""

EVEN = {
    "weighted_ce": ("weighted_ce.weights={common = 5}",),
    "focal": (),
    "cross_entropy": (),
    "logit_adjustment": ("logit_adjustment.tau=0",),
}
"""Likewise, with which it does not."""


def explained(data: Path, plugin: str, sets: tuple[str, ...]) -> str:
    words = [word for setting in sets for word in ("--set", setting)]
    done = invoke(
        *("explain", "--data", data, "--model", "digits/cnn", "--plugin", "balanced_sampling"),
        "--plugin",
        plugin,
        *words,
    )
    assert done.code == 0, done.err
    return done.err


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    image_folder(folder, ("common",), per_class=40)
    image_folder(folder, ("rare",), per_class=5)
    return folder


@pytest.mark.parametrize("plugin", WEIGHTED)
def test_rare_classes_that_count_twice_are_said(plugin: str, photos: Path) -> None:
    assert "rare classes count twice" in explained(photos, plugin, WEIGHTED[plugin])


@pytest.mark.parametrize("plugin", EVEN)
def test_nothing_is_said_where_rare_classes_count_once(plugin: str, photos: Path) -> None:
    assert "rare classes count twice" not in explained(photos, plugin, EVEN[plugin])


def test_nothing_is_said_of_weights_where_no_class_is_rare() -> None:
    assert "rare classes count twice" not in explained(Path("digits:5-6"), "weighted_ce", ())
