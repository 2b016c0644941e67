"""`ftcore check`: what is wrong with a data set; and leaving out what cannot be read."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ftcore.data.dataset import PackedStrings
from ftcore.data.files import ImageFiles
from ftcore.data.scan import MAX_HAMMING_DISTANCE, near_duplicate_pairs, scan_images
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memory"))


def photo(path: Path, seed: int, size: tuple[int, int] = (96, 64)) -> Path:
    """Save a picture with soft shapes, different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, size=(6, 9, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def splits(root: Path) -> Path:
    for place, name in enumerate(["cat", "dog"]):
        for number in range(4):
            photo(root / "train" / name / f"{number}.png", 100 * place + number)
        for number in range(2):
            photo(root / "val" / name / f"{number}.png", 100 * place + 50 + number)
    return root


def report(data: Path, *arguments: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    result = invoke("check", data, "--json", *arguments)
    assert result.out, result.err
    return result.code, json.loads(result.out)


def numbers(found: dict[str, Any]) -> dict[str, int]:
    return {row["what"]: int(row["number"]) for row in found["summary"]}


def test_a_clean_folder_has_nothing_to_report(tmp_path: Path) -> None:
    code, found = report(splits(tmp_path / "photos"))

    assert code == 0
    assert {what: number for what, number in numbers(found).items() if number} == {"readable images": 12}


def test_unreadable_pictures_are_all_named_with_split_and_reason(tmp_path: Path) -> None:
    root = splits(tmp_path / "photos")
    (root / "train" / "cat" / "1.png").write_bytes(b"no picture")
    whole = (root / "val" / "dog" / "0.png").read_bytes()
    (root / "val" / "dog" / "0.png").write_bytes(whole[: len(whole) // 2])

    code, found = report(root)

    assert code == 1
    assert [(row["split"], "1.png" in row["reason"], "0.png" in row["reason"]) for row in found["cannot be read"]] == [
        ("train", True, False),
        ("val", False, True),
    ]


def test_the_same_picture_in_both_splits_and_with_two_labels_is_found(tmp_path: Path) -> None:
    root = splits(tmp_path / "photos")
    shutil.copy(root / "train" / "cat" / "1.png", root / "val" / "dog" / "copy.png")
    Image.open(root / "train" / "dog" / "2.png").save(root / "train" / "dog" / "again.png", compress_level=1)

    code, found = report(root)

    assert code == 1
    assert numbers(found)["identical images in two splits"] == 1
    (row,) = found["identical images with different labels"]
    assert (row["label"], row["its label"]) == ("cat", "dog")
    assert row["image"].endswith("train/cat/1.png")
    assert row["and"].endswith("val/dog/copy.png")
    assert numbers(found)["identical images in one split"] == 1


def test_a_picture_that_was_made_smaller_and_saved_as_jpeg_looks_alike(tmp_path: Path) -> None:
    root = splits(tmp_path / "photos")
    image = Image.open(root / "train" / "cat" / "0.png")
    image.resize((72, 48)).save(root / "val" / "cat" / "small.jpg", quality=80)

    code, found = report(root)

    assert code == 0
    (row,) = found["near-duplicates across splits"]
    assert row["image"].endswith("train/cat/0.png")
    assert row["and"].endswith("val/cat/small.jpg")


def test_tiny_and_long_pictures_and_absent_classes_are_said(tmp_path: Path) -> None:
    root = splits(tmp_path / "photos")
    photo(root / "train" / "cat" / "tiny.png", 7, (8, 8))
    photo(root / "train" / "cat" / "long.png", 8, (300, 40))
    photo(root / "train" / "emu" / "0.png", 9)

    _, found = report(root)

    unusual = next(rows for title, rows in found.items() if title.startswith("shorter side"))
    assert sorted(row["size"] for row in unusual) == ["300 x 40", "8 x 8"]
    assert found["not in validation, so never evaluated"] == [{"name": "emu"}]


def test_absent_classes_are_counted_and_not_read_from_the_first_table(tmp_path: Path) -> None:
    """The tables of data are their source's own, and may say anything."""
    root = splits(tmp_path / "photos")
    photo(root / "train" / "emu" / "0.png", 9)
    (tmp_path / "hooks.py").write_text(
        "from attrs import evolve\n"
        "from ftcore import Table, hookimpl\n\n\n"
        "@hookimpl(wrapper=True)\ndef build_data():\n"
        "    data = yield\n"
        "    return evolve(data, tables=(Table('own', ('a', 'b', 'c'), (('cat', '0', '0'),)), *data.tables))\n",
        encoding="utf-8",
    )

    _, found = report(root, "--plugin", str(tmp_path / "hooks.py"))

    assert found["own"] == [{"a": "cat", "b": "0", "c": "0"}]
    assert found["not in validation, so never evaluated"] == [{"name": "emu"}]


def test_labels_that_no_validation_picture_has_are_said(tmp_path: Path) -> None:
    lines = ["path,split,sharp,round"]
    for place in range(6):
        photo(tmp_path / f"{place}.png", place)
        lines.append(f"{place}.png,{'train' if place < 4 else 'val'},{place % 2},{int(place == 1)}")
    (tmp_path / "table.csv").write_text("\n".join(lines), encoding="utf-8")

    _, found = report(tmp_path / "table.csv", "--set", 'table.target=["sharp", "round"]')

    assert found["not in validation, so never evaluated"] == [{"name": "round"}]


def test_numbers_and_names_that_are_not_utf8_are_shown(tmp_path: Path) -> None:
    for place in range(8):
        photo(tmp_path / "photos" / str(place % 2) / f"{place}.png", place)
    twin = tmp_path / "photos" / "0" / "caf\udce9.png"
    shutil.copy(tmp_path / "photos" / "1" / "1.png", twin)

    result = invoke("check", tmp_path / "photos", "--set", "data.task=regression")

    assert result.code == 1
    assert "caf\\udce9.png" in result.out


def test_what_was_seen_is_decoded_again_only_after_a_change(tmp_path: Path) -> None:
    root = splits(tmp_path / "photos")
    decoded: list[int] = []

    class Counting(ImageFiles):
        def read(self, row: int, side: int | None) -> Image.Image:
            decoded.append(row)
            return super().read(row, side)

    names = PackedStrings.of([f"train/cat/{number}.png" for number in range(4)])
    images = Counting(root, names)
    first = scan_images(images, range(4))
    assert scan_images(images, range(4)) == first
    assert sorted(decoded) == [0, 1, 2, 3]

    photo(root / "train" / "cat" / "2.png", 77)
    assert scan_images(images, range(4)) != first
    assert sorted(decoded) == [0, 1, 2, 2, 3]


@given(st.lists(st.integers(0, 63), max_size=5), st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**64 - 1)))
def test_near_pairs_are_those_that_differ_in_few_bits(flips: list[int], look: int, others: list[int]) -> None:
    near = look
    for bit in flips:
        near ^= 1 << bit
    looks = [look, near, *others]

    found = set(near_duplicate_pairs(looks))

    unique = len(set(looks)) == len(looks)
    expected = {
        (a, b)
        for a in range(len(looks))
        for b in range(a + 1, len(looks))
        if (looks[a] ^ looks[b]).bit_count() <= MAX_HAMMING_DISTANCE
    }
    assert found <= expected
    assert found == expected or not unique


def test_skip_leaves_unreadable_pictures_out_of_both_splits_and_lists_them(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", per_class=8)
    for name in ("blue/0.jpg", "red/3.jpg", "red/5.jpg"):
        (root / name).write_bytes((root / name).read_bytes()[:-200])
    sets = ("run.folder=" + str(tmp_path / "run"), "train.epochs=1", "data.on_corrupt=skip")

    result = invoke("run", "--data", root, "--model", "digits/cnn", *(w for s in sets for w in ("--set", s)), "--json")

    assert result.code == 0, result.err
    listed = json.loads((tmp_path / "run" / "skipped.json").read_text(encoding="utf-8"))
    assert sorted(row["reason"].split(": ")[0] for row in listed) == [
        f"cannot read image {root / name}" for name in ("blue/0.jpg", "red/3.jpg", "red/5.jpg")
    ]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    task = json.loads((tmp_path / "run" / "model" / "model.json").read_text(encoding="utf-8"))["task"]["state"]
    assert manifest["data"]["train"] + manifest["data"]["val"] == 24 - 3
    assert sum(task["counts"]) == task["images"] == manifest["data"]["train"]
    assert result.report["skipped"] == 3
    assert "3 images that cannot be read, listed in skipped.json" in result.err


def test_skip_does_not_change_which_split_an_image_is_in(tmp_path: Path) -> None:
    from ftcore.config.load import CliOverrides, load_config
    from ftcore.plugins.calls import HookCalls
    from ftcore.plugins.startup import activate

    root = image_folder(tmp_path / "photos", per_class=8)

    def names(*sets: str) -> list[set[str]]:
        host = activate(load_config(None, CliOverrides("digits/cnn", str(root), sets=sets)))
        data = HookCalls(host).build_data(host.config.data.source)
        return [{split.name(i) for i in range(len(split))} for split in (data.train, data.val)]

    before = names()
    bad = root / "red" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:-200])

    assert names("data.on_corrupt=skip") == [split - {str(bad)} for split in before]


def test_skip_is_refused_where_samples_are_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(
        "from ftcore import Data, hookimpl\nfrom ftcore_plugins.tasks import Classification\n\n\n"
        "@hookimpl\ndef build_data():\n"
        "    return Data([], [], Classification(('a', 'b'), (1, 1)), '0')\n",
        encoding="utf-8",
    )

    result = invoke("run", "--plugin", tmp_path / "hooks.py", "--set", "data.on_corrupt=skip")

    assert result.code == 2
    assert "data.on_corrupt = 'skip' needs samples of ftcore.data.ImageSplit" in result.err
