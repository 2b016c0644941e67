"""Networks of torchvision, and their weights."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
import torchvision
from tests.core.model.numbering import by_module
from tests.plugins.models.networks import differing, needs_shared, network, outputs, real_run, saved
from timm.models import adapt_input_conv
from torchvision.models.vision_transformer import interpolate_embeddings

from ftcore import InputSpec, UserError
from ftcore.config.schema import ModelConfig, RunConfig
from ftcore.model.freezing import is_submodule_of, named_tensors
from ftcore.model.shape_inference import build_on_meta
from ftcore_plugins.models.torchvision import Torchvision, TorchvisionConfig, _resolve_input

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore import Backbone


def test_the_input_of_a_torchvision_network_is_that_of_its_default_weights() -> None:
    preset = torchvision.models.EfficientNet_B0_Weights.DEFAULT.transforms()

    spec = network("torchvision/efficientnet_b0").spec

    assert [*spec.size] == preset.crop_size * 2
    assert ([*spec.mean], [*spec.std]) == (preset.mean, preset.std)
    assert spec.interpolation == preset.interpolation.value
    assert int(spec.size[0] / spec.crop_fraction) == preset.resize_size[0]


def test_a_torchvision_network_takes_the_three_channels_that_it_has() -> None:
    assert network("torchvision/squeezenet1_1", "model.channels=3").spec.channels == 3


def test_a_torchvision_network_is_built_for_a_rectangle_where_it_can_be() -> None:
    made = network("torchvision/squeezenet1_1", "model.image_size=[64, 96]")

    assert made.spec.size == (64, 96)
    assert outputs(made).shape == (2, 3)


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


@pytest.mark.slow
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


TORCHVISION = {
    "resnet18": 5,
    "vgg11_bn": 5,
    "mobilenet_v2": 5,
    "densenet121": 5,
    "convnext_tiny": 5,
    "swin_t": 5,
    "googlenet": 4,
    "inception_v3": 4,
    "efficientnet_b0": 9,
    "vit_b_16": 13,
    "regnet_y_400mf": 5,
    "mnasnet0_5": 7,
    "maxvit_t": 5,
    "shufflenet_v2_x0_5": 5,
}
"""Stages of networks of torchvision, the stem among them."""


@cache
def of_torchvision(name: str) -> Backbone:
    backbone = build_on_meta(
        lambda: Torchvision(TorchvisionConfig()).build_model(f"torchvision/{name}", "none", RunConfig())
    )
    assert backbone is not None
    backbone.module.to("meta")
    return backbone


@pytest.mark.parametrize(("name", "expected"), TORCHVISION.items(), ids=TORCHVISION)
def test_networks_of_torchvision_have_the_stages_of_the_table(name: str, expected: int) -> None:
    assert set(of_torchvision(name).stages.values()) == set(range(expected))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vgg11_bn", {"features.0": 0, "features.4": 1, "features.8": 2, "features.11": 2, "features.26": 4}),
        ("mobilenet_v2", {"features.1": 0, "features.2": 1, "features.3": 1, "features.14": 4, "features.18": 4}),
        ("densenet121", {"features.conv0": 0, "features.denseblock1": 1, "features.transition1": 1}),
        ("densenet121", {"features.denseblock2": 2, "features.denseblock4": 4, "features.norm5": None}),
        ("convnext_tiny", {"features.0": 0, "features.1": 1, "features.2": 2, "features.3": 2, "features.7": 4}),
        ("swin_t", {"features.0": 0, "features.1": 1, "features.2": 2, "features.3": 2, "norm": None}),
        ("googlenet", {"conv1": 0, "conv3": 0, "inception3a": 1, "inception4e": 2, "inception5b": 3, "aux1": None}),
        ("inception_v3", {"Conv2d_4a_3x3": 0, "Mixed_5b": 1, "Mixed_6e": 2, "Mixed_7c": 3, "AuxLogits": None}),
        ("vit_b_16", {"conv_proj": 0, "encoder.layers.encoder_layer_11": 12, "encoder.ln": None}),
        ("mnasnet0_5", {"layers.0": 0, "layers.7": 0, "layers.8": 1, "layers.13": 6, "layers.14": None}),
        ("regnet_y_400mf", {"stem.0": 0, "trunk_output.block1": 1, "trunk_output.block4": 4}),
        ("maxvit_t", {"stem.1": 0, "blocks.0": 1, "blocks.3": 4}),
        ("shufflenet_v2_x0_5", {"conv1": 0, "stage2": 1, "stage4": 3, "conv5": 4}),
    ],
)
def test_the_modules_of_a_network_are_in_the_stages_where_its_resolution_or_its_authors_put_them(
    name: str, expected: dict[str, int | None]
) -> None:
    backbone = of_torchvision(name)

    found = {
        module: {
            backbone.stages.get(tensor)
            for tensor in named_tensors(backbone.module)
            if is_submodule_of(tensor, [module])
        }
        for module in expected
    }
    assert found == {module: {stage} for module, stage in expected.items()}


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_blocks_of_a_network_refine_its_stages(name: str) -> None:
    backbone = of_torchvision(name)

    assert set(backbone.blocks.values()) == set(range(max(backbone.blocks.values()) + 1))
    both = [(backbone.blocks[tensor], stage) for tensor, stage in backbone.stages.items()]
    assert [stage for _, stage in sorted(both)] == sorted(stage for _, stage in both)


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_numbers_name_tensors_that_there_are_and_none_of_a_head(name: str) -> None:
    backbone = of_torchvision(name)
    heads = [slot.path for slot in backbone.heads]

    for numbers in (backbone.stages, backbone.blocks):
        assert set(numbers) <= {
            tensor for tensor in named_tensors(backbone.module) if not is_submodule_of(tensor, heads)
        }


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_and_buffers_of_a_module_are_in_the_same_stage(name: str) -> None:
    backbone = of_torchvision(name)

    for numbers in (backbone.stages, backbone.blocks):
        found: dict[str, set[int | None]] = {}
        for tensor in named_tensors(backbone.module):
            found.setdefault(tensor.rpartition(".")[0], set()).add(numbers.get(tensor))
        assert {module: some for module, some in found.items() if len(some) > 1} == {}


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_network_runs_through_its_stages_and_blocks_in_their_order(name: str) -> None:
    backbone, called = of_torchvision(name), list[str]()
    handles = [
        module.register_forward_hook(lambda *_, path=path: called.append(path))
        for path, module in backbone.module.named_modules()
    ]
    with torch.no_grad():
        backbone.module.eval()(torch.empty(2, 3, *backbone.input.size, device="meta"))
    for handle in handles:
        handle.remove()

    for numbers in (backbone.stages, backbone.blocks):
        modules = by_module(numbers, parameters_alone=True)
        order = [modules[path] for path in dict.fromkeys(called) if path in modules]
        assert len(order) > 10
        assert order == sorted(order)
