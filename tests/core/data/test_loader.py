"""Batches: which samples, in which order, as which numbers."""

from __future__ import annotations

import gc
import multiprocessing
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftcore import DataError
from ftcore.data.loader import EpochLoader, TransformedDataset, chunk, default_workers, epoch_order, make_batches
from ftcore.testing import image_folder, invoke
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from pathlib import Path


CPU = torch.device("cpu")
CLASSES = Classification(("even", "odd"), (5, 5))


class Numbers:
    """Ten samples, each its own index; the seventh cannot be read if it is `broken`."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[int, int]:
        if self.broken and index == 7:
            raise DataError("cannot read image seven.jpg: truncated")
        return index, index % 2

    def name(self, index: int) -> str:
        return str(index)


def to_tensor(image: Any) -> torch.Tensor:
    return torch.tensor([float(image)])


def loader(size: int, *, seed: int | None, workers: int = 0, broken: bool = False) -> EpochLoader:
    return make_batches(TransformedDataset(Numbers(broken=broken), to_tensor, CLASSES, seed), size, workers, CPU)


@pytest.mark.parametrize("size", [1, 3, 4, 10, 64])
def test_the_length_is_the_number_of_batches(size: int) -> None:
    split = loader(size, seed=0)

    assert len(split) == len(list(split.epoch(0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_visits_the_samples_in_its_own_order(workers: int) -> None:
    split = loader(3, seed=5, workers=workers)

    visits = [[int(index) for batch in split.epoch(epoch) for index in batch.indices] for epoch in (2, 0, 2)]

    assert visits == [epoch_order(5, 2, 10), epoch_order(5, 0, 10), epoch_order(5, 2, 10)]


def test_validation_keeps_the_splits_own_order() -> None:
    visited = [int(index) for batch in loader(4, seed=None).epoch(3) for index in batch.indices]

    assert visited == list(range(10))


def test_images_targets_and_indices_belong_together() -> None:
    for batch in loader(4, seed=1).epoch(0):
        assert batch.images.flatten().tolist() == batch.indices.tolist()
        assert torch.equal(batch.targets, batch.indices % 2)
        assert batch.targets.dtype == torch.int64


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_read_is_an_error_that_names_it(workers: int) -> None:
    with pytest.raises(DataError, match=r"^cannot read image seven\.jpg: truncated\n.*on_corrupt=skip skips"):
        list(loader(4, seed=0, workers=workers, broken=True).epoch(0))


def test_the_workers_end_with_the_loader_that_met_an_error() -> None:
    others = set(multiprocessing.active_children())  # of tests before this one
    gc.disable()  # it would close their queues before they are told
    try:
        split = loader(4, seed=0, workers=2, broken=True)
        with suppress(DataError):
            list(split.epoch(0))
        del split
        assert set(multiprocessing.active_children()) - others == set()
    finally:
        gc.enable()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_damaged_picture_ends_a_run_with_its_path(tmp_path: Path, workers: str) -> None:
    damaged = image_folder(tmp_path / "data") / "green" / "3.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-300])
    sets = [f"run.folder={tmp_path / 'run'}", "model.weights=none", "model.image_size=32", f"train.workers={workers}"]
    options = [word for text in sets for word in ("--set", text)]

    result = invoke("run", "--data", tmp_path / "data", "--model", "timm/test_resnet", *options)

    assert result.code == 2
    assert f"ftcore: cannot read image {damaged}: " in result.err
    assert "Traceback" not in result.err


def test_a_cpu_has_no_workers_unless_asked() -> None:
    assert default_workers(CPU) == 0
    assert 1 <= default_workers(torch.device("cuda")) <= 8


def test_drawing_with_weights_follows_them_and_is_a_function_of_seed_and_epoch() -> None:
    weights = np.array([1.0] * 900 + [9.0] * 100)

    drawn = epoch_order(0, 0, 1000, weights)

    assert drawn == epoch_order(0, 0, 1000, weights) != epoch_order(0, 1, 1000, weights)
    assert len(drawn) == 1000
    shares = [np.mean([index >= 900 for index in epoch_order(0, epoch, 1000, weights)]) for epoch in range(50)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("weights", ["[1.0]", "[0.0] * len(data.train)"])
def test_weights_that_do_not_fit_the_samples_are_refused_by_name(tmp_path: Path, weights: str) -> None:
    hooks = tmp_path / "hooks.py"
    hooks.write_text(
        "import attrs\nfrom ftcore import hookimpl\n\n\n@hookimpl(wrapper=True)\ndef build_data():\n"
        f"    data = yield\n    return attrs.evolve(data, weights={weights})\n"
    )

    result = invoke("run", "--plugin", hooks)

    assert result.code == 2
    assert "hooks.build_data" in result.err
    assert "Data.weights must be a number > 0 for each of 716 training samples" in result.err


@given(st.integers(1, 200), st.integers(1, 50))
def test_batches_partition_the_indices_in_their_order(samples: int, size: int) -> None:
    cut = chunk(list(range(samples)), size)

    assert [index for batch in cut for index in batch] == list(range(samples))


@given(st.integers(2, 200), st.integers(2, 50))
def test_no_batch_has_a_lone_sample_if_there_are_two(samples: int, size: int) -> None:
    lengths = [len(batch) for batch in chunk(list(range(samples)), size)]

    assert min(lengths) >= 2
    assert max(lengths) <= size + 1
    assert all(length == size for length in lengths[:-1])


def test_batches_of_one_stay_batches_of_one() -> None:
    assert chunk([3, 1, 2], 1) == [[3], [1], [2]]
