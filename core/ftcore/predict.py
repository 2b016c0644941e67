"""Use what a run, an ensemble or a soup has learnt on pictures, from the folder alone."""

from __future__ import annotations

import json
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from . import checkpoint, config
from .backbone import InputSpec, input_of
from .ensemble import Member, Model
from .errors import DataError, UserError
from .images import decode_image, find_images, read_image
from .parts import Task
from .structure import structure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from PIL.Image import Image
    from torch import Tensor, nn


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


@frozen
class Saved:
    """What a folder says of one network.

    Attributes:
        description: the JSON that `ftcore.runfolder` wrote.
        file: its weights; names in messages are those of `file` and of the ``model.json`` beside it.
        asked: what builds it again.
        task: what its outputs mean.
        spec: what its images must look like.
        thresholds: (task.outputs,) probability from which a label counts.
        share: of its say in an ensemble, > 0; all add up to 1.
    """

    description: dict[str, Any]
    file: Path
    asked: config.RunConfig
    task: Task
    spec: InputSpec
    thresholds: tuple[float, ...]
    share: float = 1.0


def load(folder: Path) -> Model:
    """Build what a folder holds again, and load the weights: a run, an ensemble or a soup.

    Raises:
        UserError: the folder is none of these, or a plugin that built a network is gone.
    """
    saved = read(folder)
    members = tuple(_build(one) for one in saved)
    task = members[0].task
    chosen = [dict(zip(one.task.names, one.thresholds, strict=True)) for one in saved]
    thresholds = (sum(one.share * by[name] for one, by in zip(saved, chosen, strict=True)) for name in task.names)
    return Model(members, task, tuple(thresholds))


def read(folder: Path) -> tuple[Saved, ...]:
    """Read what a folder holds, and build nothing: one network, or several for an ensemble.

    Raises:
        UserError: the folder is not that of a run with a finished epoch, of an ensemble or of a soup.
    """
    file = checkpoint.standing(folder / "model") / "model.json"
    if not file.is_file():
        raise UserError(
            f"{folder} is no run folder with a model: there is no {file}; "
            "`ftcore run` writes one when the first epoch is done"
        )
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        _check_format(description["format"], file)
        first, *others = description.get("members", [description])
        return _saved(first, file), *(_saved(one, file) for one in others)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise UserError(f"cannot read {file}: {type(error).__name__}: {error}") from None


def _check_format(version: object, file: Path) -> None:
    if version != checkpoint.FORMAT:
        raise UserError(f"{file} has format {version!r}; this ftcore reads format {checkpoint.FORMAT}")


def _saved(description: dict[str, Any], file: Path) -> Saved:
    """Turn the description of a network into what was asked for and what was learnt."""
    _check_format(description["format"], file)
    origin, weights = str(file), description.get("file", "model.safetensors")
    if Path(weights).name != weights:
        raise ValueError(f"its weights are {weights!r}, not beside it")
    keys = [f"model.{key}" for key in description["model"]]
    options = {name: values for name, values in description["options"].items() if values}
    asked = config.RunConfig(
        model=structure(description["model"], config.ModelConfig, "model", dict.fromkeys(keys, origin)),
        plugins=tuple(config.Named(text, origin, file.parent) for text in description["plugins"]),
        options=options,
        origins={f"plugin.{name}.{key}": origin for name, values in options.items() for key in values},
        architecture=description.get("architecture", {}),
    )
    config.check_data_alone(asked.plugins, file.parent)
    task = Task(**_tuples(description["task"]))
    return Saved(
        description=description,
        file=file.parent / weights,
        asked=asked,
        task=task,
        spec=input_of(_tuples(description["input"])),
        thresholds=tuple(description["metrics"].get("thresholds", [0.5] * task.outputs)),
        share=description.get("share", 1.0),
    )


def _build(saved: Saved) -> Member:
    from .assemble import build_network
    from .calls import Calls
    from .run import activate

    described = saved.file.parent / "model.json"
    try:
        network = build_network(saved.asked, Calls(activate(saved.asked)), saved.task, saved.spec)
    except UserError as error:
        raise UserError(f"cannot build the network that {described} describes: {error}") from None
    load_tensors(network.module, saved.file, f"that {described} describes")
    return Member(network.module.eval(), network, saved.task, saved.share)


def load_tensors(module: nn.Module, file: Path, which: str) -> None:
    """Load weights into a network, in place.

    Raises:
        UserError: the file cannot be read, or is that of another network than `which`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        load_model(module, file, strict=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"cannot load {file} into the network {which}: {error}") from None


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists -> the tuples that the attrs classes hold."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


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
            files = [path] if model.reads_texts and path.is_file() else find_images(path)
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
    return _seen(model, (lambda _: _text(file)) if model.reads_texts else partial(read_image, file))


def _seen(model: Model, read: Callable[[int | None], Any]) -> tuple[Tensor, ...]:
    """Return what is read as each member wants it; read once for each scale that may be asked for."""
    steps = [member.transforms.evaluate for member in model.members]
    decoded = {side: read(side) for side in {step.side for step in steps}}
    return tuple(step(decoded[step.side]) for step in steps)


def answers(model: Model, items: Iterable[Any], batch_size: int) -> Iterator[Prediction]:
    """Yield a prediction for each of some pictures or texts; see `ftcore.ensemble.Model.predict`."""
    waiting = iter(items)
    while batch := [taken(model, item) for item in islice(waiting, batch_size)]:
        yield from _predict_batch(model, batch, tta=False)


def together(model: Model, items: Iterable[Any], *, tta: bool = False) -> list[Prediction | DataError]:
    """Say what is on pictures, or in texts, that go through the network at a time.

    Args:
        model: what answers.
        items: see `ftcore.ensemble.Model.predict`.
        tta: average over each picture and its mirror image.

    Returns:
        A prediction for each, and the error in its place for one that cannot be read.
    """
    found: list[Any] = []
    for item in items:
        try:
            found.append(taken(model, item))
        except DataError as error:
            found.append(error)
    readable = [item for item in found if not isinstance(item, DataError)]
    predicted = iter(_predict_batch(model, readable, tta=tta) if readable else ())
    return [item if isinstance(item, DataError) else next(predicted) for item in found]


def taken(model: Model, item: Any) -> tuple[Path | None, tuple[Tensor, ...]]:
    """Return one picture or text as each member wants it, and the file's path if it is one.

    Args:
        model: that is to see it.
        item: see `ftcore.ensemble.Model.predict`.

    Raises:
        UserError: it is no picture.
        DataError: it cannot be read.
    """
    if isinstance(item, bytes) and not model.reads_texts:
        return None, _seen(model, partial(decode_image, item, f"of {len(item):,} bytes"))
    if isinstance(item, Path) or (isinstance(item, str) and not model.reads_texts):
        return Path(item), _tensors(model, Path(item))
    picture = item if isinstance(item, str) else _picture(item)
    return None, _seen(model, lambda _: picture)


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

    from .loading import probabilities

    columns = zip(model.members, zip(*(tensors for _, tensors in batch), strict=True), strict=True)
    with torch.inference_mode():
        images = [member.transforms.finish(torch.stack(column)) for member, column in columns]
        values = probabilities(model.outputs(images, tta=tta), model.task)
    return [_named(path, row, model) for (path, _), row in zip(batch, values.tolist(), strict=True)]


def _named(path: Path | None, row: list[float], model: Model) -> Prediction:
    pairs = list(zip(model.task.names, row, strict=True))
    if model.task.kind == "regression":
        return Prediction(path, dict(pairs))
    labels = [name for (name, value), least in zip(pairs, model.thresholds, strict=True) if value >= least]
    ordered = dict(sorted(pairs, key=lambda pair: -pair[1]))
    return Prediction(path, ordered, tuple(labels) if model.task.kind == "multilabel" else ())
