"""A finished run's model as a file that others can use without ftcore; each is tried before it is put in its place."""

from __future__ import annotations

import io
import json
import warnings
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import frozen
from PIL import Image
from torch import nn

from ftcore.checkpoints.atomic import wrap_write_errors, write_dir_atomic, write_file
from ftcore.errors import UserError
from ftcore.types.model import TokenSpec

from . import library_network, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from ftcore.types.data import Transforms
    from ftcore.types.task import Task

    from .load import SavedModel
    from .model import Model


N_CHECK_INPUTS, TOLERANCE = 100, 1e-4
"""Inputs on which a file is tried, and most by which what it says of them may differ from what the run's model does."""


@frozen
class Exported:
    """A file that was written.

    Attributes:
        file: where it is.
        difference: largest between what it says and what the run's model does, on `N_CHECK_INPUTS` inputs; of weights
            that no other library's network takes, between them and the run's.
        usage_code: of Python that use it, which were tried; none where there are none without ftcore.
        note: why there are none.
        quantisation_report: of 8-bit integers, a line of metrics and one of sizes.
    """

    file: Path
    difference: float
    usage_code: tuple[str, ...]
    note: str = ""
    quantisation_report: tuple[str, ...] = ()


class ExportModule(nn.Module):
    """What comes out of the transform of a picture (N, C, H, W), uint8 for the built-in ones -> what `predict` says.

    That is what `ftcore.Task.decode` returns: probabilities (N, K) of classes or labels, or numbers in their own unit.
    """

    def __init__(self, network: nn.Module, finish: Callable[[Tensor], Tensor], task: Task) -> None:
        super().__init__()
        self.network, self.finish, self.task = network, finish, task

    def forward(self, images: Tensor) -> Tensor:
        """Normalise, and ask the network."""
        return self.task.decode(self.network(self.finish(images)).float())


def export(run: Path, kind: str, out: Path, *, int8: bool = False) -> Exported:
    """Write the model of a run into a file, which appears whole or not at all.

    Args:
        run: a folder that `predict` takes, with one network.
        kind: ``safetensors``, the weights; ``hf``, a folder for the Hugging Face hub, if the network has a `Hub`;
            ``torch``, a program of `torch.export`; or ``onnx``. The latter two hold the normalisation and what makes
            probabilities of outputs, and take any number of images.
        out: the file, which must not exist.
        int8: let an ONNX file compute in 8-bit integers; what that costs is measured on the run's validation split.

    Raises:
        UserError: the network cannot be exported, or the file says something else than the model.
    """
    if out.exists():
        raise UserError(f"{out} already exists and will not be overwritten; choose another file with --out")
    if int8 and kind != "onnx":
        raise UserError(f"--int8 needs --format onnx, not {kind}")
    model, (saved, *_) = load.load(run), load.read_saved(run)
    if kind == "hf":
        return _export_folder(model, saved, out)
    found, cost = list[tuple[float, str]](), list[str]()

    def write(file: Path) -> None:
        found.append(WRITERS[kind](model, saved, file))
        if int8:
            cost.extend(_quantise_onnx(run, file))

    with wrap_write_errors(out.parent):
        write_file(out, write, durable=True)
    [(difference, note)] = found
    usage = () if note else USAGE_CODE[kind](model, out.name)
    return Exported(out, difference, tuple(usage), note, tuple(cost))


def _export_folder(model: Model, saved: SavedModel, out: Path) -> Exported:
    from . import hub_export

    whole, images = _build_export_module(model)
    hub, found = hub_export.hub_exporter_of(model, saved), list[float]()

    def write(folder: Path) -> None:
        hub_export.write(model, saved, hub, folder, out.stem)
        found.append(library_network.compare(hub.read(folder), model, whole.finish(images), hub.library))

    with wrap_write_errors(out.parent):
        write_dir_atomic(out, write)
    return Exported(out, found[0], tuple(hub.usage_code(out.name)))


def _quantise_onnx(run: Path, file: Path) -> list[str]:
    """Replace an ONNX file by one in 8-bit integers, and say what that costs."""
    from . import quantize

    cost = list[str]()

    def write(shrunk: Path) -> None:
        quantize.quantize(run, file, shrunk)
        cost.extend(quantize.accuracy_and_size_change(run, file, shrunk))

    write_file(file, write)
    return cost


def _build_export_module(model: Model) -> tuple[ExportModule, Tensor]:
    """Return a model with all that belongs to it, and `N_CHECK_INPUTS` inputs as its transform makes them."""
    (member,) = model.members if len(model.members) == 1 else (None,)
    if member is None:
        raise UserError(f"export needs one network, but an ensemble has {len(model.members)}; export one of its runs")
    whole = ExportModule(member.module, member.transforms.on_device, model.task).eval()
    torch.manual_seed(0)
    if isinstance(member.network.spec, TokenSpec):
        return whole, member.network.spec.randn(N_CHECK_INPUTS, "cpu")
    return whole, torch.stack([_random_image_input(member.transforms) for _ in range(N_CHECK_INPUTS)])


def _random_image_input(transforms: Transforms) -> Tensor:
    pixels = torch.randint(0, 256, (96, 128, 3), dtype=torch.uint8).numpy()
    return transforms.evaluate(Image.fromarray(pixels))


def _difference(found: Any, expected: Tensor) -> float:
    """Return the largest difference.

    Raises:
        UserError: it is more than `TOLERANCE`.
    """
    difference = float(np.abs(np.asarray(found) - expected.numpy()).max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"outputs of the exported model differ from the run's by up to {difference:g}; nothing was written"
        )
    return difference


def _write_safetensors(model: Model, saved: SavedModel, file: Path) -> tuple[float, str]:
    from safetensors.torch import load_file, save_model

    whole, images = _build_export_module(model)
    spec = saved.spec
    facts = {"classes": model.task.names, "size": spec.size, **spec.data_config()}
    save_model(whole.network, str(file), {name: json.dumps(value) for name, value in facts.items()})
    read, state = load_file(file), whole.network.state_dict()
    difference = max(
        float((read[name].float() - state[name].float()).abs().max()) for name in read if read[name].numel()
    )
    other, note = library_network.build(model, str(file))
    if other is None:
        return difference, note
    return library_network.compare(other, model, whole.finish(images), "its library"), ""


def _write_torch(model: Model, _saved: SavedModel, file: Path) -> tuple[float, str]:
    whole, images = _build_export_module(model)
    buffer = io.BytesIO()
    torch.export.save(_program(whole, images), buffer)
    file.write_bytes(buffer.getvalue())
    program: Any = torch.export.load(io.BytesIO(file.read_bytes())).module()
    with torch.inference_mode():
        return _difference(program(images), whole(images)), ""


def _write_onnx(model: Model, saved: SavedModel, file: Path) -> tuple[float, str]:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'ftcore[onnx]'")
    import onnxruntime

    whole, images = _build_export_module(model)
    with _quiet():
        made: Any = torch.onnx.export(
            _program(whole, images), input_names=["images"], output_names=[model.task.output_name], dynamo=True
        )
    spec, inside = saved.spec, ("mean", "std")  # the file normalises by itself, and who reads it must not
    seen = {name: value for name, value in spec.data_config().items() if name not in inside}
    facts = {"classes": model.task.names, "task": model.task.name, "size": spec.size, "fill": spec.fill, **seen}
    made.model.metadata_props.update({name: json.dumps(value) for name, value in facts.items()})
    made.save(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.inference_mode():
        return _difference(found, whole(images)), ""


def _program(whole: ExportModule, images: Tensor) -> torch.export.ExportedProgram:
    any_number = {"images": {0: torch.export.Dim.DYNAMIC}}
    try:
        with _quiet():
            return torch.export.export(whole, (images[:2],), dynamic_shapes=any_number)
    except Exception as error:  # torch.export fails in its own ways for each thing that it does not know
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"torch.export cannot export this network: {type(error).__name__}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress of the exporter, and its warnings of itself, from people."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


WRITERS: dict[str, Callable[[Model, SavedModel, Path], tuple[float, str]]] = {
    "safetensors": _write_safetensors,
    "torch": _write_torch,
    "onnx": _write_onnx,
}
"""Kind -> writes a file; returns how far what it says is from what the model does, and why nobody else can ask it."""

SUFFIXES = {"safetensors": ".safetensors", "torch": ".pt2", "onnx": ".onnx", "hf": ".hf"}


def _onnx_usage(model: Model, file: str) -> list[str]:
    return [
        f'session = onnxruntime.InferenceSession("{file}")',
        f'({model.task.output_name},) = session.run(None, {{"images": images}})'.replace('{"images"', '{"images"'),
    ]


def _torch_usage(model: Model, file: str) -> list[str]:
    return [f'model = torch.export.load("{file}").module()', f"{model.task.output_name} = model(images)"]


USAGE_CODE: dict[str, Callable[[Model, str], list[str]]] = {
    "safetensors": library_network.usage_code,
    "torch": _torch_usage,
    "onnx": _onnx_usage,
}
"""Kind -> lines of Python that use a file."""
