"""A run folder is held by one process, and by none of its children."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from ftcore import UserError
from ftcore.runs.lock import LOCK, is_locked, lock_run_folder

if TYPE_CHECKING:
    from pathlib import Path

FORKING = """
import os, sys, time
from pathlib import Path
from ftcore.runs.lock import lock_run_folder

with lock_run_folder(Path(sys.argv[1])):
    for last in (False, True):
        child = os.fork()
        if not child:
            if last:
                print(os.getpid(), flush=True)
                time.sleep(60)
            break
        last or os.waitpid(child, 0)
    else:
        time.sleep(60)
"""
"""Holds a folder, lets one child leave the block, and keeps another, which says that it has come to life."""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", FORKING, str(tmp_path)], stdout=subprocess.PIPE, text=True)


def test_a_forked_child_neither_releases_a_lock_nor_keeps_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with holder:
        assert holder.stdout
        child = int(holder.stdout.readline())
        try:
            assert is_locked(tmp_path)  # although a child has left the block
            holder.kill()
            holder.wait()
            os.kill(child, 0)  # it lives
            assert not is_locked(tmp_path)
            with lock_run_folder(tmp_path):
                pass
        finally:
            holder.kill()
            os.kill(child, signal.SIGKILL)


def test_a_second_hold_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    with (
        lock_run_folder(tmp_path),
        pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on .* since {time.strftime('%Y')}-"),
        lock_run_folder(tmp_path),
    ):
        pass
    with lock_run_folder(tmp_path):
        pass


@pytest.fixture
def _no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, as NFS without its lock service."""

    def refuse(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("_no_locks")
def test_without_locks_of_the_file_system_a_file_stands_for_one_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not is_locked(tmp_path)
    with lock_run_folder(tmp_path):
        assert is_locked(tmp_path)
        assert "the file system does not support locks" in "".join(capsys.readouterr())
        with (
            pytest.raises(
                UserError,
                match=rf"is in use by process {os.getpid()} on .*does not support locks.*remove .*\.lock\.held",
            ),
            lock_run_folder(tmp_path),
        ):
            pass
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    with lock_run_folder(tmp_path):
        pass


def test_to_look_at_a_lock_changes_nothing_of_it(tmp_path: Path) -> None:
    with lock_run_folder(tmp_path):
        pass
    file = tmp_path / LOCK
    before = file.read_bytes(), file.stat().st_mtime_ns

    assert not is_locked(tmp_path)

    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert before[0]
