"""A folder per class, with or without ``train`` and ``val`` folders above."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore import Data, UserError, hookimpl
from ftcore.data import (
    TEST_NAMES,
    TRAIN_NAMES,
    VAL_NAMES,
    ImageFiles,
    LabelledImages,
    PackedStrings,
    check_headers,
    fingerprint,
    make_data,
    parse_targets,
    scan_folders,
)

from .cells import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore import Context, Task
    from ftcore.config import RunConfig
    from ftcore.data import ScannedFolder


class Folder:
    """A folder of images, ``photos/cat/1.jpg``, or with splits, ``photos/train/cat/1.jpg``."""

    @hookimpl
    def build_data(self, source: str | None, config: RunConfig, ctx: Context) -> Data | None:
        """Index the folder and read each picture's header."""
        root = Path(source or "")
        if not source or not root.is_dir():
            return None
        found = list(scan_folders(root))
        left_out = sum(folder.others for folder in found)
        has_splits = _has_splits(found)
        classes: list[ScannedFolder] = []
        for folder in found:
            if len(folder.path.split("/")) > has_splits and folder.path:
                classes.append(folder)
            else:
                left_out += len(folder.pictures)
        _check_filled(root, classes, config, has_splits=has_splits)
        if left_out:
            ctx.log.warning("files that are not images of a class are ignored", folder=source, files=left_out)
        return make_data(_labelled(root, classes, config, ctx, has_splits=has_splits), config, ctx)


def _has_splits(found: list[ScannedFolder]) -> bool:
    """Whether the uppermost folders are splits: there is one to train on, or there is nothing but some to measure."""
    names = {folder.path.partition("/")[0].lower() for folder in found if folder.path}
    return not names.isdisjoint(TRAIN_NAMES) or (bool(names) and names <= {*VAL_NAMES, *TEST_NAMES})


def _check_filled(root: Path, folders: list[ScannedFolder], config: RunConfig, *, has_splits: bool) -> None:
    """Refuse a folder without class folders, and a class folder to learn without pictures, or of a garbled name."""
    pictures: dict[str, int] = {}
    for folder in folders:
        name = "/".join(folder.path.split("/")[: 1 + has_splits])
        pictures[name] = pictures.get(name, 0) + len(folder.pictures)
    if not pictures:
        expected = f"{root}/train/CLASS/PICTURE" if has_splits else f"{root}/CLASS/PICTURE"
        raise UserError(f"data folder {root} has no class folders; expected {expected}")
    empty = [name for name, count in pictures.items() if not count]
    if empty and not (config.measuring and any(pictures.values())):
        raise UserError(f"class folder {root / empty[0]} has no images")
    garbled = [name for name in pictures if name.encode(errors="replace").decode() != name]
    if garbled:
        raise UserError(f"the name of class folder {str(root / garbled[0])!a} is not UTF-8; rename it")


def _labelled(
    root: Path, folders: list[ScannedFolder], config: RunConfig, ctx: Context, *, has_splits: bool
) -> LabelledImages:
    """Take the class, and the split, of each picture from its path."""
    if config.data.task == "multilabel":
        raise UserError(
            f"a folder has one class per image, so data.task cannot be multilabel ({config.origin('data.task')})"
        )
    paths, splits, labels, sizes = [], [], [], []
    for folder in folders:
        split, label, *_ = [*folder.path.split("/"), ""] if has_splits else ["", *folder.path.split("/")]
        paths += [f"{folder.path}/{name}" for name, _ in folder.pictures]
        sizes += [size for _, size in folder.pictures]
        splits += [split] * len(folder.pictures)
        labels += [label] * len(folder.pictures)
    files = ImageFiles(root, PackedStrings.of(paths))
    check_headers(files, config)
    task = config.data.task or "classification"
    if task == "regression":
        values: Any = [[number(label)] for label in labels]
    else:
        values = labels if task == "classification" else _parsed(ctx.make_task(task), paths, labels)
    return LabelledImages(
        images=files,
        task=task,
        values=values,
        names=("target",),
        fingerprint=fingerprint(zip(paths, sizes, labels, strict=True)),
        splits=splits if has_splits else None,
    )


def _parsed(task: type[Task], paths: Sequence[str], labels: Sequence[str]) -> list[Any]:
    return parse_targets(task, [[label] for label in labels], paths.__getitem__)
