"""A run that is killed again and again, at any instant, ends in the same bits as one that is not.

    FTCORE_KILLS=1000 uv run pytest -n 0 -m slow -s tests/faults/test_kills.py

kills so often, and prints how many runs were the same and how many kills landed within a save.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define

from .killing import differences, end, result, start

if TYPE_CHECKING:
    from pathlib import Path

KILLS = int(os.environ.get("FTCORE_KILLS", "100"))
SETTINGS = {
    "fp32": ("--plugin", "ema", "--set", "run.save_every=1 step"),
    "fp32, written while it goes on": (
        "--plugin",
        "ema",
        "--set",
        "run.save_every=1 step",
        "--set",
        "run.async_save=true",
    ),
    "bf16": ("--plugin", "bf16", "--plugin", "ema", "--set", "run.save_every=2 steps"),
    "fp32, two workers": ("--plugin", "ema", "--set", "run.save_every=1 step", "--set", "train.workers=2"),
    "pure bf16, two workers": ("--plugin", "bf16_pure", "--set", "run.save_every=1 step", "--set", "train.workers=2"),
}


def arguments(folder: Path, options: tuple[str, ...]) -> list[str]:
    sets = ("train.epochs=2", "train.batch_size=48", "augment.preset=light", f"run.folder={folder}")
    flags = ["--data", "digits:5-6", "--model", "digits/cnn", "--plugin", "augment", *options]
    return ["run", *flags, *(word for text in sets for word in ("--set", text))]


@define
class Count:
    """What kills did.

    Attributes:
        kills: processes that were killed.
        saving: of them, those that were writing a checkpoint.
        runs: that ended in the bits of the one that was not killed.
    """

    kills: int = 0
    saving: int = 0
    runs: int = 0


def catch_saving(process: Any, folder: Path) -> None:
    """Stop a command while it writes a checkpoint, if it does so before it ends."""
    while process.is_alive():
        if is_saving(folder):
            os.kill(process.pid, signal.SIGSTOP)
            if is_saving(folder):
                return
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.001)


def is_saving(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".new-*"))


def kill(process: Any, folder: Path, dice: random.Random, longest: float, count: Count) -> bool:
    """Kill a command, alone or with its workers, at a random moment; return whether it was still alive.

    The first time that a run is killed, it is within a save.
    """
    if count.kills:
        time.sleep(dice.triangular(0, longest, longest))
    else:
        catch_saving(process, folder)
    whole = dice.random() < 0.5
    try:
        (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no session of its own yet, or it has ended
        process.kill()
    code = end(process)
    if code != -signal.SIGKILL:
        assert code == 0, folder.with_suffix(".log").read_text()
        return False
    count.kills += 1
    count.saving += is_saving(folder)
    return True


def endure(folder: Path, options: tuple[str, ...], longest: float) -> tuple[Count, Path]:
    """Start a run, kill it up to three times, and let it end."""
    log, dice, count = folder.with_suffix(".log"), random.Random(f"{folder.name} {options}"), Count()
    command: list[object] = list(arguments(folder, options))
    for _ in range(dice.randint(1, 3)):
        killed = kill(start(*command, log=log), folder, dice, longest, count)
        if not killed:
            break
        if (folder / "manifest.json").exists():
            command = ["resume", folder]
        else:  # it was killed before it had begun
            folder = folder.with_name(f"{folder.name}-")
            command = list(arguments(folder, options))
    else:
        assert end(start(*command, log=log)) == 0, log.read_text()
    return count, folder


@pytest.mark.machine
@pytest.mark.slow
@pytest.mark.timeout(600 + 20 * KILLS)
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_killed_runs_end_in_the_same_bits(tmp_path: Path, options: tuple[str, ...]) -> None:
    total = Count()
    assert end(start(*arguments(tmp_path / "whole", options), log=tmp_path / "log"), 300) == 0
    began = time.monotonic()
    assert end(start(*arguments(tmp_path / "again", options), log=tmp_path / "log")) == 0
    longest, expected = time.monotonic() - began, result(tmp_path / "whole")
    assert result(tmp_path / "again") == expected

    share = KILLS // len(SETTINGS)
    with ThreadPoolExecutor(2) as pool:
        while total.kills < share and total.runs < share:
            folders = [tmp_path / str(total.runs + place) for place in range(2)]
            for count, folder in pool.map(lambda folder: endure(folder, options, longest), folders):
                total.kills, total.saving = total.kills + count.kills, total.saving + count.saving
                other = differences(result(folder), expected)
                assert not other, f"{other} in {folder}\n{folder.with_suffix('.log').read_text()}"
                total.runs += 1
                shutil.rmtree(folder)

    print(f"{total.kills} kills, {total.saving} within a save: {total.runs} of {total.runs} runs the same")  # noqa: T201
    assert total.saving >= total.runs
    assert total.kills >= share
