"""The list of the files of a folder with their sizes and checksums, and whether it holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .atomic import write_json

FORMAT = 2
"""Version of a checkpoint; the state of format 1 has other names, see `ftcore.training.resume_state.RENAMED`."""

READABLE_FORMATS = (1, 2)
"""Versions of checkpoints that can be gone on with."""

MODEL_FORMAT = 2
"""Version of ``model.json``; format 1 is read, too."""

RUN_FORMAT = 1
"""Version of the other files that a run leaves; a reader refuses another."""

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Say of each file of a checkpoint what it must be when it is read again."""
    files = {file.name: _file_digest(file) for file in folder.iterdir() if file.name != MANIFEST}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def read_format(folder: Path) -> int:
    """Return the format of a whole checkpoint."""
    return int(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["format"])


def _file_digest(file: Path) -> dict[str, Any]:
    """Say what a file must be when it is read again."""
    if not file.is_file():
        raise OSError(f"{file} is not a file")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def find_damage(folder: Path) -> str:
    """Say what is wrong with a checkpoint; empty if every file is as its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] not in READABLE_FORMATS:
            readable = " and ".join(map(str, READABLE_FORMATS))
            return f"it has format {manifest['format']!r}; this ftcore reads formats {readable}"
        files = manifest["files"].items()
        wrong = [name for name, wanted in files if Path(name).name != name or _file_digest(folder / name) != wanted]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{', '.join(wrong)} does not match its checksum" if wrong else ""
