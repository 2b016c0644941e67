"""A folder per class."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

import pytest

from ftcore.config.load import CliOverrides, load_config
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.testing import image_folder, invoke
from ftcore_plugins.tasks import Classification, Regression

if TYPE_CHECKING:
    from ftcore import Data, SampleDataset


def index(folder: Path, *sets: str) -> Data:
    host = activate(load_config(None, CliOverrides("digits/cnn", str(folder), sets=sets)))
    return HookCalls(host).build_data(host.config.data.source)


def names(samples: SampleDataset, root: Path) -> list[str]:
    return [Path(samples.name(i)).relative_to(root).as_posix() for i in range(len(samples))]


def targets(samples: SampleDataset) -> list[object]:
    return [samples[i][1] for i in range(len(samples))]


def per_class(samples: SampleDataset) -> Counter[str]:
    return Counter(Path(samples.name(i)).parent.name for i in range(len(samples)))


def test_classes_are_the_sorted_folder_names_and_every_picture_has_its_own(tmp_path: Path) -> None:
    data = index(image_folder(tmp_path, ("red", "blue", "green")))

    assert data.task.names == ("blue", "green", "red")
    for samples in (data.train, data.val):
        folders = [name.partition("/")[0] for name in names(samples, tmp_path)]
        assert [data.task.names[int(str(target))] for target in targets(samples)] == folders


def test_every_picture_is_in_one_split_alone(tmp_path: Path) -> None:
    data = index(image_folder(tmp_path, per_class=5))

    found = names(data.train, tmp_path) + names(data.val, tmp_path)

    assert sorted(found) == sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg"))


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Dev"])
def test_split_folders_are_taken_as_they_are(tmp_path: Path, val: str) -> None:
    image_folder(tmp_path / "train", ("cat", "dog"), per_class=4)
    image_folder(tmp_path / val, ("cat", "dog"), per_class=2)

    data = index(tmp_path)

    assert per_class(data.train) == {"cat": 4, "dog": 4}
    assert names(data.val, tmp_path) == [f"{val}/{name}/{number}.jpg" for name in ("cat", "dog") for number in (0, 1)]
    assert isinstance(data.task, Classification)
    assert data.task.counts == (4, 4)


def test_a_val_folder_is_preferred_to_a_test_folder(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        image_folder(tmp_path / split, ("cat", "dog"))

    data = index(tmp_path)

    assert {name.partition("/")[0] for name in names(data.val, tmp_path)} == {"val"}


def test_pictures_in_folders_below_a_class_belong_to_it(tmp_path: Path) -> None:
    image_folder(tmp_path, ("cat", "dog"))
    (tmp_path / "cat" / "kittens").mkdir()
    (tmp_path / "cat" / "5.jpg").rename(tmp_path / "cat" / "kittens" / "5.jpg")

    data = index(tmp_path)

    assert "cat/kittens/5.jpg" in names(data.train, tmp_path) + names(data.val, tmp_path)
    assert isinstance(data.task, Classification)
    assert sum(data.task.counts) + len(data.val) == 12


def test_names_may_be_in_any_script_and_hold_spaces(tmp_path: Path) -> None:
    classes = ("Größe 1", "собака", "猫 [a]")
    image_folder(tmp_path / "Fotos é", classes, per_class=4)
    run = tmp_path / "läuft"
    sets = ("train.epochs=1", f"run.folder={run}")

    result = invoke(
        "run", "--model", "digits/cnn", "--data", tmp_path / "Fotos é", *(x for s in sets for x in ("--set", s))
    )

    assert result.code == 0
    assert all(name in result.err for name in classes)
    assert json.loads((run / "model" / "model.json").read_text(encoding="utf-8"))["task"]["state"]["names"] == sorted(
        classes
    )


def test_files_that_are_no_pictures_are_left_out_and_said(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos")
    (tmp_path / "photos" / "red" / "notes.txt").write_text("")
    (tmp_path / "photos" / "Thumbs.db").write_text("")
    sets = ("--set", "train.epochs=1", "--set", f"run.folder={tmp_path / 'run'}")

    result = invoke("run", "--model", "digits/cnn", "--data", tmp_path / "photos", *sets, "--without", "advice")

    warnings = [line for line in result.err.splitlines() if line.startswith("ftcore: warning: ")]
    assert len(warnings) == 1
    assert "ignored" in warnings[0]
    assert "files=2" in warnings[0]


def test_pictures_outside_the_class_folders_are_left_out_and_said(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos")
    shutil.copy(tmp_path / "photos" / "red" / "0.jpg", tmp_path / "photos" / "stray.jpg")
    sets = ("--set", "train.epochs=1", "--set", f"run.folder={tmp_path / 'run'}")

    result = invoke("run", "--model", "digits/cnn", "--data", tmp_path / "photos", *sets, "--without", "advice")

    warnings = [line for line in result.err.splitlines() if line.startswith("ftcore: warning: ")]
    assert len(warnings) == 1
    assert "ignored" in warnings[0]


def test_a_clean_folder_gives_no_warning(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos")

    result = invoke("explain", "--model", "digits/cnn", "--data", tmp_path / "photos")

    assert result.code == 0
    assert "warning" not in result.err


def test_each_class_is_held_out_in_the_same_proportion(tmp_path: Path) -> None:
    image_folder(tmp_path, ("common", "medium"), per_class=20)
    image_folder(tmp_path, ("rare",), per_class=8)

    data = index(tmp_path, "data.val_fraction=0.25")

    assert per_class(data.val) == {"common": 5, "medium": 5, "rare": 2}
    assert per_class(data.train) == {"common": 15, "medium": 15, "rare": 6}


def test_the_split_depends_on_the_split_seed_alone(tmp_path: Path) -> None:
    image_folder(tmp_path, per_class=12)

    first, again, other = (
        names(index(tmp_path, f"data.split_seed={split}", f"train.seed={train}").val, tmp_path)
        for split, train in ((0, 0), (0, 7), (1, 0))
    )

    assert first == again
    assert first != other


def test_folder_names_that_are_numbers_are_targets_of_a_regression(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", ("-1.5", "2", "1e1"), per_class=3)
    image_folder(tmp_path / "val", ("-1.5", "2", "1e1"), per_class=1)

    data = index(tmp_path, "data.task=regression")

    assert targets(data.train) == [float(Path(data.train.name(i)).parent.name) for i in range(9)]
    assert targets(data.val) == [-1.5, 10.0, 2.0]
    assert isinstance(data.task, Regression)
    assert data.task.outputs == 1
    assert data.task.mean == pytest.approx((fmean([-1.5, 2, 10]),))
    assert data.task.std == pytest.approx((pstdev([-1.5, 2, 10]),))


@pytest.mark.parametrize("name", ["nan", "inf"])
def test_a_target_of_a_regression_is_finite(tmp_path: Path, name: str) -> None:
    image_folder(tmp_path / "photos", ("1", "2", name))
    sets = ("--set", "data.task=regression", "--set", f"run.folder={tmp_path / 'run'}")

    result = invoke("run", "--model", "digits/cnn", "--data", tmp_path / "photos", *sets)

    assert result.code == 2
    assert "needs numbers as labels" in result.err


def test_the_fingerprint_is_that_of_the_pictures_wherever_they_are_and_however_split(tmp_path: Path) -> None:
    image_folder(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")

    prints = {index(tmp_path / "here").fingerprint, index(tmp_path / "there", "data.split_seed=3").fingerprint}

    assert len(prints) == 1
    assert len(prints.pop()) == 64


def test_the_fingerprint_changes_with_a_files_size(tmp_path: Path) -> None:
    before = index(image_folder(tmp_path)).fingerprint
    with (tmp_path / "red" / "0.jpg").open("ab") as file:
        file.write(b"\0")

    assert index(tmp_path).fingerprint != before


def test_the_fingerprint_changes_with_a_label(tmp_path: Path) -> None:
    before = index(image_folder(tmp_path)).fingerprint
    (tmp_path / "red" / "0.jpg").rename(tmp_path / "blue" / "9.jpg")

    assert index(tmp_path).fingerprint != before


def test_the_fingerprint_changes_with_a_file_more(tmp_path: Path) -> None:
    before = index(image_folder(tmp_path)).fingerprint
    shutil.copy(tmp_path / "red" / "0.jpg", tmp_path / "red" / "9.jpg")

    assert index(tmp_path).fingerprint != before


def test_the_counts_of_both_splits_are_in_a_table(tmp_path: Path) -> None:
    image_folder(tmp_path, ("cat", "dog"), per_class=5)

    (table,) = index(tmp_path).tables

    assert table.columns == ("class", "train", "val")
    assert table.rows == (("cat", "4", "1"), ("dog", "4", "1"))


def test_a_validation_number_need_not_be_one_that_was_trained_on(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", classes=("1", "2"))
    image_folder(tmp_path / "val", classes=("1.5",))

    result = invoke(
        "run", "--data", tmp_path, "--model", "digits/cnn", "--set", "data.task=regression", "--set", "train.epochs=1",
        "--set", f"run.folder={tmp_path / 'run'}", "--json",
    )  # fmt: skip

    assert result.code == 0, result.err
    assert result.report["best"]["rmse"] < 3
