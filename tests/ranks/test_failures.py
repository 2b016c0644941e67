"""One process of several fails: all end, the cause is said once, and the run can be gone on with."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.faults.killing import differences, end, result
from tests.faults.killing import start as start_one

from .starting import messages, run, said, start
from .test_same_results import STILL, arguments, epochs, weights

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.machine  # silence is a failure after seconds

FAILING = "tests.ranks.failing:Failing"

FAULTS: dict[str, tuple[list[int], str]] = {
    "raise": ([1, 1], "ZeroDivisionError: a mistake in a plugin"),
    "data": ([2, 2], "ftcore: rank 1: picture.jpg cannot be read"),
    "memory": ([2, 2], "ftcore: rank 1: out of memory in step 5 "),
    "nan": ([2, 2], "ftcore: the loss is nan and the norm of the gradient nan in step 5 "),
    "term": ([143, 143], "ftcore: stopped by SIGTERM after step "),
    "kill": ([2, -signal.SIGKILL], "ftcore: lost the connection to another process"),
    "hang": ([2, 2], "ftcore: lost the connection to another process"),
}
"""What happens in the second of two processes -> exit codes of both, and what one of them says."""


def failing(folder: Path, how: str, *options: str) -> list[str]:
    sets = ("--set", f"failing.how={how}", "--set", "ddp.timeout=4", *options)
    return arguments(folder, *STILL, "--plugin", "ddp", "--plugin", FAILING, *sets)


@pytest.mark.slow
@pytest.mark.parametrize("how", FAULTS)
def test_a_process_that_fails_ends_all_and_one_says_why(tmp_path: Path, how: str) -> None:
    codes, expected = FAULTS[how]

    assert run(*failing(tmp_path / "run", how), ranks=2, log=tmp_path / "log", seconds=40) == codes
    lines = [line for text in said(tmp_path / "log", 2) for line in text.splitlines()]
    assert sum(line.startswith(expected) for line in lines) == 1, lines
    assert len(messages(tmp_path / "log", 2)) == (how != "raise")


@pytest.mark.slow
def test_a_process_that_is_stopped_is_missed(tmp_path: Path) -> None:
    """It then goes on, for its launcher would wait for it, and finds that it has failed."""
    args = failing(tmp_path / "run", "stop", "--set", "ddp.timeout=600")

    codes = run(*args, ranks=2, log=tmp_path / "log", seconds=60)

    assert codes[0] == 2
    assert codes[1] not in {0, None}
    first, _ = said(tmp_path / "log", 2)
    assert first.count("does not respond: it is stopped or cannot be reached") == 1


HALVED = {"plain": (), "accumulated": ("--set", "train.accumulate=3"), "two passes": ("--plugin", "sam")}


@pytest.mark.slow
@pytest.mark.parametrize("options", HALVED.values(), ids=HALVED)
def test_where_one_process_is_short_of_memory_all_halve_and_the_weights_stay(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    assert run(*arguments(tmp_path / "one", *STILL, *options), ranks=1, log=tmp_path / "log-one") == [0]

    args = failing(tmp_path / "run", "memory", "--set", "train.on_oom=halve", *options)
    assert run(*args, ranks=2, log=tmp_path / "log") == [0, 0], messages(tmp_path / "log", 2)

    first, _ = said(tmp_path / "log", 2)
    assert first.count("each micro-batch is split into 2 pieces from now on") == 1
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert json.loads((newest / "state.json").read_text())["progress"]["micro_batch_splits"] == 2
    torch.testing.assert_close(weights(tmp_path / "run"), weights(tmp_path / "one"), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_memory_that_suffices_for_no_piece_ends_all_processes(tmp_path: Path) -> None:
    small = ("--plugin", "tests.faults.test_out_of_memory:Small", "--set", "small.images=1")
    args = arguments(tmp_path / "run", *STILL, "--plugin", "ddp", *small, "--set", "train.on_oom=halve")

    assert run(*args, ranks=2, log=tmp_path / "log", seconds=60) == [2, 2]
    (message,) = (line for line in messages(tmp_path / "log", 2) if "warning" not in line)
    assert "out of memory in step 1 (epoch 1), with 24 images per micro-batch in 4 pieces" in message


def test_what_a_process_warns_of_is_said_once_by_the_first(tmp_path: Path) -> None:
    assert run(*failing(tmp_path / "run", "warn"), ranks=2, log=tmp_path / "log") == [0, 0]
    first, second = said(tmp_path / "log", 2)

    assert first.count("ftcore: warning: the disk is slow (rank=1)") == 1
    assert second == ""


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_any_number_of_processes(tmp_path: Path) -> None:
    assert run(*failing(tmp_path / "stopped", "term"), ranks=2, log=tmp_path / "log") == [143, 143]
    assert run(*failing(tmp_path / "whole", "warn"), ranks=2, log=tmp_path / "log") == [0, 0]

    for ranks in (2, 1, 4):
        folder = tmp_path / f"by-{ranks}"
        shutil.copytree(tmp_path / "stopped", folder)
        command: tuple[Any, ...] = ("resume", folder, "--set", "failing.how=warn", "--allow-drift")
        assert run(*command, ranks=ranks, log=tmp_path / f"log-{ranks}") == [0] * ranks, said(tmp_path / "log-1", 1)
        torch.testing.assert_close(weights(folder), weights(tmp_path / "whole"), rtol=0, atol=1e-5)
        assert [line["step"] for line in epochs(folder)] == [line["step"] for line in epochs(tmp_path / "whole")]
        if ranks == 2:
            assert differences(result(folder), result(tmp_path / "whole")) == []


KILLED = {
    "plain": ("--plugin", "ddp"),
    "ema, one worker each": ("--plugin", "ddp", "--plugin", "ema", "--set", "train.workers=1"),
    "spread, saved in shares": ("--plugin", "fsdp", "--plugin", "ema", "--set", "fsdp.checkpoints=sharded"),
}


@pytest.mark.slow
@pytest.mark.parametrize("options", KILLED.values(), ids=KILLED)
def test_killed_runs_of_two_processes_end_in_the_same_bits(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Batch norms move: their statistics are those of the first process, before and after."""
    dice, kills, number, longest = random.Random(7), 0, 0, 0.0
    args = ("--set", "run.save_every=2 steps", *options)
    for name in ("whole", "again"):
        began = time.monotonic()
        assert run(*arguments(tmp_path / name, *args), ranks=2, log=tmp_path / "log") == [0, 0]
        longest = time.monotonic() - began
    expected = result(tmp_path / "whole")

    while kills < 6:
        folder, killed = tmp_path / str(number), True
        while killed:
            begun = (folder / "manifest.json").exists()
            command = ("resume", folder) if begun else arguments(folder, *args)
            if not begun:
                shutil.rmtree(folder, ignore_errors=True)
            processes = start(*command, ranks=2, log=tmp_path / "log")
            time.sleep(dice.uniform(longest / 4, 1.5 * longest))
            for process in processes:
                process.kill()
            killed = any(end(process) for process in processes)
            kills += killed
        assert differences(result(folder), expected) == [], messages(tmp_path / "log", 2)
        number += 1


REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "nobody shares": ((), (), "2 processes were started, but wrap_devices of one_device is for 1; --plugin ddp splits"),
    "nccl on a CPU": (
        ("--plugin", "ddp", "--set", "ddp.backend=nccl", "--set", "ddp.device=cpu"),
        (),
        'ddp.backend = "nccl" is for CUDA, and this run is on cpu',
    ),
    "fewer images than processes": (
        ("--plugin", "ddp", "--set", "train.batch_size=1"),
        (),
        "train.batch_size = 1 is the total over all processes, but there are 2 processes (--set",
    ),
    "other data": (("--plugin", "ddp"), ("--data", "digits:5-7"), "rank 1 differs from rank 0"),
    "other data, spread": (("--plugin", "fsdp"), ("--data", "digits:5-7"), "rank 1 differs from rank 0"),
    "other options": (
        ("--plugin", "ddp"),
        ("--set", "sgd.lr=0.5"),
        "rank 1 differs from rank 0",
    ),
    "unknown plugin": (("--plugin", "dpd"), (), "no plugin named 'dpd'; did you mean 'dp'"),
    "batch norm over a CPU": (
        ("--plugin", "ddp", "--set", "ddp.sync_batchnorm=true", "--set", "ddp.device=cpu"),
        (),
        "ddp.sync_batchnorm needs CUDA",
    ),
}
"""Options of both, options of the second alone, and what the first says."""


@pytest.mark.parametrize("case", REFUSED)
def test_processes_that_cannot_train_together_are_refused_by_the_first(tmp_path: Path, case: str) -> None:
    options, last, expected = REFUSED[case]

    codes = run(*arguments(tmp_path / "run", *options), ranks=2, log=tmp_path / "log", last=last, seconds=60)

    found = messages(tmp_path / "log", 2)
    assert (codes, len(found)) == ([2, 2], 1), found
    assert expected in found[0]
    assert said(tmp_path / "log", 2)[1] == ""
    assert not (tmp_path / "run").exists()


def test_ddp_in_a_process_that_was_started_alone_is_refused(tmp_path: Path) -> None:
    assert end(start_one(*arguments(tmp_path / "run", "--plugin", "ddp"), log=tmp_path / "log")) == 2
    assert "ftcore: ddp needs several processes: start with ftcore run --nproc 2" in (tmp_path / "log").read_text()
