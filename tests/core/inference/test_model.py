"""The outputs of several networks are averaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ftcore import Task
from ftcore.data.targets import probabilities
from ftcore.inference.model import average_outputs

WEIGHTS = [0.2, 0.5, 0.3]


def task(kind: Any, names: int, **values: Any) -> Task:
    return Task(kind, tuple(f"n{n}" for n in range(names)), **values)


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_probabilities_are_averaged_as_in_float64(kind: str) -> None:
    scores = np.random.default_rng(0).normal(0, 4, (3, 50, 7))
    powers = np.exp(scores)
    each = powers / powers.sum(axis=2, keepdims=True) if kind == "classification" else powers / (1 + powers)

    outputs = average_outputs([torch.tensor(one, dtype=torch.float32) for one in scores], WEIGHTS, task(kind, 7))

    found = probabilities(outputs, task(kind, 7)).numpy()
    np.testing.assert_allclose(found, np.average(each, axis=0, weights=WEIGHTS), rtol=1e-5, atol=1e-7)


def test_numbers_are_averaged_as_they_are() -> None:
    numbers = np.random.default_rng(0).normal(0, 4, (3, 50, 2))

    found = average_outputs([torch.tensor(one) for one in numbers], WEIGHTS, task("regression", 2))

    np.testing.assert_allclose(found.numpy(), np.average(numbers, axis=0, weights=WEIGHTS), rtol=1e-6)


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_certain_networks_give_finite_outputs(kind: str) -> None:
    certain = torch.tensor([[300.0, -300.0], [-300.0, 300.0]])

    outputs = average_outputs([certain, certain], [0.5, 0.5], task(kind, 2))

    torch.testing.assert_close(probabilities(outputs, task(kind, 2)), torch.eye(2))
    assert outputs.isfinite().all()
