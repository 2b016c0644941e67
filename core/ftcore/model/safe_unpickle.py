"""Turn pickled weights into safetensors, in a process of its own and within limits, for such a file may be hostile.

    python -P -m ftcore.model.safe_unpickle weights.pth weights.safetensors

It is read with ``torch.load(weights_only=True)`` and with nothing weaker. Where it cannot be, what is wrong with it is
printed, and the exit code is 1.

Once the two files are open the process can open no other, nor a connection, and so can start no program either.
"""

from __future__ import annotations

import io
import os
import resource
import sys
from collections import Counter
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile

from ftcore.errors import UserError

STATE_DICT_KEYS = ("state_dict", "model")
"""Keys under which checkpoints of training scripts keep the weights."""

EXTRA_MEMORY = 256 * 2**20
"""Bytes that reading may take beside three times the file: its storages, those of copies, and what is written."""

BASE_CPU_S = 10
"""Of computing that reading may take, beside one for each 50 MB."""


def main() -> None:
    """Read one file and write the other."""
    reason = convert(*map(Path, sys.argv[1:]))
    sys.stdout.write(reason)
    sys.exit(1 if reason else 0)


def convert(source: Path, target: Path) -> str:
    """Read one file and write the other, with the limits from now on; return why that is not possible, or nothing."""
    import torch
    from safetensors.torch import save

    _import_all()
    try:
        with source.open("rb") as given, target.open("wb") as written:
            _limit(os.fstat(given.fileno()).st_size)
            _check_archive(given)
            written.write(save(_tensors(torch.load(given, map_location="cpu", weights_only=True))))
    except UserError as error:
        return f"cannot be read: {error}"
    except UnpicklingError as error:
        return f"contain more than tensors, which ftcore does not load: {_clean_torch_message(error)}"
    except Exception as error:  # noqa: BLE001 - a hostile file can make its reader raise anything
        return f"cannot be read: {type(error).__name__}: {_clean_torch_message(error)}"
    return ""


def _import_all() -> None:
    """Read and write small files of both formats, so that all that is imported on the way is there."""
    import encodings.cp437  # noqa: F401 - of the names in a zip archive

    import torch
    from safetensors.torch import save

    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"weight": torch.ones(2)}, buffer, _use_new_zipfile_serialization=zipped)
        buffer.seek(0)
        if zipped:
            _check_archive(buffer)
        save(_tensors(torch.load(buffer, map_location="cpu", weights_only=True)))


def _clean_torch_message(error: Exception) -> str:
    """Return what torch says of the file, without its advice to load it all the same."""
    lines = [line.strip() for line in str(error).splitlines() if not ("torch.load" in line or "weights_only" in line)]
    return " ".join(filter(None, lines)).partition(" Please use")[0]


def _limit(size: int) -> None:
    """Allow what reading a file of so many bytes can need."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) if sys.platform == "linux" else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 3 * size + EXTRA_MEMORY,) * 2)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + BASE_CPU_S + size // 50_000_000
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * size + EXTRA_MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # those that are open stay


def _check_archive(file: IO[bytes]) -> None:
    """Refuse a zip archive that `torch.save` does not write: it may be small, and become huge."""
    begins = file.read(4)
    file.seek(0)
    if begins != b"PK\x03\x04":
        return  # what torch wrote before 1.6
    with ZipFile(file) as archive:
        members = archive.infolist()
        if packed := [member.filename for member in members if member.compress_type != ZIP_STORED]:
            raise UserError(f"{packed[0]} is compressed, but torch.save never compresses")
        if twice := [name for name, count in Counter(member.filename for member in members).items() if count > 1]:
            raise UserError(f"{twice[0]} occurs twice")
        if broken := archive.testzip():
            raise UserError(f"the checksum of {broken} is not that of its bytes")
    file.seek(0)


def _tensors(state: Any) -> dict[str, Any]:
    """Return the tensors of a checkpoint by name, each with memory of its own."""
    import torch

    for key in STATE_DICT_KEYS:
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError("it is not a mapping of names to tensors")
    return {str(name): tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


if __name__ == "__main__":
    main()
