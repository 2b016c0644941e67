"""What is learnt, from targets; see tests/core/data/test_dataset.py for the data sets that they come from."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from ftcore import Task, UserError
from ftcore.data.task import make_task, significant_digits, target_table

LABELS = np.array([[1, 0], [1, 1], [0, 1], [1, 0]], dtype=np.uint8)
NUMBERS = np.array([[1.0, -5.0], [2.0, 5.0], [3.0, 0.0]])


def test_images_of_each_class_are_counted() -> None:
    task = make_task("classification", ("cat", "dog", "owl"), np.array([2, 0, 2, 1, 2]))

    assert task == Task("classification", ("cat", "dog", "owl"), counts=(1, 1, 3), images=5)


def test_images_with_each_label_are_counted() -> None:
    assert make_task("multilabel", ("red", "big"), LABELS) == Task("multilabel", ("red", "big"), (3, 2), images=4)


def test_more_images_than_a_byte_holds_are_counted() -> None:
    assert make_task("multilabel", ("red", "big"), np.tile(LABELS, (200, 1))).counts == (600, 400)


def test_numbers_have_their_mean_and_their_spread() -> None:
    task = make_task("regression", ("age", "size"), NUMBERS)

    assert (task.names, task.images, task.counts) == (("age", "size"), 3, ())
    assert task.mean == pytest.approx((2.0, 0.0))
    assert task.std == pytest.approx(((2 / 3) ** 0.5, (50 / 3) ** 0.5))


@pytest.mark.parametrize(
    ("kind", "names", "targets", "words"),
    [
        ("classification", ("cat",), np.array([0, 0]), "classification needs at least two classes; there is cat"),
        ("classification", (), np.array([], dtype=int), "classification needs at least two classes; there is none"),
        ("multilabel", ("red",), LABELS[:, :1], "multilabel needs two labels; there is red"),
        ("classification", ("cat", "dog", "owl"), np.array([0, 1, 0]), "no training image of 'owl', so it could not"),
        ("multilabel", ("red", "big"), LABELS * [1, 0], "no training image of 'big', so it could not be learnt"),
        ("regression", ("age", "size"), NUMBERS * [1, 0], "'size' is 0 to 0 in all 3 training images"),
        ("regression", ("age",), np.array([[1e308], [-1e308]]), "'age' is -1e\\+308 to 1e\\+308 in all 2 training"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    kind: Literal["classification", "multilabel", "regression"], names: tuple[str, ...], targets: Any, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        make_task(kind, names, targets)


def test_the_images_of_each_class_in_each_split_are_shown() -> None:
    train = np.array([0, 1, 1])

    table = target_table(train, np.array([1]), make_task("classification", ("cat", "dog"), train))

    assert (table.title, table.columns) == ("images", ("class", "train", "val"))
    assert table.rows == (("cat", "1", "0"), ("dog", "2", "1"))


def test_the_images_with_each_label_in_each_split_are_shown() -> None:
    table = target_table(LABELS, LABELS[:1], make_task("multilabel", ("red", "big"), LABELS))

    assert (table.title, table.columns[0]) == ("images with each label, of 4 and 1", "label")
    assert table.rows == (("red", "3", "1"), ("big", "2", "0"))


def test_the_spread_of_numbers_is_shown() -> None:
    table = target_table(NUMBERS, NUMBERS, make_task("regression", ("age", "size"), NUMBERS))

    assert table.title == "targets of 3 images"
    assert table.rows == (("age", "2", "0.8165", "1", "3"), ("size", "0", "4.082", "-5", "5"))


def test_a_number_is_spelled_so_that_six_digits_are_within_its_spread() -> None:
    spreads = {(0, 1): 6, (5, 2): 6, (40, 10): 6, (1e4, 1): 10, (-1e6, 1e-3): 15, (1e9, 1e-9): 15}

    assert {given: significant_digits(*given) for given in spreads} == spreads


def test_the_table_of_numbers_far_from_zero_tells_them_apart() -> None:
    numbers = np.array([[1e6 - 1.25], [1e6], [1e6 + 2.0]])
    task = make_task("regression", ("year",), numbers)

    assert target_table(numbers, numbers, task).rows == (("year", "1000000.25", "1.339", "999998.75", "1000002"),)
