"""Targets as the network sees them, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftcore import Task
from ftcore.data.targets import TargetError, checked_target, decode_targets, encode_targets, probabilities

CLASSES = Task("classification", ("even", "odd"), (5, 5))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(-1e3, 1e3), st.floats(0.1, 1e3))
def test_decoding_gives_a_target_back_in_its_own_unit(targets: list[float], mean: float, std: float) -> None:
    task = Task("regression", ("age",), mean=(mean,), std=(std,))

    encoded = encode_targets(tuple(targets), task)

    assert (encoded.shape, encoded.dtype) == ((len(targets), 1), torch.float32)
    expected = torch.tensor(targets, dtype=torch.float64).reshape(-1, 1)
    spread = (expected - mean).abs()  # float32 holds the distance to the mean, and float64 the rest
    assert bool(((decode_targets(encoded, task) - expected).abs() <= 1e-7 * spread + 1e-12 * abs(mean) + 1e-30).all())


def test_targets_are_standardised() -> None:
    task = Task("regression", ("age", "weight"), mean=(40.0, 70.0), std=(10.0, 5.0))

    assert encode_targets(((50.0, 60.0), (40.0, 70.0)), task).tolist() == [[1.0, -2.0], [0.0, 0.0]]


@pytest.mark.parametrize(("offset", "spread"), [(1e2, 1.0), (1e6, 1.0), (1e6, 1e-3)])
def test_a_target_far_from_zero_keeps_its_spread(offset: float, spread: float) -> None:
    task = Task("regression", ("year",), mean=(offset + 0.1 * spread,), std=(spread,))
    targets = tuple(offset + spread * z for z in (-1.3, 0.1, 0.123456, 2.0))

    encoded = encode_targets(targets, task)

    assert encoded[:, 0].tolist() == pytest.approx([-1.4, 0.0, 0.023456, 1.9], abs=2e-6)
    assert decode_targets(encoded, task)[:, 0].tolist() == pytest.approx(targets, rel=0, abs=1e-6 * spread)


def test_class_scores_are_not_decoded() -> None:
    scores = torch.randn(4, 2)

    assert torch.equal(decode_targets(scores, CLASSES), scores)


def test_labels_are_numbers_and_classes_are_places() -> None:
    labels = encode_targets(((1, 0), (0, 1)), Task("multilabel", ("red", "big")))
    classes = encode_targets((1, 0, 1), CLASSES)

    assert (labels.dtype, labels.tolist()) == (torch.float32, [[1, 0], [0, 1]])
    assert (classes.dtype, classes.tolist()) == (torch.int64, [1, 0, 1])


def test_outputs_say_probabilities_of_classes_and_of_each_label() -> None:
    outputs = torch.tensor([[0.0, 3.0**0.5], [-1.0, 2.0]], dtype=torch.float64)
    odds = outputs.exp()

    torch.testing.assert_close(probabilities(outputs, CLASSES), odds / odds.sum(dim=1, keepdim=True))
    torch.testing.assert_close(probabilities(outputs, Task("multilabel", ("red", "big"))), odds / (1 + odds))


def test_outputs_of_a_regression_say_numbers_in_their_own_unit() -> None:
    task = Task("regression", ("age", "weight"), mean=(40.0, 70.0), std=(10.0, 5.0))

    assert probabilities(torch.tensor([[1.0, -2.0]]), task).tolist() == [[50.0, 60.0]]


LABELS = Task("multilabel", ("red", "big", "old"))
AGE, SIZES = Task("regression", ("age",)), Task("regression", ("width", "height"))


@pytest.mark.parametrize(
    ("target", "task", "plain"),
    [
        (1, CLASSES, 1),
        (True, CLASSES, 1),
        (np.int64(1), CLASSES, 1),
        (np.array(0), CLASSES, 0),
        (torch.tensor(1), CLASSES, 1),
        ((1, 0, 1), LABELS, (1, 0, 1)),
        ([True, False, 1.0], LABELS, (1, 0, 1)),
        (np.array([0, 1, 1], dtype=np.uint8), LABELS, (0, 1, 1)),
        (torch.tensor([0.0, 1.0, 0.0]), LABELS, (0, 1, 0)),
        (3.5, AGE, 3.5),
        (3, AGE, 3),
        ((3.5,), AGE, 3.5),
        (np.float32(0.5), AGE, 0.5),
        (torch.tensor([1.5, 2.5]), SIZES, (1.5, 2.5)),
    ],
)
def test_what_means_the_same_is_taken(target: Any, task: Task, plain: Any) -> None:
    assert checked_target(target, task, "acme", "3") == plain


@pytest.mark.parametrize(
    ("target", "task", "message"),
    [
        (0.5, CLASSES, r"0\.5, a float; a class is a whole number from 0 to 1"),
        (1.0, CLASSES, r"1\.0, a float; a class is"),
        (torch.tensor(0.5), CLASSES, r"tensor\(0\.5.*, a Tensor; a class is"),
        (np.float64(1), CLASSES, r"a float64; a class is"),
        (2, CLASSES, r"2, a int; a class is a whole number from 0 to 1"),
        (-1, CLASSES, "-1, a int; a class is"),
        ((1, 0.5), CLASSES, r"\(1, 0\.5\), a tuple; a class is"),
        ("odd", CLASSES, "'odd', a str; a class is"),
        (None, CLASSES, "None, a NoneType; a class is"),
        ((1, 0), LABELS, r"\(1, 0\), a tuple; labels are 3 numbers, each 0 or 1"),
        ((1, 0, 0.3), LABELS, "labels are 3 numbers"),
        (2, LABELS, "labels are 3 numbers"),
        (math.nan, AGE, "nan, a float; a target is 1 finite number$"),
        (("old",), AGE, "a target is 1 finite number$"),
        ((1.0, math.inf), SIZES, "a target is 2 finite numbers$"),
        (1.0, SIZES, "a target is 2 finite numbers$"),
    ],
)
def test_a_target_that_is_none_of_the_tasks_is_refused_with_who_gave_it_and_where(
    target: Any, task: Task, message: str
) -> None:
    with pytest.raises(TargetError, match=rf"^acme: the target of sample 3 is .*{message}"):
        checked_target(target, task, "acme", "3")
