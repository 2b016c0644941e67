"""What is kept between runs is seen by the user alone, believed only with the user's seal, and never needed."""

from __future__ import annotations

import hmac
import os
import stat
import sys
from typing import TYPE_CHECKING

import platformdirs
import pytest

from ftcore.system import user_cache

if TYPE_CHECKING:
    from pathlib import Path

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def made() -> Path:
    folder = user_cache.cache_folder("pixels", "a")
    assert folder
    return folder


def test_folders_and_files_are_the_users_alone_whatever_the_umask(home: Path) -> None:
    before = os.umask(0)
    try:
        folder = made()
        user_cache.write_all(folder / "file", b"1")
        os.close(user_cache.open_private(folder / "other", os.O_RDWR | os.O_CREAT))
    finally:
        os.umask(before)

    assert folder == home / "cache" / "ftcore" / "pixels" / "a"
    assert [mode(path) for path in (folder, folder.parent, folder.parent.parent)] == [0o700] * 3
    assert [mode(path) for path in sorted(folder.iterdir())] == [0o600] * 2


def test_what_others_could_read_before_is_closed_to_them() -> None:
    folder = made()
    file = folder / "file"
    file.write_bytes(b"1")
    file.chmod(0o666)
    folder.chmod(0o777)

    made()
    assert user_cache.read_all(file, 10) == b"1"

    assert (mode(folder), mode(file)) == (0o700, 0o600)


@ROOT
def test_what_belongs_to_somebody_else_is_refused(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    file = made() / "file"
    file.write_bytes(b"1")
    os.chown(file, 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to user 12345, not to 0"):
        user_cache.read_all(file, 10)

    os.chown(home / "cache" / "ftcore" / "pixels", 12345, 12345)
    assert user_cache.cache_folder("pixels", "a") is None
    assert user_cache.cache_folder("pixels", "a") is None
    assert "".join(capsys.readouterr()).count("belongs to user 12345") == 1


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_a_pipe_in_the_place_of_a_file_is_refused_at_once(kind: str, home: Path) -> None:
    file = made() / "file"
    if kind == "link":
        (home / "victim").write_bytes(b"untouched")
        file.symlink_to(home / "victim")
    else:
        os.mkfifo(file)

    with pytest.raises(OSError):  # noqa: PT011 - each system says it in its own way
        user_cache.read_all(file, 10)
    with pytest.raises(OSError):  # noqa: PT011
        os.close(user_cache.open_private(file, os.O_WRONLY | os.O_CREAT))


@pytest.mark.parametrize("place", ["/proc", "/dev/null"])
def test_a_cache_folder_that_can_be_none_is_a_warning(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    monkeypatch.setattr(user_cache, "_warned", set())

    assert user_cache.cache_folder("pixels") is None
    assert "this cache is not used" in "".join(capsys.readouterr())


def test_a_seal_is_an_hmac_of_the_users_key_and_of_where_each_part_ends() -> None:
    key = user_cache.user_key()
    file = platformdirs.user_config_path("ftcore") / "cache.key"

    message = (2).to_bytes(8, "big") + b"ab" + (1).to_bytes(8, "big") + b"c"
    assert user_cache.seal(b"ab", b"c") == hmac.digest(key, message, "sha256")[:16]
    assert user_cache.seal(b"ab", b"c") != user_cache.seal(b"a", b"bc")
    assert user_cache.seal(b"ab", key=bytes(32)) != user_cache.seal(b"ab")
    assert (file.read_bytes(), mode(file), len(key)) == (key, 0o600, 32)


def test_a_key_that_cannot_be_kept_is_one_of_this_process_after_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null")
    user_cache._key.cache_clear()

    assert user_cache.seal(b"a") == user_cache.seal(b"a")
    assert "".join(capsys.readouterr()).count("their key is missing") == 1
    user_cache._key.cache_clear()


def test_a_file_larger_than_it_can_be_is_refused(home: Path) -> None:
    user_cache.write_all(made() / "file", bytes(11))

    with pytest.raises(OSError, match="has more than 10 bytes"):
        user_cache.read_all(made() / "file", 10)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is of Linux")
def test_what_cannot_be_written_leaves_what_was_there() -> None:
    file = made() / "file"
    user_cache.write_all(file, b"old")
    (file.parent / "folder").mkdir()

    with pytest.raises(OSError):  # noqa: PT011
        user_cache.write_all(file.parent / "folder", b"new")

    assert sorted(path.name for path in file.parent.iterdir()) == ["file", "folder"]
    assert file.read_bytes() == b"old"


def test_room_is_taken_before_it_is_written_to(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        user_cache.reserve(file.fileno(), 100_000)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 100_000
        with pytest.raises(OSError):  # noqa: PT011 - no room, or a file too large
            user_cache.reserve(file.fileno(), 2**60)
