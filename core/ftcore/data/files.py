"""Images that are files."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from attrs import frozen

from ftcore.errors import DataError

from .decoding import SUFFIXES, check_image, read_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from ftcore.config.schema import RunConfig

    from .dataset import PackedStrings


CORRUPT_IMAGE_HINT = "data.on_corrupt=skip skips such images, `ftcore check` lists them all"
"""What can be done where an image cannot be read."""

SHOWN = 10
"""How many unreadable images a message names."""


@frozen(eq=False)
class ImageFiles:
    """Picture files below a folder; see `ftcore.ImageSource`.

    Attributes:
        root: the folder.
        paths: of the files, below `root`.
    """

    root: Path
    paths: PackedStrings

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int, side: int | None) -> Image:
        """Decode one file."""
        return read_image(self.root / self.paths[row], side)

    def name(self, row: int) -> str:
        """Return the file's path."""
        return str(self.root / self.paths[row])

    def version(self, row: int) -> str:
        """Return the file's size in bytes and the time of its last change in nanoseconds."""
        return file_version(self.root / self.paths[row])


def file_version(path: Path) -> str:
    """Return a file's size in bytes and the time of its last change in nanoseconds.

    Raises:
        DataError: it is not there.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read image {path}: {error}") from None
    return f"{found.st_size} {found.st_mtime_ns}"


def check_headers(files: ImageFiles, config: RunConfig, where: Callable[[int], str] | None = None) -> None:
    """Read the header of every picture, unless all are to be decoded anyway: what costs little, done at each start.

    Args:
        files: the pictures.
        config: ``data.on_corrupt``.
        where: row -> place of the row in the table that names the picture.

    Raises:
        DataError: naming every picture whose header cannot be read.
    """
    if config.data.on_corrupt == "skip":
        return
    problems = []
    for row in range(len(files)):
        try:
            check_image(files.name(row))
        except DataError as error:
            problems.append(f"{where(row)}: {error}" if where else str(error))
    if problems:
        raise DataError(unreadable_message(problems, len(files)))


def unreadable_message(problems: Sequence[str], total: int) -> str:
    """Make one message of many."""
    more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return (
        "\n".join(problems[:SHOWN]) + more + f"\n{len(problems)} of {total} images cannot be read; {CORRUPT_IMAGE_HINT}"
    )


def scan_folders(root: Path) -> Iterator[ScannedFolder]:
    """Yield every folder, in the order of their paths, links followed; hidden folders are left out.

    Whatever is called like a picture counts as one: that it is none, `check_headers` finds.

    Raises:
        DataError: a folder cannot be read, or is a link to a folder above it, whose pictures would have no end.
    """
    todo = [("", frozenset[tuple[int, int]]())]
    while todo:
        below, above = todo.pop()
        folder = root / below
        try:
            status = folder.stat()
            found, folders = _list_folder(folder, below)
        except OSError as error:
            raise DataError(f"cannot read folder {folder}: {error.strerror}") from None
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise DataError(f"folder {folder} is a link to a folder above it")
        yield found
        todo += [(f"{below}/{name}" if below else name, above | {here}) for name in sorted(folders, reverse=True)]


def _list_folder(folder: Path, below: str) -> tuple[ScannedFolder, list[str]]:
    """Return what is in a folder, and the names of the folders in it."""
    pictures, folders, others = [], [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            mode, size = _mode_and_size(entry)
            if stat.S_ISDIR(mode):
                folders.append(entry.name)
            elif _is_picture(entry.name):
                pictures.append((entry.name, size))
            else:
                others += 1
    return ScannedFolder(below, sorted(pictures), others), [name for name in folders if not name.startswith(".")]


def _mode_and_size(entry: os.DirEntry[str]) -> tuple[int, int]:
    """Return both, or 0 and -1 for a link that leads nowhere."""
    try:
        status = entry.stat()
    except OSError:
        return 0, -1
    return status.st_mode, status.st_size


def _is_picture(name: str) -> bool:
    return name[name.rfind(".") :].lower() in SUFFIXES and name[0] != "."


@frozen
class ScannedFolder:
    """One folder of a scan.

    Attributes:
        path: below the root; empty for the root itself.
        pictures: ``(name, size in bytes)`` of its pictures, sorted.
        others: number of files that are no pictures.
    """

    path: str
    pictures: list[tuple[str, int]]
    others: int
