"""Run folders of others: pipes, devices and links in them cost neither time nor files of the user."""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from ftcore.testing import invoke

if TYPE_CHECKING:
    from pathlib import Path

FILES = ("manifest.json", "metrics.jsonl", "log.jsonl", ".lock", "model/model.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "good"
    done = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", "--epochs", "1", "--out", folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A folder with a good run and one to be spoilt."""
    for name in ("good", "spoilt"):
        shutil.copytree(made, tmp_path / "runs" / name)
    return tmp_path / "runs"


@pytest.mark.parametrize("kind", ["pipe", "endless device", "deep JSON"])
@pytest.mark.parametrize("name", FILES)
def test_a_spoilt_run_does_not_end_the_list_nor_take_long(runs: Path, name: str, kind: str) -> None:
    file = runs / "spoilt" / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "endless device":
        file.symlink_to("/dev/zero")
    else:
        file.write_text("[" * 100_000 + "]" * 100_000)
    began = time.monotonic()

    found = invoke("runs", runs, "--json")

    assert time.monotonic() - began < 10  # 2 s on a machine of its own
    assert found.code == 0, found.err
    listed = {run["folder"].rpartition("/")[2]: run for run in json.loads(found.out)}
    assert listed["good"]["state"] == "finished"
    assert "spoilt" in listed


@pytest.mark.parametrize("command", ["resume", "report"])
@pytest.mark.parametrize("name", [".lock", "log.jsonl", "metrics.jsonl", "report.html", "checkpoints"])
def test_nothing_is_written_through_a_link_in_a_run_folder(runs: Path, name: str, command: str) -> None:
    victim, run = runs.parent / "victim", runs / "spoilt"
    victim.write_text("mine")
    file = run / name
    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    file.symlink_to(victim)

    done = invoke(command, run)

    assert victim.read_text() == "mine"
    assert done.code == 2
    assert f"{file} is a symbolic link" in done.err
