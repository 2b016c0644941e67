"""`ftcore export` in eight-bit integers, and what they cost."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.core.inference.training import TEXTS, exported, run, table

from ftcore.inference.evaluate import prepare
from ftcore.testing import invoke

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_eight_bit_integers_are_smaller_and_what_they_cost_is_measured(digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    exported(digits, "onnx", tmp_path / "float.onnx")

    said = invoke("export", digits, "--format", "onnx", "--int8", "--out", file)

    assert said.code == 0, said.err
    measured = invoke("evaluate", digits, "--json").report["metrics"]
    model: Any = onnx.load(file)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    dequantized = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    weights = [stored[name] for name in dequantized if name in stored]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8, onnx.TensorProto.INT32}
    assert file.stat().st_size < (tmp_path / "float.onnx").stat().st_size / 2
    for name in ("loss", "accuracy", "f1"):
        assert f"{name} {measured[name]:.4f} in float32, " in said.err
    images, targets = validation(digits)
    (found,) = onnxruntime.InferenceSession(file).run(None, {"images": images.numpy()})
    accuracy = float((torch.as_tensor(found).argmax(1) == targets).float().mean())
    assert f"accuracy {measured['accuracy']:.4f} in float32, {accuracy:.4f} in int8" in said.err
    assert len(list(tmp_path.iterdir())) == 2


def validation(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of the run's validation split as its transform makes them, and their classes."""
    evaluation = prepare(run)
    steps, (samples,) = evaluation.model.transforms.evaluate, [batches.samples for batches in evaluation.loaders[0]]
    pairs = [samples[place] for place in range(len(samples))]
    return torch.stack([steps(image) for image, _ in pairs]), torch.tensor([target for _, target in pairs])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "labels"), [("multilabel", ["1,0", "0,1"]), ("regression", ["1.5", "20"])], ids=["labels", "numbers"]
)
def test_the_cost_for_labels_and_numbers_is_in_their_own_metrics(task: str, labels: list[str], tmp_path: Path) -> None:
    data = table(tmp_path, labels)
    names = data.read_text().splitlines()[0].split(",")[1:]
    sets = ("--set", f"table.target={json.dumps(names)}", "--set", f"data.task={task}", "--set", "model.image_size=32")
    folder = run(
        tmp_path / "run", "--data", str(data), "--model", "timm/test_resnet", "--set", "model.weights=none", *sets
    )

    said = invoke("export", folder, "--format", "onnx", "--int8", "--out", tmp_path / "model.onnx")

    assert said.code == 0, said.err
    measured = invoke("evaluate", folder, "--json").report["metrics"]
    numbers = {name: value for name, value in measured.items() if isinstance(value, float)}
    assert len(numbers) > 1
    for name, value in numbers.items():
        found = re.search(rf"\b{name} (\S+) in float32", said.err)
        assert found
        assert float(found[1]) == pytest.approx(value, abs=2e-4)


def test_a_network_that_reads_texts_is_quantised_too(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", *TEXTS)

    said = invoke("export", folder, "--format", "onnx", "--int8", "--out", tmp_path / "model.onnx")

    assert said.code == 0, said.err
    assert "in int8" in said.err
    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": np.zeros((2, 4), np.int64)})
    assert found.sum(axis=1) == pytest.approx([1, 1])


def test_integers_are_for_onnx_alone(digits: Path, tmp_path: Path) -> None:
    said = invoke("export", digits, "--format", "torch", "--int8", "--out", tmp_path / "model.pt2")

    assert (said.code, said.err) == (2, "ftcore: --int8 needs --format onnx, not torch\n")
