"""A table of pictures."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.plugins.data.tables import HEADER, LABEL, ROWS, index, meaning, splits, targets, write

from ftcore import UserError
from ftcore.testing import image_folder, invoke
from ftcore_plugins.tasks import Regression

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

AGE = "table.target=age"


def test_path_class_and_split_are_columns(pictures: Path) -> None:
    data = index(write(pictures / "t.csv", [row[:2] + row[3:4] for row in ROWS], ("path", "label", "split")))

    assert data.task.name == "classification"
    assert data.task.names == ("cat", "dog", "owl")
    assert meaning(data) == {row[0]: row[1] for row in ROWS}
    assert {name for name, _ in splits(data)[0]} == {row[0] for row in ROWS if row[3] == "train"}


def test_without_a_split_column_classes_are_held_out_evenly(pictures: Path) -> None:
    data = index(write(pictures / "t.csv", [row[:2] for row in ROWS], HEADER[:2]), "data.val_fraction=0.33")

    assert sorted(meaning(data)[name] for name, _ in splits(data)[1]) == ["cat"] * 2 + ["dog"] * 2 + ["owl"] * 2


def test_columns_may_have_other_names(pictures: Path) -> None:
    file = write(pictures / "t.csv", ROWS, ("file", "class", "years", "part", "patient"))

    data = index(file, "table.path=file", "table.target=class", "table.split=part")

    assert meaning(data) == {row[0]: row[1] for row in ROWS}
    assert len(data.val) == 6


def test_pictures_may_be_in_another_folder(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = write(tmp_path_factory.mktemp("tables") / "t.csv")

    assert meaning(index(file, LABEL, f"table.root={pictures}")) == {row[0]: row[1] for row in ROWS}
    with pytest.raises(
        UserError, match=r"t\.csv:2: path '0\.png': No such file.*(\n.*)*\n\.\.\. and 8 more\npaths are"
    ):
        index(file, LABEL)


def test_a_group_is_never_cut(pictures: Path) -> None:
    data = index(write(pictures / "t.csv"), LABEL, "table.group=who", "table.split=", "data.val_fraction=0.34")

    patients = [{{row[0]: row[4] for row in ROWS}[name] for name, _ in split} for split in splits(data)]

    assert not patients[0] & patients[1]
    assert all(patients)


def test_folds_hold_out_each_picture_once(pictures: Path) -> None:
    file = write(pictures / "t.csv")

    out = [index(file, LABEL, "table.split=", "data.folds=3", f"data.fold={fold}").val for fold in range(3)]

    assert sorted(val.name(i) for val in out for i in range(len(val))) == sorted(str(pictures / r[0]) for r in ROWS)


def test_one_column_of_numbers_is_a_regression(pictures: Path) -> None:
    data = index(write(pictures / "t.csv"), AGE)

    assert data.task.name == "regression"
    assert data.task.names == ("age",)
    assert targets(data) == {row[0]: float(row[2]) for row in ROWS}


def test_several_columns_of_numbers_are_a_regression_with_a_target_each(pictures: Path) -> None:
    rows = [(f"{n}.png", f"{n / 4}", f"{-n}") for n in range(18)]

    data = index(write(pictures / "t.csv", rows, ("path", "x", "y")), 'table.target=["y", "x"]')

    assert data.task.name == "regression"
    assert data.task.names == ("y", "x")
    assert targets(data) == {f"{n}.png": (-n, n / 4) for n in range(18)}
    trained = [target for _, target in splits(data)[0]]
    assert isinstance(data.task, Regression)
    assert data.task.mean == pytest.approx(np.mean(trained, axis=0))


def test_several_columns_of_0_and_1_are_labels(pictures: Path) -> None:
    rows = [(f"{n}.png", str(n % 2), str(n // 2 % 2)) for n in range(18)]

    data = index(write(pictures / "t.csv", rows, ("path", "wet", "cold")), 'table.target=["wet", "cold"]')

    assert data.task.name == "multilabel"
    assert data.task.names == ("wet", "cold")
    assert targets(data) == {f"{n}.png": (n % 2, n // 2 % 2) for n in range(18)}


def test_labels_may_be_words_in_one_cell(pictures: Path) -> None:
    words = ["", "wet", "cold; wet", "dark;cold;dark"]
    rows = [(f"{n}.png", words[n % 4]) for n in range(16)]

    data = index(write(pictures / "t.csv", rows, ("path", "tags")), "table.labels=;", "data.val_fraction=0.25")

    assert data.task.name == "multilabel"
    assert data.task.names == ("cold", "dark", "wet")
    flags = [(0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 0)]
    assert targets(data) == {f"{n}.png": flags[n % 4] for n in range(16)}


@pytest.mark.parametrize("names", [("007", "7"), ("1.0", "1"), ("0", "1"), ("1e3", "1000")])
def test_class_names_that_look_like_numbers_stay_text(pictures: Path, names: tuple[str, str]) -> None:
    file = write(pictures / "t.csv", [(f"{n}.png", names[n % 2]) for n in range(18)], HEADER[:2])

    with pytest.raises(UserError, match=r"what label means is ambiguous .* set data.task=classification, multilabel"):
        index(file)
    data = index(file, "data.task=classification")

    assert data.task.names == tuple(sorted(names))
    assert meaning(data) == {f"{n}.png": names[n % 2] for n in range(18)}


@pytest.mark.parametrize("sets", [(LABEL,), (LABEL, "table.split="), (LABEL, "table.split=", "table.group=who")])
def test_the_order_of_the_rows_changes_nothing(pictures: Path, sets: tuple[str, ...]) -> None:
    mixed = random.Random(0).sample(ROWS, len(ROWS))

    first, again = (index(write(pictures / name, rows), *sets) for name, rows in (("a.csv", ROWS), ("b.csv", mixed)))

    assert first.fingerprint == again.fingerprint
    assert splits(first) == splits(again)


def changed(column: int, value: str) -> list[Sequence[str]]:
    return [(*ROWS[0][:column], value, *ROWS[0][column + 1 :]), *ROWS[1:]]


@pytest.mark.parametrize(
    "rows",
    [changed(1, "dog"), changed(3, "val"), changed(4, "p1"), ROWS[1:]],
    ids=["label", "split", "group", "a row less"],
)
def test_the_fingerprint_changes_with_what_is_learnt(pictures: Path, rows: list[Sequence[str]]) -> None:
    sets = (LABEL, "table.group=who")
    straight = [(*row[:4], row[4] if row[3] == "train" else f"v{row[4]}") for row in rows]
    base = [(*row[:4], row[4] if row[3] == "train" else f"v{row[4]}") for row in ROWS]

    before, after = (index(write(pictures / "t.csv", table), *sets).fingerprint for table in (base, straight))

    assert before != after


def test_the_fingerprint_changes_with_a_pictures_size_and_not_with_what_is_not_read(pictures: Path) -> None:
    before = index(write(pictures / "a.csv"), LABEL).fingerprint
    assert index(write(pictures / "b.csv", changed(2, "99")), LABEL).fingerprint == before

    with (pictures / "0.png").open("ab") as file:
        file.write(b"\0")

    assert index(pictures / "a.csv", LABEL).fingerprint != before


def test_an_option_of_the_table_does_nothing_for_a_folder(tmp_path: Path) -> None:
    result = invoke(
        "explain", "--model", "digits/cnn", "--data", image_folder(tmp_path / "photos"), "--set", "table.labels=|"
    )

    assert result.code == 2
    assert "plugin 'table' has options but supplies nothing in this run" in result.err


def test_damaged_pictures_of_a_table_are_skipped_where_that_is_asked_for(pictures: Path) -> None:
    (pictures / "0.png").write_bytes(b"no picture")
    file = write(pictures / "t.csv")

    with pytest.raises(
        UserError, match=r"t\.csv:2: cannot read image .*/0\.png: .*(\n.*)*1 of 18 images cannot be read"
    ):
        index(file, LABEL)
    data = index(file, LABEL, "data.on_corrupt=skip")

    assert meaning(data) == {row[0]: row[1] for row in ROWS[1:]}
    ((split, reason),) = data.skipped
    assert split == "train"
    assert "0.png" in reason


def test_a_table_is_trained_on(pictures: Path, tmp_path: Path) -> None:
    sets = [LABEL, "train.epochs=1", f"run.folder={tmp_path / 'run'}"]

    result = invoke(
        "run", "--model", "digits/cnn", "--data", write(pictures / "t.csv"), *(w for s in sets for w in ("--set", s))
    )

    assert result.code == 0, result.err
    assert "12 training and 6 validation images" in result.err
