"""Numbers, standardised and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftcore import Fitted, SourceTargets, UserError
from ftcore_plugins.tasks import Regression
from ftcore_plugins.tasks.regression import significant_digits

NUMBERS = np.array([[1.0, -5.0], [2.0, 5.0], [3.0, 0.0]])


def fitted(names: tuple[str, ...], values: Any) -> Fitted:
    rows = {"train": np.arange(len(values)), "val": np.arange(0), "test": np.arange(0)}
    return Regression.fit(SourceTargets(values, names, rows))


def test_numbers_have_their_mean_and_their_spread() -> None:
    task = fitted(("age", "size"), NUMBERS).task

    assert isinstance(task, Regression)
    assert (task.names, task.images) == (("age", "size"), 3)
    assert task.mean == pytest.approx((2.0, 0.0))
    assert task.std == pytest.approx(((2 / 3) ** 0.5, (50 / 3) ** 0.5))


@pytest.mark.parametrize(
    ("names", "targets", "words"),
    [
        (("age", "size"), NUMBERS * [1, 0], "'size' is 0 to 0 in all 3 training images"),
        (("age",), np.array([[1e308], [-1e308]]), "'age' is -1e\\+308 to 1e\\+308 in all 2 training"),
    ],
)
def test_what_cannot_be_learnt_is_refused(names: tuple[str, ...], targets: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fitted(names, targets)


def test_the_spread_of_numbers_is_shown() -> None:
    (table,) = fitted(("age", "size"), NUMBERS).tables

    assert table.title == "targets of 3 images"
    assert table.rows == (("age", "2", "0.8165", "1", "3"), ("size", "0", "4.082", "-5", "5"))


def test_the_table_of_numbers_far_from_zero_tells_them_apart() -> None:
    (table,) = fitted(("year",), np.array([[1e6 - 1.25], [1e6], [1e6 + 2.0]])).tables

    assert table.rows == (("year", "1000000.25", "1.339", "999998.75", "1000002"),)


def test_a_number_is_spelled_so_that_six_digits_are_within_its_spread() -> None:
    spreads = {(0, 1): 6, (5, 2): 6, (40, 10): 6, (1e4, 1): 10, (-1e6, 1e-3): 15, (1e9, 1e-9): 15}

    assert {given: significant_digits(*given) for given in spreads} == spreads


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(-1e3, 1e3), st.floats(0.1, 1e3))
def test_decoding_gives_a_target_back_in_its_own_unit(targets: list[float], mean: float, std: float) -> None:
    task = Regression(("age",), mean=(mean,), std=(std,))

    encoded = task.collate(tuple(targets))

    assert (encoded.shape, encoded.dtype) == ((len(targets), 1), torch.float32)
    expected = torch.tensor(targets, dtype=torch.float64).reshape(-1, 1)
    spread = (expected - mean).abs()  # float32 holds the distance to the mean, and float64 the rest
    assert bool(((task.decode(encoded) - expected).abs() <= 1e-7 * spread + 1e-12 * abs(mean) + 1e-30).all())


def test_targets_are_standardised_and_outputs_say_numbers_in_their_own_unit() -> None:
    task = Regression(("age", "weight"), mean=(40.0, 70.0), std=(10.0, 5.0))

    assert task.collate(((50.0, 60.0), (40.0, 70.0))).tolist() == [[1.0, -2.0], [0.0, 0.0]]
    assert task.decode(torch.tensor([[1.0, -2.0]])).tolist() == [[50.0, 60.0]]
    assert task.undecode(torch.tensor([[50.0, 60.0]])).tolist() == [[1.0, -2.0]]


@pytest.mark.parametrize(("offset", "spread"), [(1e2, 1.0), (1e6, 1.0), (1e6, 1e-3)])
def test_a_target_far_from_zero_keeps_its_spread(offset: float, spread: float) -> None:
    task = Regression(("year",), mean=(offset + 0.1 * spread,), std=(spread,))
    targets = tuple(offset + spread * z for z in (-1.3, 0.1, 0.123456, 2.0))

    encoded = task.collate(targets)

    assert encoded[:, 0].tolist() == pytest.approx([-1.4, 0.0, 0.023456, 1.9], abs=2e-6)
    assert task.decode(encoded)[:, 0].tolist() == pytest.approx(targets, rel=0, abs=1e-6 * spread)


STATE = {"names": ["age"], "images": 4, "mean": [40.0], "std": [10.0]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": [], "std": []}, "each target must have a mean and a standard deviation > 0"),
        ({"std": [0.0]}, "each target must have a mean and a standard deviation > 0"),
        ({"std": [-1.0]}, "std are 1 numbers"),
        ({"mean": [float("inf")]}, "mean are finite numbers"),
        ({"mean": [float("nan")]}, "mean are 1 numbers"),
        ({"mean": ["old"]}, "mean are 1 numbers"),
        ({"counts": [3]}, "a task has no counts"),
    ],
)
def test_a_state_that_none_wrote_is_refused(change: dict[str, Any], words: str) -> None:
    assert Regression.read(STATE) == Regression(("age",), 4, (40.0,), (10.0,))
    with pytest.raises(ValueError, match=words):
        Regression.read(STATE | change)
