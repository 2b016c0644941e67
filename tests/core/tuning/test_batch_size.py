"""`ftcore find batch`: the largest batch."""

from __future__ import annotations

import json
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from attrs import evolve
from tests.core.tuning.trials import SIZES, STOPS, Sizes, ready, state_of
from torch import Tensor, nn

from ftcore import Backbone, HeadSlot, InputSpec, UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.system import memory as measuring
from ftcore.system.memory import available, rss
from ftcore.testing import invoke
from ftcore.tuning.batch_size import (
    BatchSizeSearch,
    accumulation_hint,
    extrapolate_memory,
    find_batch_size,
    tables,
)
from ftcore.tuning.batch_trial import BatchTrial
from ftcore.tuning.trial import prepare

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = __name__
ROOT = Path(__file__).parents[3]


def found(fit: Callable[[int, int], bool], *, most: int | None = None, sets: tuple[str, ...] = ()) -> BatchSizeSearch:
    """Search where a batch fits by a rule: (its size, how many of it there were) -> whether."""
    Sizes.fit = staticmethod(fit)
    try:
        return find_batch_size(ready(SIZES, sets=sets).assembly, most)
    finally:
        Sizes.fit = staticmethod(lambda size, times: True)


def fitting(result: BatchSizeSearch) -> dict[int, bool]:
    return {trial.batch: not trial.note for trial in result.trials}


def test_the_batch_doubles_up_to_the_training_split() -> None:
    result = found(lambda size, times: True)

    assert fitting(result) == dict.fromkeys([2, 4, 8, 16, 32, 64, 128, 256, 290], True)
    assert result.largest == result.max_batch == 290
    assert all(trial.speed > 0 and trial.peak > 0 for trial in result.trials)


@pytest.mark.parametrize(
    ("largest", "trials", "suggested"),
    [
        (13, {2: True, 4: True, 8: True, 12: True, 16: False}, 12),
        (11, {2: True, 4: True, 8: True, 12: False, 16: False}, 8),
        (19, {2: True, 4: True, 8: True, 16: True, 18: True, 20: False}, 18),
        (3, {2: True, 3: True, 4: False}, 3),
        (2, {2: True, 3: False, 4: False}, 2),
        (1, {1: True, 2: False}, 1),
    ],
)
def test_what_does_not_fit_is_bisected_once(largest: int, trials: dict[int, bool], suggested: int) -> None:
    result = found(lambda size, times: size <= largest, most=20)

    assert (fitting(result), result.largest) == (trials, suggested)


def test_no_more_images_than_allowed_are_tried() -> None:
    assert list(fitting(found(lambda size, times: True, most=20))) == [2, 4, 8, 16, 20]
    assert list(fitting(found(lambda size, times: True, most=1))) == [1]


def test_a_size_that_does_not_hold_when_it_is_verified_is_not_suggested() -> None:
    result = found(lambda size, times: size < 8 or times <= 6, most=8)

    assert fitting(result)[8]
    assert result.largest == 4
    assert Sizes.seen.count(4) >= 2 + 3


def test_the_suggested_batch_gets_three_more_steps() -> None:
    found(lambda size, times: True, most=8)

    assert Sizes.seen[-3:] == [8, 8, 8]
    assert Sizes.seen.count(8) in range(2 + 3, 6 + 3 + 1)
    assert Sizes.seen.count(4) in range(2, 7)


def test_a_step_is_measured_with_its_accumulation() -> None:
    run = ready(SIZES, sets=("train.accumulate=3",))
    steps: list[int] = []
    run.assembly.parts.optimization.optimizer.register_step_pre_hook(lambda *_: steps.append(1))

    find_batch_size(run.assembly, most=4)

    assert len(Sizes.seen) == 3 * len(steps)


def test_not_even_one_image_that_fits_is_an_error() -> None:
    with pytest.raises(
        UserError, match=r"not even a batch of one image fits: a batch of 1 out of memory; before the first step"
    ):
        found(lambda size, times: False)


def test_another_error_than_full_memory_comes_through() -> None:
    class Broken(Sizes):
        pass

    with pytest.raises(ValueError, match="as wished"):
        find_batch_size(ready(STOPS).assembly)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"most": 291}, r"--max 291: the batch size must be from 1 to 290, the size of the training split$"),
        ({"most": 0}, r"--max 0: the batch size must be from 1 to 290"),
        ({"share": 0.0}, r"--memory 0 is a fraction of the free memory, > 0 and <= 1"),
        ({"share": 1.1}, r"--memory 1.1 is a fraction of the free memory"),
        (
            {"share": 1e-9},
            r"not even a batch of one image fits: a batch of 1 not tried: expected to need more than 0.00 GB",
        ),
    ],
)
def test_a_wrong_option_of_the_search_is_an_error(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_batch_size(ready().assembly, **arguments)


def test_images_are_real_ones_of_the_training_split_in_the_first_epochs_order() -> None:
    run = ready(sets=("train.batch_size=290",))
    parts = run.assembly.parts
    seen: list[Tensor] = []
    parts.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))

    find_batch_size(run.assembly, most=8)

    (batch,) = parts.data.train.epoch(0)
    assert torch.equal(seen[-1], batch.images[:8])


class Wide:
    """Answers for ``wide/net``: about 4 MB an image."""

    @hookimpl
    def build_model(self, name: str | None) -> Backbone | None:
        if name != "wide/net":
            return None
        layers: list[nn.Module] = [nn.Upsample(scale_factor=16), nn.Conv2d(1, 8, 1)]
        layers += [layer for _ in range(7) for layer in (nn.Conv2d(8, 8, 1), nn.Tanh())]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        head = str(len(model) - 1)
        return Backbone(model, (HeadSlot(head, 8),), InputSpec((8, 8), channels=1, mean=(0.5,), std=(0.5,)))


@pytest.mark.slow
@pytest.mark.machine
@pytest.mark.skipif(not (measuring.PROC / "self/clear_refs").exists(), reason="Linux counts exactly")
def test_on_a_cpu_no_size_is_tried_that_would_take_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    # in a new process, which keeps nothing that it frees: memory that is kept has holes, other ones each time, and a
    # peak that lies on no line
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**17))
    monkeypatch.syspath_prepend(str(ROOT))
    with get_context("spawn").Pool(1) as pool:
        result, allowed, peaks = pool.apply(search_within, (250_000_000,))

    assert result.budget == pytest.approx(allowed, rel=0.05)
    last = result.trials[-1]
    assert last.note.startswith("not tried: expected to need more than")
    assert last.batch > result.largest >= 8
    assert max(trial.peak for trial in result.trials if not trial.note) <= result.budget
    assert max(peaks) <= result.budget


def search_within(room: int) -> tuple[BatchSizeSearch, int, list[int]]:
    """Search with so many bytes more than the process has; return also those, and what it had behind each forward."""
    torch.set_num_threads(1)
    run = prepare(load_config(None, CliOverrides("wide/net", "digits:5-9", plugins=(f"{HERE}:Wide",))))
    allowed = rss() + room
    peaks: list[int] = []
    run.assembly.parts.network.register_forward_hook(lambda *_: peaks.append(rss()))

    return find_batch_size(run.assembly, share=allowed / (rss() + available())), allowed, peaks


def test_the_next_peak_lies_on_the_line_through_the_last_two() -> None:
    points = [(2, 70), (4, 100), (8, 180)]

    slope, start = np.polyfit([4, 8], [100, 180], 1)
    assert extrapolate_memory(points, 16) == pytest.approx(slope * 16 + start)
    assert extrapolate_memory([(4, 100), (8, 90)], 16) == 90
    assert extrapolate_memory([(0, 100)], 2) == 100


def test_the_smallest_size_that_is_as_fast_as_all_larger_ones_is_enough() -> None:
    speeds = {2: 50.0, 4: 90.0, 8: 98.0, 16: 100.0, 32: 102.0}
    trials = (*(BatchTrial(batch, speed, 1) for batch, speed in speeds.items()), BatchTrial(64, note="out of memory"))

    assert BatchSizeSearch(trials, largest=32, budget=9, max_batch=99).smallest_fast_batch == 8
    assert BatchSizeSearch(trials, largest=4, budget=9, max_batch=99).smallest_fast_batch == 4


def test_the_advice_is_to_keep_the_images_of_a_step_by_accumulation() -> None:
    settings = evolve(ready().assembly.parts.train_config, batch_size=64, accumulate=2)
    result = BatchSizeSearch((BatchTrial(16, 9.0, 1),), largest=16, budget=9, max_batch=99)

    said = accumulation_hint(result, settings)

    assert "Another number of images per step (now 128) needs another rate" in said
    assert said.endswith("Keep 128 with train.accumulate: --set train.batch_size=16 --set train.accumulate=8")
    for other in (128, 60, 256):
        assert "--set" not in accumulation_hint(evolve(result, largest=other), settings).splitlines()[1]
    assert [row[2] for row in tables(result)[1].rows] == ["--set train.batch_size=16"]


def test_the_search_is_a_table_for_people_and_an_object_for_programs() -> None:
    result = invoke("find", "batch", "--max", "8")
    machine = invoke("find", "batch", "--max", "8", "--json")

    assert (result.code, result.err) == (0, "")
    assert "--set train.batch_size=8" in result.out
    (line,) = machine.out.splitlines()
    values = json.loads(line)
    assert [(trial["batch"], trial["fits"]) for trial in values["batches"]] == [(2, True), (4, True), (8, True)]
    assert (values["largest"], values["flag"]) == (8, "--set train.batch_size=8")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device_the_batch_grows_until_its_memory_is_full() -> None:
    run = prepare(load_config(None, CliOverrides("wide/net", "digits", plugins=(f"{HERE}:Wide",))))
    before = state_of(run.assembly.parts)
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(1e9 / total)
    try:
        result = find_batch_size(run.assembly)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert result.trials[-1].note == "out of memory"
    assert 0.4e9 < max(trial.peak for trial in result.trials) <= 1e9
    assert state_of(run.assembly.parts) == before
