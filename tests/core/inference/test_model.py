"""The outputs of several networks are averaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ftcore_plugins.tasks import Classification, Multilabel, Regression

WEIGHTS = [0.2, 0.5, 0.3]


def task(kind: Any, names: int) -> Any:
    return kind(tuple(f"n{n}" for n in range(names)))


@pytest.mark.parametrize("kind", [Classification, Multilabel])
def test_probabilities_are_averaged_as_in_float64(kind: Any) -> None:
    scores = np.random.default_rng(0).normal(0, 4, (3, 50, 7))
    powers = np.exp(scores)
    each = powers / powers.sum(axis=2, keepdims=True) if kind is Classification else powers / (1 + powers)

    outputs = task(kind, 7).average(torch.tensor(scores, dtype=torch.float32), torch.tensor(WEIGHTS))

    found = task(kind, 7).decode(outputs).numpy()
    np.testing.assert_allclose(found, np.average(each, axis=0, weights=WEIGHTS), rtol=1e-5, atol=1e-7)


def test_numbers_are_averaged_as_they_are() -> None:
    numbers = np.random.default_rng(0).normal(0, 4, (3, 50, 2))

    found = task(Regression, 2).average(torch.tensor(numbers), torch.tensor(WEIGHTS))

    np.testing.assert_allclose(found.numpy(), np.average(numbers, axis=0, weights=WEIGHTS), rtol=1e-6)


@pytest.mark.parametrize("kind", [Classification, Multilabel])
def test_certain_networks_give_finite_outputs(kind: Any) -> None:
    certain = torch.tensor([[300.0, -300.0], [-300.0, 300.0]])

    outputs = task(kind, 2).average(torch.stack([certain, certain]), torch.tensor([0.5, 0.5]))

    torch.testing.assert_close(task(kind, 2).decode(outputs), torch.eye(2))
    assert outputs.isfinite().all()
