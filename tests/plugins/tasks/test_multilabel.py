"""Any number of labels per image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ftcore import Prediction, SourceTargets, UserError
from ftcore_plugins.tasks import Multilabel

if TYPE_CHECKING:
    from ftcore import Fitted

LABELS = np.array([[1, 0], [1, 1], [0, 1], [1, 0]], dtype=np.uint8)
TASK = Multilabel(("red", "big"))


def fitted(train: Any, val: Any = (), names: tuple[str, ...] = ("red", "big")) -> Fitted:
    places = np.arange(len(train) + len(val))
    rows = {"train": places[: len(train)], "val": places[len(train) :], "test": places[:0]}
    values: Any = np.concatenate([train, val]) if names and len(val) else [*train, *val] if not names else train
    return Multilabel.fit(SourceTargets(values, names, rows))


def test_images_with_each_label_are_counted() -> None:
    assert fitted(LABELS).task == Multilabel(("red", "big"), (3, 2), images=4)


def test_more_images_than_a_byte_holds_are_counted() -> None:
    assert getattr(fitted(np.tile(LABELS, (200, 1))).task, "counts", None) == (600, 400)


def test_labels_in_words_are_named_and_ordered() -> None:
    found = fitted([["red", "big"], [], ["big"]], names=())

    assert found.task == Multilabel(("big", "red"), (2, 1), images=3)
    assert found.targets.tolist() == [[1, 1], [0, 0], [1, 0]]


@pytest.mark.parametrize(
    ("names", "targets", "words"),
    [
        (("red",), LABELS[:, :1], "multilabel needs two labels; the data has red"),
        (("red", "big"), LABELS * [1, 0], "no training image of 'big', so the model cannot learn it"),
    ],
)
def test_what_cannot_be_learnt_is_refused(names: tuple[str, ...], targets: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fitted(targets, names=names)


def test_the_images_with_each_label_in_each_split_are_shown() -> None:
    (table,) = fitted(LABELS, LABELS[:1]).tables

    assert (table.title, table.columns[0]) == ("images with each label, of 4 and 1", "label")
    assert table.rows == (("red", "3", "1"), ("big", "2", "0"))


def test_labels_are_numbers() -> None:
    labels = TASK.collate(((1, 0), (0, 1)))

    assert (labels.dtype, labels.tolist()) == (torch.float32, [[1, 0], [0, 1]])


def test_outputs_say_the_probability_of_each_label() -> None:
    outputs = torch.tensor([[0.0, 3.0**0.5], [-1.0, 2.0]], dtype=torch.float64)
    odds = outputs.exp()

    torch.testing.assert_close(TASK.decode(outputs), odds / (1 + odds))


def test_a_label_counts_from_its_threshold_which_is_one_half_where_nobody_chose() -> None:
    probabilities = torch.tensor([[0.5, 0.4]], dtype=torch.float64)

    chosen = TASK.after({"thresholds": [0.6, 0.4]})

    assert TASK.after({}) == TASK
    assert TASK.predictions(probabilities) == [Prediction(None, {"red": 0.5, "big": 0.4}, ("red",))]
    assert chosen.predictions(probabilities)[0].labels == ("big",)
    assert Multilabel.read(chosen.state()) == chosen


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, "x"], [0.5, float("nan")], [0.5, float("inf")]])
def test_thresholds_that_are_none_are_refused(thresholds: list[Any]) -> None:
    with pytest.raises(ValueError, match="thresholds are"):
        TASK.after({"thresholds": thresholds})


def test_a_label_that_other_data_does_not_know_counts_as_absent() -> None:
    assert TASK.move((1, 1), (1, None)) == (0.0, 1)
