"""What a person sees, at a terminal and elsewhere."""

from __future__ import annotations

import io
import os
import pty
import threading
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import pytest

from ftcore import EpochEnded, RunEnded, RunFailed, RunStarted, StepLogged, Table
from ftcore.testing import invoke
from ftcore_plugins.progress import ProgressBar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore import Event

STARTED = RunStarted(Path("runs/first"), {"data": "12 images"}, (Table("images", ("class",), (("cat",),)),), 2, 20)
STEP = StepLogged(epoch=1, step=10, loss=0.5, lr=(0.001, 0.001, 0.0001), samples_per_second=100.0)
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def ended(epoch: int, **val: float) -> EpochEnded:
    return EpochEnded(epoch, epoch * 20, {"loss": 0.5}, {"loss": 0.4, **val}, epoch == 1, "accuracy", 1.0, 100.0)


def report(folder: str = "runs/first", *, early: bool = False) -> RunEnded:
    best = {"accuracy": 0.75, "epoch": 1}
    return RunEnded(
        {"folder": folder, "epochs": 2, "monitor": "accuracy", "best": best, "seconds": 1.0, "stopped_early": early}
    )


EVENTS = (STARTED, STEP, ended(1, accuracy=0.75), STEP, ended(2, accuracy=0.5), report())


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rich reads: an ordinary terminal, if there is one."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")


def tell(stream: TextIO, events: Sequence[Event]) -> None:
    with redirect_stderr(stream):
        observers = ProgressBar().make_observers()
        for event in events:
            for observe in observers:
                observe(event)


def elsewhere(*events: Event) -> str:
    stream = io.StringIO()
    tell(stream, events)
    return stream.getvalue()


def at_a_terminal(*events: Event) -> str:
    """Show events on a pseudo-terminal, and return what it got."""
    master, slave = pty.openpty()
    pieces: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(master, 4096):
                pieces.append(piece)
        except OSError:  # how Linux says that the other side is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        tell(stream, events)
    reader.join()
    os.close(master)
    return b"".join(pieces).decode()


def test_a_run_without_a_terminal_shows_a_line_an_epoch_and_no_bar(tmp_path: Path) -> None:
    sets = ("--set", "train.epochs=2", "--set", f"run.folder={tmp_path / 'run'}")

    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *sets)

    lines = result.err.splitlines()
    assert "\x1b" not in result.err
    assert "\r" not in result.err
    assert "━" not in result.err
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == ["1", "2"]
    assert lines[-1].startswith("best accuracy ")


def test_without_a_terminal_there_is_what_was_decided_and_the_result() -> None:
    lines = elsewhere(*EVENTS).splitlines()

    assert lines[0].split(maxsplit=1) == ["data", "12 images"]
    assert lines[-3].startswith("epoch   1  train loss 0.5000  val loss 0.4000, accuracy 0.7500  ")
    assert lines[-1] == "best accuracy 0.7500 in epoch 1 of 2, 1.0 s; everything is in runs/first"


def test_the_best_epoch_so_far_has_a_star() -> None:
    lines = elsewhere(*EVENTS).splitlines()

    assert [line.endswith("*") for line in lines if line.startswith("epoch")] == [True, False]


def test_without_a_terminal_steps_are_not_shown() -> None:
    assert elsewhere(STARTED, STEP, STEP) == elsewhere(STARTED)


def test_an_epoch_is_one_line_however_many_metrics_there_are() -> None:
    shown = elsewhere(ended(1, **{f"metric_{number}": 0.5 for number in range(20)}))

    assert len(shown.splitlines()) == 1
    assert "metric_19 0.5000" in shown


def test_the_result_is_one_line_however_long_the_folders_name_is() -> None:
    folder = "/".join(["a rather long name of a folder"] * 10)

    assert elsewhere(report(folder)).splitlines() == [
        f"best accuracy 0.7500 in epoch 1 of 2, 1.0 s; everything is in {folder}"
    ]


def test_brackets_are_shown_as_they_are() -> None:
    assert "everything is in runs/[red]first" in elsewhere(report("runs/[red]first"))
    assert "f1[cat] 0.5000" in elsewhere(ended(1, **{"f1[cat]": 0.5}))
    assert "images [val]" in elsewhere(RunStarted(Path(), {}, (Table("images [val]", ("class",), ()),), 1, 1))


def test_a_terminal_has_a_bar_with_the_loss_and_the_rates() -> None:
    shown = at_a_terminal(STARTED, STEP, RunFailed("stops here, which draws the bar once more"))

    assert "━" in shown
    assert "10/40" in shown
    assert "loss 0.5000, lr 0.001/0.0001, 100 images/s" in shown


def test_a_terminal_keeps_the_lines_that_there_are_elsewhere() -> None:
    shown = at_a_terminal(*EVENTS)

    for line in elsewhere(*EVENTS).splitlines()[-3:]:
        assert shown.count(line) == 1


@pytest.mark.parametrize("last", [report(), RunFailed("RuntimeError: no memory")])
def test_the_bar_is_taken_away_and_the_cursor_given_back(last: Event) -> None:
    shown = at_a_terminal(STARTED, STEP, last)

    assert shown.count(HIDE) == shown.count(SHOW) == 1
    assert "━" not in shown.rpartition(SHOW)[2]


def test_a_run_that_stopped_early_says_so() -> None:
    assert "stopped: accuracy has not been better for train.patience epochs" in elsewhere(report(early=True))
    assert "stopped" not in elsewhere(report())
