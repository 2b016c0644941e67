"""`ftcore export` as a folder for the hub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tests.core.inference.training import exported, run, table

from ftcore.inference import load
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from pathlib import Path


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
    ("model", "crop", "size"),
    [("timm/test_resnet", "squash", 96), ("timm/test_resnet", "pad", [64, 96]), ("timm/test_vit", "pad", [64, 96])],
)
def test_a_folder_for_the_hub_sees_of_a_ramp_what_the_run_sees(
    model: str, crop: str, size: Any, tmp_path: Path
) -> None:
    data = image_folder(tmp_path / "pictures", ("red", "blue"), per_class=4)
    sets = ("model.weights=none", f"model.image_size={size}", f"model.crop={crop}")
    words = [word for text in sets for word in ("--set", text)]
    folder = run(tmp_path / "run", "--data", str(data), "--model", model, *words)
    across = np.broadcast_to(np.linspace(0, 255, 640).round().astype(np.uint8)[None, :, None], (320, 640, 3))

    names: dict[str, Any] = {"timm": timm}
    exec(exported(folder, "hf", tmp_path / "a.hf").out.replace("local-dir:", f"local-dir:{tmp_path}/"), names)

    seen = names["transform"](Image.fromarray(across))
    steps = load.load(folder).transforms
    shown = steps.on_device(steps.evaluate(Image.fromarray(across))[None])[0]
    torch.testing.assert_close(seen, shown, rtol=0, atol=1.01 / 255 / 0.224)
    with torch.inference_mode():
        found = names["model"](seen[None]).softmax(1)[0].tolist()
    assert found == pytest.approx([load.load(folder).predict(across)[0].values[n] for n in ("blue", "red")], abs=1e-3)


@pytest.mark.parametrize(
    ("task", "labels", "row"),
    [("multilabel", ["1,0", "0,1"], "| first | 6 | 0."), ("regression", ["1.5", "20"], "| first | 10.75 | 9.25 |")],
    ids=["labels", "numbers"],
)
@pytest.mark.slow
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
            "the Hugging Face format is for networks of timm, and of transformers with ",
        ),
        ("timm/test_resnet", "mlp_head", "timm cannot rebuild this network: "),
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
