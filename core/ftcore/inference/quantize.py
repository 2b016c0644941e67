"""An ONNX file in 8-bit integers, and what that costs, measured on the run's own validation split."""

from __future__ import annotations

import contextlib
import io
import logging
from itertools import islice
from typing import TYPE_CHECKING, Any

import onnxruntime
import torch
from attrs import evolve
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from ftcore.types.abilities import Invertible, require
from ftcore.types.data import identity

from . import evaluate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from ftcore.types.task import Task

    from .evaluate import Evaluation


CALIBRATION_IMAGES = 512
"""Training images from which the ranges of activations are taken, about."""


class OnnxRuntimeModule(nn.Module):
    """An ONNX file in the place of a run's network: what its transform makes of images -> outputs (N, K) float32."""

    def __init__(self, file: Path, task: Task) -> None:
        super().__init__()
        self.task = task
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        """Return scores whose `ftcore.Task.decode` are what the file says."""
        (found,) = self.session.run(None, {"images": images.cpu().numpy()})
        said = torch.as_tensor(found, device=images.device)
        return require(self.task, Invertible, "measuring an exported file").undecode(said)


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """The run's training images, unshuffled, as its transform for validation makes them."""

    def __init__(self, evaluation: Evaluation) -> None:
        (batches,) = _without_device_transform(evaluation).loaders[0]
        each = (batch.images.cpu().numpy() for batch in batches.epoch(0))
        number = -(-CALIBRATION_IMAGES // evaluation.config.train.effective_eval_batch_size)
        self.batches: Iterator[np.ndarray[Any, Any]] = islice(each, number)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """Return the next batch, None behind the last: what ONNX Runtime asks for."""
        images = next(self.batches, None)
        return None if images is None else {"images": images}


def _without_device_transform(evaluation: Evaluation) -> Evaluation:
    """Leave out what is done to images on the device, for an exported file does that itself."""
    loaders = tuple(tuple(evolve(one, on_device_transform=identity) for one in member) for member in evaluation.loaders)
    return evolve(evaluation, loaders=loaders)


def quantize(run: Path, file: Path, out: Path) -> None:
    """Write an ONNX file again with 8-bit integers for weights, one scale an output channel, and for activations.

    The ranges of activations are those on training images (static quantisation, QDQ format, minimum and maximum); a
    network that reads texts takes them of each input (dynamic quantisation).

    Args:
        run: that the file was exported of; its data is read.
        file: the ONNX file.
        out: what is written.
    """
    evaluation = evaluate.prepare(run, split="train")
    with _silent():
        if evaluation.model.is_text_model:
            quantize_dynamic(str(file), str(out), per_channel=True)
            return
        prepared = out.with_name(f"{out.name}.prepared")
        try:
            quant_pre_process(str(file), str(prepared))
            quantize_static(str(prepared), str(out), _Images(evaluation), per_channel=True)
        finally:
            prepared.unlink(missing_ok=True)


def accuracy_and_size_change(run: Path, file: Path, out: Path) -> list[str]:
    """Measure two ONNX files of a run on its validation split, and spell what changes: metrics and size.

    Args:
        run: that they were exported of; its data is read.
        file: in float32.
        out: in 8-bit integers.
    """
    evaluation = _without_device_transform(evaluate.prepare(run))
    before, after = (evaluate.compute_metrics(_evaluate_onnx(evaluation, one)) for one in (file, out))
    numbers = [name for name, value in before.items() if isinstance(value, float)]
    changes = [f"{name} {before[name]:.4f} in float32, {after[name]:.4f} in int8" for name in numbers]
    sizes = (f"{one.stat().st_size / 1e6:.2f} MB" for one in (file, out))
    return [f"on {evaluation.images} validation images: {'; '.join(changes)}", " in float32, ".join(sizes) + " in int8"]


def _evaluate_onnx(evaluation: Evaluation, file: Path) -> Evaluation:
    model = evaluation.model
    member = evolve(model.members[0], module=OnnxRuntimeModule(file, model.task))
    return evolve(evaluation, model=evolve(model, members=(member,)))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what ONNX Runtime says of its own steps from people."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
