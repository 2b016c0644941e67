"""From labels to targets."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import structlog
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ftcore import Context, DataError, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.data.dataset import ImageSplit, LabelledImages, PackedStrings, fingerprint, make_data
from ftcore.data.files import ImageFiles
from ftcore_plugins.tasks import Classification, Multilabel, Regression

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore import Data, RunConfig


KINDS = (Classification, Multilabel, Regression)
CTX = Context(Path(), structlog.get_logger(), make_task={k.name: k for k in KINDS}.__getitem__)


@frozen
class Numbered:
    """Images whose names are their rows, and that are as wide; those in `broken` cannot be read."""

    count: int
    broken: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return self.count

    def read(self, row: int, side: int | None) -> Image.Image:
        if row in self.broken:
            raise DataError(f"cannot read image {row}")
        return Image.new("L", (row + 1, 1))

    def name(self, row: int) -> str:
        return str(row)

    def version(self, row: int) -> str:
        return f"{row} {row in self.broken}"


def settings(*sets: str) -> RunConfig:
    return load_config(None, CliOverrides(data="photos", sets=sets))


def made(kind: str, values: Any, *sets: str, **more: Any) -> Data:
    broken = more.pop("broken", frozenset())
    return make_data(
        LabelledImages(Numbered(len(values), broken), kind, values, "0" * 64, **more), settings(*sets), CTX
    )


def parts(data: Data) -> list[ImageSplit]:
    assert isinstance(data.train, ImageSplit)
    assert isinstance(data.val, ImageSplit)
    return [data.train, data.val]


SPLITS = st.sampled_from(["train", "val", "test"])
BASE = [("a", "train"), ("Ä", "train"), ("007", "train"), ("a", "val")]
"""Enough to learn from, whatever comes on top."""


def assert_classes(data: Data, classes: Sequence[str]) -> None:
    trained = Counter(classes[int(data.train.name(i))] for i in range(len(data.train)))
    assert data.task.names == tuple(sorted(trained))
    assert isinstance(data.task, Classification)
    assert data.task.counts == tuple(trained[name] for name in data.task.names)
    for split in parts(data):
        for i in range(len(split)):
            image, target = split[i]
            assert target == split.target(i)
            assert data.task.names[target] == classes[int(split.name(i))]
            assert image.width == int(split.name(i)) + 1


@given(st.permutations(BASE * 2 + [("only in test", "test")]), st.lists(st.tuples(st.sampled_from("aÄ"), SPLITS)))
def test_the_target_of_an_image_is_the_place_of_its_class(base: list[Any], rows: list[Any]) -> None:
    classes, splits = zip(*base, *rows, strict=True)

    data = made("classification", classes, splits=splits)

    assert_classes(data, classes)
    assert "only in test" not in data.task.names
    for split, name in zip(parts(data), ("train", "val"), strict=True):
        assert [int(split.name(i)) for i in range(len(split))] == [r for r, where in enumerate(splits) if where == name]


@given(st.lists(st.sampled_from(["a", "Ä", "007", "b c"]), min_size=2, max_size=12, unique=True), st.randoms())
def test_targets_are_right_when_the_split_is_by_lot(names: list[str], random: Any) -> None:
    classes = random.sample(names * 5, 5 * len(names))

    data = made("classification", classes, "data.val_fraction=0.4", f"data.split_seed={random.randrange(9)}")

    assert_classes(data, classes)
    assert len(data.train) + len(data.val) == len(classes)


@given(st.lists(st.tuples(st.lists(st.sampled_from("aÄ")), SPLITS), max_size=30), st.randoms())
def test_the_target_of_an_image_has_a_one_for_each_of_its_labels(rows: list[Any], random: Any) -> None:
    rows = [*(([label], split) for label, split in BASE), *rows]
    labels, splits = zip(*random.sample(rows, len(rows)), strict=True)

    data = made("multilabel", labels, splits=splits)

    assert data.task.names == ("007", "a", "Ä")
    for split in parts(data):
        for i in range(len(split)):
            flags = split[i][1]
            assert set(flags) <= {0, 1}
            there = [name for name, flag in zip(data.task.names, flags, strict=True) if flag]
            assert there == sorted(set(labels[int(split.name(i))]))


numbers = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(numbers, numbers), min_size=4, max_size=30), st.integers(1, 2))
def test_the_target_of_an_image_is_its_numbers(rows: list[tuple[float, float]], width: int) -> None:
    rows = [(-1e6, 1e6), (1e6, -1e6), *rows]
    splits = ["train", "train", "val", *["train", "val", "test"] * len(rows)][: len(rows)]

    data = made("regression", [row[:width] for row in rows], names=("x", "y")[:width], splits=splits)

    for split in parts(data):
        for i in range(len(split)):
            row = rows[int(split.name(i))]
            assert split[i][1] == split.target(i) == (row if width == 2 else row[0])
    trained = np.array([rows[int(data.train.name(i))][:width] for i in range(len(data.train))])
    assert isinstance(data.task, Regression)
    assert data.task.mean == pytest.approx(trained.mean(axis=0))
    assert data.task.std == pytest.approx(trained.std(axis=0))


def test_classes_are_sorted_and_those_of_training_alone() -> None:
    data = made("classification", ["b", "a", "b", "z"], splits=["train", "train", "val", "test"])

    assert data.task.names == ("a", "b")
    assert isinstance(data.task, Classification)
    assert data.task.counts == (1, 1)
    assert data.tables[0].rows == (("a", "1", "0"), ("b", "1", "1"))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("classification", ["a", "b", "z"], "class 'z' is in validation but not in training"),
        ("classification", ["a", "a", "a"], "classification needs at least two classes; the data has a"),
        ("multilabel", [["a"], ["b"], ["z"]], "label 'z' is in validation but not in training"),
        ("multilabel", [["a"], [], ["a"]], "multilabel needs two labels; the data has a"),
        ("multilabel", [[], [], []], "multilabel needs two labels; the data has none"),
        (
            "regression",
            [[0.1], [0.1], [3.0]],
            "needs targets with a finite variance; 'x' is 0.1 to 0.1 in all 2 tr",
        ),
        ("regression", [[1e200], [-1e200], [3.0]], "needs targets with a finite variance; 'x' is"),
    ],
)
def test_targets_that_cannot_be_learnt_are_refused(kind: str, values: Any, message: str) -> None:
    names = ("x",) if kind == "regression" else ()

    with pytest.raises(UserError, match=message):
        made(kind, values, splits=["train", "train", "val"], names=names)


def test_a_constant_is_one_although_its_standard_deviation_is_rounded() -> None:
    assert np.std([0.1, 0.1, 0.1]) > 0
    with pytest.raises(UserError, match="needs targets with a finite variance"):
        made("regression", [[0.1]] * 4, names=("x",), splits=["train", "train", "train", "val"])


def test_a_named_label_without_an_example_is_refused() -> None:
    flags = np.array([[1, 0], [0, 0], [1, 1]], dtype=np.uint8)

    with pytest.raises(UserError, match="no training image of 'b', so the model cannot learn it"):
        made("multilabel", flags, splits=["train", "train", "val"], names=("a", "b"))


def test_images_that_cannot_be_read_are_left_out_with_their_targets() -> None:
    classes = ["a", "b", "a", "b", "a", "b"]
    splits = ["train"] * 4 + ["val"] * 2

    data = made("classification", classes, "data.on_corrupt=skip", splits=splits, broken=frozenset({0, 5}))

    assert [(split.name(i), split.target(i)) for split in parts(data) for i in range(len(split))] == [
        ("1", 1), ("2", 0), ("3", 1), ("4", 0),
    ]  # fmt: skip
    assert isinstance(data.task, Classification)
    assert data.task.counts == (1, 2)
    assert data.skipped == (("train", "cannot read image 0"), ("val", "cannot read image 5"))


def test_a_split_that_is_left_without_images_is_refused() -> None:
    with pytest.raises(UserError, match="no images left for training; the first of 2: cannot read image 0"):
        made(
            "classification", ["a", "b", "a"], "data.on_corrupt=skip", splits=["train", "train", "val"],
            broken=frozenset({0, 1}),
        )  # fmt: skip


@given(st.lists(st.tuples(st.text(), st.integers())), st.randoms())
def test_a_fingerprint_knows_no_order(rows: list[tuple[str, int]], random: Any) -> None:
    mixed = random.sample(rows, len(rows))

    assert fingerprint(rows) == fingerprint(mixed)
    assert fingerprint(rows) != fingerprint([*rows, ("more", 1)])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_names_come_back_as_they_were(names: list[str]) -> None:
    packed = PackedStrings.of(names)

    assert [packed[row] for row in range(len(packed))] == names
    assert not names or packed[-1] == names[-1]
    with pytest.raises(IndexError):
        packed[len(names)]


def test_names_may_be_bytes_that_are_no_text() -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")

    assert PackedStrings.of(["a", name, ""])[1] == name


def test_an_indexed_sample_takes_less_than_200_bytes(tmp_path: Path) -> None:
    count = 20_000
    names = [f"class_{row % 100:03}/a picture of something {row:06}.jpg" for row in range(count)]
    files = ImageFiles(tmp_path, PackedStrings.of(names))
    data = make_data(LabelledImages(files, "classification", [name[:9] for name in names], "0" * 64), settings(), CTX)

    arrays = [files.paths.text, files.paths.ends, *(a for split in parts(data) for a in (split.rows, split.targets))]

    assert all(array.dtype != object for array in arrays)
    assert sum(sys.getsizeof(array) if array.base is None else array.nbytes for array in arrays) < 200 * count
    assert {type(value) for split in parts(data) for value in (split.images, split.rows, split.targets)} == {
        ImageFiles,
        np.ndarray,
    }
