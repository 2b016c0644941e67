"""A run's model as a file that needs no ftcore."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import timm
import torch
from PIL import Image
from tests.core.inference.training import TEXTS, exported, run, table

from ftcore import Prediction, UserError
from ftcore.inference import export as exporting
from ftcore.inference import load, predict
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from pathlib import Path


def pictures(count: int, folder: Path) -> list[Path]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    files = [folder / f"{place}.png" for place in range(count)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    return files


def said(run: Path, files: list[Path]) -> torch.Tensor:
    """What `predict` says of pictures, in the order of the classes."""
    model = load.load(run)
    found = [answer for answer in predict.predict(model, files) if isinstance(answer, Prediction)]
    return torch.tensor([[answer.values[name] for name in model.task.names] for answer in found])


@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("count", [1, 7])
def test_a_program_says_of_any_number_of_pictures_what_predict_says(
    kind: str, count: int, digits: Path, tmp_path: Path
) -> None:
    files, file = pictures(count, tmp_path), tmp_path / f"model.{kind}"
    exported(digits, kind, file)
    images = torch.stack([torch.from_numpy(np.array(Image.open(path)))[None] for path in files])

    if kind == "onnx":
        (found,) = onnxruntime.InferenceSession(file).run(None, {"images": images.numpy()})
    else:
        found = torch.export.load(file).module()(images).detach()

    torch.testing.assert_close(torch.as_tensor(found), said(digits, files), rtol=0, atol=1e-5)


def test_an_onnx_file_knows_its_classes_and_takes_uint8(digits: Path, tmp_path: Path) -> None:
    exported(digits, "onnx", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    model: Any = onnx.load(tmp_path / "model.onnx")

    assert (session.get_inputs()[0].name, session.get_inputs()[0].type) == ("images", "tensor(uint8)")
    assert session.get_inputs()[0].shape[1:] == [1, 8, 8]
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert facts["classes"] == ["5", "6"]


def test_a_file_says_what_its_pictures_must_look_like(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "pictures", ("blue", "red"), per_class=4)
    sets = ("model.weights=none", "model.image_size=[32, 48]", "model.crop=pad", "model.mean=0.5")
    words = [word for text in sets for word in ("--set", text)]
    folder = run(tmp_path / "run", "--data", str(data), "--model", "timm/test_resnet", *words)

    exported(folder, "safetensors", tmp_path / "model.safetensors")
    exported(folder, "onnx", tmp_path / "model.onnx")

    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        written = {name: json.loads(value) for name, value in file.metadata().items() if name != "format"}
    of_onnx: Any = onnx.load(tmp_path / "model.onnx")
    inside = {entry.key: json.loads(entry.value) for entry in of_onnx.metadata_props}
    assert written.pop("classes") == inside.pop("classes") == ["blue", "red"]
    assert written.pop("size") == inside.pop("size") == [32, 48]
    assert (inside.pop("task"), inside.pop("fill")) == ("classification", [128, 128, 128])
    assert {**inside, "mean": [0.5] * 3, "std": written["std"]} == written  # the ONNX file normalises by itself
    steps, image = load.load(folder).transforms, Image.new("RGB", (60, 20), "red")
    shown = steps.on_device(steps.evaluate(image)[None])[0]
    torch.testing.assert_close(timm.data.create_transform(**written)(image), shown, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["timm/test_resnet", "torchvision/mobilenet_v3_small"])
def test_the_printed_lines_load_the_weights_into_the_plain_network(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image_folder(tmp_path / "pictures", per_class=4)
    folder = run(tmp_path / "run", "--data", str(data), "--model", model, "--set", "model.weights=none")

    printed = exported(folder, "safetensors", tmp_path / "model.safetensors").out.replace(
        "model.saf", f"{tmp_path}/model.saf"
    )
    names: dict[str, Any] = {}
    exec(printed, names)

    images = torch.rand(2, 3, 160, 160)
    ours = load.load(folder).module
    assert torch.equal(names["model"](images), ours(images))


@pytest.mark.parametrize(
    ("task", "labels"), [("multilabel", ["1,0", "0,1"]), ("regression", ["1.5", "20"])], ids=["labels", "numbers"]
)
@pytest.mark.slow
def test_labels_and_numbers_are_said_in_their_own_terms(task: str, labels: list[str], tmp_path: Path) -> None:
    data = table(tmp_path, labels)
    model = ("--model", "timm/test_resnet", "--set", "model.weights=none", "--set", "model.image_size=32")
    names = data.read_text().splitlines()[0].split(",")[1:]
    target = ("--set", f"table.target={json.dumps(names)}")
    folder = run(tmp_path / "run", "--data", str(data), *model, *target, "--set", f"data.task={task}")

    exported(folder, "onnx", tmp_path / "model.onnx")

    images = np.zeros((3, 3, 32, 32), dtype=np.uint8)
    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": images})
    if task == "multilabel":
        assert ((found > 0) & (found < 1)).all()
    else:
        assert (np.abs(found - 10.75) < 30).all()  # near the mean of the numbers, not near 0 and 1
        assert (np.abs(found) > 1.5).all()


def test_a_network_that_reads_texts_is_exported_too(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", *TEXTS)

    exported(folder, "onnx", tmp_path / "model.onnx")

    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": np.zeros((2, 4), np.int64)})
    assert found.sum(axis=1) == pytest.approx([1, 1])


def test_a_file_that_exists_is_not_overwritten(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("mine")

    result = invoke("export", digits, "--format", "onnx", "--out", tmp_path / "model.onnx")

    assert result.code == 2
    assert f"{tmp_path / 'model.onnx'} already exists and will not be overwritten" in result.err
    assert (tmp_path / "model.onnx").read_text() == "mine"


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_file_that_says_something_else_is_not_written(
    kind: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)

    with pytest.raises(UserError, match="outputs of the exported model differ from the run's by up to "):
        exporting.export(digits, kind, tmp_path / "model")

    assert list(tmp_path.iterdir()) == []


def test_without_the_libraries_onnx_is_refused_with_what_to_install(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxscript" else name)

    result = invoke("export", digits, "--format", "onnx", "--out", tmp_path / "model.onnx")

    assert result.err == "ftcore: ONNX needs onnxscript: pip install 'ftcore[onnx]'\n"


def test_an_ensemble_is_refused(digits: Path, tmp_path: Path) -> None:
    invoke("ensemble", digits, digits, "--out", tmp_path / "both")

    result = invoke("export", tmp_path / "both", "--format", "torch", "--out", tmp_path / "model.pt2")

    assert "export needs one network, but an ensemble has 2" in result.err
