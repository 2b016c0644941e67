"""From the name of a data set to its splits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftcore import UserError
from ftcore.data import TEST_NAMES, TRAIN_NAMES, VAL_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset


def load(name: str) -> dict[str, Dataset]:
    """Return split -> rows, memory-mapped; a saved `Dataset`, which has no splits, is the split "".

    Args:
        name: folder of `save_to_disk`, or what `datasets.load_dataset` takes: a folder, or a name on the hub; with
            ``:CONFIG`` behind it where that has several configurations.

    Raises:
        UserError: there is no such data set, it is damaged, or the hub cannot be reached.
    """
    if not name:
        raise UserError("hf: names no data set; expected hf:FOLDER, hf:NAME or hf:NAME:CONFIG")
    folder = Path(name)
    if not folder.is_dir() and _looks_like_a_path(name):
        raise UserError(f"no such folder: {name} (looked at {folder.absolute()})")
    try:
        return _splits(_saved(folder) if _is_saved(folder) else _loaded(name))
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged folder or a network can raise anything
        raise UserError(f"cannot load data set {name!r}: {_reason(error)}") from None


def _looks_like_a_path(name: str) -> bool:
    """Whether a name can be none on the hub, so that asking there would only take time."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or name.endswith("/")


def _is_saved(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))


def _saved(folder: Path) -> object:
    import datasets

    return datasets.load_from_disk(str(folder))


def _loaded(name: str) -> object:
    import datasets

    base, _, config = (name, "", "") if Path(name).is_dir() else name.rpartition(":")
    return datasets.load_dataset(base or name, config if base and config else None)


def _splits(found: object) -> dict[str, Dataset]:
    import datasets

    parts = {"": found} if isinstance(found, datasets.Dataset) else found
    if not isinstance(parts, dict) or not all(isinstance(part, datasets.Dataset) for part in parts.values()):
        raise UserError(f"expected a data set with random access, got {type(found).__name__}")
    filled = {str(name): part for name, part in parts.items() if len(part)}
    if not filled:
        raise UserError("the data set has no rows")
    return filled


def _reason(error: Exception) -> str:
    """Return type and first line; errors of a network hold whole requests."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def used(found: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Return the splits for training, validation and test; all where none has a known name."""
    spellings = (TRAIN_NAMES, VAL_NAMES, TEST_NAMES)
    names = [next((name for name in known if name in found), None) for known in spellings]
    return {name: found[name] for name in names if name is not None} or dict(found)
