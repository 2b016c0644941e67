"""One class per image; see tests/core/data/test_dataset.py for the data sets that classes come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ftcore import SourceTargets, UserError
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore import Fitted

CLASSES = Classification(("even", "odd"), (5, 5), 10)


def fitted(train: Sequence[str], val: Sequence[str] = ()) -> Fitted:
    places = np.arange(len(train) + len(val))
    rows = {"train": places[: len(train)], "val": places[len(train) :], "test": places[:0]}
    return Classification.fit(SourceTargets([*train, *val], (), rows))


def test_images_of_each_class_are_counted() -> None:
    found = fitted(["owl", "cat", "owl", "dog", "owl"])

    assert found.task == Classification(("cat", "dog", "owl"), counts=(1, 1, 3), images=5)
    assert found.targets.tolist() == [2, 0, 2, 1, 2]


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        (["cat", "cat"], [], "classification needs at least two classes; the data has cat"),
        ([], [], "classification needs at least two classes; the data has none"),
        (["cat", "dog"], ["owl"], "class 'owl' is in validation but not in training, so the model cannot learn it"),
    ],
)
def test_what_cannot_be_learnt_is_refused(train: list[str], val: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fitted(train, val)


def test_the_images_of_each_class_in_each_split_are_shown() -> None:
    (table,) = fitted(["cat", "dog", "dog"], ["dog"]).tables

    assert (table.title, table.columns) == ("images", ("class", "train", "val"))
    assert table.rows == (("cat", "1", "0"), ("dog", "2", "1"))


def test_classes_are_places() -> None:
    classes = CLASSES.collate((1, 0, 1))

    assert (classes.dtype, classes.tolist()) == (torch.int64, [1, 0, 1])
    assert CLASSES.soften(classes).tolist() == [[0, 1], [1, 0], [0, 1]]


def test_scores_of_classes_are_measured_as_they_are() -> None:
    scores, targets = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])

    assert all(map(torch.equal, CLASSES.measured(scores, targets), (scores, targets)))


def test_outputs_say_probabilities_and_back() -> None:
    outputs = torch.tensor([[0.0, 3.0**0.5], [-1.0, 2.0]], dtype=torch.float64)
    odds = outputs.exp()

    torch.testing.assert_close(CLASSES.decode(outputs), odds / odds.sum(dim=1, keepdim=True))
    torch.testing.assert_close(CLASSES.decode(CLASSES.undecode(CLASSES.decode(outputs))), CLASSES.decode(outputs))


def test_outputs_of_another_order_of_the_classes_are_put_into_this_one() -> None:
    other = Classification(("odd", "even"))

    assert CLASSES.align(torch.tensor([[1.0, 2.0]]), other).tolist() == [[2.0, 1.0]]
    assert CLASSES.move(0, (1, 0)) == 1


STATE = {"names": ["a", "b"], "counts": [3, 1], "images": 4}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"names": []}, "names must be unique strings"),
        ({"names": ["a", "a"]}, "names must be unique strings"),
        ({"names": [1, 2]}, "names must be unique strings"),
        ({"names": "ab", "counts": [1]}, "counts are 2 numbers"),
        ({"counts": [3]}, r"counts are 2 numbers, not \[3\]"),
        ({"counts": [3, -1]}, "counts are 2 numbers"),
        ({"counts": [3, float("nan")]}, "counts are 2 numbers"),
        ({"images": -1}, "images must be a number of images, not -1"),
        ({"weight": 1}, "a task has no weight"),
    ],
)
def test_a_state_that_none_wrote_is_refused(change: dict[str, Any], words: str) -> None:
    assert Classification.read(STATE) == Classification(("a", "b"), (3, 1), 4)
    with pytest.raises(ValueError, match=words):
        Classification.read(STATE | change)


@pytest.mark.parametrize("cell", ["", "NaN", "n/a"])
def test_a_cell_without_a_class_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match="a class is missing"):
        Classification.parse([cell])
