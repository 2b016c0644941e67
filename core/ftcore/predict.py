"""Use a run's model on pictures, from the run folder alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from . import checkpoint, config
from .backbone import InputSpec
from .errors import DataError, UserError
from .images import find_images, read_image
from .parts import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor, nn

    from .parts import Transforms


@frozen
class Prediction:
    """What the network says about one picture.

    Attributes:
        path: the picture.
        values: class or label -> probability, most probable first; or target name -> value in its own unit.
        labels: for a multi-label task, the labels whose probability reaches the threshold of the model.
    """

    path: Path
    values: dict[str, float]
    labels: tuple[str, ...] = ()


@frozen(eq=False)
class Model:
    """A network as it was at the best epoch of its run, in eval mode.

    Attributes:
        module: images (N, C, H, W) float32, normalised -> outputs (N, task.outputs).
        transforms: PIL image -> tensor; only `evaluate` is used.
        task: what the outputs mean.
        thresholds: probability from which a label counts, for each label; chosen on the validation split.
    """

    module: nn.Module
    transforms: Transforms
    task: Task
    thresholds: tuple[float, ...] = ()


def load(run: Path) -> Model:
    """Build the network of a run folder again and load its weights.

    Raises:
        UserError: the folder is not that of a run with a finished epoch, or a plugin that built the network is gone.
    """
    file = run / "model" / "model.json"
    if not file.is_file():
        raise UserError(
            f"{run} is no run folder with a model: there is no {file}; "
            "`ftcore run` writes one when the first epoch is done"
        )
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        version = description["format"]
        if version != checkpoint.FORMAT:
            raise UserError(f"{file} has format {version!r}; this ftcore reads format {checkpoint.FORMAT}")
        asked, task = _read(description, file)
        spec = InputSpec(**_tuples(description["input"]))
        thresholds = tuple(description["metrics"].get("thresholds", [0.5] * task.outputs))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"cannot read {file}: {type(error).__name__}: {error}") from None
    return evolve(_build(file.parent, asked, task, spec), thresholds=thresholds)


def _read(description: dict[str, Any], file: Path) -> tuple[config.RunConfig, Task]:
    """Turn ``model.json`` into what was asked for and what was learnt."""
    origin = str(file)
    options = {name: values for name, values in description["options"].items() if values}
    asked = config.RunConfig(
        model=config.ModelConfig(**_tuples(description["model"])),
        plugins=tuple(config.Named(text, origin, file.parent) for text in description["plugins"]),
        options=options,
        origins={f"plugin.{name}.{key}": origin for name, values in options.items() for key in values},
    )
    return asked, Task(**_tuples(description["task"]))


def _build(folder: Path, asked: config.RunConfig, task: Task, spec: InputSpec) -> Model:
    from .assemble import build_network
    from .calls import Calls
    from .run import activate

    network = build_network(asked, Calls(activate(asked)), task, spec)
    _load_tensors(network.module, folder / "model.safetensors")
    return Model(network.module.eval(), network.transforms, task)


def _load_tensors(module: nn.Module, file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        load_model(module, file, strict=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(
            f"cannot load {file} into the network that {file.parent}/model.json describes: {error}"
        ) from None


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists -> the tuples that the attrs classes hold."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def predict(model: Model, paths: Iterable[Path], batch_size: int = 32) -> Iterator[Prediction | DataError]:
    """Yield a prediction for every picture, and the error in its place for one that cannot be read."""
    batch: list[tuple[Path, Tensor]] = []
    for item in _decoded(model, paths):
        if isinstance(item, DataError):
            yield item
            continue
        batch.append(item)
        if len(batch) == batch_size:
            yield from _predict_batch(model, batch)
            batch = []
    if batch:
        yield from _predict_batch(model, batch)


def _decoded(model: Model, paths: Iterable[Path]) -> Iterator[tuple[Path, Tensor] | DataError]:
    evaluate = model.transforms.evaluate
    for path in paths:
        try:
            files = find_images(path)
        except DataError as error:
            yield error
            continue
        for file in files:
            try:
                yield file, evaluate(read_image(file, evaluate.side))
            except DataError as error:
                yield error


def _predict_batch(model: Model, batch: list[tuple[Path, Tensor]]) -> list[Prediction]:
    import torch

    from .loading import probabilities

    with torch.inference_mode():
        outputs = model.module(model.transforms.finish(torch.stack([image for _, image in batch])))
        values = probabilities(outputs, model.task)
    return [_named(path, row, model) for (path, _), row in zip(batch, values.tolist(), strict=True)]


def _named(path: Path, row: list[float], model: Model) -> Prediction:
    pairs = list(zip(model.task.names, row, strict=True))
    if model.task.kind == "regression":
        return Prediction(path, dict(pairs))
    labels = [name for (name, value), least in zip(pairs, model.thresholds, strict=True) if value >= least]
    ordered = dict(sorted(pairs, key=lambda pair: -pair[1]))
    return Prediction(path, ordered, tuple(labels) if model.task.kind == "multilabel" else ())
