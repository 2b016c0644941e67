"""Training and validation: given, by lot, by group, in folds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from ftcore import UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.data.splits import split_indices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ftcore import RunConfig

CLASSES = ["a"] * 20 + ["b"] * 10 + ["c"] * 5


def settings(values: Mapping[str, float]) -> RunConfig:
    return load_config(None, CliOverrides(data="photos", sets=[f"data.{key}={value}" for key, value in values.items()]))


def split(
    count: int,
    classes: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    **values: float,
) -> tuple[list[int], list[int]]:
    rows = split_indices(count, settings(values), classes=classes, groups=groups, given=splits)
    return rows.train.tolist(), rows.val.tolist()


def assert_whole(train: list[int], val: list[int], count: int) -> None:
    assert train
    assert val
    assert train == sorted(train)
    assert val == sorted(val)
    assert sorted(train + val) == list(range(count))


labels = st.lists(st.sampled_from("abc"), min_size=4, max_size=40)
patients = st.lists(st.sampled_from([f"p{number}" for number in range(12)]), min_size=40, max_size=40)
fractions = st.floats(0.05, 0.95)


def test_classes_are_held_out_in_the_same_proportion() -> None:
    train, val = split(35, CLASSES)

    assert_whole(train, val, 35)
    assert Counter(CLASSES[row] for row in val) == {"a": 4, "b": 2, "c": 1}


def test_the_split_seed_decides_who_is_held_out() -> None:
    first, again, other = (split(35, CLASSES, split_seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first != other
    assert split(35, CLASSES) == split(35, CLASSES, split_seed=0)


@given(st.integers(2, 60), fractions)
def test_without_classes_the_rounded_fraction_is_held_out(count: int, fraction: float) -> None:
    assume(1 <= -(-count * fraction // 1) < count)

    train, val = split(count, val_fraction=fraction)

    assert_whole(train, val, count)
    assert abs(len(val) - count * fraction) <= 1


@given(classes=labels, groups=patients, fraction=fractions, seed=st.integers(0, 3), stratified=st.booleans())
def test_no_group_is_ever_in_both_splits(
    *, classes: list[str], groups: list[str], fraction: float, seed: int, stratified: bool
) -> None:
    groups = groups[: len(classes)]
    assume(len(set(groups)) > 1)
    assume(min(Counter(classes).values()) > 1)

    train, val = split(len(classes), classes if stratified else None, groups, val_fraction=fraction, split_seed=seed)

    assert_whole(train, val, len(classes))
    assert not {groups[row] for row in train} & {groups[row] for row in val}


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("stratified", [True, False])
def test_with_groups_the_fraction_is_about_kept(*, fraction: float, stratified: bool) -> None:
    groups = [f"p{row // 2}" for row in range(200)]
    classes = [group[-1] for group in groups] if stratified else None

    _, val = split(200, classes, groups, val_fraction=fraction)

    assert len(val) == pytest.approx(200 * fraction, abs=10)


@pytest.mark.parametrize("seed", range(10))
def test_a_class_of_one_group_is_trained_on(seed: int) -> None:
    classes = [*"babbbbbbbbabaaaabbaa", *["rare"] * 4]  # seed 3 would hold it out
    groups = [f"p{row // 4}" for row in range(24)]

    train, _ = split(24, classes, groups, split_seed=seed)

    assert "rare" in {classes[row] for row in train}


@given(
    classes=labels,
    groups=patients,
    folds=st.integers(2, 5),
    seed=st.integers(0, 3),
    stratified=st.booleans(),
    grouped=st.booleans(),
)
def test_the_validation_parts_of_folds_are_disjoint_and_cover_everything(
    *, classes: list[str], groups: list[str], folds: int, seed: int, stratified: bool, grouped: bool
) -> None:
    groups = groups[: len(classes)]
    assume(not stratified or min(Counter(classes).values()) >= folds)
    assume(not grouped or len(set(groups)) >= folds)
    assume(len(classes) >= folds)

    cuts = [
        split(
            len(classes),
            classes if stratified else None,
            groups if grouped else None,
            folds=folds,
            fold=fold,
            split_seed=seed,
        )
        for fold in range(folds)
    ]

    for train, val in cuts:
        assert_whole(train, val, len(classes))
        assert not grouped or not {groups[row] for row in train} & {groups[row] for row in val}
    assert sorted(row for _, val in cuts for row in val) == list(range(len(classes)))


def test_folds_keep_the_proportion_of_classes() -> None:
    for fold in range(5):
        _, val = split(35, CLASSES, folds=5, fold=fold)
        assert Counter(CLASSES[row] for row in val) == {"a": 4, "b": 2, "c": 1}


def test_the_first_fold_is_held_out_unless_another_is_named() -> None:
    assert split(35, CLASSES, folds=5) == split(35, CLASSES, folds=5, fold=0)


def three(given: Sequence[str] | None, count: int | None = None, **values: float) -> list[list[int]]:
    rows = split_indices(count or len(given or ()), settings(values), given=given)
    return [rows.train.tolist(), rows.val.tolist(), rows.test.tolist()]


def test_given_splits_are_taken_as_they_are_and_others_left_out() -> None:
    assert three(["Val", "train", "test", "other", "TRAIN"]) == [[1, 4], [0], [2]]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
def test_validation_has_many_names(name: str) -> None:
    assert split(2, splits=["training", name]) == ([0], [1])


@pytest.mark.parametrize("test", ["test", "Testing"])
def test_a_test_split_never_validates_and_training_is_held_out_instead(test: str) -> None:
    given = ["train", test, "train", "train", test, "train", "train"] * 5
    rows = [row for row, name in enumerate(given) if name == "train"]
    chosen = [CLASSES[row] for row in rows]

    found = split_indices(35, settings({"val_fraction": 0.3, "split_seed": 4}), classes=CLASSES, given=given)

    expected = train_test_split(rows, test_size=0.3, stratify=chosen, random_state=4)
    assert [found.train.tolist(), found.val.tolist()] == [sorted(part) for part in expected]
    assert found.test.tolist() == [row for row, name in enumerate(given) if name == test]
    assert found.held_out


def test_folds_and_groups_cut_the_training_split_alone() -> None:
    given, groups = ["train"] * 12 + ["test"] * 4, [f"p{row // 2}" for row in range(16)]

    cuts = [split_indices(16, settings({"folds": 3, "fold": n}), groups=groups, given=given) for n in range(3)]

    assert sorted(row for cut in cuts for row in cut.val.tolist()) == list(range(12))
    assert all(cut.test.tolist() == [12, 13, 14, 15] for cut in cuts)
    assert all(not {groups[row] for row in cut.train} & {groups[row] for row in cut.val} for cut in cuts)


def test_what_is_only_measured_is_not_split_whatever_its_classes_are() -> None:
    measuring = evolve(settings({}), measuring=True)

    whole = split_indices(3, measuring, classes=["a", "b", "b"], groups=["x", "y", "y"])
    named = split_indices(4, measuring, classes=["a"] * 4, given=["test", "train", "other", "test"])

    assert [part.tolist() for part in (whole.train, whole.val, whole.test)] == [[], [], [0, 1, 2]]
    assert [part.tolist() for part in (named.train, named.val, named.test)] == [[1], [], [0, 3]]
    with pytest.raises(UserError, match=r"photos: no split to evaluate; expected one .*testing, found 'x' \(2\)"):
        split_indices(2, measuring, given=["x", "x"])


@pytest.mark.parametrize(
    ("values", "splits", "message"),
    [
        ({"fold": 1}, None, r"data\.fold has no effect without data\.folds \(--set data\.fold=1\)"),
        (
            {"folds": 2, "val_fraction": 0.2},
            None,
            r"val_fraction has no effect with data\.folds \(--set data\.val_frac",
        ),
        (
            {"val_fraction": 0.2},
            ["train", "val"],
            r"data\.val_fraction has no effect: photos has its own validation split",
        ),
        (
            {"split_seed": 0},
            ["train", "val"],
            r"data\.split_seed has no effect: photos has its own validation split",
        ),
        (
            {"folds": 2},
            ["train", "val"],
            r"data\.folds has no effect: photos has its own validation split \(--set data\.folds",
        ),
        ({"folds": 2, "fold": 2}, None, r"data\.fold = 2 must be below data\.folds = 2 \(--set data\.fold=2\)"),
        ({"folds": 3}, None, r"data\.folds = 3, but there are 2 of 'images' \(--set data\.folds=3\)"),
        ({}, ["x", "val"], r"photos: no training split; expected one called train or training, found 'x' \(1\), 'val'"),
    ],
)
def test_a_setting_that_cannot_act_is_refused(values: dict[str, float], splits: list[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_indices(2, settings(values), given=splits)


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(UserError, match="class 'b' has one image; at least two"):
        split(4, ["a", "a", "a", "b"])
    with pytest.raises(UserError, match=r"data\.folds = 3, but there are 2 of 'b'"):
        split(5, ["a", "a", "a", "b", "b"], folds=3)
    with pytest.raises(UserError, match=r"photos: 2 groups \(x, y\), which may not be divided; .* at least 3"):
        split(6, groups=["x", "y"] * 3, folds=3)
    with pytest.raises(
        UserError, match=r"data\.val_fraction = 0\.01 is not possible with 35 images: .*--set data\.val_f"
    ):
        split(35, CLASSES, val_fraction=0.01)
    with pytest.raises(UserError, match=r"data\.val_fraction = 0\.2 is not possible with 1 images"):
        split(1)
    with pytest.raises(UserError, match="photos: group 'x' is in both training and validation"):
        split(3, groups=["x", "y", "x"], splits=["train", "train", "val"])
    with pytest.raises(UserError, match="photos: group 'y' is in both validation and test"):
        split(3, groups=["x", "y", "y"], splits=["train", "val", "test"])
