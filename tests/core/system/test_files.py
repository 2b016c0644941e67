"""A file that somebody else wrote is read in bounded time and memory, and nothing is written through a link."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from ftcore import UserError
from ftcore.system.files import open_text, read_json, read_text, read_toml, refuse_links

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

JSON = {
    "lists in lists": "[" * 200_000,
    "objects in objects": '{"a":' * 200_000,
    "an integer of a million digits": "1" * 1_000_000,
    "a number that is infinite": "1e999",
    "NaN": "NaN",
    "a text without an end": '"' + r"\"" * 1_000_000,
    "no JSON": "{",
    "17 MB": " " * (17 * 2**20),
}
TOML = {
    "lists in lists": "a = " + "[" * 200_000,
    "tables in tables": "a = " + "{a=" * 20_000,
    "an integer of 5000 digits": "a = " + "1" * 5000,
    "an integer of 5000 digits with underscores": "a = " + "1_" * 5000 + "1",
    "a float that is infinite": "a = 1e999",
    "a float that is called infinite": "a = inf",
    "a key of 100,000 parts": ".".join("a" * 100_000) + " = 1",
    "a table of 100,000 parts": "[" + ".".join("a" * 100_000) + "]",
    "two MB": "#" * 2_000_000,
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_would_take_long_is_refused_at_once(tmp_path: Path, name: str) -> None:
    refused(tmp_path / "model.json", JSON[name], read_json)


@pytest.mark.parametrize("name", TOML)
def test_toml_that_would_take_long_is_refused_at_once(tmp_path: Path, name: str) -> None:
    refused(tmp_path / "config.toml", TOML[name], read_toml)


def refused(file: Path, text: str, read: Callable[[Path], object]) -> None:
    file.write_text(text)
    begun = time.process_time()
    with pytest.raises(UserError, match=f"cannot read {file}: ") as caught:
        read(file)
    assert time.process_time() - begun < 2
    assert len(str(caught.value)) < 1000


def test_no_fifo_device_folder_or_link_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "file")

    for name in ("fifo", "zero", "folder", "link"):
        with pytest.raises(UserError, match=f"cannot read {tmp_path / name}: "):
            read_json(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nothing")
    assert read_text(tmp_path / "link", follow=True) == "{}"


def test_ordinary_files_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ["]", "\\"[", 1, -2.5e3], "b": null}')
    (tmp_path / "a.toml").write_text('a = ["]", "[[[", 1_000, 2.5]\n[b.c]\nd = 1 # "\n')

    assert read_json(tmp_path / "a.json") == {"a": ["]", '"[', 1, -2500.0], "b": None}
    assert read_toml(tmp_path / "a.toml") == {"a": ["]", "[[[", 1000, 2.5], "b": {"c": {"d": 1}}}


@pytest.mark.parametrize("mode", ["a", "w"])
def test_nothing_is_written_through_a_link_or_to_a_fifo(tmp_path: Path, mode: str) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to("victim")
    (tmp_path / "new").symlink_to("not there")
    os.mkfifo(tmp_path / "fifo")

    for name in ("link", "new", "fifo"):
        with pytest.raises(OSError, match=name):
            open_text(tmp_path / name, mode)
        with pytest.raises(UserError, match="a run folder must not contain one"):
            refuse_links(tmp_path)
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "not there").exists()


def test_a_file_is_written_anew_or_appended_to(tmp_path: Path) -> None:
    for mode in ("w", "a", "w", "a"):
        with open_text(tmp_path / "file", mode) as file:
            file.write(f"{mode}é")

    assert (tmp_path / "file").read_text(encoding="utf-8") == "wéaé"
    refuse_links(tmp_path)
