"""Whatever the storage does while a run is saved, the checkpoint before or the new one is there.

    FTCORE_POWER_LOSSES=9000 uv run pytest -n 0 -m slow -s tests/faults/test_storage.py

takes so many states that a loss of power could leave, and prints how many could be gone on with.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve, frozen
from safetensors import SafetensorError
from safetensors.torch import load_file

from ftcore import EpochEnded, UserError
from ftcore.checkpoints import atomic
from ftcore.checkpoints.checkpoint import checkpoint_dir
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.folder import RunFolder, open_run_folder
from ftcore.runs.prepared import prepare
from ftcore.training.state import EpochProgress, Progress

from .storage import Dead, Disk, lay_out, record, written_to

if TYPE_CHECKING:
    from pathlib import Path

POWER_LOSSES = int(os.environ.get("FTCORE_POWER_LOSSES", "2000"))
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES)


@frozen
class Saving:
    """A run whose first epoch is saved, and that can save its second again and again.

    Attributes:
        folder: of the run.
        calls: that the second takes.
    """

    folder: RunFolder
    calls: int

    def copy(self, path: Path) -> Saving:
        shutil.copytree(self.folder.path, path)
        return evolve(self, folder=evolve(self.folder, path=path))

    def save(self, epoch: int = 2) -> None:
        """Do what is done at the end of an epoch; it is the best."""
        metrics = {"loss": 1.0 / epoch, "accuracy": 0.5 + epoch / 10}
        event = EpochEnded(epoch, 10 * epoch, {"loss": 1.0}, metrics, True, "accuracy", 1.0, 100.0)  # noqa: FBT003
        progress = Progress(epoch=epoch, current=EpochProgress(), step=10 * epoch, best={"epoch": epoch, **metrics})
        self.folder.save_epoch(event, progress)
        target = checkpoint_dir(self.folder.checkpoints, progress.step)
        self.folder.write(self.folder.capture(progress, copy=False), target)

    def epochs(self) -> tuple[int, int]:
        """Return the epochs of the checkpoint that is gone on with, and of the model, both of which are whole."""
        model = atomic.resolve_current(self.folder.path / "model")
        described = (model / "model.json").read_text()
        load_file(model / "model.safetensors")
        return self.folder.resume().epoch, 1 if '"epoch": 1' in described else 2


@pytest.fixture(scope="module")
def saving(tmp_path_factory: pytest.TempPathFactory) -> Saving:
    ready = prepare(load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=("ema",), sets=("run.keep=1",))))
    path = tmp_path_factory.mktemp("storage") / "run"
    path.mkdir()
    saving = Saving(open_run_folder(evolve(ready, folder=path)), 0)
    saving.save(1)
    with written_to(Disk(path.with_name("count"))) as disk:
        copy = saving.copy(disk.root)
        before = len(disk.calls)
        copy.save()
    return evolve(saving, calls=len(disk.calls) - before)


def test_a_process_that_dies_at_any_call_leaves_the_old_checkpoint_or_the_new(saving: Saving, tmp_path: Path) -> None:
    found = []
    for at in range(saving.calls):
        copy = saving.copy(tmp_path / str(at))
        with pytest.raises(Dead), written_to(Disk(copy.folder.path, at)):
            copy.save()

        found.append(copy.epochs())
        copy.save()  # as the run that goes on does
        assert copy.epochs() == (2, 2)
        assert not list(copy.folder.path.rglob(".[!l]*"))

    print(f"{len(found)} of {len(found)} calls: {sum(epoch == 1 for epoch, _ in found)} old, the rest new")  # noqa: T201
    assert saving.calls > 25
    assert {epoch for epoch, _ in found} == {1, 2}
    assert [epoch for epoch, _ in found] == sorted(epoch for epoch, _ in found)
    assert [epoch for _, epoch in found] == sorted(epoch for _, epoch in found)


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_call_that_fails_is_said_and_costs_no_checkpoint(
    saving: Saving, tmp_path: Path, error: int, *, for_ever: bool
) -> None:
    for at in range(saving.calls):
        copy = saving.copy(tmp_path / str(at))
        message = ""
        with written_to(Disk(copy.folder.path, at, error, for_ever)) as disk:
            try:
                copy.save()
            except UserError as told:
                message = str(told)

        failed = disk.calls[at]
        if message:
            assert os.strerror(error) in message, failed
            assert str(copy.folder.path) in message
            assert " bytes are free" in message
        else:  # what is left is only litter
            assert ".old-" in failed[1], failed
            assert copy.epochs() == (2, 2)
        assert copy.epochs()[0] in {1, 2}
        copy.save()
        assert copy.epochs() == (2, 2)


@pytest.mark.slow
def test_a_loss_of_power_leaves_the_old_checkpoint_or_the_new(saving: Saving, tmp_path: Path) -> None:
    copy = saving.copy(tmp_path / "run")
    tape = record(copy.folder.path, copy.save)
    dice, old = random.Random(0), 0

    for number in range(POWER_LOSSES):
        lay_out(tape.left(dice.randint(0, tape.length), dice), tmp_path / str(number))
        left = evolve(copy, folder=evolve(copy.folder, path=tmp_path / str(number)))
        old += left.epochs()[0] == 1
        shutil.rmtree(left.folder.path)

    print(f"{POWER_LOSSES} of {POWER_LOSSES} states: {old} old, the rest new")  # noqa: T201
    assert 0 < old < POWER_LOSSES


def test_after_the_last_call_a_loss_of_power_costs_nothing(saving: Saving, tmp_path: Path) -> None:
    copy = saving.copy(tmp_path / "run")
    tape = record(copy.folder.path, copy.save)

    for number in range(20):
        lay_out(tape.left(tape.length, random.Random(number)), tmp_path / str(number))
        left = evolve(copy, folder=evolve(copy.folder, path=tmp_path / str(number)))
        assert left.epochs() == (2, 2)


@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_without_fsync_a_loss_of_power_would_cost_the_checkpoints(
    saving: Saving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """The proof that the two tests above can fail."""
    real: Any = atomic.fsync
    monkeypatch.setattr(atomic, "fsync", lambda p: None if p.is_dir() == (forgotten == "folder") else real(p))
    copy = saving.copy(tmp_path / "run")
    tape = record(copy.folder.path, copy.save)

    lost = 0
    for number in range(60):
        lay_out(tape.left(tape.length, random.Random(number)), tmp_path / str(number))
        left = evolve(copy, folder=evolve(copy.folder, path=tmp_path / str(number)))
        try:
            lost += left.epochs() != (2, 2)
        except (UserError, OSError, ValueError, SafetensorError):
            lost += 1

    assert lost > 0
