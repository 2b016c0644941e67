"""Pictures that are files: found, named, and counted."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from ftcore import DataError
from ftcore.config.load import CliOverrides, load_config
from ftcore.data.dataset import PackedStrings
from ftcore.data.files import SHOWN, ImageFiles, check_headers, file_version, scan_folders
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.testing import image_folder

if TYPE_CHECKING:
    from pathlib import Path


def files(root: Path, *paths: str) -> ImageFiles:
    return ImageFiles(root, PackedStrings.of(paths))


def test_folders_come_in_the_order_of_their_paths_with_sizes_and_what_is_left_out(tmp_path: Path) -> None:
    for folder in ("b", "a/z", "a/y"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "2.PNG").write_bytes(b"12")
        (tmp_path / folder / "1.jpg").write_bytes(b"1")
        (tmp_path / folder / "notes.txt").write_bytes(b"")

    found = [(folder.path, folder.pictures, folder.others) for folder in scan_folders(tmp_path)]

    full = [("1.jpg", 1), ("2.PNG", 2)]
    assert found == [("", [], 0), ("a", [], 0), ("a/y", full, 1), ("a/z", full, 1), ("b", full, 1)]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"cannot read folder {tmp_path}/gone: No such file or directory"):
        list(scan_folders(tmp_path / "gone"))


def test_a_file_is_read_and_named_by_its_path(tmp_path: Path) -> None:
    image_folder(tmp_path, ("cat",), per_class=2)
    found = files(tmp_path, "cat/0.jpg", "cat/1.jpg")

    assert len(found) == 2
    assert found.name(1) == str(tmp_path / "cat" / "1.jpg")
    assert found.read(0, None).size == (32, 24)


def test_a_stamp_changes_with_size_and_with_time(tmp_path: Path) -> None:
    picture = tmp_path / "0.jpg"
    picture.write_bytes(b"1")
    os.utime(picture, ns=(0, 5))
    found = files(tmp_path, "0.jpg")
    first = found.version(0)

    os.utime(picture, ns=(0, 6))
    later = found.version(0)
    picture.write_bytes(b"12")
    os.utime(picture, ns=(0, 6))

    assert (first, later, file_version(picture)) == ("1 5", "1 6", "2 6")
    with pytest.raises(DataError, match=r"cannot read image .*gone\.jpg: "):
        files(tmp_path, "gone.jpg").version(0)


def test_every_unreadable_header_is_counted_and_the_first_are_named(tmp_path: Path) -> None:
    names = [f"{number:02}.jpg" for number in range(SHOWN + 2)]
    for name in names:
        (tmp_path / name).write_text("no picture")

    with pytest.raises(DataError, match="12 of 12 images cannot be read") as caught:
        check_headers(files(tmp_path, *names), load_config(), "table.csv:{}".format)

    lines = str(caught.value).splitlines()
    assert [line.partition(" ")[0] for line in lines[:SHOWN]] == [f"table.csv:{row}:" for row in range(SHOWN)]
    assert f"cannot read image {tmp_path}/09.jpg" in lines[SHOWN - 1]
    assert lines[SHOWN] == "... and 2 more"
    assert lines[SHOWN + 1].startswith("12 of 12 images cannot be read; data.on_corrupt=skip skips")


def test_headers_are_left_to_the_decoding_where_that_is_asked_for(tmp_path: Path) -> None:
    check_headers(files(tmp_path, "gone.jpg"), load_config(None, CliOverrides(sets=["data.on_corrupt=skip"])))


def test_a_folder_is_listed_once_and_a_file_asked_for_its_state_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder(tmp_path, ("cat", "dog", "owl"), per_class=5)
    calls: Counter[str] = Counter()
    real_scan, real_stat = os.scandir, os.stat

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.entry = entry.name, entry

        def stat(self) -> os.stat_result:
            calls[f"state of {self.name}" if self.name.endswith(".jpg") else "state of a folder"] += 1
            return self.entry.stat()

    class Listing:
        def __init__(self, folder: Any) -> None:
            calls["listings"] += 1
            self.entries = real_scan(folder)

        def __enter__(self) -> map[Entry]:
            return map(Entry, self.entries)

        def __exit__(self, *error: object) -> None:
            self.entries.close()

    def counted_stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        calls["header check"] += str(path).endswith(".jpg")
        return real_stat(path, *arguments, **options)

    host = activate(load_config(None, CliOverrides("digits/cnn", str(tmp_path))))
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", Listing)
        patch.setattr(os, "stat", counted_stat)
        data = HookCalls(host).build_data(str(tmp_path))

    assert len(data.train) + len(data.val) == 15
    assert calls["listings"] == 4
    assert [calls[f"state of {number}.jpg"] for number in range(5)] == [3] * 5
    assert calls["header check"] <= 15
