"""Use what a run, an ensemble or a soup has learnt on pictures, from the folder alone."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ftcore.data.decoding import decode_image, find_images, read_image
from ftcore.errors import DataError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from PIL.Image import Image
    from torch import Tensor

    from .model import Model


@frozen
class Prediction:
    """What the network says about one picture.

    Attributes:
        path: the picture; None for one that came as pixels.
        values: class or label -> probability, most probable first; or target name -> value in its own unit.
        labels: for a multi-label task, the labels whose probability reaches the threshold of the model.
    """

    path: Path | None
    values: dict[str, float]
    labels: tuple[str, ...] = ()


def predict(
    model: Model, paths: Iterable[Path], batch_size: int = 32, *, tta: bool = False
) -> Iterator[Prediction | DataError]:
    """Yield a prediction for every picture, and the error in its place for one that cannot be read.

    Args:
        model: what answers.
        paths: files and folders.
        batch_size: pictures per forward pass.
        tta: average over each picture and its mirror image.
    """
    batch: list[tuple[Path, tuple[Tensor, ...]]] = []
    for item in _decoded(model, paths):
        if isinstance(item, DataError):
            yield item
            continue
        batch.append(item)
        if len(batch) == batch_size:
            yield from _predict_batch(model, batch, tta=tta)
            batch = []
    if batch:
        yield from _predict_batch(model, batch, tta=tta)


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
    """Return a picture as each member wants it, or a text."""
    return _transform_for_members(model, (lambda _: _text(file)) if model.is_text_model else partial(read_image, file))


def _transform_for_members(model: Model, read: Callable[[int | None], Any]) -> tuple[Tensor, ...]:
    """Return what is read as each member wants it; read once for each scale that may be asked for."""
    steps = [member.transforms.evaluate for member in model.members]
    decoded = {side: read(side) for side in {step.min_decode_side for step in steps}}
    return tuple(step(decoded[step.min_decode_side]) for step in steps)


def predict_items(model: Model, items: Iterable[Any], batch_size: int) -> Iterator[Prediction]:
    """Yield a prediction for each of some pictures or texts; see `ftcore.inference.model.Model.predict`."""
    waiting = iter(items)
    while batch := [prepare_input(model, item) for item in islice(waiting, batch_size)]:
        yield from _predict_batch(model, batch, tta=False)


def predict_batch(model: Model, items: Iterable[Any], *, tta: bool = False) -> list[Prediction | DataError]:
    """Say what is on pictures, or in texts, that go through the network at a time.

    Args:
        model: what answers.
        items: see `ftcore.inference.model.Model.predict`.
        tta: average over each picture and its mirror image.

    Returns:
        A prediction for each, and the error in its place for one that cannot be read.
    """
    found: list[Any] = []
    for item in items:
        try:
            found.append(prepare_input(model, item))
        except DataError as error:
            found.append(error)
    readable = [item for item in found if not isinstance(item, DataError)]
    predicted = iter(_predict_batch(model, readable, tta=tta) if readable else ())
    return [item if isinstance(item, DataError) else next(predicted) for item in found]


def prepare_input(model: Model, item: Any) -> tuple[Path | None, tuple[Tensor, ...]]:
    """Return one picture or text as each member wants it, and the file's path if it is one.

    Args:
        model: that is to see it.
        item: see `ftcore.inference.model.Model.predict`.

    Raises:
        UserError: it is no picture.
        DataError: it cannot be read.
    """
    if isinstance(item, bytes) and not model.is_text_model:
        return None, _transform_for_members(model, partial(decode_image, item, f"of {len(item):,} bytes"))
    if isinstance(item, Path) or (isinstance(item, str) and not model.is_text_model):
        return Path(item), _tensors(model, Path(item))
    picture = item if isinstance(item, str) else _picture(item)
    return None, _transform_for_members(model, lambda _: picture)


def _picture(pixels: Any) -> Image:
    """Turn pixels into a picture.

    Raises:
        UserError: they are none.
    """
    import numpy as np
    from PIL import Image as PILImage

    if isinstance(pixels, PILImage.Image):
        return pixels
    is_tensor = hasattr(pixels, "detach")
    array = pixels.detach().cpu().numpy() if is_tensor else np.asarray(pixels)
    shape = array.shape
    if is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in {3, 4}):
        wanted = "a tensor (C, H, W)" if is_tensor else "an array (H, W) or (H, W, C)"
        raise UserError(
            f"a picture is a path, a PIL image, or {wanted} of uint8 with 1, 3 or 4 channels, "
            f"not {type(pixels).__name__} {shape} of {array.dtype}"
        )
    return PILImage.fromarray(array)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the text {file}: {error}") from None


def _predict_batch(
    model: Model, batch: Sequence[tuple[Path | None, tuple[Tensor, ...]]], *, tta: bool
) -> list[Prediction]:
    import torch

    from ftcore.data.targets import probabilities

    columns = zip(model.members, zip(*(tensors for _, tensors in batch), strict=True), strict=True)
    with torch.inference_mode():
        images = [member.transforms.on_device(torch.stack(column)) for member, column in columns]
        values = probabilities(model.outputs(images, tta=tta), model.task)
    return [_to_prediction(path, row, model) for (path, _), row in zip(batch, values.tolist(), strict=True)]


def _to_prediction(path: Path | None, row: list[float], model: Model) -> Prediction:
    pairs = list(zip(model.task.names, row, strict=True))
    if model.task.kind == "regression":
        return Prediction(path, dict(pairs))
    labels = [name for (name, value), least in zip(pairs, model.thresholds, strict=True) if value >= least]
    ordered = dict(sorted(pairs, key=lambda pair: -pair[1]))
    return Prediction(path, ordered, tuple(labels) if model.task.kind == "multilabel" else ())
