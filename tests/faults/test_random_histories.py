"""Whatever happens to a run folder, in whatever order: what was to be kept is there, and the bits are the same.

    FTCORE_HISTORIES=1000 uv run pytest -n 0 -m slow -s tests/faults/test_random_histories.py

makes up so many histories, other ones each time, and prints how many ended well; one that does not is made as short as
can be. CI has a few, always the same.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ftcore import CheckpointSaved, RunStarted, StepLogged, UserError
from ftcore.checkpoints import atomic, checkpoint
from ftcore.checkpoints.atomic import resolve_current
from ftcore.checkpoints.manifest import find_damage
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.folder import RunFolder
from ftcore.runs.lock import LOCK
from ftcore.runs.run import fit, resume
from ftcore.system.signals import StoppedBySignal

from .killing import result
from .storage import Dead, Disk, written_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftcore import Event

HISTORIES = int(os.environ.get("FTCORE_HISTORIES", "0"))
USUAL = 12
"""Histories that CI looks at."""
KEEP, STEPS = 2, 10
"""Checkpoints that a run promises to keep; its steps: two epochs of five, saved after every second."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WORKERS = st.sampled_from([0, 0, 0, 2])


def config(folder: Path, *sets: str) -> Any:
    settings = ("train.epochs=2", "train.batch_size=60", "train.log_every=1", "run.save_every=2 steps")
    flags = (*settings, f"run.keep={KEEP}", f"run.folder={folder}", *sets)
    return load_config(
        None, CliOverrides("digits/cnn", "digits:5-6", plugins=("ema",), without=("progress",), sets=flags)
    )


def content(folder: Path) -> dict[Path, bytes]:
    """Return what is in a folder, but for its user, and the page, which a killed process leaves behind."""
    left_out = {LOCK, "report.html", "report.json"}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in left_out]
    return {path: path.read_bytes() for path in files}


@define
class Watching:
    """What a process of a run says.

    Attributes:
        step: after which it goes on.
        steps: that it has done.
        saved: steps after which it has saved.
        acts: number of a step of this process, from 1 -> what happens then.
    """

    acts: dict[int, Callable[[], None]] = field(factory=dict)
    step: int = -1
    steps: int = 0
    saved: list[int] = field(factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.step = event.step
        elif isinstance(event, CheckpointSaved):
            self.saved.append(event.step)
        elif isinstance(event, StepLogged):
            self.steps += 1
            self.acts.get(self.steps, lambda: None)()


def sending(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


class Histories(RuleBasedStateMachine):
    """A run folder, and what happens to it."""

    root: Path
    bits: dict[str, Any]
    at_step: dict[int, bytes]
    histories = happened = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.root)) / "run"
        self.kept: set[int] = set()
        type(self).histories += 1

    def teardown(self) -> None:
        shutil.rmtree(self.folder.parent)

    # ------------------------------------------------------------------ what can be seen

    def whole(self) -> dict[int, Path]:
        """Return the whole checkpoints, with those that a process was killed replacing."""
        names = {path.name for path in (self.folder / "checkpoints").glob("step-*")}
        names |= {path.name[5:-9] for path in (self.folder / "checkpoints").glob(".old-step-*")}
        stand = (resolve_current(self.folder / "checkpoints" / name) for name in names)
        return {
            int(path.name.split("-")[1 + path.name.startswith(".old")]): path for path in stand if not find_damage(path)
        }

    @property
    def newest(self) -> int:
        return max(self.whole(), default=0)

    @invariant()
    def what_was_promised_to_be_kept_is_there(self) -> None:
        type(self).happened += 1
        found = self.whole()
        assert set(sorted(self.kept | found.keys())[-KEEP:]) <= found.keys()
        for step, path in found.items():
            assert (path / "model.safetensors").read_bytes() == self.at_step[step]
        self.kept = set(found)

    # ------------------------------------------------------------------ a process

    def go(self, acts: dict[int, Callable[[], None]] | None = None, workers: int = 0) -> Watching:
        """Begin the run or go on with it, and let things happen behind some of its steps."""
        before, watching, sets = self.newest, Watching(acts or {}), f"train.workers={workers}"
        try:
            if (self.folder / "manifest.json").exists():
                resume(self.folder, [sets], [watching])
            else:  # its process died before it had begun
                shutil.rmtree(self.folder, ignore_errors=True)
                fit(config(self.folder, sets), [watching])
        finally:
            assert watching.step in {-1, before}
            self.kept |= set(watching.saved)
        return watching

    @initialize(steps=st.integers(1, STEPS), workers=WORKERS)
    def begin(self, steps: int, workers: int) -> None:
        self.stop(steps, signal.SIGTERM, workers)

    @rule(steps=st.integers(1, 6), how=st.sampled_from(ENDING), workers=WORKERS)
    def stop(self, steps: int, how: signal.Signals, workers: int) -> None:
        wanted, told = min(self.newest + steps, STEPS), int(how)
        try:
            self.go({steps: sending(how)}, workers)
        except StoppedBySignal as stopped:
            told = stopped.number
        assert told == how
        assert self.newest == wanted

    @rule(call=st.integers(0, 160), workers=WORKERS)
    def die(self, call: int, workers: int) -> None:
        """Be killed at one of the calls that write."""
        self.killed(Disk(self.folder, call), {}, workers)

    @rule(steps=st.integers(1, 4))
    def save_and_die_in_the_next_step(self, steps: int) -> None:
        wanted, disk = min(self.newest + steps, STEPS), Disk(self.folder)

        def die() -> None:
            disk.at = 0
            raise Dead

        self.killed(disk, {steps: sending(signal.SIGUSR1), steps + 1: die}, 0)
        assert self.newest >= wanted

    def killed(self, disk: Disk, acts: dict[int, Callable[[], None]], workers: int) -> None:
        try:
            with written_to(disk):
                self.go(acts, workers)
        except Dead:
            pass

    @rule(workers=WORKERS)
    def end(self, workers: int) -> None:
        before, over = content(self.folder), self.newest == STEPS and not self.is_littered()
        watching = self.go({}, workers)
        assert result(self.folder) | {"checkpoints": 0} == self.bits
        assert not self.is_littered()
        if over and watching.step == STEPS and not watching.saved:
            assert content(self.folder) == before

    # ------------------------------------------------------------------ somebody else

    @precondition(lambda self: self.newest < STEPS - 1)
    @rule()
    def begin_another_in_the_same_folder(self) -> None:
        refused: list[str] = []

        def another() -> None:
            before = content(self.folder)
            begins: list[Callable[[], Any]] = [lambda: fit(config(self.folder)), lambda: resume(self.folder)]
            for begin in begins:
                with pytest.raises(UserError, match=f"{self.folder} (is in use by|exists and is not empty)") as told:
                    begin()
                refused.append(str(told.value))
            assert content(self.folder) == before
            os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(StoppedBySignal):
            self.go({1: another})
        assert len(refused) == 2

    @precondition(lambda self: len(self.whole()) > 1)
    @rule(how=st.sampled_from(["flip", "cut", "remove"]), file=st.integers(0, 5), place=st.floats(0, 1))
    def damage(self, how: str, file: int, place: float) -> None:
        files = sorted(self.whole()[self.newest].iterdir())
        path = files[file % len(files)]
        content = bytearray(path.read_bytes())
        at = min(int(place * len(content)), len(content) - 1)
        content[at] ^= 0x40
        path.write_bytes(bytes(content) if how == "flip" else bytes(content[:at]))
        if how == "remove":
            path.unlink()
        self.kept = set(self.whole())

    @rule(kind=st.sampled_from([".new-step-00000003-deadbeef", ".gone-step-00000001", ".new-model-deadbeef", "line"]))
    def leave_litter(self, kind: str) -> None:
        """Leave what a process leaves that is killed while it writes."""
        if not self.folder.exists():
            return
        if kind == "line":
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write('{"epoch": 3, "st')
            return
        litter = self.folder / ("" if "model" in kind else "checkpoints") / kind
        litter.mkdir(parents=True, exist_ok=True)
        (litter / "model.safetensors").write_bytes(b"half of it")

    def is_littered(self) -> bool:
        lines = self.folder / "metrics.jsonl"
        half_a_line = lines.exists() and not lines.read_text().endswith("\n") and lines.stat().st_size > 0
        return half_a_line or any(path.name != LOCK for path in self.folder.rglob(".*"))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> type[Histories]:
    folder = tmp_path_factory.mktemp("histories")
    fit(config(folder / "whole", "run.save_every=1 step", "run.keep=99"))
    steps = [checkpoint.checkpoint_dir(folder / "whole" / "checkpoints", step) for step in range(1, STEPS + 1)]
    Histories.root = folder
    Histories.bits = result(folder / "whole") | {"checkpoints": 0}
    Histories.at_step = {n: (step / "model.safetensors").read_bytes() for n, step in enumerate(steps, start=1)}
    return Histories


def explore(machine: type[Histories], histories: int, *, chance: bool = False) -> None:
    """Make up histories; only those of chance are made shorter, which takes time."""
    machine.histories = machine.happened = 0
    options = settings(
        max_examples=histories,
        stateful_step_count=8,
        derandomize=not chance,
        database=None,
        print_blob=True,
        phases=[Phase.generate, *([Phase.shrink] if chance else [])],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(machine, settings=options)


@pytest.mark.slow
@pytest.mark.timeout(600 + 20 * HISTORIES)
def test_whatever_happens_to_a_run_its_bits_and_what_it_keeps_stay(machine: type[Histories]) -> None:
    explore(machine, HISTORIES or USUAL, chance=bool(HISTORIES))

    print(  # noqa: T201
        f"{machine.histories} of {machine.histories} histories of kills, signals, damage, litter and second runs "
        f"({machine.happened} steps) are bitwise identical"
    )
    assert machine.histories >= (HISTORIES or USUAL)


def rotate_the_newest(newest: Path, _keep: int, _best: Path) -> None:
    if newest.name > "step-00000002":
        shutil.rmtree(newest)


BROKEN: dict[str, tuple[Any, str, Any]] = {
    "the newest is removed": (checkpoint, "prune_checkpoints", rotate_the_newest),
    "damage is not seen": (checkpoint, "find_damage", lambda _: ""),
    "lines are not cut": (RunFolder, "_truncate_metrics", lambda *_: None),
    "litter stays": (atomic, "recover_interrupted_writes", lambda _: None),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.slow
def test_what_is_broken_is_found(machine: type[Histories], monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """The proof that the test above can fail."""
    monkeypatch.setattr(*BROKEN[broken])

    with pytest.raises((AssertionError, UserError, ValueError)):  # a half line cannot be read
        explore(machine, USUAL)
