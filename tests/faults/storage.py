"""The calls that write, one by one: at any of them the process may die, the system may refuse, or the power may go."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field
from safetensors import SafetensorError

from ftcore.checkpoints import checkpoint

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
"""Of Python's audit, which an exception stops; `os.fsync` and the writing of safetensors are none, and are patched."""


class Dead(BaseException):
    """The process is gone: nothing that it would still do has an effect."""


@define
class Disk:
    """Counts the calls that write below a folder, and lets them fail.

    Attributes:
        root: the folder.
        at: number of the call, from 0, that fails.
        error: what the system says; None kills the process instead.
        for_ever: whether the calls after it fail too.
        calls: what was called, so far: name, first path, second path or empty.
    """

    root: Path
    at: int | None = None
    error: int | None = None
    for_ever: bool = False
    calls: list[tuple[str, str, str]] = field(factory=list)

    def call(self, name: str, path: str, other: str = "") -> None:
        """Count a call, and raise if it is not to be done."""
        number = len(self.calls)
        self.calls.append((name, path, other))
        if self.at is None or number < self.at:
            return
        if self.error is None:
            raise Dead
        if number == self.at or self.for_ever:
            raise OSError(self.error, os.strerror(self.error), path)


_using: list[Disk] = []


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if not _using or event not in EVENTS or isinstance(arguments[0], int):
        return
    if event == "open" and not arguments[2] & WRITING:
        return
    path, folder = os.fspath(arguments[0]), arguments[-1]
    if event in {"os.remove", "os.rmdir"} and folder >= 0:
        path = f"{_path(folder)}/{path}"
    if path.startswith(str(_using[0].root)):
        _using[0].call(event.removeprefix("os."), path, str(arguments[1]) if event == "os.rename" else "")


def _path(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - of a number


@contextmanager
def written_to(disk: Disk) -> Iterator[Disk]:
    """Let all writing below its folder go through a disk."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        disk.call("fsync", _path(descriptor))
        real(descriptor)

    def saved(original: Callable[..., None]) -> Callable[..., None]:
        def save(content: Any, path: Any) -> None:
            try:
                disk.call("open", str(path))
            except OSError as error:
                raise SafetensorError(f"Error while serializing: I/O error: {error}") from None
            original(content, path)

        return save

    if not _installed:
        sys.addaudithook(_heard)
        _installed.append(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for name in ("save_file", "save_model"):
            patch.setattr(checkpoint, name, saved(getattr(checkpoint, name)))
        _using.append(disk)
        try:
            yield disk
        finally:
            _using.pop()


_installed: list[bool] = []


# ------------------------------------------------------------------ loss of power


NEVER = 10**9


@define(eq=False)
class Node:
    """A file or a folder, whatever its name.

    Attributes:
        content: of a file.
        before: the part of it that was on the disk before.
        entries: of a folder.
        synced: number of the call that brought a file's content to the disk.
    """

    content: bytes = b""
    before: bytes = b""
    entries: dict[str, Node] | None = None
    synced: int | None = None


@define(eq=False)
class Change:
    """An entry of a folder that appears, goes, or moves.

    Attributes:
        number: of the call.
        gone: folder and name from which it goes, if it does.
        made: folder, name and node that appear, if they do.
    """

    number: int
    gone: tuple[Node, str] | None = None
    made: tuple[Node, str, Node] | None = None

    @property
    def folders(self) -> list[Node]:
        """The folders whose entries change."""
        return [place[0] for place in (self.gone, self.made) if place]

    def do(self, entries: dict[Node, dict[str, Node]]) -> None:
        """Change the entries of folders, which are those that they had where none are given."""
        for folder in self.folders:
            entries.setdefault(folder, dict(folder.entries or {}))
        if self.gone:
            entries[self.gone[0]].pop(self.gone[1], None)
        if self.made:
            entries[self.made[0]][self.made[1]] = self.made[2]


@define
class Tape:
    """What a disk was told to do, from which every state is made that a loss of power could leave.

    Attributes:
        root: the folder, as it was.
        changes: of entries.
        syncs: folder and number of the call that brought its entries to the disk.
        length: number of calls.
        live: path -> node, as the process sees it.
    """

    root: Node
    changes: list[Change] = field(factory=list)
    syncs: list[tuple[Node, int]] = field(factory=list)
    length: int = 0
    live: dict[str, Node] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.live[""] = self.root
        self.live.update(_below(self.root, ""))

    def note(self, name: str, path: str, other: str, content: Callable[[], bytes]) -> None:
        """Note a call; paths are below the root."""
        number, (parent, _, last) = self.length, path.rpartition("/")
        self.length += 1
        if name == "fsync":
            self._sync(self.live[path], number, content)
        elif name in {"remove", "rmdir"}:
            self.changes.append(Change(number, gone=(self.live[parent], last)))
            del self.live[path]
        elif name == "rename":
            to, _, new = other.rpartition("/")
            self.changes.append(Change(number, (self.live[parent], last), (self.live[to], new, self.live[path])))
            for known in [known for known in self.live if known == path or known.startswith(f"{path}/")]:
                self.live[other + known.removeprefix(path)] = self.live.pop(known)
        elif path not in self.live:
            self.live[path] = Node(entries={} if name == "mkdir" else None, synced=NEVER)
            self.changes.append(Change(number, made=(self.live[parent], last, self.live[path])))

    def _sync(self, node: Node, number: int, content: Callable[[], bytes]) -> None:
        if node.entries is None:
            node.before, node.content, node.synced = node.content, content(), number
        else:
            self.syncs.append((node, number))

    def left(self, number: int, dice: random.Random) -> dict[str, bytes | None]:
        """Return what is on the disk when the power goes before a call: path -> content, None for a folder.

        What was not synced is there or not, by chance; the content of a file may also be cut or zeroed.
        """
        entries: dict[Node, dict[str, Node]] = {}
        for change in self.changes:
            if change.number < number and (self._is_safe(change, number) or dice.random() < 0.5):
                change.do(entries)
        nodes = _below(self.root, "", entries)
        return {p: None if n.entries is not None else _content(n, number, dice) for p, n in nodes.items()}

    def _is_safe(self, change: Change, number: int) -> bool:
        return all(
            any(node is folder and change.number < synced < number for node, synced in self.syncs)
            for folder in change.folders
        )


def _below(folder: Node, path: str, entries: dict[Node, dict[str, Node]] | None = None) -> dict[str, Node]:
    """Return path -> node of everything below a folder; `entries` beat its own."""
    found = {}
    for name, node in (entries or {}).get(folder, folder.entries or {}).items():
        found[path + name] = node
        found |= _below(node, f"{path}{name}/", entries)
    return found


def _content(node: Node, number: int, dice: random.Random) -> bytes:
    if node.synced is None or node.synced < number:
        return node.content
    new = node.content[len(node.before) :]
    half = len(new) // 2
    return node.before + dice.choice([new, b"", new[:half], new[:half] + bytes(half), bytes(2 * half)])


def read(folder: Path) -> Node:
    """Read a folder; all of it is on the disk."""
    return Node(entries={p.name: read(p) if p.is_dir() else Node(p.read_bytes()) for p in folder.iterdir()})


def record(folder: Path, act: Callable[[], None]) -> Tape:
    """Let something write into a folder, and note what it does."""
    tape = Tape(read(folder))

    class Noting(Disk):
        def call(self, name: str, path: str, other: str = "") -> None:
            below, to = (text.removeprefix(str(folder)).strip("/") for text in (path, other))
            tape.note(name, below, to, (folder / below).read_bytes)

    with written_to(Noting(folder)):
        act()
    return tape


def lay_out(state: dict[str, bytes | None], folder: Path) -> None:
    """Make a folder of what was left."""
    folder.mkdir()
    for path, content in state.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
