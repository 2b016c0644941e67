"""Measure what a folder has learnt with the metrics, the loss and the arithmetic of its run."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
import torch
from attrs import evolve, frozen

from ftcore.config.load import load_run_config
from ftcore.data.dataset import ImageSplit
from ftcore.data.loader import TransformedDataset, default_workers, make_batches
from ftcore.errors import UserError
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.system.cpu import retain_freed_memory, set_threads
from ftcore.training.listeners import tell_loss
from ftcore.types.table import Table

from . import load
from .measured_data import (
    MeasuredData,
    RemappedTargets,
    check_learnt,
    check_names,
    choose_split,
    config_to_measure,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from ftcore.config.schema import RunConfig
    from ftcore.data.loader import Batch, EpochLoader
    from ftcore.training.intervals import MeasuredOutputs
    from ftcore.types.data import SampleDataset
    from ftcore.types.distributed import Placement
    from ftcore.types.task import Task
    from ftcore.types.training import Loss, Moment, Precision

    from .model import Member, Model


MAX_MATRIX_CLASSES = 30
"""Most classes of which a matrix is printed."""


@frozen(eq=False)
class Evaluation:
    """A model on its device, and what it is measured on and with.

    Attributes:
        model: its members are placed and wrapped as in their runs.
        loaders: for each member, batches of each split in turn; the same samples for all members.
        precision: the arithmetic of the forward pass.
        loss: the run's, or None where it cannot be built.
        metrics: the run's, by name.
        config: of the run, with the data that is measured on.
        measured: which pictures of the data.
    """

    model: Model
    loaders: tuple[tuple[EpochLoader, ...], ...]
    precision: Precision
    loss: Loss | None
    metrics: Mapping[str, Any]
    config: RunConfig
    measured: MeasuredData

    @property
    def images(self) -> int:
        """How many are measured on."""
        return sum(len(batches.samples) for batches in self.loaders[0])

    @property
    def measured_on(self) -> str:
        """What is measured on, for people: ``12 of 60 pictures of photos, split val``."""
        return f"{self.images} of {self.measured.total} images of {self.config.data.source}{self.measured.which}"

    @property
    def groups(self) -> Any:
        """(N,) int64, which images belong together; None where that is not known of all."""
        groups: list[Any] = [getattr(samples, "groups", None) for samples in self.measured.samples]
        return None if any(some is None for some in groups) else np.concatenate(groups)

    def batches(self) -> Iterator[tuple[Batch, ...]]:
        """Yield the same samples as each member wants them."""
        each = [chain.from_iterable(batches.epoch(0) for batches in member) for member in self.loaders]
        return zip(*each, strict=True)


def prepare(folder: Path, source: str | None = None, split: str | None = None) -> Evaluation:
    """Build everything that an evaluation needs; decode no image yet.

    Args:
        folder: of a run, an ensemble or a soup; config and plugins are those of its ``config.toml``.
        source: other data, as in ``data.source``; then settings that split the run's own do not count: nothing is held
            out. Its classes or labels may be fewer than the model's; a label that it does not know counts as absent.
        split: see `ftcore.inference.measured_data.choose_split`.

    Raises:
        UserError: the folder holds no model, the data has no such split, is of another kind, or has names that the
            model does not know.
    """
    saved = load.read_saved(folder)
    model = load.build(saved)
    asked = load_run_config(folder)
    set_threads(asked.train.threads)
    retain_freed_memory()
    host = activate(config_to_measure(asked, source, split, model.task))
    calls = HookCalls(host)
    data = calls.build_data(host.config.data.source)
    measured = choose_split(data, split, host.config)
    check_names(folder, model.task, host.config.data.source, measured)
    check_learnt(folder, data, measured, source)
    placements = [calls.wrap_devices(m.module, m.network.heads, m.network.backbone) for m in model.members]
    precision = calls.precision_context(placements[0])
    for one, placed in zip(saved, placements, strict=True):  # what wraps a network may be what was measured
        load.check_reference(one, placed.model, precision.autocast)
    device = placements[0].device
    loaders = tuple(
        tuple(_loader(samples, measured.task, member, model, host.config, device) for samples in measured.samples)
        for member in model.members
    )
    return Evaluation(
        model=_move_to_devices(model, placements),
        loaders=loaders,
        precision=precision,
        loss=_loss(calls, model.task, device, saved[0].moment),
        metrics={name: metric.to(device) for name, metric in calls.make_metrics(model.task).items()},
        config=host.config,
        measured=measured,
    )


def _move_to_devices(model: Model, placements: Sequence[Placement]) -> Model:
    pairs = zip(model.members, placements, strict=True)
    return evolve(model, members=tuple(evolve(member, module=placed.model.eval()) for member, placed in pairs))


def _loader(
    samples: SampleDataset, given: Task, member: Member, model: Model, config: RunConfig, device: torch.device
) -> EpochLoader:
    """Make the batches of one member, as large as in the run; several share the loader processes."""
    steps = member.transforms.evaluate
    if isinstance(samples, ImageSplit):
        samples = evolve(samples, side=steps.min_decode_side)
    if given.names != model.task.names:
        places = {name: place for place, name in enumerate(model.task.names)}
        samples = RemappedTargets(samples, tuple(places.get(name) for name in given.names), model.task)
    workers = default_workers(device) if config.train.workers is None else config.train.workers
    workers = -(-workers // len(model.members))
    prepared = TransformedDataset(samples, steps, model.task)
    size, on_device = config.train.effective_eval_batch_size, member.transforms.on_device
    return make_batches(prepared, size, workers, device, on_device_transform=on_device)


def _loss(calls: HookCalls, task: Task, device: torch.device, now: Moment | None) -> Loss | None:
    """Make the run's loss; one that cannot be made leaves the metrics to themselves."""
    try:
        loss = calls.make_loss(task)
    except UserError as error:
        structlog.get_logger().warning("the loss is not computed", reason=str(error))
        return None
    if isinstance(loss.function, torch.nn.Module):
        loss.function.to(device)
    tell_loss(loss.function, now)
    return loss


@torch.inference_mode()
def compute_metrics(
    evaluation: Evaluation, *, tta: bool = False, seen: MeasuredOutputs | None = None
) -> dict[str, Any]:
    """Return ``loss`` and every metric, as the run does after each epoch.

    Args:
        evaluation: from `prepare`; can be measured again and again.
        tta: average over each image and its mirror image.
        seen: keeps what the metrics are shown, for `ftcore.training.intervals.intervals`.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    total: Any = 0.0
    weight: Any = 0.0
    model, loss = evaluation.model, evaluation.loss
    for metric in evaluation.metrics.values():
        metric.reset()
    for batches in evaluation.batches():
        targets: Tensor = batches[0].targets
        with evaluation.precision.autocast():
            outputs = model.outputs([batch.images for batch in batches], tta=tta)
        if loss:
            divisor = loss.denominator(targets)
            total = total + loss.function(outputs, targets) * divisor
            weight = weight + divisor
        measured = model.task.measured(outputs, targets)
        if seen is not None:
            seen.add(*measured)
        for metric in evaluation.metrics.values():
            metric.update(*measured)
    found = {name: metric.compute().tolist() for name, metric in evaluation.metrics.items()}
    return {"loss": float(total / weight), **found} if loss else found


def tables(
    evaluation: Evaluation, metrics: Mapping[str, Any], intervals: Mapping[str, Sequence[float] | None]
) -> list[Table]:
    """Show metrics: single numbers with their 95 % intervals, those of each name, and small matrices."""
    names = evaluation.model.task.names
    single = {name: value for name, value in metrics.items() if isinstance(value, float | int)}
    shown = [
        Table(
            evaluation.measured_on,
            ("metric", "value", "95 % interval"),
            tuple((name, f"{value:.6g}", format_interval(intervals.get(name))) for name, value in single.items()),
        )
    ]
    several = {name: value for name, value in metrics.items() if name not in single and len(value) == len(names)}
    flat = {name: value for name, value in several.items() if not isinstance(value[0], list)}
    if flat:
        rows = zip(names, *([f"{number:.6g}" for number in value] for value in flat.values()), strict=True)
        shown.append(Table("of each", ("name", *flat), tuple(rows)))
    matrices = {name: value for name, value in several.items() if name not in flat and len(names) <= MAX_MATRIX_CLASSES}
    for name, value in matrices.items():
        lines = ((label, *(f"{number:g}" for number in row)) for label, row in zip(names, value, strict=True))
        shown.append(Table(name, ("", *names), tuple(lines)))
    return shown


def format_interval(ends: Sequence[float] | None) -> str:
    """Spell an interval; nothing where there is none."""
    return "" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"


def to_dict(folder: Path, evaluation: Evaluation, metrics: Mapping[str, Any], *, tta: bool) -> dict[str, Any]:
    """Put an evaluation into one JSON object."""
    return {
        "folder": str(folder),
        "data": evaluation.config.data.source,
        "split": evaluation.measured.split,
        "images": evaluation.images,
        "total": evaluation.measured.total,
        "tta": tta,
        "metrics": dict(metrics),
    }
