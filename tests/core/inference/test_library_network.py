"""Weights of a run, in the network that torchvision or timm builds for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_model
from tests.core.inference.training import run, table
from tests.plugins.models.networks import TASK, network
from torch import nn

from ftcore import UserError
from ftcore.inference import library_network
from ftcore.inference.model import Member, Model
from ftcore.testing import invoke

if TYPE_CHECKING:
    from pathlib import Path

TORCHVISION = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d"),
    *("shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32"),
)
TIMM = (
    *("test_byobnet", "test_convnext", "test_efficientnet", "test_nfnet", "test_resnet", "test_vit", "cait_xxs24_224"),
    *("convit_tiny", "deit_tiny_distilled_patch16_224", "dla34", "efficientvit_m0", "ghostnet_050", "hgnet_tiny"),
    *("lcnet_050", "levit_128s", "levit_conv_128s", "mobilenetv3_small_050", "mobilevit_xxs", "repvit_m1"),
    *("ese_vovnet19b_slim", "starnet_s050", "swiftformer_xs", "tiny_vit_5m_224", "visformer_tiny"),
)
QUICK = {"torchvision/squeezenet1_1", "torchvision/shufflenet_v2_x0_5", "timm/test_resnet", "timm/test_vit"}
EVERY = [*(f"torchvision/{name}" for name in TORCHVISION), *(f"timm/{name}" for name in TIMM)]
SIZED = [("torchvision/vit_b_32", 96), ("timm/vit_tiny_patch16_224", 96), ("torchvision/squeezenet1_1", 64)]


def model(name: str, *sets: str) -> Model:
    made = network(name, "linear.std=0.1", *sets)
    return Model((Member(made.module.eval(), made, TASK),), TASK)


def compared(asked: Model, folder: Path) -> float:
    save_model(asked.module, str(folder / "weights.safetensors"))
    other, note = library_network.build(asked, str(folder / "weights.safetensors"))
    assert other is not None, note
    return library_network.compare(other, asked, asked.single.network.spec.randn(2, "cpu"), "its library")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in EVERY]
)
def test_the_librarys_own_network_answers_as_the_runs(name: str, tmp_path: Path) -> None:
    assert compared(model(name), tmp_path) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), SIZED)
def test_so_does_one_for_another_size(name: str, side: int, tmp_path: Path) -> None:
    assert compared(model(name, f"model.image_size={side}"), tmp_path) <= 1e-4


def test_a_layer_that_only_one_of_them_has_shows_whatever_the_head_has_learnt(tmp_path: Path) -> None:
    asked = model("torchvision/squeezenet1_1")
    asked.module.get_submodule("classifier.1").bias.data.fill_(1e3)  # type: ignore[operator]
    asked.module.set_submodule("classifier.2", nn.Identity())
    before = {name: tensor.clone() for name, tensor in asked.module.state_dict().items()}

    with pytest.raises(UserError, match=r"differs from the one that its library builds: .* outputs differ by up to 1"):
        compared(asked, tmp_path)

    assert all(torch.equal(tensor, before[name]) for name, tensor in asked.module.state_dict().items())


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_a_squeezenet_without_its_relu_is_not_exported_as_torchvisions(kind: str, tmp_path: Path) -> None:
    data = table(tmp_path, {"regression": ["1.5", "20"], "multilabel": ["1,0", "0,1"]}[kind])
    names = data.read_text().splitlines()[0].split(",")[1:]
    asked = (
        "data.task=" + kind,
        f"table.target={names}".replace("'", '"'),
        "model.image_size=48",
        "model.weights=none",
    )
    sets = (word for text in asked for word in ("--set", text))
    folder = run(tmp_path / "run", "--data", str(data), "--model", "torchvision/squeezenet1_1", *sets)

    result = invoke("export", folder, "--format", "safetensors", "--out", tmp_path / "model.safetensors")

    assert result.code == 2
    assert "the run's network differs from the one that its library builds" in result.err
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("sets", "head", "message"),
    [
        (
            (),
            nn.Sequential(nn.Conv2d(512, 3, 1)),
            r"do not fit the library's network: .*\"classifier.1.0.bias\"",
        ),
        (("model.channels=1",), None, "only ftcore can build the network for these weights"),
    ],
    ids=["another head", "other channels"],
)
def test_weights_that_the_library_does_not_take_have_no_lines_and_a_reason(
    sets: tuple[str, ...], head: nn.Module | None, message: str, tmp_path: Path
) -> None:
    asked = model("torchvision/squeezenet1_1", *sets)
    if head:
        asked.module.set_submodule("classifier.1", head)

    with pytest.raises(AssertionError, match=message):
        compared(asked, tmp_path)
