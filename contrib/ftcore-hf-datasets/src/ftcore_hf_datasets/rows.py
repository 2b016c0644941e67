"""Rows of a data set as images with targets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen
from ftcore import DataError, UserError, did_you_mean, format_names
from ftcore.data import (
    TEST_NAMES,
    TRAIN_NAMES,
    VAL_NAMES,
    LabelledImages,
    decode_image,
    file_version,
    fingerprint,
    read_image,
)

from .targets import Column, find_target, targets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from ftcore.config import RunConfig
    from PIL.Image import Image

    from . import HfDatasetsConfig

    Numbers = np.ndarray[Any, np.dtype[Any]]

_BATCH = 1000
"""Rows whose sizes are looked up at a time."""


@frozen(eq=False)
class RowImages:
    """Images of all splits, one behind the other; see `ftcore.ImageSource`.

    Attributes:
        source: of the data set, as the user named it.
        splits: their names.
        parts: of each split, the column of images alone, not decoded, memory-mapped.
        column: its name.
        ends: (S,) int64, row behind each split's last.
        sizes: (N,) int64, bytes of each image; -1 for those that are files, or are missing.
    """

    source: str
    splits: tuple[str, ...]
    parts: tuple[Dataset, ...]
    column: str
    ends: Numbers
    sizes: Numbers

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, row: int, side: int | None) -> Image:
        """Decode one image."""
        data, file = self._cell(row)
        if data is not None:
            return decode_image(data, self.name(row), side)
        try:
            return read_image(file, side)
        except DataError as error:
            raise DataError(f"{self.name(row)}: {error}") from None

    def name(self, row: int) -> str:
        """Return data set, split and row in it."""
        split, place = self._place(row)
        return f"{self.source} {self.splits[split]}[{place}]"

    def version(self, row: int) -> str:
        """Return the data set's own fingerprint and the image's size; of a file, size and time."""
        if self.sizes[row] < 0:
            return file_version(self._cell(row)[1])
        return f"{self.parts[self._place(row)[0]]._fingerprint} {self.sizes[row]}"  # noqa: SLF001 - has no other name

    def _place(self, row: int) -> tuple[int, int]:
        split = int(np.searchsorted(self.ends, row, side="right"))
        return split, row - (int(self.ends[split - 1]) if split else 0)

    def _cell(self, row: int) -> tuple[bytes | None, Path]:
        """Return an image's bytes, or the file that it is in."""
        split, place = self._place(row)
        try:
            cell = self.parts[split][place][self.column] or {}
        except Exception as error:  # noqa: BLE001 - a damaged file of Arrow can raise anything
            raise DataError(f"cannot read image {self.name(row)}: {error}") from None
        data, path = cell.get("bytes"), cell.get("path") or ""
        if data is None and not path:
            raise DataError(f"cannot read image {self.name(row)}: it is missing")
        if data is None and "://" in path:
            raise DataError(f"cannot read image {self.name(row)}: only its address is there, {path}")
        return data, Path(path)


def labelled_with_test(
    source: str, parts: Mapping[str, Dataset], options: HfDatasetsConfig, config: RunConfig
) -> tuple[LabelledImages, str]:
    """Join images, targets and groups; without the test split where it has no labels, as in many a competition.

    Returns:
        The rows, and what is wrong with the test split, if anything is.

    Raises:
        UserError: as `labelled`, of the other splits, or of a test split that is alone.
    """
    others = {name: part for name, part in parts.items() if name not in TEST_NAMES}
    try:
        return labelled(source, parts, options, config), ""
    except UserError as error:
        if not others or len(others) == len(parts):
            raise
        return labelled(source, others, options, config), str(error)


def labelled(source: str, parts: Mapping[str, Dataset], options: HfDatasetsConfig, config: RunConfig) -> LabelledImages:
    """Join images, targets and groups.

    Raises:
        UserError: a column that does not exist, or cannot be what it is to be.
        DataError: naming a row without a target.
    """
    features = next(iter(parts.values())).features
    image = _image_column(features, options.image)
    target = _known(features, options.target, "target") or find_target(features)
    group = _known(features, options.group, "group")
    _check_same(parts, [name for name in (image, target, group) if name is not None])
    images = _images(source, parts, image)
    column = Column.of(source, parts, target)
    task, names, values = targets(column, config)
    groups = _groups(Column.of(source, parts, group)) if group is not None else None
    has_splits = len(parts) > 1 or not {*TRAIN_NAMES, *VAL_NAMES, *TEST_NAMES}.isdisjoint(parts)
    splits = [name for name, part in parts.items() for _ in range(len(part))] if has_splits else None
    return LabelledImages(
        images=images,
        task=task,
        values=values,
        names=names,
        fingerprint=fingerprint(
            (images.name(row).removeprefix(source), _size(images, row), column.cells[row]) for row in range(len(images))
        ),
        splits=splits,
        groups=groups,
    )


def _known(features: Mapping[str, Any], name: str | None, option: str) -> str | None:
    """Check that a column exists."""
    if name is not None and name not in features:
        raise UserError(
            f"hf_datasets.{option}: no column {name!r}{did_you_mean(name, features)}; columns: {format_names(features)}"
        )
    return name


def _image_column(features: Mapping[str, Any], name: str | None) -> str:
    """Return the column with images; one that is named may also be bytes, or paths."""
    import datasets

    _known(features, name, "image")
    found = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if name is None:
        if len(found) != 1:
            raise UserError(
                f"the data set has {len(found)} columns of type Image ({format_names(found)}); say which: "
                f"hf_datasets.image=COLUMN; columns: {format_names(features)}"
            )
        return found[0]
    feature = features[name]
    is_pair = isinstance(feature, dict) and {*feature} == {"bytes", "path"}
    if name not in found and not is_pair and getattr(feature, "dtype", "") not in {"binary", "large_binary", "string"}:
        raise UserError(f"hf_datasets.image: column {name!r} has no images; it is {feature}")
    return name


def _check_same(parts: Mapping[str, Dataset], columns: list[str]) -> None:
    """Refuse splits whose columns differ."""
    (first, reference), *others = parts.items()
    for split, part in others:
        for name in columns:
            if name not in part.features:
                raise UserError(f"split {split!r} has no column {name!r}, and {first!r} has")
            if part.features[name] != reference.features[name]:
                raise UserError(
                    f"column {name!r} differs: in {first!r} it is {reference.features[name]}, in {split!r} "
                    f"{part.features[name]}"
                )


def _images(source: str, parts: Mapping[str, Dataset], column: str) -> RowImages:
    import datasets

    alone = [part.select_columns([column]).with_format(None) for part in parts.values()]
    bare = tuple(part.cast_column(column, datasets.Image(decode=False)) for part in alone)
    return RowImages(
        source,
        tuple(parts),
        bare,
        column,
        np.cumsum([len(part) for part in bare], dtype=np.int64),
        np.concatenate([_sizes(part) for part in bare]),
    )


def _sizes(part: Dataset) -> Numbers:
    """Return the number of bytes of each image, -1 where there are none; looks at no image."""
    import pyarrow.compute as pc

    sizes = [
        pc.fill_null(pc.binary_length(pc.struct_field(table.column(0), "bytes")), -1).to_numpy()
        for table in part.with_format("arrow").iter(batch_size=_BATCH)
    ]
    return np.concatenate(sizes).astype(np.int64)


def _size(images: RowImages, row: int) -> int:
    """Return the size of an image, be it a file or not; -1 for one that is missing."""
    if images.sizes[row] >= 0:
        return int(images.sizes[row])
    try:
        return int(images.version(row).split()[0])
    except DataError:
        return -1


def _groups(column: Column) -> list[str]:
    for place, cell in enumerate(column.cells):
        if cell is None:
            raise DataError(f"{column.where(place)} is missing")
    return [str(cell) for cell in column.cells]
