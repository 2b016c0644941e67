"""Loader processes that die, are stopped, or are only slow; each in a process of its own, for the signals' sake."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from tests.faults.killing import run_python

from ftcore.data.workers import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.machine

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import torch
from ftcore import DataError
from ftcore.data.loader import TransformedDataset, make_batches
from ftcore.data.workers import name_lost_samples
from ftcore_plugins.tasks import Classification

FATE, PAUSE = getattr(signal, sys.argv[1], None), float(sys.argv[2])


class Fragile:
    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == 13:
            time.sleep(PAUSE)
            if FATE is not None:
                Path("fate").write_text(str(time.monotonic()))
                os.kill(os.getpid(), FATE)
        return index, index % 2

    def name(self, index):
        return f"sample-{index}.jpg"


def to_tensor(image):
    return torch.tensor([float(image)])


if __name__ == "__main__":
    task = Classification(("even", "odd"), (10, 10))
    batches = make_batches(TransformedDataset(Fragile(), to_tensor, task), 2, 2, torch.device("cpu"))
    seen = []
    try:
        with name_lost_samples(batches.names_in_flight):  # as a run does: torch's signal can interrupt anything
            for batch in batches.epoch(0):
                seen += batch.indices.tolist()
    except DataError as error:
        print(f"after {time.monotonic() - float(Path('fate').read_text()):.1f} s: {error}", flush=True)
        for worker in batches.loader._iterator._workers:
            worker.kill()
        os._exit(2)
    print(seen, batches.names_in_flight())
"""


def read(folder: Path, fate: str, pause: float = 0.0) -> subprocess.CompletedProcess[str]:
    return run_python(SCRIPT, fate, pause, folder=folder)


@pytest.mark.parametrize("fate", ["SIGKILL", "SIGSEGV", "SIGBUS", "SIGSTOP"])
def test_a_worker_that_dies_or_is_stopped_is_said_with_the_samples_in_flight(tmp_path: Path, fate: str) -> None:
    ended = read(tmp_path, fate)

    assert ended.returncode == 2, ended.stderr
    assert "samples in flight: " in ended.stdout
    assert "sample-13.jpg" in ended.stdout
    assert ("is stopped" in ended.stdout) == (fate == "SIGSTOP")
    assert float(ended.stdout.split()[1]) < 10


@pytest.mark.parametrize("fate", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_what_is_sent_to_the_group_of_a_run_ends_no_worker(tmp_path: Path, fate: str) -> None:
    ended = read(tmp_path, fate)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == f"{list(range(20))} []"


def test_a_worker_that_is_only_slow_is_waited_for_and_said(tmp_path: Path) -> None:
    ended = read(tmp_path, "none", PATIENCE + 1)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == f"{list(range(20))} []"
    assert "no batch from the loader processes" in ended.stdout


ABANDONED = """
import gc, time
import torch
from ftcore.data.loader import TransformedDataset, make_batches
from ftcore_plugins.tasks import Classification


class Endless:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        time.sleep(1000 * (index > 3))
        return torch.zeros(1, 1, 1), 0

    def name(self, index):
        return str(index)


task = Classification(("a", "b"), (4, 4))
batches = make_batches(TransformedDataset(Endless(), lambda image: image, task), 4, 2, torch.device("cpu"))
next(batches.epoch(0))
del batches
gc.collect()
print("over")
"""


@pytest.mark.slow
def test_a_process_ends_though_a_worker_whose_loader_is_gone_is_still_at_work(tmp_path: Path) -> None:
    """torch asks it to end, which it ignores, and forgets it; multiprocessing would wait for it for ever."""
    file = tmp_path / "script.py"
    file.write_text(dedent(ABANDONED), encoding="utf-8")

    ended = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False, timeout=60)

    assert (ended.returncode, ended.stdout) == (0, "over\n"), ended.stderr
