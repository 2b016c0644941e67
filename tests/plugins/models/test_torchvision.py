"""Networks of torchvision, and their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torchvision
from tests.plugins.models.networks import differing, needs_shared, network, outputs, real_run, saved
from timm.models import adapt_input_conv
from torchvision.models.vision_transformer import interpolate_embeddings

from ftcore import InputSpec, UserError
from ftcore.config.schema import ModelConfig, RunConfig
from ftcore_plugins.models.torchvision import Torchvision, TorchvisionConfig, _resolve_input

if TYPE_CHECKING:
    from pathlib import Path


def test_the_input_of_a_torchvision_network_is_that_of_its_default_weights() -> None:
    preset = torchvision.models.EfficientNet_B0_Weights.DEFAULT.transforms()

    spec = network("torchvision/efficientnet_b0").spec

    assert [*spec.size] == preset.crop_size * 2
    assert ([*spec.mean], [*spec.std]) == (preset.mean, preset.std)
    assert spec.interpolation == preset.interpolation.value
    assert int(spec.size[0] / spec.crop_fraction) == preset.resize_size[0]


def test_a_torchvision_network_takes_the_three_channels_that_it_has() -> None:
    assert network("torchvision/squeezenet1_1", "model.channels=3").spec.channels == 3


def test_an_unknown_torchvision_network_shows_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"no classification network 'resnet5O'; nearest: torchvision/resnet50, torchvision/\w+"
    ):
        network("torchvision/resnet5O")


def test_a_torchvision_network_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="no classification network 'fcn_resnet50'"):
        network("torchvision/fcn_resnet50")


def test_unknown_torchvision_weights_show_the_nearest_and_the_list() -> None:
    message = r"no weights 'IMAGENET1K_V3'; did you mean 'IMAGENET1K_V\d'\?; it has IMAGENET1K_V1, IMAGENET1K_V2"
    with pytest.raises(UserError, match=message):
        network("torchvision/resnet50", weights="IMAGENET1K_V3")


def test_the_logits_of_a_squeezenet_may_be_negative() -> None:
    found = outputs(network("torchvision/squeezenet1_0", "linear.std=0.1"), images=4)

    assert (found < 0).any()
    assert (found != 0).all()


def test_a_torchvision_transformers_position_embedding_is_interpolated(tmp_path: Path) -> None:
    model, file = saved("torchvision/vit_b_32", tmp_path)
    state = model.state_dict()

    made = network("torchvision/vit_b_32", "model.image_size=96", weights=file)

    found = made.module.state_dict()
    assert differing(found, state) == {"encoder.pos_embedding", "heads.head.weight", "heads.head.bias"}
    wanted = interpolate_embeddings(96, 32, model.state_dict())["encoder.pos_embedding"]
    torch.testing.assert_close(found["encoder.pos_embedding"], wanted)
    assert outputs(made).shape == (2, 3)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_torchvision_network_gets_other_channels_as_timm_adapts_them(tmp_path: Path, channels: int) -> None:
    model, file = saved("torchvision/squeezenet1_1", tmp_path)
    state = model.state_dict()

    asked = RunConfig(model=ModelConfig(channels=channels))
    made = Torchvision(TorchvisionConfig()).build_model("torchvision/squeezenet1_1", str(file), asked)

    assert made is not None
    found = made.module.state_dict()
    assert differing(found, state) == {"features.0.weight", "classifier.1.weight"}  # the old head is not read
    torch.testing.assert_close(found["features.0.weight"], adapt_input_conv(channels, state["features.0.weight"]))
    assert made.input.channels == len(made.input.mean) == channels
    with torch.no_grad():
        assert made.module.eval()(torch.randn(2, channels, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_normalisation_inside_the_network_is_taken_out_of_it(name: str) -> None:
    module = torchvision.models.get_model(name, transform_input=True, init_weights=False, aux_logits=True).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = torch.rand(2, 299, 299, 3)
    with torch.no_grad():
        theirs = module(((pixels - mean) / std).movedim(-1, 1))

    spec = _resolve_input(module, InputSpec(), name, trained=True)
    with torch.no_grad():
        ours = module(((pixels - torch.tensor(spec.mean)) / torch.tensor(spec.std)).movedim(-1, 1))

    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@needs_shared
@pytest.mark.slow
def test_real_torchvision_weights_tell_waste_apart_after_three_epochs(tmp_path: Path) -> None:
    result = real_run(tmp_path, "torchvision/squeezenet1_0", "torchvision-squeezenet1_0.safetensors", "adamw.lr=0.003")

    assert result.code == 0
    assert result.report["best"]["accuracy"] > 2 / 6
