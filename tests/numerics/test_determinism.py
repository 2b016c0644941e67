"""A run is a function of its configuration: not of the number of workers, nor of what ran before."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftcore.data.loader import TransformedDataset, epoch_order, make_batches
from ftcore.system.seeding import derive_seed
from ftcore.testing import invoke
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from pathlib import Path

HOOKS = """
import random

import numpy as np
import torch
from attrs import evolve, frozen

from ftcore import hookimpl


@frozen
class Noisy:
    plain: object

    def __call__(self, image):
        noise = torch.randn(()) + np.random.normal() + random.random()
        return self.plain(image) + 0.1 * float(noise)


@hookimpl(wrapper=True)
def make_transforms():
    made = yield
    return evolve(made, train=Noisy(made.train))
"""


def trained(folder: Path, *sets: str) -> bytes:
    """Train a network with dropout on augmented images, and return its weights."""
    hooks = folder.parent / "noisy_hooks.py"
    hooks.write_text(HOOKS)
    options = [f"run.folder={folder}", "mlp_head.hidden=[16]", "train.epochs=2", *sets]
    words = [word for text in options for word in ("--set", text)]
    plugins = ["--plugin", "mlp_head", "--plugin", str(hooks)]
    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *plugins, *words)
    assert result.code == 0, result.err
    return (folder / "checkpoints" / "step-00000020" / "model.safetensors").read_bytes()


def test_the_number_of_workers_changes_no_bit_of_the_weights(tmp_path: Path) -> None:
    alone = trained(tmp_path / "alone", "train.workers=0")
    torch.rand(3)
    random.random()

    assert trained(tmp_path / "two", "train.workers=2") == alone


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    assert trained(tmp_path / "one") != trained(tmp_path / "other", "train.seed=1")


def test_a_key_is_the_same_on_every_machine_and_in_every_version() -> None:
    assert derive_seed("order", 0, 0) == 4876581156571347824
    assert derive_seed("augment", 1, 2, 3) == 922569660406978268
    assert derive_seed("step", 0, 0) == 5987354191183068823


def test_a_key_depends_on_each_of_its_parts() -> None:
    keys = {derive_seed("augment", *parts) for parts in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0), (0, 10)]}

    assert len(keys) == 6


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 300))
def test_the_order_is_a_permutation(seed: int, epoch: int, size: int) -> None:
    assert sorted(epoch_order(seed, epoch, size)) == list(range(size))


def test_another_epoch_has_another_order() -> None:
    orders = {tuple(epoch_order(0, epoch, 50)) for epoch in range(20)}

    assert len(orders) == 20


def test_another_seed_has_another_order() -> None:
    assert epoch_order(0, 0, 50) != epoch_order(1, 0, 50)


def test_the_order_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()

    epoch_order(0, 0, 50)

    assert torch.equal(torch.get_rng_state(), before)


class Numbers:
    """Eight samples, each its own index."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, index % 2

    def name(self, index: int) -> str:
        return str(index)


def draw(_: Any) -> torch.Tensor:
    return torch.stack([torch.rand(()), torch.tensor(np.random.rand()).float(), torch.tensor(random.random())])  # noqa: NPY002


def drawing(seed: int | None) -> TransformedDataset:
    return TransformedDataset(Numbers(), draw, Classification(("even", "odd"), (4, 4)), seed=seed)


def images(workers: int, epoch: int) -> torch.Tensor:
    """Return what each sample drew, in the order of the split."""
    batches = list(make_batches(drawing(seed=3), 3, workers, torch.device("cpu")).epoch(epoch))
    drawn, indices = torch.cat([b.images for b in batches]), torch.cat([b.indices for b in batches])
    return drawn[indices.argsort()]


def test_augmentation_is_the_same_whoever_draws_it_and_when() -> None:
    expected = images(workers=0, epoch=1)

    assert torch.equal(images(workers=2, epoch=1), expected)


@pytest.mark.parametrize("generator", [0, 1, 2], ids=["torch", "numpy", "random"])
def test_augmentation_differs_between_samples_and_between_epochs(generator: int) -> None:
    first, second = images(workers=0, epoch=0)[:, generator], images(workers=0, epoch=1)[:, generator]

    assert len({*first.tolist(), *second.tolist()}) == 16
