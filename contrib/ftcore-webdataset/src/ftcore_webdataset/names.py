"""Names of shards: from a pattern with braces and wildcards to addresses, and from an address to a split."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

import fsspec
import fsspec.asyn
from ftcore import UserError
from ftcore.data import TEST_NAMES, TRAIN_NAMES, VAL_NAMES

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?[]")
_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".lz4", ".Z")
_MOST = 100_000
"""Shards that a pattern may stand for."""

if hasattr(os, "register_at_fork"):
    # The thread in which fsspec speaks http does not survive a fork; without this a worker would wait for it for ever.
    os.register_at_fork(after_in_child=fsspec.asyn.reset_lock)


def find_shards(pattern: str) -> list[str]:
    """Return the shards that a pattern stands for, sorted, each once.

    Args:
        pattern: a file or an address; ``{000..009}`` and ``{train,val}`` stand for several, and ``*``, ``?`` and
            ``[...]`` for files that are there (not with http).

    Raises:
        UserError: there is none, one is compressed, or there are absurdly many.
    """
    found = {shard for part in expand(pattern) for shard in matches(part) if shard}
    if not found:
        raise UserError(f"no shard matches {pattern!r} (looked in {Path.cwd()})")
    for shard in sorted(found):
        if base_name(shard).endswith(_COMPRESSED):
            raise UserError(compressed(shard))
    return sorted(found)


def expand(pattern: str) -> list[str]:
    """Write out braces as a shell does: ``{a,b}``, and ``{08..11}`` with zeros in front."""
    done, todo = [], [pattern]
    while todo:
        text = todo.pop()
        found = _BRACES.search(text)
        if not found:
            done.append(text)
        else:
            todo += [text[: found.start()] + choice + text[found.end() :] for choice in _choices(found[1], pattern)]
        if len(done) + len(todo) > _MOST:
            raise UserError(f"{pattern!r} expands to more than {_MOST:,} shards")
    return sorted(set(done))


def _choices(text: str, pattern: str) -> list[str]:
    numbers = _RANGE.fullmatch(text)
    if not numbers:
        return text.split(",")
    first, last = numbers.groups()
    if not int(first) <= int(last) < int(first) + _MOST:
        raise UserError(f"{{{text}}} in {pattern!r}: expected at most {_MOST:,} numbers, the smallest first")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def matches(part: str) -> list[str]:
    """Return the files that wildcards stand for; a name without wildcards stands for itself."""
    if not _WILD.search(part) or part.startswith(("http://", "https://")):
        return [part]
    if "://" not in part:
        return [part] if Path(part).is_file() else glob.glob(part, recursive=True)  # noqa: PTH207 - keeps it relative
    system, path = located(part)
    return [system.unstrip_protocol(file) for file in system.glob(path)]


def located(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of an address, and the path there.

    Raises:
        UserError: there is no such file system, or the package for it is missing.
    """
    try:
        found: tuple[fsspec.AbstractFileSystem, str] = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot open {url}: {error}") from None
    return found


def base_name(url: str) -> str:
    """Return the last part of an address, without a query."""
    return (url.partition("?")[0] if "://" in url else url).rpartition("/")[2]


def compressed(url: str) -> str:
    """Say that a shard is compressed, and what to do."""
    return (
        f"shard {url} is compressed, so that no sample can be read without all before it; unpack it to a plain .tar "
        "(gunzip, unzstd, ...): images are already compressed"
    )


def split_of(url: str) -> str:
    """Return the split that is a word of a shard's base name (``cats-val-01.tar``), or its folder's name; or ""."""
    folder, _, base = url.partition("?")[0].rpartition("/")
    for word in (*re.findall(r"[a-z]+", base.lower()), folder.rpartition("/")[2].lower()):
        if word in {*TRAIN_NAMES, *VAL_NAMES, *TEST_NAMES}:
            return str(word)
    return ""
