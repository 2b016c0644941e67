"""A folder per class, with or without ``train`` and ``val`` folders above."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ftcore import Data, UserError, hookimpl
from ftcore.images import check_image, is_image, read_image

from .sampling import count_table, fingerprint, hold_out, task_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from ftcore import Context
    from ftcore.config import DataConfig, RunConfig

_VAL_NAMES = ("val", "valid", "validation", "test")


@frozen(eq=False)
class Pictures:
    """Files with targets; decoded when asked for.

    Attributes:
        root: the data folder.
        paths: below `root`.
        targets: class indices, or floats in the target's own unit.
    """

    root: Path
    paths: tuple[str, ...]
    targets: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image, Any]:
        return read_image(self.root / self.paths[index]), self.targets[index]

    def name(self, index: int) -> str:
        """Return the file's path."""
        return str(self.root / self.paths[index])


class Folder:
    """Answers for any existing folder: ``photos/cat/1.jpg`` or ``photos/train/cat/1.jpg``."""

    @hookimpl
    def build_data(self, source: str | None, config: RunConfig, ctx: Context) -> Data | None:
        """Index the folder and read each picture's header."""
        root = Path(source or "")
        if source is None or not root.is_dir():
            return None
        train, val = _splits(root, config.data)
        if config.data.task == "classification":
            _check_classes(root, {label for _, label in train}, {label for _, label in val})
        for path, _ in [*train, *val]:
            check_image(root / path)
        left_out = sum(1 for path in root.rglob("*") if path.is_file()) - len(train) - len(val)
        if left_out:
            ctx.log.warning("files that are no pictures of either split are left out", folder=str(root), files=left_out)
        labels, val_labels = [label for _, label in train], [label for _, label in val]
        task, code = task_of(config.data.task, "target", labels)
        return Data(
            train=Pictures(root, tuple(path for path, _ in train), tuple(map(code, labels))),
            val=Pictures(root, tuple(path for path, _ in val), tuple(map(code, val_labels))),
            task=task,
            fingerprint=fingerprint((path, (root / path).stat().st_size, label) for path, label in [*train, *val]),
            tables=(count_table(labels, val_labels),),
        )


def _splits(root: Path, config: DataConfig) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return ``(path, label)`` of both splits: the folders' own, or one that is drawn."""
    names = {path.name for path in root.iterdir() if path.is_dir()}
    if "train" not in names:
        files = _labelled(root, root)
        train, val = hold_out([label for _, label in files], config.val_fraction, config.split_seed)
        return [files[index] for index in train], [files[index] for index in val]
    found = [name for name in _VAL_NAMES if name in names]
    if not found:
        raise UserError(f"data folder {root} has train/ but none of {', '.join(f'{name}/' for name in _VAL_NAMES)}")
    return _labelled(root, root / "train"), _labelled(root, root / found[0])


def _labelled(root: Path, split: Path) -> list[tuple[str, str]]:
    """Return every picture of a split as ``(path below root, class folder)``, sorted."""
    folders = sorted(path for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise UserError(f"data folder {split} has no class folders; expected {split}/CLASS/PICTURE")
    found = []
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and is_image(path))
        if not files:
            raise UserError(f"class folder {folder} has no pictures")
        found += [(path.relative_to(root).as_posix(), folder.name) for path in files]
    return found


def _check_classes(root: Path, train: set[str], val: set[str]) -> None:
    if len(train) < 2:
        raise UserError(f"data folder {root} has one class, {min(train)!r}; it takes two to tell apart")
    only = sorted(val - train)
    if only:
        raise UserError(f"data folder {root}: class {only[0]!r} is in validation but not in training")
