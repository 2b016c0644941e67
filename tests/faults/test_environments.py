"""Clocks, limits, users and networks as they can be: a run ends in the same bits, or says what is wrong and loses none.

Each case changes a process of its own; the machine's clock is never set.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from ftcore import StepLogged
from ftcore.checkpoints import manifest
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.run import fit
from ftcore.testing import invoke

from . import environments
from .disks import may_mount
from .environments import within
from .killing import result, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftcore import Event

SETS = (
    "train.epochs=2",
    "train.batch_size=96",
    "train.log_every=1",
    "train.threads=1",
    "run.save_every=1 step",
    "run.keep=99",
)
STEPS = 8
"""Of such a run, each of which is saved."""
DIGITS = ("--data", "digits:5-6", "--model", "digits/cnn")
AS_ROOT = pytest.mark.skipif(not may_mount(), reason="needs root")


def words(folder: Path, *sets: str) -> list[Any]:
    return ["run", *DIGITS, *(word for text in (*SETS, f"run.folder={folder}", *sets) for word in ("--set", text))]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves where nothing is strange."""
    folder = tmp_path_factory.mktemp("expected") / "run"
    assert invoke(*words(folder)).code == 0
    return result(folder)


def check_times(run: Path) -> None:
    for line in (run / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        assert event["seconds"] >= 0
        assert event["samples_per_second"] >= 0 or math.isnan(event["samples_per_second"])


CLOCKS: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
    "set back by an hour": (environments.clock_set_by, (-3600.0,)),
    "set ahead by an hour": (environments.clock_set_by, (3600.0,)),
    "runs backwards": (environments.clock_that_runs_backwards, ()),
    "twenty years back": (environments.clock_off_by, (-20,)),
    "twenty years ahead": (environments.clock_off_by, (20,)),
    "at 1970": (environments.clock_at_1970, ()),
    "stands still": (environments.clocks_that_stand_still, ()),
    "skips days": (environments.clock_that_skips_days, ()),
    "an hour that comes twice": (environments.hour_that_comes_twice, ()),
    "fourteen hours ahead of Greenwich": (environments.zone, ("Pacific/Kiritimati",)),
    "twelve hours behind": (environments.zone, ("Etc/GMT+12",)),
    "no such zone": (environments.zone, ("Nowhere/At_All",)),
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_whatever_the_clock_shows_a_run_and_its_rest_end_in_the_same_bits(
    clock: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    change, run = CLOCKS[clock], tmp_path / "run"
    whole = within(*change, words(run), tmp_path / "report")
    found = result(run)
    steps = sorted((run / "checkpoints").iterdir())
    for step in steps[-3:]:
        shutil.rmtree(step)
    for place, step in enumerate(steps[:-3]):
        os.utime(step, (10**9 - place, 10**9 - place))  # the oldest was written last, says the file system

    rest = within(*change, ["resume", run], tmp_path / "report")

    assert (whole["code"], rest["code"]) == (0, 0), (whole["err"], rest["err"])
    assert found == expected
    assert result(run) == expected
    check_times(run)


def test_where_days_are_skipped_a_run_that_is_saved_every_hour_is_saved_after_each_step(tmp_path: Path) -> None:
    answer = within(*CLOCKS["skips days"], words(tmp_path / "run", "run.save_every=60 minutes"), tmp_path / "report")

    assert answer["code"] == 0, answer["err"]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == STEPS


LIMITS: dict[str, tuple[Callable[..., None], tuple[object, ...], tuple[str, ...], str]] = {
    "64 open files": (environments.limit, (resource.RLIMIT_NOFILE, 64), (), ""),
    "64 open files, two workers": (environments.limit, (resource.RLIMIT_NOFILE, 64), ("train.workers=2",), ""),
    "12 open files, two workers": (
        environments.limit,
        (resource.RLIMIT_NOFILE, 12),
        ("train.workers=2",),
        "Too many open files",
    ),
    "files of 100 kB": (environments.limit, (resource.RLIMIT_FSIZE, 100_000), (), "File too large"),
    "no core files": (environments.limit, (resource.RLIMIT_CORE, 0), (), ""),
    "no memory": (environments.little_memory, (2_000_000,), (), "memory"),
    "a stack of 256 kB": (environments.limit, (resource.RLIMIT_STACK, 256_000), (), ""),
    "one second more of the processor": (environments.limit, (resource.RLIMIT_CPU, 3600), (), ""),
}
"""Limit -> how it is set, settings of the run, and what the run says of it; nothing where it ends as ever."""


@pytest.mark.parametrize("name", LIMITS)
def test_a_run_within_limits_ends_in_the_same_bits_or_says_which_limit_it_is(
    name: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    change, arguments, sets, message = LIMITS[name]
    run = tmp_path / "run"

    answer = within(change, arguments, words(run, *sets), tmp_path / "report")

    if not message:
        assert answer["code"] == 0, answer["err"]
        assert result(run) == expected
        return
    assert answer["code"] == 2, answer["err"]
    assert message in answer["err"]
    assert "Traceback" not in answer["err"]
    assert all(not manifest.find_damage(step) for step in (run / "checkpoints").glob("step-*"))
    if not run.exists():
        return
    gone_on = invoke("resume", run)
    assert gone_on.code == 0, gone_on.err
    assert result(run) == expected


PLACES: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "no home": (environments.variables, {"HOME": None, "XDG_CACHE_HOME": None}),
    "a home that is not there": (environments.variables, {"HOME": "/nowhere", "XDG_CACHE_HOME": None}),
    "ASCII": (environments.variables, {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}),
    "a terminal of one column": (environments.variables, {"COLUMNS": "1", "LINES": "1"}),
    "no colours and no terminal": (environments.variables, {"TERM": "dumb", "NO_COLOR": "1"}),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_around_a_process_changes_no_bit(place: str, expected: dict[str, Any], tmp_path: Path) -> None:
    change, values = PLACES[place]
    run = tmp_path / "run"

    answer = within(_with, (change, values), words(run), tmp_path / "report")

    assert answer["code"] == 0, answer["err"]
    assert result(run) == expected


def _with(change: Callable[..., None], values: dict[str, Any]) -> None:
    change(**values)


def test_a_process_whose_folder_is_gone_says_so(tmp_path: Path) -> None:
    answer = within(environments.in_a_folder_that_is_gone, (), words(tmp_path / "run"), tmp_path / "report")

    assert answer == {"code": 2, "err": "ftcore: the current folder no longer exists; cd to another one\n"}


@pytest.mark.slow
@AS_ROOT
def test_without_a_network_every_command_works(expected: dict[str, Any], tmp_path: Path) -> None:
    run, picture = tmp_path / "run", tmp_path / "seven.png"
    Image.new("L", (8, 8), 128).save(picture)
    commands: list[list[object]] = [
        words(run),
        ["resume", run],
        ["evaluate", run],
        ["predict", run, picture],
        ["run", "--from", run, "--set", f"run.folder={tmp_path / 'again'}"],
        ["explain", *DIGITS],
        ["plugins"],
        ["models", "digits*"],
        ["inspect", "torchvision/resnet18"],
        ["check", "digits:5-6"],
        ["find", "lr", *DIGITS],
    ]

    answers = [within(environments.without_a_network, (), command, tmp_path / "report") for command in commands]

    assert [answer["err"] for answer in answers if answer["code"]] == []
    assert result(run) == expected


@AS_ROOT
def test_weights_that_are_not_here_are_named_where_there_is_no_network(tmp_path: Path) -> None:
    model = ["--data", "digits:5-6", "--model", "torchvision/mobilenet_v3_small"]

    answer = within(_offline_and_empty, (str(tmp_path / "cache"),), ["run", *model], tmp_path / "report")

    assert answer["code"] == 2, answer["err"]
    assert "torchvision/mobilenet_v3_small" in answer["err"]
    assert "model.weights" in answer["err"]
    assert "Traceback" not in answer["err"]


def _offline_and_empty(cache: str) -> None:
    environments.without_a_network()
    environments.variables(HF_HOME=cache, HF_HUB_CACHE=cache, TORCH_HOME=cache)


def count(folder: str) -> int:
    return len(list(Path(folder).iterdir()))


def megabytes() -> float:
    """Memory of this process that is not in a file."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1000


@pytest.mark.slow
@pytest.mark.machine
def test_a_long_run_takes_no_more_of_the_machine_as_it_goes(tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []

    def look(event: Event) -> None:
        if isinstance(event, StepLogged):
            seen.append((count("/proc/self/fd"), count("/proc/self/task"), megabytes()))

    sets = ("train.epochs=60", "train.batch_size=8", "train.log_every=5", f"run.folder={tmp_path / 'run'}")
    fit(load_config(None, CliOverrides("digits/cnn", "digits:5-6", sets=(*sets, "train.threads=1"))), [look])

    files, threads, memory = zip(*seen[20:], strict=True)
    assert len(files) > 300
    assert (len(set(files)), len(set(threads))) == (1, 1)
    assert memory[-1] - memory[0] < 10


@pytest.mark.machine
def test_a_run_that_is_killed_holds_nothing_of_the_machine(tmp_path: Path) -> None:
    before = set(Path("/dev/shm").iterdir())
    process = start(*words(tmp_path / "run", "train.epochs=50", "train.workers=2"), log=tmp_path / "log")
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        process.join(0.05)
        assert process.exitcode is None
    group = os.getpgid(process.pid or 0)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(30)

    assert _ended(group)
    assert set(Path("/dev/shm").iterdir()) <= before


def _ended(group: int) -> bool:
    """Whether all of a process group are gone within ten seconds."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
