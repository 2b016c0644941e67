"""What a person sees, at a terminal and elsewhere."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import threading
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import attrs
import pytest
import torch

from ftcore import BatchEvaluated, EpochEnded, RunEnded, RunFailed, RunStarted, StepLogged, Table
from ftcore.console import suppress_output
from ftcore.testing import invoke
from ftcore_plugins.observers.progress import ProgressBar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ftcore import Event, SampleDataset

STARTED = RunStarted(Path("runs/first"), {"data": "12 images"}, (Table("images", ("class",), (("cat",),)),), 2, 20)
STEP = StepLogged(epoch=1, step=10, loss=0.5, lr=(0.001, 0.001, 0.0001), samples_per_second=100.0, data_wait=0.25)
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def ended(epoch: int, **val: float) -> EpochEnded:
    return EpochEnded(epoch, epoch * 20, {"loss": 0.5}, {"loss": 0.4, **val}, epoch == 1, "accuracy", 1.0, 100.0)


def report(folder: str = "runs/first", *, early: bool = False) -> RunEnded:
    best = {"accuracy": 0.75, "epoch": 1}
    images = {"train": 12, "val": 4, "test": 4}
    known = {"folder": folder, "epochs": 2, "monitor": "accuracy", "best": best, "seconds": 1.0, "images": images}
    return RunEnded(known | {"stopped_early": early})


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
    assert lines[-2].startswith("best accuracy ")
    assert lines[-1].startswith("next: ftcore predict ")


def test_without_a_terminal_there_is_what_was_decided_and_the_result() -> None:
    lines = elsewhere(*EVENTS).splitlines()

    assert lines[0].split(maxsplit=1) == ["data", "12 images"]
    assert lines[-4].startswith("epoch   1  train loss 0.5000  val loss 0.4000, accuracy 0.7500  ")
    assert lines[-4].endswith(" 1.0 s, 100 images/s, 0:00:01 left *")
    assert lines[-3].endswith(" 1.0 s, 100 images/s")
    assert lines[-2] == "best accuracy 0.7500 in epoch 1 of 2, 1.0 s; results saved to runs/first"
    assert lines[-1] == (
        "next: ftcore predict runs/first IMAGES, ftcore evaluate runs/first --split test, "
        "ftcore report runs/first --open"
    )


def test_the_best_epoch_so_far_has_a_star() -> None:
    lines = elsewhere(*EVENTS).splitlines()

    assert [line.endswith("*") for line in lines if line.startswith("epoch")] == [True, False]


def test_without_a_terminal_steps_are_not_shown() -> None:
    assert elsewhere(STARTED, STEP, STEP) == elsewhere(STARTED)


def test_an_epoch_is_one_line_however_many_metrics_there_are() -> None:
    shown = elsewhere(ended(1, **{f"metric_{number}": 0.5 for number in range(20)}))

    assert len(shown.splitlines()) == 1
    assert "metric_19 0.5000" in shown


def test_the_result_and_what_to_do_next_are_a_line_each_however_long_the_folders_name_is() -> None:
    folder = "/".join(["a rather long name of a folder"] * 10)

    assert elsewhere(report(folder)).splitlines() == [
        f"best accuracy 0.7500 in epoch 1 of 2, 1.0 s; results saved to {folder}",
        f"next: ftcore predict '{folder}' IMAGES, ftcore evaluate '{folder}' --split test, "
        f"ftcore report '{folder}' --open",
    ]


def test_brackets_are_shown_as_they_are() -> None:
    assert "results saved to runs/[red]first" in elsewhere(report("runs/[red]first"))
    assert "f1[cat] 0.5000" in elsewhere(ended(1, **{"f1[cat]": 0.5}))
    assert "images [val]" in elsewhere(RunStarted(Path(), {}, (Table("images [val]", ("class",), ()),), 1, 1))


def test_a_terminal_has_a_bar_with_the_loss_and_the_rates() -> None:
    shown = at_a_terminal(STARTED, STEP, RunFailed("stops here, which draws the bar once more"))

    assert "━" in shown
    assert "2 epochs" in shown
    assert "10/40" in shown
    assert "epoch 1" in shown
    assert "10/20" in shown
    assert "loss 0.5000, lr 0.001/0.0001, 100 images/s, 25% of the time waiting for data, " in shown
    assert re.search(r"\d GB peak memory", shown)


def test_a_terminal_has_a_bar_for_the_validation_and_names_the_best_epoch() -> None:
    split = cast("SampleDataset", range(12))
    started = attrs.evolve(STARTED, val=split)
    batch = BatchEvaluated(torch.arange(8), torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64))

    shown = at_a_terminal(started, STEP, batch, RunFailed("stops here"))
    later = at_a_terminal(started, STEP, batch, ended(1, accuracy=0.75), STEP, RunFailed("stops here"))

    assert "validation" in shown
    assert "8/12" in shown
    assert "best accuracy 0.7500" in later
    assert "epoch 2" in later


def test_a_run_that_goes_on_is_shown_where_it_is() -> None:
    shown = at_a_terminal(attrs.evolve(STARTED, epoch=1, step=25), RunFailed("stops here"))

    assert "25/40" in shown
    assert "epoch 2" in shown
    assert "5/20" in shown


@pytest.mark.parametrize("stream", [elsewhere, at_a_terminal])
def test_quietly_nothing_is_shown(stream: Callable[..., str]) -> None:
    with suppress_output(quiet=True):
        assert stream(*EVENTS) == ""


def test_a_quiet_run_shows_its_warnings_and_writes_all_else_into_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sets = ("--set", "train.epochs=2", "--set", "adamw.lr=1e-12", "--set", f"run.folder={folder}")

    said = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *sets, "--quiet")

    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert "stays at 0.6931, chance level" in said.err
    assert len((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_a_quiet_run_still_prints_the_report_that_is_asked_for(tmp_path: Path) -> None:
    sets = ("--set", "train.epochs=1", "--set", f"run.folder={tmp_path / 'run'}")

    said = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *sets, "-q", "--json")

    assert json.loads(said.out)["epochs"] == 1
    assert said.err == ""


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
    assert "stopped: accuracy has not improved for train.patience epochs" in elsewhere(report(early=True))
    assert "stopped" not in elsewhere(report())
