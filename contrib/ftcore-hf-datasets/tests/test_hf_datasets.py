from __future__ import annotations

import io
import json
import multiprocessing
import pickle
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pytest
from ftcore import DataError, RunConfig
from ftcore.testing import image_folder, invoke
from PIL import Image

from ftcore_hf_datasets import HfDatasetsConfig
from ftcore_hf_datasets.rows import RowImages, labelled
from ftcore_hf_datasets.source import load, used

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore.data import LabelledImages
    from ftcore.testing import Result

COLOURS = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def a_split(root: Path, count: int = 6, **columns: Any) -> datasets.Dataset:
    """Rows blue, green, red, blue, ... of real JPEG pictures; a column is a list and its type."""
    folder = image_folder(root, per_class=count)
    rows = [(place, name, number) for number in range(count) for place, name in enumerate(COLOURS)]
    data = {
        "picture": [
            {"bytes": (folder / name / f"{number}.jpg").read_bytes(), "path": None} for _, name, number in rows
        ],
        "colour": [place for place, _, _ in rows],
        **{name: values for name, (values, _) in columns.items()},
    }
    types = {name: feature for name, (_, feature) in columns.items()}
    features = {"picture": datasets.Image(), "colour": datasets.ClassLabel(names=list(COLOURS)), **types}
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def saved(root: Path, **splits: datasets.Dataset) -> Path:
    datasets.DatasetDict(splits).save_to_disk(str(root))
    return root


def two_splits(root: Path) -> Path:
    return saved(root / "set", train=a_split(root / "a"), validation=a_split(root / "b", 2))


def run(source: object, folder: Path, *more: str) -> Result:
    settings = ("train.epochs=1", "train.batch_size=4", f"run.folder={folder}", *more)
    return invoke(
        *("run", "--plugin", "hf_datasets", "--data", f"hf:{source}", "--model", "digits/cnn", "--json"),
        *(word for setting in settings for word in ("--set", setting)),
    )


def found_in(source: object, **options: str) -> LabelledImages:
    return labelled(f"hf:{source}", used(load(str(source))), HfDatasetsConfig(**options), RunConfig())


def sizes(folder: Path) -> tuple[int, int]:
    data = json.loads((folder / "manifest.json").read_text())["data"]
    return data["train"], data["val"]


def weights(folder: Path) -> bytes:
    (file,) = (folder / "model").glob("*.safetensors")
    return file.read_bytes()


def read_in_another_process(images: RowImages, row: int) -> np.ndarray:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return np.asarray(pool.apply(images.read, (row, None)))


def test_a_run_learns_from_a_saved_data_set(tmp_path: Path) -> None:
    result = run(two_splits(tmp_path), tmp_path / "run")

    assert result.code == 0, result.err
    assert result.report["hooks"]["build_data"] == "hf_datasets"
    assert sizes(tmp_path / "run") == (18, 6)


def test_images_and_labels_belong_together(tmp_path: Path) -> None:
    found = found_in(two_splits(tmp_path))

    assert found.values == [*COLOURS] * 8
    assert found.splits == ["train"] * 18 + ["validation"] * 6
    assert found.images.name(19) == f"hf:{tmp_path / 'set'} validation[1]"
    for row, folder, file in ((0, "a", "blue/0"), (5, "a", "red/1"), (19, "b", "green/0")):
        expected = np.asarray(Image.open(tmp_path / folder / f"{file}.jpg"))
        assert np.array_equal(np.asarray(found.images.read(row, None)), expected)


def test_it_learns_what_the_same_pictures_in_a_folder_teach(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 2)):
        image_folder(tmp_path / "folder" / split, per_class=count)
    parts = {}
    for split in ("train", "val"):
        files = sorted((tmp_path / "folder" / split).rglob("*.jpg"))
        parts[split] = datasets.Dataset.from_dict(
            {"image": [str(file) for file in files], "colour": [COLOURS.index(file.parent.name) for file in files]},
            features=datasets.Features({"image": datasets.Image(), "colour": datasets.ClassLabel(names=list(COLOURS))}),
        )

    ours = run(saved(tmp_path / "set", **parts), tmp_path / "ours")
    theirs = invoke(
        *("run", "--data", tmp_path / "folder", "--model", "digits/cnn", "--set", "train.epochs=1"),
        *("--set", "train.batch_size=4", "--set", f"run.folder={tmp_path / 'theirs'}"),
    )

    assert (ours.code, theirs.code) == (0, 0), ours.err + theirs.err
    assert weights(tmp_path / "ours") == weights(tmp_path / "theirs")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_workers_give_the_weights_of_none(tmp_path: Path) -> None:
    folder = two_splits(tmp_path)

    for workers in (0, 2):
        result = run(folder, tmp_path / f"run{workers}", f"train.workers={workers}")
        assert result.code == 0, result.err

    assert weights(tmp_path / "run0") == weights(tmp_path / "run2")


def test_images_are_read_in_a_process_that_inherits_nothing(tmp_path: Path) -> None:
    images = found_in(two_splits(tmp_path)).images
    assert isinstance(images, RowImages)

    there = read_in_another_process(images, 19)

    assert np.array_equal(there, np.asarray(images.read(19, None)))


def test_what_is_sent_to_a_process_holds_no_images(tmp_path: Path) -> None:
    big = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(big, "PNG")
    rows = {"picture": [{"bytes": big.getvalue(), "path": None}] * 20, "colour": [0, 1] * 10}
    features = datasets.Features({"picture": datasets.Image(), "colour": datasets.ClassLabel(names=["a", "b"])})
    folder = saved(tmp_path / "set", train=datasets.Dataset.from_dict(rows, features=features))

    images = found_in(folder).images

    assert len(pickle.dumps(images)) < 10_000 < len(big.getvalue())


def test_a_data_set_without_splits_is_split_by_ftcore(tmp_path: Path) -> None:
    a_split(tmp_path / "a").save_to_disk(str(tmp_path / "set"))

    result = run(tmp_path / "set", tmp_path / "run", "data.val_fraction=0.5")

    assert result.code == 0, result.err
    assert sizes(tmp_path / "run") == (9, 9)


def test_other_splits_are_left_out_and_may_lack_labels(tmp_path: Path) -> None:
    blind = a_split(tmp_path / "c", 1).remove_columns("colour").add_column("colour", [-1] * 3)
    blind = blind.cast_column("colour", datasets.ClassLabel(names=list(COLOURS)))
    folder = saved(tmp_path / "set", train=a_split(tmp_path / "a"), valid=a_split(tmp_path / "b", 2), test=blind)

    result = run(folder, tmp_path / "run")

    assert result.code == 0, result.err
    assert sizes(tmp_path / "run") == (18, 6)
    assert "the test split cannot be evaluated, and is left out" in result.err
    assert "test[0]: colour is -1" in result.err


def test_a_test_split_never_validates_and_is_measured_whole(tmp_path: Path) -> None:
    parts = {"train": a_split(tmp_path / "a"), "test": a_split(tmp_path / "b", 2)}

    assert run(saved(tmp_path / "set", **parts), tmp_path / "run").code == 0

    assert sizes(tmp_path / "run") == (14, 4)
    saved(tmp_path / "alone", test=parts["test"])
    parts["test"].select([0]).save_to_disk(str(tmp_path / "plain"))
    for source, split, images, total in (
        ((), ("--split", "test"), 6, 24),
        (("--data", f"hf:{tmp_path / 'alone'}"), (), 6, 6),
        (("--data", f"hf:{tmp_path / 'plain'}"), (), 1, 1),
    ):
        result = invoke("evaluate", tmp_path / "run", *source, *split, "--json")
        assert result.code == 0, result.err
        assert (result.report["images"], result.report["total"]) == (images, total)


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    grades = (list(range(0, 36, 2)) * 2, datasets.ClassLabel(names=[str(n) for n in range(36)]))
    folder = saved(tmp_path / "set", train=a_split(tmp_path / "a", 12, goal=grades))

    result = run(folder, tmp_path / "run", "hf_datasets.target=goal", "data.val_fraction=0.5")

    assert result.code == 0, result.err
    names = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["names"]
    assert names == [str(n) for n in range(0, 36, 2)]


def test_splits_of_other_names_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", one=a_split(tmp_path / "a"), two=a_split(tmp_path / "b", 2))

    result = run(folder, tmp_path / "run")

    assert result.code == 2
    assert "no training split" in result.err
    assert "'one' (18), 'two' (6)" in result.err


def test_a_group_is_never_cut(tmp_path: Path) -> None:
    patients = [f"p{number}" for number in range(6) for _ in COLOURS]
    a_split(tmp_path / "a", patient=(patients, datasets.Value("string"))).save_to_disk(str(tmp_path / "set"))

    result = run(tmp_path / "set", tmp_path / "run", "hf_datasets.group=patient", "data.val_fraction=0.3")

    assert result.code == 0, result.err
    assert found_in(tmp_path / "set", group="patient").groups == patients


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    a_split(tmp_path / "a").to_parquet(str(tmp_path / "set" / "train.parquet"))
    a_split(tmp_path / "b", 2).to_parquet(str(tmp_path / "set" / "validation.parquet"))

    result = run(tmp_path / "set", tmp_path / "run")

    assert result.code == 0, result.err
    assert sizes(tmp_path / "run") == (18, 6)


def test_a_folder_of_pictures_through_load_dataset(tmp_path: Path) -> None:
    image_folder(tmp_path / "set" / "train")
    image_folder(tmp_path / "set" / "validation", per_class=2)

    found = found_in(tmp_path / "set")
    result = run(tmp_path / "set", tmp_path / "run")

    assert result.code == 0, result.err
    assert sizes(tmp_path / "run") == (18, 6)
    file = tmp_path / "set" / "train" / "blue" / "0.jpg"
    assert found.images.version(0) == f"{file.stat().st_size} {file.stat().st_mtime_ns}"
    file.write_bytes(file.read_bytes()[:100])
    assert found_in(tmp_path / "set").fingerprint != found.fingerprint
    with pytest.raises(DataError, match=r"set train\[0\]: cannot read image .*0\.jpg: "):
        found.images.read(0, None)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_damaged_picture_is_named_by_split_and_row(workers: int, tmp_path: Path) -> None:
    def damage(row: dict[str, Any], place: int) -> dict[str, Any]:
        if place == 4:
            row["picture"] = {"bytes": row["picture"]["bytes"][:200], "path": None}
        return row

    plain = a_split(tmp_path / "a").cast_column("picture", datasets.Image(decode=False))
    hurt = plain.map(damage, with_indices=True).cast_column("picture", datasets.Image())
    folder = saved(tmp_path / "set", train=hurt, validation=a_split(tmp_path / "b", 2))

    result = run(folder, tmp_path / "run", f"train.workers={workers}")
    assert result.code == 2
    assert f"cannot read image hf:{folder} train[4]: " in result.err

    result = run(folder, tmp_path / "skipped", "data.on_corrupt=skip")
    assert result.code == 0, result.err
    assert sizes(tmp_path / "skipped") == (17, 6)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, r"train\[0\]: it is missing"),
        ({"bytes": b"", "path": None}, r"train\[0\]: the file is empty"),
        ({"bytes": None, "path": "https://example.org/1.jpg"}, r"train\[0\]: only its address is there, https"),
        ({"bytes": None, "path": "/none/1.jpg"}, r"train\[0\]: cannot read image /none/1\.jpg"),
    ],
)
def test_an_image_that_is_not_there_is_named(cell: object, reason: str) -> None:
    features = datasets.Features({"p": datasets.Image(), "c": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"p": [cell, cell], "c": [0, 1]}, features=features)

    found = labelled("hf:x", {"train": rows}, HfDatasetsConfig(), RunConfig())

    with pytest.raises(DataError, match=reason):
        found.images.read(0, None)


def test_several_labels_an_image(tmp_path: Path) -> None:
    names = ["dark", "unused", "warm"]
    tags = [[2], [], [2, 0]] * 6
    columns = {"tags": (tags, datasets.List(datasets.ClassLabel(names=names)))}
    folder = saved(tmp_path / "set", train=a_split(tmp_path / "a", **columns).remove_columns("colour"))

    found = found_in(folder)
    result = run(folder, tmp_path / "run")

    assert result.code == 0, result.err
    assert (found.task, found.values[:3]) == ("multilabel", [["warm"], [], ["warm", "dark"]])
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["data"]["names"] == ["dark", "warm"]


@pytest.mark.parametrize(
    ("values", "feature", "settings", "kind"),
    [
        (["x", "y", "x"] * 6, datasets.Value("string"), (), "classification"),
        ([7, 8, 9] * 6, datasets.Value("int32"), ("data.task=classification",), "classification"),
        ([7, 8, 9] * 6, datasets.Value("int32"), ("data.task=regression",), "regression"),
        ([0.5, 1.5, 2.5] * 6, datasets.Value("float32"), (), "regression"),
        ([["x"], ["y", "x"], []] * 6, datasets.List(datasets.Value("string")), (), "multilabel"),
    ],
)
def test_other_targets(values: list[Any], feature: Any, settings: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", train=a_split(tmp_path / "a", goal=(values, feature)))

    result = run(folder, tmp_path / "run", "hf_datasets.target=goal", *settings)

    assert result.code == 0, result.err
    assert kind in (tmp_path / "run" / "manifest.json").read_text() + result.err


@pytest.mark.parametrize(
    ("values", "feature", "settings", "reason"),
    [
        ([0, 1, None] * 6, datasets.ClassLabel(names=["a", "b"]), (), "train[2]: goal is missing"),
        ([0, -1, 1] * 6, datasets.ClassLabel(names=["a", "b"]), (), "train[1]: goal is -1, and there are 2 classes"),
        (["a", "", "b"] * 6, datasets.Value("string"), (), "train[1]: goal is missing"),
        (
            [1.0, float("nan"), 2.0] * 6,
            datasets.Value("float32"),
            (),
            "train[1]: goal must be a finite number, got nan",
        ),
        ([["a"], None, ["b"]] * 6, datasets.List(datasets.Value("string")), (), "train[1]: goal is missing"),
        ([["a"]] * 18, datasets.List(datasets.Value("string")), (), "multilabel needs two labels; the data has a"),
        ([1, 2, 3] * 6, datasets.Value("int64"), (), "set data.task=classification or regression"),
        (["a", "b", "c"] * 6, datasets.Value("string"), ("data.task=regression",), "which means classification"),
        ([{"x": 1}] * 18, {"x": datasets.Value("int64")}, (), "column 'goal' cannot be a target"),
    ],
)
def test_a_target_that_cannot_be_learnt_is_named(
    values: list[Any], feature: Any, settings: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "set", train=a_split(tmp_path / "a", goal=(values, feature)))

    result = run(folder, tmp_path / "run", "hf_datasets.target=goal", *settings)

    assert result.code == 2
    assert reason in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("target=color", "hf_datasets.target: no column 'color'; did you mean 'colour'?; columns: colour, picture"),
        ("image=pictures", "hf_datasets.image: no column 'pictures'; did you mean 'picture'?"),
        ("group=person", "hf_datasets.group: no column 'person'; columns: colour, picture"),
        ("image=colour", "hf_datasets.image: column 'colour' has no images"),
        ("targett=colour", "did you mean 'target'"),
    ],
)
def test_a_column_that_does_not_exist_is_named_with_the_nearest(setting: str, reason: str, tmp_path: Path) -> None:
    result = run(two_splits(tmp_path), tmp_path / "run", f"hf_datasets.{setting}")

    assert result.code == 2
    assert reason in result.err


def test_without_a_certain_column_it_asks(tmp_path: Path) -> None:
    second = a_split(tmp_path / "a", shade=([0, 1, 0] * 6, datasets.ClassLabel(names=["dark", "light"])))
    result = run(saved(tmp_path / "two", train=second), tmp_path / "run")
    assert result.code == 2
    assert "2 columns of type ClassLabel (colour, shade); say which column to learn" in result.err

    result = run(saved(tmp_path / "none", train=second.remove_columns("picture")), tmp_path / "run")
    assert result.code == 2
    assert "0 columns of type Image (none); say which" in result.err


def test_splits_that_differ_are_refused(tmp_path: Path) -> None:
    other = a_split(tmp_path / "b", 2).cast_column("colour", datasets.ClassLabel(names=["x", "y", "z"]))
    for part, reason in ((other, "column 'colour' differs: in 'train'"), (other.remove_columns("colour"), "'test'")):
        parts = {"train": a_split(tmp_path / reason), "test": part}
        with pytest.raises(Exception, match=reason):
            labelled("hf:x", parts, HfDatasetsConfig(), RunConfig())


def test_bytes_that_are_named_are_images(tmp_path: Path) -> None:
    pictures = [
        cell["bytes"]
        for cell in a_split(tmp_path / "a").cast_column("picture", datasets.Image(decode=False))["picture"]
    ]
    rows = datasets.Dataset.from_dict({"raw": pictures, "colour": [*COLOURS] * 6})
    rows.save_to_disk(str(tmp_path / "set"))

    result = run(tmp_path / "set", tmp_path / "run", "hf_datasets.image=raw", "hf_datasets.target=colour")

    assert result.code == 0, result.err
    assert sizes(tmp_path / "run") == (14, 4)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("./none", "no such folder: ./none (looked at "),
        ("", "hf: names no data set; expected hf:FOLDER"),
        ("a/b/c", "no such folder: a/b/c"),
        ("nobody/nothing", "cannot load data set 'nobody/nothing': "),
        ("nobody/nothing:small", "cannot load data set 'nobody/nothing:small': "),
    ],
)
def test_what_cannot_be_loaded_is_one_message(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    result = run(source, tmp_path / "run")

    assert result.code == 2
    assert reason in result.err
    assert "Traceback" not in result.err


def test_name_and_configuration_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    row = datasets.Dataset.from_dict({"a": [1]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: asked.append(given) or datasets.DatasetDict(train=row))

    load("nobody/nothing:small")
    load("nobody/nothing")

    assert asked == [("nobody/nothing", "small"), ("nobody/nothing", None)]


def test_a_damaged_folder_is_one_message(tmp_path: Path) -> None:
    folder = two_splits(tmp_path)
    for file in folder.rglob("*.arrow"):
        file.write_bytes(file.read_bytes()[:50])

    result = run(folder, tmp_path / "run")

    assert result.code == 2
    assert f"cannot load data set '{folder}': " in result.err
