"""A run that is sent a signal at any instant is saved, ends with the code of that signal, and goes on to the same bits.

    FTCORE_SIGNALS=1000 uv run pytest -n 0 -m slow -s tests/faults/test_signals.py

sends so many, and prints how many runs did.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen

from .killing import end, result, start
from .test_kills import SETTINGS, arguments

if TYPE_CHECKING:
    from pathlib import Path

SIGNALS = int(os.environ.get("FTCORE_SIGNALS", "200"))
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SELDOM = ("--set", "run.save_every=99 epochs")
"""So that what is saved, but for the end, is saved because of a signal."""


@frozen
class Trial:
    """What a signal did.

    Attributes:
        how: the signal.
        code: with which the run ended.
        saved: whether it was saved because of the signal.
        over: whether the run had come to its end, nothing of it being left to save.
        same: whether the run, gone on with, ended in the bits of one that was sent none.
    """

    how: signal.Signals
    code: int | None
    saved: bool
    over: bool
    same: bool

    @property
    def right(self) -> bool:
        """SIGUSR1 does not end a run; behind its last step, nothing does; and then a process dies of any signal."""
        ended = set() if self.how == signal.SIGUSR1 else {128 + self.how}
        codes = (ended or {0}) if self.saved else {0, -self.how, *ended}
        return self.same and (self.saved or self.over) and self.code in codes


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == name]


def begun(process: Any, folder: Path) -> None:
    """Wait until a run listens to signals."""
    while not (folder / "log.jsonl").exists():
        assert process.is_alive()
        time.sleep(0.001)


def send(how: signal.Signals, folder: Path, options: tuple[str, ...], expected: Any, longest: float) -> Trial:
    """Send a signal to a run, or to it and its workers, one time in five twice; let it end, and go on with it."""
    log, dice = folder.with_suffix(".log"), random.Random(folder.name)
    process = start(*arguments(folder, options), log=log)
    begun(process, folder)
    time.sleep(dice.uniform(0, longest))
    kill: Any = os.killpg if dice.random() < 0.5 else os.kill
    again = how != signal.SIGUSR1 and dice.random() < 0.2
    try:
        kill(process.pid, how)
        if again:
            time.sleep(dice.uniform(0, 0.02))
            kill(process.pid, how)
    except ProcessLookupError:
        pass  # it has ended
    code = end(process)
    assert folder.exists(), f"{how.name}, exit code {code}: {log.read_text()}"
    over = bool(events(folder, "RunEnded"))
    saved = again or bool(events(folder, "RunStopped")) or len(events(folder, "CheckpointSaved")) > 1
    if code:
        assert end(start("resume", folder, log=log)) == 0, log.read_text()
    same = result(folder) | {"checkpoints": 0} == expected | {"checkpoints": 0}
    shutil.rmtree(folder)
    return Trial(how, code, saved and (not over or how == signal.SIGUSR1), over, same)


@pytest.mark.machine
@pytest.mark.slow
@pytest.mark.timeout(600 + 20 * SIGNALS)
def test_signals_at_any_instant_save_and_change_nothing(tmp_path: Path) -> None:
    options = {name: (*settings, *SELDOM) for name, settings in SETTINGS.items()}
    expected, longest = {}, {}
    for number, name in enumerate(options):
        folder = tmp_path / f"whole-{number}"
        process = start(*arguments(folder, options[name]), log=tmp_path / "log")
        begun(process, folder)
        began = time.monotonic()
        assert end(process) == 0, (tmp_path / "log").read_text()
        longest[name], expected[name] = time.monotonic() - began, result(folder)

    def trial(number: int, how: signal.Signals, name: str) -> Trial:
        return send(how, tmp_path / str(number), options[name], expected[name], longest[name])

    hows, names = cycle([*ENDING, signal.SIGUSR1]), cycle(name for name in options for _ in range(4))
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(trial, range(SIGNALS), hows, names))

    right = sum(one.right for one in done)
    print(f"{right} of {len(done)} signals, {sum(one.saved for one in done)} of them saved the run")  # noqa: T201
    assert [one for one in done if not one.right] == []
    assert sum(one.saved for one in done) > SIGNALS / 2
