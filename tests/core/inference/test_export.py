"""A run's model as a file that needs no ftcore."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image

from ftcore import UserError
from ftcore.inference import export as exporting
from ftcore.inference import load, predict
from ftcore.inference.evaluate import prepare
from ftcore.testing import Result, image_folder, invoke

if TYPE_CHECKING:
    from pathlib import Path

DIGITS = ("--data", "digits:5-6", "--model", "digits/cnn")
TEXTS = ("--plugin", "tests.core.test_tokens:Texts", "--data", "letters", "--model", "own/bag")


def run(folder: Path, *arguments: str) -> Path:
    sets = ("train.epochs=1", "train.threads=1", f"run.folder={folder}")
    result = invoke("run", *(word for text in sets for word in ("--set", text)), *arguments)
    assert result.code == 0, result.err
    return folder


def exported(run: Path, kind: str, file: Path) -> Result:
    result = invoke("export", run, "--format", kind, "--out", file)
    assert result.code == 0, result.err
    return result


def table(folder: Path, labels: list[str]) -> Path:
    pictures = image_folder(folder / "pictures", ("a", "b"), per_class=8)
    rows = [
        f"{path.relative_to(folder)},{label}"
        for path, label in zip(sorted(pictures.rglob("*.jpg")), labels * 8, strict=True)
    ]
    names = ["first", "second"][: 1 + labels[0].count(",")]
    (folder / "table.csv").write_text("\n".join([f"path,{','.join(names)}", *rows]))
    return folder / "table.csv"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("digits") / "run", *DIGITS, "--plugin", "ema")


def pictures(count: int, folder: Path) -> list[Path]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    files = [folder / f"{place}.png" for place in range(count)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    return files


def said(run: Path, files: list[Path]) -> torch.Tensor:
    """What `predict` says of pictures, in the order of the classes."""
    model = load.load(run)
    found = [answer for answer in predict.predict(model, files) if isinstance(answer, predict.Prediction)]
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


@pytest.mark.parametrize("model", ["timm/test_resnet", "torchvision/mobilenet_v3_small"])
def test_the_printed_lines_load_the_weights_into_the_plain_network(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image_folder(tmp_path / "pictures", per_class=4)
    folder = run(tmp_path / "run", "--data", str(data), "--model", model, "--set", "model.weights=none")

    printed = exported(folder, "safetensors", tmp_path / "model.safetensors").out.replace(
        "model.saf", f"{tmp_path}/model.saf"
    )
    names: dict[str, Any] = {"timm": timm, "torchvision": torchvision, "safetensors": safetensors}
    exec(printed, names)

    images = torch.rand(2, 3, 160, 160)
    ours = load.load(folder).module
    assert len(printed.splitlines()) == 2
    assert torch.equal(names["model"].eval()(images), ours(images))


def test_a_folder_for_the_hub_is_a_network_of_timm_with_its_transform_and_a_card(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "pictures", ("red", "blue", "green"), per_class=4)
    sets = ("--set", "model.weights=none", "--set", "model.image_size=96", "--set", "model.mean=[0.4, 0.4, 0.4]")
    folder = run(tmp_path / "run", "--data", str(data), "--model", "timm/test_resnet", "--plugin", "ema", *sets)

    printed = exported(folder, "hf", tmp_path / "pets.hf").out

    names: dict[str, Any] = {"timm": timm}
    exec(printed.replace("local-dir:", f"local-dir:{tmp_path}/"), names)
    picture = next(data.rglob("*.jpg"))
    model = load.load(folder)
    (expected,) = model.predict(picture)
    with torch.inference_mode():
        found = names["model"](names["transform"](Image.open(picture))[None]).softmax(1)[0]
    described = json.loads((tmp_path / "pets.hf" / "config.json").read_text())
    values = dict(zip(described["label_names"], found.tolist(), strict=True))
    assert values == pytest.approx(expected.values, abs=1e-3)
    assert described["pretrained_cfg"]["mean"] == [0.4, 0.4, 0.4]
    assert described["pretrained_cfg"]["input_size"] == [3, 96, 96]
    card = (tmp_path / "pets.hf" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "# pets\n" in card
    assert printed.strip().replace("pets.hf", ".") in card
    best = json.loads((folder / "model" / "model.json").read_text())["metrics"]
    assert f"accuracy {best['accuracy']:.4f}" in card


@pytest.mark.parametrize(
    ("task", "labels", "row"),
    [("multilabel", ["1,0", "0,1"], "| first | 6 | 0."), ("regression", ["1.5", "20"], "| first | 10.75 | 9.25 |")],
    ids=["labels", "numbers"],
)
def test_a_network_of_two_heads_is_a_folder_for_the_hub_and_the_card_says_what_outputs_mean(
    task: str, labels: list[str], row: str, tmp_path: Path
) -> None:
    data = table(tmp_path, labels)
    names = data.read_text().splitlines()[0].split(",")[1:]
    sets = (f"table.target={json.dumps(names)}", f"data.task={task}", "model.weights=none", "model.image_size=32")
    model = ("--model", "timm/deit_tiny_distilled_patch16_224")
    folder = run(tmp_path / "run", "--data", str(data), *model, *(word for text in sets for word in ("--set", text)))

    exported(folder, "hf", tmp_path / "hub")

    network, images = (
        timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval(),
        torch.rand(2, 3, 32, 32),
    )
    with torch.inference_mode():
        torch.testing.assert_close(network(images), load.load(folder).module(images))
    assert row in (tmp_path / "hub" / "README.md").read_text()


@pytest.mark.parametrize(
    ("model", "plugin", "why"),
    [
        (
            "torchvision/mobilenet_v3_small",
            "adamw",
            "the hub's format is for networks of timm, and of transformers by ",
        ),
        ("timm/test_resnet", "mlp_head", "timm does not build this network again: "),
    ],
)
def test_a_network_that_timm_does_not_build_is_no_folder_for_the_hub(
    model: str, plugin: str, why: str, tmp_path: Path
) -> None:
    data = image_folder(tmp_path / "pictures", per_class=4)
    sets = ("--set", "model.weights=none", "--plugin", plugin)
    folder = run(tmp_path / "run", "--data", str(data), "--model", model, *sets)

    said = invoke("export", folder, "--format", "hf", "--out", tmp_path / "out")

    assert said.code == 2
    assert said.err.splitlines()[-1].startswith(f"ftcore: {why}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "run"]


@pytest.mark.parametrize(
    ("task", "labels"), [("multilabel", ["1,0", "0,1"]), ("regression", ["1.5", "20"])], ids=["labels", "numbers"]
)
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

    assert (said.code, said.err) == (2, "ftcore: --int8 is for --format onnx, and not for torch\n")


def test_a_file_that_exists_is_not_overwritten(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("mine")

    result = invoke("export", digits, "--format", "onnx", "--out", tmp_path / "model.onnx")

    assert result.code == 2
    assert f"{tmp_path / 'model.onnx'} exists, and nothing is overwritten" in result.err
    assert (tmp_path / "model.onnx").read_text() == "mine"


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_file_that_says_something_else_is_not_written(
    kind: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)

    with pytest.raises(UserError, match="the exported model says other things than the run's, by up to "):
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

    assert "export takes one network, and an ensemble has 2" in result.err
