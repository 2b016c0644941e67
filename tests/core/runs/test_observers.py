"""What an observer raises costs no run, whatever it is told; and where it is to end one, that is saved."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from tests.ranks.starting import messages
from tests.ranks.starting import run as run_in_processes

from ftcore import UserError
from ftcore.config import CliOverrides, load_config
from ftcore.runs import fit, resume
from ftcore.testing import invoke

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore import Event

OBSERVER = """
from ftcore import hookimpl

@hookimpl
def make_observers():
    def observe(event):
        if type(event).__name__ in {events!r}:
            raise {error}

    return [observe]
"""

EVENTS = ["RunStarted", "StepLogged", "BatchEvaluated", "EpochEnded", "CheckpointSaved", "RunEnded"]
RUN = ("--data", "digits:5-6", "--model", "digits/cnn")
SETS = ("train.epochs=2", "train.log_every=1")


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_observer", raising=False)
    return tmp_path / "acme_observer.py"


def write(hooks: Path, *events: str, error: str = "ConnectionError('the server is gone')") -> None:
    hooks.write_text(OBSERVER.format(events=events, error=error), encoding="utf-8")


def run(hooks: Path, *sets: str) -> Any:
    return invoke("run", *words(hooks, *sets), "--json")


def words(hooks: Path, *sets: str) -> list[str | Path]:
    texts = (*SETS, f"run.folder={hooks.parent / 'run'}", *sets)
    return [*RUN, "--plugin", hooks, *(word for text in texts for word in ("--set", text))]


def log(hooks: Path) -> list[dict[str, Any]]:
    lines = (hooks.parent / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("event", EVENTS)
def test_an_observer_that_fails_costs_a_warning_with_its_plugin_and_its_traceback(event: str, hooks: Path) -> None:
    write(hooks, event)

    result = run(hooks)

    assert result.code == 0, result.err
    assert json.loads(result.out)["epochs"] == 2
    (first, *others) = [line for line in log(hooks) if "an observer failed" in line["event"]]
    assert first["event"].startswith(
        f"an observer failed at {event}: ConnectionError: the server is gone; raised by what plugin acme_observer ("
    )
    assert first["event"].endswith("; the run continues")
    assert 'acme_observer.py", line 8, in observe' in first["exception"]
    assert result.err.count(f"an observer failed at {event}") == 1
    assert "Traceback" not in result.err
    assert len(others) == (event not in {"RunStarted", "RunEnded"})
    (described,) = json.loads(invoke("runs", hooks.parent, "--json").out)
    assert (described["state"], described["epochs"]) == ("finished", 2)


def test_an_observer_that_fails_at_every_step_is_counted_in_report_and_log(hooks: Path) -> None:
    write(hooks, "StepLogged")

    result = run(hooks)

    assert json.loads(result.out)["observer_errors"] == 20
    assert "an observer failed 20 times in total; raised by what plugin acme_observer" in result.err


@pytest.mark.parametrize("event", ["StepLogged", "BatchEvaluated", "EpochEnded", "CheckpointSaved"])
@pytest.mark.parametrize("save", ["1 epoch", "3 steps"])
def test_a_run_that_an_observer_is_to_end_is_saved_first_and_goes_on_to_the_same_end(
    event: str, save: str, hooks: Path
) -> None:
    write(hooks, event)
    sets = (f"run.save_every={save}", "train.batch_size=96")
    whole = fit(config(hooks.parent / "whole", *sets))

    result = run(hooks, *sets, "observers.on_error=stop")

    assert result.code == 2
    assert result.err.count(f"an observer failed at {event}: ConnectionError: the server is gone; raised by") == 1
    assert "observers.on_error = 'stop' stops the run after saving a checkpoint" in result.err
    saved = [path.name for path in (hooks.parent / "run" / "checkpoints").iterdir()]
    later = {("StepLogged", save): 1, ("CheckpointSaved", "3 steps"): 3}
    assert max(saved) == f"step-{later.get((event, save), 4):08d}"
    assert ["exception" in line for line in log(hooks) if "an observer failed" in line["event"]] == [True]
    report = resume(hooks.parent / "run", ["observers.on_error=warn"])
    assert (report["epochs"], report["best"], report["last"]) == (2, whole["best"], whole["last"])


def config(folder: Path, *sets: str, plugins: tuple[str, ...] = ()) -> Any:
    texts = (*SETS, f"run.folder={folder}", *sets)
    return load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=plugins, sets=texts))


def test_an_observer_that_is_to_end_a_run_at_its_start_leaves_nothing_and_at_its_end_all(hooks: Path) -> None:
    write(hooks, "RunStarted", "RunEnded", error="UserError('the server is gone')")
    hooks.write_text(hooks.read_text().replace("import hookimpl", "import UserError, hookimpl"), encoding="utf-8")

    with pytest.raises(UserError, match="an observer failed at RunStarted: the server is gone; raised by what plugin"):
        fit(config(hooks.parent / "run", "observers.on_error=stop", plugins=(str(hooks),)))
    assert not (hooks.parent / "run").exists()

    hooks.write_text(hooks.read_text().replace("'RunStarted', ", ""), encoding="utf-8")
    sys.modules.pop("acme_observer")
    with pytest.raises(UserError, match="an observer failed at RunEnded: the server is gone"):
        fit(config(hooks.parent / "run", "observers.on_error=stop", plugins=(str(hooks),)))
    assert resume(hooks.parent / "run", ["observers.on_error=warn"])["epochs"] == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_process_ends_the_run_saved_whatever_is_said_of_errors(
    error: type[BaseException], tmp_path: Path
) -> None:
    def observe(event: Event) -> None:
        if type(event).__name__ == "EpochEnded":
            raise error

    with pytest.raises(error):
        fit(config(tmp_path / "run"), [observe])

    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000010"]
    assert resume(tmp_path / "run")["epochs"] == 2


def test_of_two_observers_each_is_told_whatever_the_other_raises(tmp_path: Path) -> None:
    heard: list[str] = []

    def fail(event: Event) -> None:
        raise ValueError(type(event).__name__)

    with structlog.testing.capture_logs() as logged:
        fit(config(tmp_path / "run"), [fail, lambda event: heard.append(type(event).__name__), fail])

    assert heard.count("EpochEnded") == 2
    firsts = [event["event"] for event in logged if "failed at RunStarted" in event["event"]]
    assert len(firsts) == 2
    assert all("fail, which was passed to the run; the run continues" in text for text in firsts)
    counted = [event["event"].partition(";")[0] for event in logged if "in total" in event["event"]]
    assert counted == [f"an observer failed {len(heard)} times in total"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["warn", "stop"])
def test_an_observer_that_fails_in_one_of_two_processes_ends_both_or_none(how: str, hooks: Path) -> None:
    write(hooks, "EpochEnded")
    given = words(hooks, f"observers.on_error={how}")

    codes = run_in_processes("run", *given, "--plugin", "ddp", ranks=2, log=hooks.parent / "log")

    assert codes == ([2, 2] if how == "stop" else [0, 0])
    (said,) = [text for text in messages(hooks.parent / "log", 2) if "at EpochEnded" in text]
    assert said.startswith(
        "ftcore: an observer failed at" if how == "stop" else "ftcore: warning: an observer failed at"
    )
    saved = sorted(path.name for path in (hooks.parent / "run" / "checkpoints").iterdir())
    assert saved == (["step-00000010"] if how == "stop" else ["step-00000010", "step-00000020"])
