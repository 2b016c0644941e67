"""A test set is measured whole, a split by its name, and the count of pictures is said."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, mean_absolute_error
from torchvision.datasets import ImageFolder

from ftcore.inference.evaluate import prepare
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from collections.abc import Sequence

COLOURS = ("blue", "green", "red")


def train(folder: Path, data: Path, *sets: str) -> Path:
    flags = [word for text in (f"run.folder={folder}", "train.epochs=2", *sets) for word in ("--set", text)]
    result = invoke("run", "--data", data, "--model", "digits/cnn", *flags)
    assert result.code == 0, result.err
    return folder


def evaluated(run: Path, *arguments: str | Path) -> dict[str, Any]:
    result = invoke("evaluate", run, *arguments, "--json")
    assert result.code == 0, result.err
    return result.report


def said_of(run: Path, *pictures: Path) -> dict[str, dict[str, float]]:
    """Ask `predict`, which knows nothing of splits, for the values of each picture."""
    lines = [json.loads(line) for line in invoke("predict", run, *pictures, "--json").out.splitlines()]
    return {line["path"]: line["values"] for line in lines}


def shifted(root: Path, classes: Sequence[str] = COLOURS, per_class: int = 4, by: int = 0) -> Path:
    """Write a folder of pictures whose channels are shifted, so that a network is now right and now wrong."""
    image_folder(root, classes, per_class)
    for place, file in enumerate(sorted(root.rglob("*.jpg"))):
        if (place + by) % 3 == 0:
            Image.fromarray(np.roll(np.asarray(Image.open(file)), 1, axis=2)).save(file)
    return root


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 30 pictures to train on, and 12 for the test."""
    root = tmp_path_factory.mktemp("splits")
    shifted(root / "train", per_class=10)
    shifted(root / "test", by=1)
    return root


@pytest.fixture(scope="module")
def run(splits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("run") / "run", splits, "adamw.lr=0.01")


def test_a_set_without_splits_is_measured_whole_as_scikit_learn_measures_it(run: Path, tmp_path: Path) -> None:
    data = shifted(tmp_path / "test", per_class=20)
    pictures = ImageFolder(str(data)).imgs
    values = said_of(run, data)
    truth = [Path(path).parent.name for path, _ in pictures]
    said = [max(values[path], key=values[path].__getitem__) for path, _ in pictures]

    report = evaluated(run, "--data", data)

    assert (report["images"], report["total"], report["split"]) == (60, 60, "all")
    assert report["metrics"]["accuracy"] == pytest.approx(accuracy_score(truth, said))
    assert report["metrics"]["f1"] == pytest.approx(f1_score(truth, said, average="macro"))
    assert 0 < report["metrics"]["accuracy"] < 1
    assert invoke("evaluate", run, "--data", data).out.startswith(f"60 of 60 images of {data}\n")


def test_compare_measures_the_pictures_that_evaluate_measures(run: Path, splits: Path, tmp_path: Path) -> None:
    whole = shifted(tmp_path / "whole", per_class=5)
    for arguments in (("--data", whole), ("--data", splits), ("--data", splits, "--split", "all"), ("--split", "test")):
        one = evaluated(run, *arguments)
        compared = invoke("compare", run, run, *arguments, "--json").report

        assert (compared["images"], compared["total"]) == (one["images"], one["total"])
        assert compared["runs"][0]["metrics"]["accuracy"] == one["metrics"]["accuracy"]
        assert compared["runs"][0]["score"]["mean"] == pytest.approx(one["metrics"]["accuracy"])


@pytest.mark.parametrize(
    "pictures", [{"red": 1}, {"red": 1, "blue": 3}, {"green": 5}], ids=["one picture", "class of one", "one class"]
)
def test_nothing_needs_two_pictures_or_two_classes(run: Path, tmp_path: Path, pictures: dict[str, int]) -> None:
    for name, count in pictures.items():
        image_folder(tmp_path / "test", (name,), count)
    (tmp_path / "test" / "empty").mkdir()

    report = evaluated(run, "--data", tmp_path / "test")

    assert report["images"] == report["total"] == sum(pictures.values())
    found = [sum(row) for row in report["metrics"]["confusion_matrix"]]
    assert found == [pictures.get(name, 0) for name in COLOURS]


def test_a_class_that_the_run_does_not_know_is_named(run: Path, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "test", ("red", "owl"), 1)

    result = invoke("evaluate", run, "--data", data)

    assert result.code == 2
    assert f"the classes differ: {data} has owl, red;" in result.err
    assert "unknown: owl" in result.err


def test_the_test_folder_never_validates(run: Path, splits: Path) -> None:
    data = json.loads((run / "manifest.json").read_text())["data"]
    counts = Counter(Path(file).parts[-3] for file in map(prepare(run).loaders[0][0].samples.name, range(6)))
    result = invoke("explain", "--data", splits, "--model", "digits/cnn")

    assert (data["train"], data["val"], data["test"]) == (24, 6, 12)
    assert counts == {"train": 6}
    held_out = "6 of its 30 training images are held out for validation"
    said = f"has no validation split: {held_out}; its 12 test images are not used for training"
    assert f"{splits} {said} (data.val_fraction=0.2)" in result.err


@pytest.mark.parametrize(("split", "images"), [("train", 24), ("val", 6), ("test", 12), ("all", 42)])
def test_the_splits_of_a_runs_own_folder_are_measured_by_name(run: Path, splits: Path, split: str, images: int) -> None:
    report = evaluated(run, "--split", split)

    assert (report["images"], report["total"], report["split"]) == (images, 42, split)
    if split == "test":
        values = said_of(run, splits / "test")
        said = [max(found, key=found.__getitem__) for found in values.values()]
        wanted = accuracy_score([Path(path).parent.name for path in values], said)
        assert report["metrics"]["accuracy"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("there", "chosen", "others"),
    [
        (("train", "val", "test"), "val", "train, test, all"),
        (("train", "Testing"), "test", "train, all"),
        (("valid", "test"), "val", "test, all"),
        (("test",), "all", ""),
    ],
)
def test_of_several_splits_one_is_chosen_and_said(
    run: Path, tmp_path: Path, there: tuple[str, ...], chosen: str, others: str
) -> None:
    for count, name in enumerate(there, start=1):
        image_folder(tmp_path / "data" / name, COLOURS, count)
    total = 3 * sum(range(1, len(there) + 1))

    first = invoke("evaluate", run, "--data", tmp_path / "data").out.splitlines()[0]

    report = evaluated(run, "--data", tmp_path / "data")
    assert report["split"] == chosen
    end = f", split {chosen} (also: --split {others})" if others else ""
    assert first == f"{report['images']} of {total} images of {tmp_path / 'data'}{end}"
    assert evaluated(run, "--data", tmp_path / "data", "--split", "all")["images"] == total


def test_a_split_that_is_not_there_is_refused_with_those_that_are(run: Path, splits: Path, tmp_path: Path) -> None:
    whole = image_folder(tmp_path / "whole", COLOURS, 2)

    missing = invoke("evaluate", run, "--data", splits, "--split", "val").err
    none = invoke("evaluate", run, "--data", whole, "--split", "test").err

    assert f"--split val: {splits} has no such split; it has train (30 images), test (12 images)" in missing
    assert f"--split test: {whole} has no splits; remove --split, or use --split all for its 6" in none


def test_an_unknown_class_in_another_split_does_not_matter(run: Path, tmp_path: Path) -> None:
    image_folder(tmp_path / "data" / "train", (*COLOURS, "ant"), 1)
    image_folder(tmp_path / "data" / "test", ("red", "green"), 2)

    report = evaluated(run, "--data", tmp_path / "data")

    assert [sum(row) for row in report["metrics"]["confusion_matrix"]] == [0, 2, 2]
    assert "unknown: ant" in invoke("evaluate", run, "--data", tmp_path / "data", "--split", "all").err


def test_a_test_class_that_was_never_learnt_does_not_stop_a_run_and_is_named_when_it_is_measured(
    tmp_path: Path,
) -> None:
    image_folder(tmp_path / "data" / "train", COLOURS, 6)
    image_folder(tmp_path / "data" / "test", ("red", "owl"), 1)
    run = train(tmp_path / "run", tmp_path / "data")

    result = invoke("evaluate", run, "--split", "test")

    assert result.code == 2
    assert "the classes differ" in result.err
    assert "unknown: owl" in result.err


def test_pictures_that_cannot_be_read_are_counted_apart_and_a_sampler_of_the_run_has_no_say(
    splits: Path, tmp_path: Path
) -> None:
    sets = (f"run.folder={tmp_path / 'run'}", "train.epochs=1", "data.on_corrupt=skip")
    flags = [word for text in sets for word in ("--set", text)]
    given = ("--data", splits, "--model", "digits/cnn", "--plugin", "balanced_sampling")
    assert invoke("run", *given, *flags).code == 0
    data = image_folder(tmp_path / "test", ("red",), 3)
    (data / "red" / "1.jpg").write_bytes((data / "red" / "1.jpg").read_bytes()[:300])

    first = invoke("evaluate", tmp_path / "run", "--data", data).out.splitlines()[0]

    assert first == f"2 of 3 images of {data}, 1 cannot be read"


def test_what_a_run_has_learnt_from_is_said_where_it_is_measured_as_other_data(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", COLOURS, 5)
    run = train(tmp_path / "run", data)

    assert "the run was trained on this data" in invoke("evaluate", run, "--data", data).err
    assert "has learnt" not in invoke("evaluate", run).err
    (data / "red" / "4.jpg").unlink()
    assert "has learnt" not in invoke("evaluate", run, "--data", data).err


def table(folder: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """Write a table over noise pictures 0.png, 1.png, ..., each a little brighter than the one before."""
    noise = np.random.default_rng(0)
    folder.mkdir()
    for number in range(len(rows)):
        pixels = noise.integers(0, 120, (8, 8)) + 3 * number
        Image.fromarray(pixels.astype("uint8")).save(folder / f"{number}.png")
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", *header), *((f"{n}.png", *row) for n, row in enumerate(rows))])
    return folder / "table.csv"


PARTS = ["train", "train", "test"] * 10


def test_the_test_rows_of_a_table_are_kept_and_measured(tmp_path: Path) -> None:
    data = table(tmp_path / "data", ("label", "split"), [("ab"[n // 15], PARTS[n]) for n in range(30)])
    run = train(tmp_path / "run", data, "adamw.lr=0.01")
    values = said_of(run, *(data.parent / f"{n}.png" for n in range(2, 30, 3)))

    report = evaluated(run, "--split", "test")

    said = [max(found, key=found.__getitem__) for found in values.values()]
    assert (report["images"], report["total"]) == (10, 30)
    assert report["metrics"]["accuracy"] == pytest.approx(
        accuracy_score(["ab"[n // 15] for n in range(2, 30, 3)], said)
    )
    assert json.loads((run / "manifest.json").read_text())["data"]["val"] == 4


def test_labels_without_splits_are_measured_whole_by_name(tmp_path: Path) -> None:
    rows = [
        ("|".join(name for name, on in zip(("cat", "dog"), (n % 2, n // 15), strict=True) if on),) for n in range(30)
    ]
    run = train(tmp_path / "run", table(tmp_path / "data", ("tags",), rows), "table.labels=|")
    data = table(tmp_path / "test", ("tags",), [*rows[:3], ("dog",), ("",)])

    report = evaluated(run, "--data", data)

    values = said_of(run, *(data.parent / f"{n}.png" for n in range(5)))
    truth = [["cat" in tags, "dog" in tags] for (tags,) in (*rows[:3], ("dog",), ("",))]
    scores = [[found["cat"], found["dog"]] for found in values.values()]
    assert report["images"] == report["total"] == 5
    wanted = average_precision_score(truth, scores, average=None)
    assert report["metrics"]["average_precision_of_each"] == pytest.approx(list(wanted))


def test_numbers_without_splits_are_measured_whole_be_they_all_the_same(tmp_path: Path) -> None:
    learnt = table(tmp_path / "data", ("age",), [(1000 + n / 2,) for n in range(30)])
    run = train(tmp_path / "run", learnt, "data.task=regression")
    data = table(tmp_path / "test", ("age",), [(1004,)] * 3)

    report = evaluated(run, "--data", data)

    values = said_of(run, *(data.parent / f"{n}.png" for n in range(3)))
    found = [said["age"] for said in values.values()]
    assert report["images"] == report["total"] == 3
    assert report["metrics"]["mae"] == pytest.approx(mean_absolute_error([1004] * 3, found), rel=1e-4)


def older(run: Path) -> Path:
    """Turn a manifest into one of an ftcore that validated on the test split."""
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["data"] |= {"train": 30, "val": 12}
    del manifest["data"]["test"], manifest["data"]["names"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


def test_a_run_that_validated_on_its_test_split_is_not_measured_on_what_it_has_learnt(
    splits: Path, tmp_path: Path
) -> None:
    run = older(train(tmp_path / "run", splits))

    result, resumed = invoke("evaluate", run), invoke("resume", run)

    assert result.code == resumed.code == 2
    assert "validated it on its test split and trained it on images" in result.err
    assert "--split test evaluates the images it was validated on" in result.err
    assert evaluated(run, "--split", "test")["images"] == 12
    assert "data val: 12 then, 6 now" in resumed.err
    assert "an older ftcore validated it on its test split" in resumed.err
