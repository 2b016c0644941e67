"""Predict images with a run, an ensemble or a soup, from its folder alone."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from ftcore.data.decoding import find_images, image_reader
from ftcore.errors import DataError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from ftcore.data.pixels import Channels
    from ftcore.types.data import TwoStageTransform
    from ftcore.types.task import Prediction

    from .model import Model


def predict(
    model: Model, paths: Iterable[Path], batch_size: int = 32, *, tta: bool = False
) -> Iterator[Prediction | DataError]:
    """Yield a prediction for every image, or the error for one that cannot be read.

    Args:
        model: what answers.
        paths: files and folders.
        batch_size: images per forward pass.
        tta: average over each image and its mirror image.
    """
    batch: list[tuple[Path, tuple[Tensor, ...]]] = []
    for item in _decoded(model, paths):
        if isinstance(item, DataError):
            yield item
            continue
        batch.append(item)
        if len(batch) == batch_size:
            yield from predict_batch(model, batch, tta=tta)
            batch = []
    if batch:
        yield from predict_batch(model, batch, tta=tta)


def _decoded(model: Model, paths: Iterable[Path]) -> Iterator[tuple[Path, tuple[Tensor, ...]] | DataError]:
    for path in paths:
        try:
            files = [path] if model.is_text_model and path.is_file() else find_images(path)
        except DataError as error:
            yield error
            continue
        for file in files:
            try:
                yield file, _tensors(model, file)
            except DataError as error:
                yield error


def _tensors(model: Model, file: Path) -> tuple[Tensor, ...]:
    """Return an image preprocessed for each member, or a text."""
    return transform(model, (lambda _: _text(file)) if model.is_text_model else image_reader(file))


def transform(model: Model, read: Callable[[int | None], Any]) -> tuple[Tensor, ...]:
    """Return an input preprocessed for each member of a model; see `transform_for`."""
    return transform_for([member.transforms.evaluate for member in model.members], read)


def transform_for(steps: Sequence[TwoStageTransform], read: Callable[[int | None], Any]) -> tuple[Tensor, ...]:
    """Return an input preprocessed by each of some steps; read once per decoding scale.

    Args:
        steps: those of each member of a model.
        read: their `min_decode_side` -> the image, or the text.
    """
    decoded = {side: read(side) for side in {step.min_decode_side for step in steps}}
    return tuple(step(decoded[step.min_decode_side]) for step in steps)


def predict_items(
    model: Model, items: Iterable[Any], batch_size: int, channels: Channels = "rgb"
) -> Iterator[Prediction]:
    """Yield a prediction for each of some images or texts; see `ftcore.inference.model.Model.predict`."""
    waiting = (one for item in items for one in _expanded(model, item))
    while batch := [prepare_input(model, item, channels) for item in islice(waiting, batch_size)]:
        yield from predict_batch(model, batch, tta=False)


def _expanded(model: Model, item: Any) -> Iterable[Any]:
    """Return the images of a folder, or the one item."""
    is_path = isinstance(item, str | os.PathLike) and not model.is_text_model
    return find_images(Path(item)) if is_path else [item]


def prepare_input(model: Model, item: Any, channels: Channels = "rgb") -> tuple[Path | None, tuple[Tensor, ...]]:
    """Return one image or text preprocessed for each member, and the file's path if it is one.

    Args:
        model: that is to see it.
        item: see `ftcore.inference.model.Model.predict`.
        channels: order of the colours of an array; see there.

    Raises:
        UserError: it is not an image.
        DataError: it cannot be read.
    """
    if model.is_text_model:
        if not isinstance(item, str | Path):
            raise UserError(f"this network takes texts: a str, or the Path of a file, not {type(item).__name__}")
        return (item, _tensors(model, item)) if isinstance(item, Path) else (None, transform(model, lambda _: item))
    path = Path(item) if isinstance(item, str | os.PathLike) else None
    return path, transform(model, image_reader(item, channels))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the text {file}: {error}") from None


def predict_batch(
    model: Model, batch: Sequence[tuple[Path | None, tuple[Tensor, ...]]], *, tta: bool = False
) -> list[Prediction]:
    """Predict a batch of images or texts.

    Args:
        model: what answers.
        batch: what `prepare_input` returns of each; at least one.
        tta: average over each image and its mirror image.
    """
    import torch

    columns = zip(model.members, zip(*(tensors for _, tensors in batch), strict=True), strict=True)
    with torch.inference_mode():
        images = [member.transforms.on_device(torch.stack(column)) for member, column in columns]
        found = model.task.predictions(model.task.decode(model.outputs(images, tta=tta)))
    return [evolve(one, path=path) for (path, _), one in zip(batch, found, strict=True)]
