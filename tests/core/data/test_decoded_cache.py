"""Decoded images that are kept: the same bits, decoded once, never too many, never stale."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from ftcore.data.decoded_cache import DecodedImageCache
from ftcore.system import user_cache
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def cache(size: int = 10_000, images: int = 5) -> DecodedImageCache:
    return DecodedImageCache(torch.zeros(size, dtype=torch.uint8), torch.zeros((images + 1, 6), dtype=torch.int64))


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(9, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def refuse() -> Image.Image:
    raise AssertionError("decoded again")


def counted(image: Image.Image) -> tuple[Callable[[], Image.Image], list[int]]:
    calls: list[int] = []

    def make() -> Image.Image:
        calls.append(1)
        return image

    return make, calls


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_comes_back_as_it_was_put_in_and_is_made_once(mode: str) -> None:
    kept, image = cache(), picture(0, mode)

    first = kept.get(2, "stamp", lambda: image)
    again = kept.get(2, "stamp", refuse)

    assert (first.mode, again.mode) == (mode, mode)
    assert first.tobytes() == again.tobytes() == image.tobytes()


def test_another_stamp_makes_the_image_anew() -> None:
    kept = cache()
    kept.get(0, "old", lambda: picture(0))

    assert kept.get(0, "new", lambda: picture(1)).tobytes() == picture(1).tobytes()
    assert kept.get(0, "new", refuse).tobytes() == picture(1).tobytes()


def test_damaged_pixels_are_made_anew() -> None:
    kept = cache()
    kept.get(0, "stamp", lambda: picture(0))
    kept.pixels[3] += 1

    assert kept.get(0, "stamp", lambda: picture(0)).tobytes() == picture(0).tobytes()


@pytest.mark.parametrize("column", [1, 2, 3, 5], ids=["height", "width", "channels", "seal"])
@pytest.mark.parametrize("value", [0, -1, 2**62])
def test_a_row_that_somebody_has_changed_is_made_anew(column: int, value: int) -> None:
    kept = cache()
    kept.get(0, "stamp", lambda: picture(0))
    kept.index[0, column] = value

    assert kept.get(0, "stamp", lambda: picture(0)).tobytes() == picture(0).tobytes()


def test_pixels_with_a_right_checksum_that_somebody_without_the_key_has_written_are_made_anew() -> None:
    """Painted white by the cache of somebody else, in the same place and with the same stamp."""
    kept, other = cache(), cache()
    kept.get(0, "stamp", lambda: picture(0))
    other.get(0, "stamp", lambda: Image.new("RGB", (7, 9), "white"))
    kept.pixels[:] = other.pixels
    kept.index[:] = other.index

    assert kept.get(0, "stamp", lambda: picture(0)).tobytes() == picture(0).tobytes()


def test_an_image_in_the_place_of_another_is_made_anew() -> None:
    kept = cache()
    for place in (0, 1):
        kept.get(place, "stamp", partial(picture, place))
    kept.index[0] = kept.index[1].clone()

    assert kept.get(0, "stamp", lambda: picture(0)).tobytes() == picture(0).tobytes()


def test_what_has_no_room_is_made_each_time() -> None:
    kept = cache(size=200)
    make, calls = counted(picture(1))
    kept.get(0, "stamp", lambda: picture(0))

    for _ in range(3):
        assert kept.get(1, "stamp", make).tobytes() == picture(1).tobytes()

    assert len(calls) == 3
    assert kept.get(0, "stamp", refuse).tobytes() == picture(0).tobytes()


def weights(tmp_path: Path, name: str, *sets: str, plugins: tuple[str, ...] = ("augment",)) -> bytes:
    folder = tmp_path / name
    texts = [f"run.folder={folder}", "train.epochs=2", "train.batch_size=8", *sets]
    words = [word for text in texts for word in ("--set", text)]
    words += [word for plugin in plugins for word in ("--plugin", plugin)]
    result = invoke("run", "--data", tmp_path / "photos", "--model", "digits/cnn", *words)
    assert result.code == 0, result.err
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("plugins", [("augment",), ()], ids=["augment", "plain"])
def test_a_cache_changes_no_bit_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: tuple[str, ...]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image_folder(tmp_path / "photos")
    plain = weights(tmp_path, "plain", plugins=plugins)

    assert weights(tmp_path, "ram", "data.cache=ram", "data.cache_gb=0.01", plugins=plugins) == plain
    for workers in (0, 2):
        sets = ("data.cache=disk", "data.cache_gb=0.01", f"train.workers={workers}")
        assert weights(tmp_path, f"disk{workers}", *sets, plugins=plugins) == plain
    assert len(list((tmp_path / "cache" / "ftcore" / "pixels").iterdir())) == 2


@pytest.mark.parametrize("home", ["/proc", "/dev/null"])
def test_a_home_that_is_none_costs_a_warning_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(user_cache, "_warned", set())
    photos = image_folder(tmp_path / "photos")
    words = ("--set", "data.cache=disk", "--set", "train.epochs=1", "--set", f"run.folder={tmp_path / 'run'}")

    result = invoke("run", "--data", photos, "--model", "digits/cnn", "--plugin", "linear_probe", *words)
    checked = invoke("check", photos)

    assert result.code == 0, result.err
    assert "this cache is not used" in result.err
    assert checked.code == 0, checked.err


def test_a_cache_on_disk_notices_that_a_picture_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sets = ("data.cache=disk", "data.cache_gb=0.01")
    image_folder(tmp_path / "photos")
    before = weights(tmp_path, "before", *sets)
    for file in (tmp_path / "photos" / "red").iterdir():
        size = file.stat().st_size
        Image.new("RGB", (32, 24), "yellow").save(file, "JPEG")
        file.write_bytes(file.read_bytes().ljust(size, b"\0"))  # as many bytes as before, so the fingerprint is too

    assert weights(tmp_path, "after", *sets) == weights(tmp_path, "plain") != before
    assert len(list((tmp_path / "cache" / "ftcore" / "pixels").iterdir())) == 2


def test_a_limit_without_a_cache_is_refused() -> None:
    result = invoke("run", "--set", "data.cache_gb=2")

    assert result.code == 2
    assert "data.cache_gb has no effect without data.cache (--set data.cache_gb=2)" in result.err


def test_a_cache_that_has_no_room_is_refused_before_it_is_written_to() -> None:
    result = invoke("run", "--set", "data.cache=ram", "--set", "data.cache_gb=1000000")

    assert result.code == 2
    assert "not enough space for the cache: " in result.err
    assert "lower data.cache_gb" in result.err


def test_a_transform_that_keeps_nothing_cannot_be_cached(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(
        "import torch\nfrom ftcore import Transforms, hookimpl\n\n\n"
        "def blank(image):\n    return torch.zeros(1, 8, 8)\n\n\n"
        "@hookimpl\ndef make_transforms():\n    return Transforms(train=blank, evaluate=blank)\n",
        encoding="utf-8",
    )

    result = invoke("run", "--plugin", tmp_path / "hooks.py", "--set", "data.cache=ram")

    assert result.code == 2
    assert "data.cache needs an ftcore.TwoStageTransform as the train transform (--set data.cache=ram)" in result.err
