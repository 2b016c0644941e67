"""Files that somebody else may have written: opened without following a link, and read within bounds."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from typing import TYPE_CHECKING, Any, cast

from ftcore.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TextIO

MAX_BYTES = 16 * 2**20
"""Of a file of JSON or TOML: the manifest of a run with 100,000 labels has 2 MB."""

MAX_DEPTH = 64
"""Of lists and objects in each other."""

MAX_DIGITS = 400
"""Of one number: the largest float64 has 309."""

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)

_ALWAYS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO nobody writes to would block

_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # possessive: no file makes it slow

_BRACKETS = re.compile(r"[\[\]{}]")


def open_regular(file: Path, flags: int = os.O_RDONLY, mode: int = 0o666, *, follow: bool = False) -> int:
    """Open a regular file, and return its descriptor.

    Args:
        file: its path.
        flags: as of `os.open`.
        mode: of a file that is made, less the umask.
        follow: whether it may be a symbolic link.

    Raises:
        OSError: it is a link, a folder, a FIFO or a device; or it cannot be opened.
    """
    nofollow = 0 if follow else _NOFOLLOW
    if nofollow == 0 and not follow and file.is_symlink():
        raise OSError(f"{file} is a symbolic link")
    try:
        opened = os.open(file, (flags & ~os.O_TRUNC) | _ALWAYS | nofollow, mode)
    except OSError:
        if not follow and file.is_symlink():
            raise OSError(f"{file} is a symbolic link, and is not followed") from None
        raise
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(f"{file} is not a regular file")
    if flags & os.O_TRUNC:
        os.ftruncate(opened, 0)
    return opened


def open_text(file: Path, mode: str) -> TextIO:
    """Open a file of a run folder to write UTF-8 to it, through no link.

    Args:
        file: its path.
        mode: ``w``, or ``a`` to append.

    Raises:
        OSError: as `open_regular`.
    """
    how = os.O_APPEND if mode == "a" else os.O_TRUNC
    return cast("TextIO", os.fdopen(open_regular(file, os.O_WRONLY | os.O_CREAT | how), mode, encoding="utf-8"))


def refuse_links(folder: Path) -> None:
    """Refuse to write in a folder in which anything is neither a regular file nor a folder.

    Raises:
        UserError: there is a symbolic link, a FIFO, a socket or a device in it, or in a folder below.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            refuse_links(folder / entry.name)
        elif not entry.is_file(follow_symlinks=False):
            what = "a symbolic link" if entry.is_symlink() else "no regular file"
            raise UserError(
                f"{folder / entry.name} is {what}: a run folder must not contain one, because writes could end "
                "elsewhere; replace it by its target"
            )


def read_text(file: Path, limit: int = MAX_BYTES, *, follow: bool = False) -> str:
    """Return the text of a file in UTF-8.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is no regular file, has more than `limit` bytes, or is no UTF-8.
    """
    try:
        with os.fdopen(open_regular(file, follow=follow), "rb") as opened:
            data = opened.read(limit + 1)
        text = data.decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    if len(data) > limit:
        raise UserError(f"cannot read {file}: it has more than {limit:,} bytes, the most that are read")
    return text


def read_json(file: Path, limit: int = MAX_BYTES) -> Any:
    """Return the data in a JSON file of a run folder.

    Raises:
        FileNotFoundError: there is none.
        UserError: as `read_text`; it is no JSON, or too deep, or a number in it is too long or not finite.
    """
    return parse_json(read_text(file, limit), str(file))


def parse_json(text: str, source: str) -> Any:
    """Return the data that a text of JSON spells.

    Args:
        text: the JSON.
        source: where it is from, for messages.

    Raises:
        UserError: as `read_json`.
    """
    try:
        _check_depth(text)
        return json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_float)
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {source}: {type(error).__name__}: {error}") from None


def read_toml(file: Path, *, follow: bool = False) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        FileNotFoundError: there is none.
        UserError: as `read_text`; it is no TOML, or too deep, or a number in it is too long or not finite.
    """
    text = read_text(file, MAX_BYTES // 16, follow=follow)
    try:
        _check_toml(text)
        return tomllib.loads(text, parse_float=_float)
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {file}: {error}") from None


def _check_toml(text: str) -> None:
    """Refuse what `tomllib` needs very long for."""
    if long := re.search(rf"\d[\d_]{{{MAX_DIGITS},}}", _STRINGS.sub('""', text)):
        raise ValueError(f"the number {long[0][:20]}... is longer than {MAX_DIGITS} characters")
    for line in text.splitlines():
        key, equals, _ = line.partition("=")
        is_key = equals or (line.strip().startswith("[") and "," not in line)
        if is_key and key.count(".") > MAX_DEPTH:
            raise ValueError(f"a key in it has more than {MAX_DEPTH} parts")


def _check_depth(text: str) -> None:
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub("", text)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"it has more than {MAX_DEPTH} lists or objects in each other")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"the number {text[:20]}... is longer than {MAX_DIGITS} characters")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if number - number != 0:  # NaN or infinite
        raise ValueError(f"{text[:20]} is not a finite number")
    return number
