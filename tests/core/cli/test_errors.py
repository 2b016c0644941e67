from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ftcore.testing import invoke

if TYPE_CHECKING:
    from pathlib import Path

HINT = "ftcore: frames above the plugin's are hidden; show them with --traceback\n"

RAISES = """
from ftcore import hookimpl

@hookimpl
def make_loss():
    return look_up({})

def look_up(table):
    return table["gamma"]
"""

WRAPS = """
from ftcore import hookimpl

@hookimpl(wrapper=True)
def make_loss():
    yield
    raise KeyError("gamma")
"""

MADE = """
from ftcore import hookimpl

class Loss:
    def __init__(self):
        raise KeyError("gamma")

    @hookimpl
    def make_loss(self):
        return None
"""

CALLS_TORCH = """
import torch
from ftcore import hookimpl

@hookimpl
def make_loss():
    return torch.nn.functional.cross_entropy(torch.zeros(2, 3), torch.zeros(5, dtype=torch.long))
"""

NOT_ENTERED = """
from functools import lru_cache
from ftcore import hookimpl

@hookimpl
@lru_cache
def make_loss(config):
    return None
"""


@pytest.fixture(autouse=True)
def _excepthook_is_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python's own be in place before each test, and after it what was there before."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def hooks_file(folder: Path, text: str) -> Path:
    """Write a plugin whose name no other test uses."""
    file = folder / "gamma_hooks.py"
    file.write_text(text, encoding="utf-8")
    return file


def shown(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Return what Python prints of the error that a command ends with."""
    with pytest.raises(Exception, match=r".") as caught:
        invoke(*words)
    sys.excepthook(type(caught.value), caught.value, caught.tb)
    return capsys.readouterr().err


def frames(text: str) -> list[tuple[str, str]]:
    """File and function of each frame of a traceback."""
    return re.findall(r'^  File ".*?([^/"]+)", line \d+, in (\S+)$', text, re.MULTILINE)


@pytest.mark.parametrize(
    ("plugin", "own"),
    [(RAISES, ["make_loss", "look_up"]), (WRAPS, ["make_loss"]), (MADE, ["__init__"])],
    ids=["hook", "wrapper", "class"],
)
def test_of_an_error_that_a_plugin_raises_only_its_own_frames_are_shown(
    plugin: str, own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = hooks_file(tmp_path, plugin)

    text = shown(capsys, "explain", "--plugin", f"{file}:Loss" if plugin is MADE else file)

    assert text.startswith("Traceback (most recent call last):\n")
    assert frames(text) == [("gamma_hooks.py", function) for function in own]
    assert re.search(r"^KeyError: 'gamma'\nraised by plugin '?gamma_hooks'? \(.*make_loss|made.*\n", text, re.MULTILINE)
    assert text.endswith(HINT)


def test_frames_of_what_the_plugin_calls_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "explain", "--plugin", hooks_file(tmp_path, CALLS_TORCH))

    assert frames(text) == [("gamma_hooks.py", "make_loss"), ("functional.py", "cross_entropy")]
    assert text.endswith(HINT)


@pytest.mark.parametrize("words", [("--traceback", "explain"), ("explain", "--traceback")], ids=" ".join)
def test_all_frames_are_shown_if_asked_for(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, *words, "--plugin", hooks_file(tmp_path, RAISES))

    assert "_multicall" in [function for _, function in frames(text)]
    assert frames(text)[-1] == ("gamma_hooks.py", "look_up")
    assert "raised by plugin gamma_hooks" in text
    assert "--traceback" not in text


def test_all_frames_are_shown_where_the_plugin_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "explain", "--plugin", hooks_file(tmp_path, NOT_ENTERED))

    assert "_multicall" in [function for _, function in frames(text)]
    assert "TypeError: unhashable type" in text
    assert "--traceback" not in text


def test_an_error_that_no_plugin_had_a_part_in_is_shown_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown(capsys, "explain", "--plugin", hooks_file(tmp_path, RAISES))

    with pytest.raises(ZeroDivisionError, match="zero") as caught:
        1 / 0  # noqa: B018 - it raises
    sys.excepthook(type(caught.value), caught.value, caught.tb)

    text = capsys.readouterr().err
    assert frames(text) == [("test_errors.py", "test_an_error_that_no_plugin_had_a_part_in_is_shown_whole")]
    assert "--traceback" not in text


@pytest.mark.slow
def test_the_process_ends_with_that_text_and_exit_code_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ftcore", "explain", "--plugin", str(hooks_file(tmp_path, RAISES))]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert frames(done.stderr) == [("gamma_hooks.py", "make_loss"), ("gamma_hooks.py", "look_up")]
    assert done.stderr.endswith(HINT)
