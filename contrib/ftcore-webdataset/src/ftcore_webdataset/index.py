"""What is where in a shard: read from its tar headers once, and kept as JSON."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import platformdirs
from attrs import asdict, field, frozen
from ftcore import DataError, UserError

from .names import compressed, located

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORMAT = 1
_BLOCK = 8192
"""Bytes that are read ahead behind a header: the label next to it, and the header behind that."""

_MOST_TEXT = 2**20
_MOST_PADDING = 2**20
_LABELS = (".cls", ".json", ".txt")
_STATE = ("size", "mtime", "ETag", "etag", "LastModified", "Last-Modified", "last_modified", "updated", "generation")
_NO_RANGES = "range requests"
"""In fsspec's error where a server has sent all for a part."""

_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
"""First bytes of what gzip, bzip2, xz, zstd and lz4 make."""


@frozen
class Shard:
    """An indexed shard.

    Attributes:
        url: file or address.
        state: size and, where the file system gives them, time or tag; changes when the shard does.
        members: name -> where its bytes start in the shard, and how many there are; regular files only.
        labels: name of a ``.cls``, ``.json`` or ``.txt`` -> the class or number that it holds; "" for none.
    """

    url: str
    state: str
    members: dict[str, tuple[int, int]]
    labels: dict[str, str]


@frozen
class Store:
    """Indices in a folder; one that is damaged or of another version is made anew.

    Attributes:
        folder: where they are kept.
        label: key of the class in a ``.json``.
        problems: why an index could not be kept.
    """

    folder: Path
    label: str
    problems: list[str] = field(factory=list)

    @classmethod
    def of(cls, folder: str | None, label: str) -> Store:
        """Use a folder, or the user's cache."""
        return cls(Path(folder) if folder is not None else platformdirs.user_cache_path("ftcore") / "shards", label)

    def shard(self, url: str) -> Shard:
        """Return a shard's index; read its headers if it is new or has changed.

        Raises:
            UserError: the shard is not there, is compressed or damaged, or cannot be read at random.
        """
        state = state_of(url)
        key = json.dumps(
            [_FORMAT, url if "://" in url else str(Path(url).absolute()), state, self.label], allow_nan=False
        )
        file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        known = _load(file, url, state)
        if known is None:
            known = read_shard(url, state, self.label)
            self._keep(file, known)
        return known

    def _keep(self, file: Path, shard: Shard) -> None:
        """Write aside and rename, for another process may do the same."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.folder, suffix=".part", delete=False) as part:
                json.dump(asdict(shard), part, allow_nan=False)
            os.replace(part.name, file)  # noqa: PTH105 - a name, no path
        except OSError as error:
            self.problems.append(str(error))


def _load(file: Path, url: str, state: str) -> Shard | None:
    try:
        kept = json.loads(file.read_text())
        members = {name: (int(start), int(size)) for name, (start, size) in kept["members"].items()}
        return Shard(url, state, members, dict(kept["labels"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def state_of(url: str) -> str:
    """Return what changes when a shard does.

    Raises:
        UserError: it is not there, or cannot be asked for.
    """
    system, path = located(url)
    try:
        info: Mapping[str, Any] = system.info(path)
    except FileNotFoundError as error:
        why = f" ({error.__cause__})" if error.__cause__ else ""  # with http, also a host that does not answer
        raise UserError(f"no such shard: {url}{why}") from None
    except Exception as error:  # noqa: BLE001 - each file system raises errors of its own
        raise UserError(f"cannot reach shard {url}: {reason(error)}") from None
    if info.get("type") == "directory":
        raise UserError(f"shard {url} is a folder, no tar file")
    return " ".join(str(info[key]) for key in _STATE if info.get(key) is not None)


def reason(error: Exception) -> str:
    """Return an error's text, or its name where it has none."""
    return str(error) or type(error).__name__


def read_shard(url: str, state: str, label: str) -> Shard:
    """Read the headers of a shard and its labels; of pictures nothing is read.

    Raises:
        UserError: it is compressed, or cannot be read at random.
        DataError: it is damaged.
    """
    system, path = located(url)
    try:
        with system.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as file:
            return _Reader(url, label, file).shard(state)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - each file system raises errors of its own
        if isinstance(error, io.UnsupportedOperation) or _NO_RANGES in str(error):
            raise UserError(
                f"the server of {url} does not serve byte ranges, so that no sample can be read by itself; copy the "
                "shards to a disk"
            ) from None
        raise DataError(f"cannot read shard {url}: {reason(error)}") from None


@frozen
class _Reader:
    """Reads one open shard.

    Attributes:
        url: file or address.
        label: key of the class in a ``.json``.
        file: open for random access.
        members: see `Shard`.
        labels: see `Shard`.
    """

    url: str
    label: str
    file: IO[bytes]
    members: dict[str, tuple[int, int]] = field(factory=dict)
    labels: dict[str, str] = field(factory=dict)

    def shard(self, state: str) -> Shard:
        """Read all headers."""
        if self.file.read(6).startswith(_MAGIC):
            raise UserError(compressed(self.url))
        self.file.seek(0)
        place = 0
        try:
            with tarfile.open(fileobj=self.file, mode="r:") as tar:
                while True:
                    place = tar.offset
                    member = tar.next()
                    if member is None:
                        break
                    if member.isreg() and not member.issparse():
                        self._add(member)
        except (tarfile.TarError, ValueError, OverflowError, LookupError) as error:
            if _NO_RANGES in str(error):
                raise
            raise DataError(f"shard {self.url} is damaged at byte {place}: {reason(error)}") from None
        self._check_end(place)
        return Shard(self.url, state, self.members, self.labels)

    def _add(self, member: tarfile.TarInfo) -> None:
        name = member.name
        if name in self.members:
            raise DataError(f"{self.url}!{shown(name)} is there twice, at byte {member.offset} again")
        self.members[name] = (member.offset_data, member.size)
        if name.endswith(_LABELS):
            self.labels[name] = self._label(member)

    def _label(self, member: tarfile.TarInfo) -> str:
        """Return the label that a member holds; "" for none."""
        if member.size > _MOST_TEXT:
            raise DataError(f"{self.url}!{shown(member.name)}: {member.size} bytes are more than any label needs")
        self.file.seek(member.offset_data)
        try:
            text = self.file.read(member.size).decode("utf-8-sig").strip()
            return text if not member.name.endswith(".json") else _value(json.loads(text), self.label)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.url}!{shown(member.name)} is not a label: {reason(error)}") from None

    def _check_end(self, place: int) -> None:
        """See that the archive is whole; `tarfile` takes a damaged header for the end of it."""
        size = self.file.seek(0, os.SEEK_END)
        self.file.seek(place)
        rest = self.file.read(min(_MOST_PADDING, size - place))
        if len(rest) < tarfile.BLOCKSIZE:
            raise DataError(f"shard {self.url} is damaged at byte {place}: it is cut off there, without an end mark")
        if any(rest[: tarfile.BLOCKSIZE]):
            raise DataError(f"shard {self.url} is damaged at byte {place}: what is there is no header of a tar file")
        if any(rest) or size - place > _MOST_PADDING:
            raise DataError(
                f"shard {self.url} continues after its end mark at byte {place}; were several tar files joined to one?"
            )


def _value(content: Any, key: str) -> str:
    """Return the class in what a ``.json`` holds."""
    value = content.get(key) if isinstance(content, dict) else None
    if value is None or isinstance(value, str):
        return (value or "").strip()
    if isinstance(value, int | float):
        return json.dumps(value)
    raise ValueError(f"{key!r} must be a text or a number, got {json.dumps(value):.60}")


def shown(name: str) -> str:
    """Return a member's name in letters that any terminal can print."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)
