"""Random generators; that seeds are the same everywhere is in tests/numerics/test_determinism.py."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from ftcore.system.seeding import derive_seed, seed_everything, seed_step


def drawn() -> tuple[float, float, float]:
    """One number of each global generator."""
    return float(torch.rand(())), random.random(), float(np.random.random())  # noqa: NPY002


@pytest.mark.parametrize("number", [0, 2**32, 2**63 - 1, derive_seed("model", 0)])
def test_a_seed_decides_what_torch_python_and_numpy_draw(number: int) -> None:
    seed_everything(number)
    first = drawn()

    seed_everything(number + 1)
    assert all(other != one for other, one in zip(drawn(), first, strict=True))
    seed_everything(number)
    assert drawn() == first


def test_a_step_seeds_what_dropout_draws_from_and_nothing_that_a_sample_does() -> None:
    seed_everything(1)
    seed_step(torch.device("cpu"), 7)
    first = drawn()

    seed_everything(2)
    seed_step(torch.device("cpu"), 7)
    again = drawn()

    assert again[0] == first[0]
    assert again[1] != first[1]
    assert again[2] != first[2]


def test_parts_of_a_seed_are_told_apart() -> None:
    seeds = [derive_seed(*parts) for parts in (("a", 1, 2), ("a", 12), ("a", "1", 2), (1, "a", 2), ("a1", 2))]

    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
