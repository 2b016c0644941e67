"""Networks of timm, and their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from tests.core.model.numbering import by_module, parameters_in, timms_own
from tests.plugins.models.networks import differing, needs_shared, network, outputs, real_run, saved
from timm.data import resolve_data_config
from timm.layers import resample_abs_pos_embed
from torch import nn

from ftcore import UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.config.schema import ModelConfig, RunConfig
from ftcore.model.shape_inference import build_on_meta
from ftcore.runs.prepared import prepare
from ftcore_plugins.models.timm import Timm, TimmConfig, input_spec
from ftcore_plugins.models.torchvision import Torchvision, TorchvisionConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


@pytest.mark.parametrize(
    "name",
    [
        "timm/test_resnet",
        "timm/test_vit",
        "timm/test_efficientnet",
        "torchvision/squeezenet1_1",
        "torchvision/resnet18",
    ],
)
def test_a_network_of_random_weights_gives_a_number_for_each_class(name: str) -> None:
    assert outputs(network(name)).shape == (2, 3)


@pytest.mark.parametrize("name", [None, "resnet18", "digits/cnn", "Timm/resnet18", "torch/resnet18"])
def test_a_network_of_another_provider_is_left_to_others(name: str | None) -> None:
    assert Timm(TimmConfig()).build_model(name, "none", RunConfig()) is None
    assert Torchvision(TorchvisionConfig()).build_model(name, "none", RunConfig()) is None


def test_the_input_of_a_timm_network_is_its_weights_own() -> None:
    cfg = timm.get_pretrained_cfg("mobilenetv3_small_050")

    spec = network("timm/mobilenetv3_small_050").spec

    assert (spec.channels, *spec.size) == cfg.input_size
    assert (spec.mean, spec.std) == (cfg.mean, cfg.std)
    assert (spec.interpolation, spec.crop_fraction) == (cfg.interpolation, cfg.crop_pct)


def test_the_model_section_beats_what_comes_with_the_weights() -> None:
    spec = network("timm/test_resnet", "model.image_size=64", "model.mean=0.5", "model.std=[0.1, 0.2, 0.3]").spec

    assert (spec.size, spec.mean, spec.std) == ((64, 64), (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


@pytest.mark.parametrize("size", [64, 96])
def test_a_transformer_is_built_for_the_size_of_the_images(size: int) -> None:
    made = network("timm/test_vit", f"model.image_size={size}")

    assert outputs(made).shape == (2, 3)


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_resnet"])
def test_a_network_is_built_for_a_rectangle_where_it_can_be(name: str) -> None:
    made = network(name, "model.image_size=[64, 96]")

    assert made.spec.size == (64, 96)
    assert outputs(made).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("convnext_tiny.fb_in22k_ft_in1k_384", "squash"), ("deepseek_vit_412m", "pad"), ("convnext_tiny", "center")],
)
def test_the_crop_mode_is_that_of_the_weights(name: str, mode: str) -> None:
    wanted = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())

    assert input_spec(wanted).crop_mode == mode


def test_a_network_of_the_name_alone_has_the_crop_mode_of_its_default_weights() -> None:
    spec = network("timm/coat_lite_mini", "model.crop=squash").spec
    by_default = network("timm/coat_lite_medium_384").spec

    assert (spec.crop_mode, spec.crop_fraction) == ("squash", 1.0)
    assert (by_default.crop_mode, by_default.size) == ("squash", (384, 384))


def pretrained(name: str) -> nn.Module:
    provider, _, name = name.partition("/")
    torch.manual_seed(7)
    if provider == "timm":
        return timm.create_model(name, num_classes=17)  # type: ignore[no-any-return]
    return torchvision.models.get_model(name, num_classes=17)  # type: ignore[no-any-return]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("timm/test_resnet", "fc."),
        ("timm/test_vit", "head."),
        ("torchvision/squeezenet1_1", "classifier.1."),
        ("torchvision/mobilenet_v3_small", "classifier.3."),
    ],
)
def test_a_file_gives_every_bit_outside_the_head(tmp_path: Path, name: str, head: str, suffix: str) -> None:
    state, file = pretrained(name).state_dict(), tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else save_file)(state, file)

    found = network(name, weights=file).module.state_dict()

    assert found.keys() == state.keys()
    assert {key for key in state if not torch.equal(found[key], state[key])} == {f"{head}weight", f"{head}bias"}
    assert found[f"{head}weight"].shape[0] == 3


def test_a_file_of_another_network_is_an_error(tmp_path: Path) -> None:
    torch.save(pretrained("timm/test_resnet").state_dict(), tmp_path / "other.pth")

    with pytest.raises(UserError, match=r"other\.pth do not fit SqueezeNet:\n  \d+ missing: features\.0"):
        network("torchvision/squeezenet1_1", weights=tmp_path / "other.pth")


def test_a_timm_network_can_see_in_grey() -> None:
    made = network("timm/test_resnet", "model.channels=1")

    assert (made.spec.channels, len(made.spec.mean), len(made.spec.std)) == (1, 1, 1)
    assert outputs(made).shape == (2, 3)


def test_an_unknown_timm_network_shows_several_near_ones() -> None:
    with pytest.raises(UserError, match=r"'mobilenetv3_smal'; nearest: timm/mobilenetv3_small_\d+, timm/\w+"):
        network("timm/mobilenetv3_smal")


def test_a_timm_network_that_is_like_no_other_says_so() -> None:
    with pytest.raises(UserError, match="no network 'qqqqqq'; nearest: none"):
        network("timm/qqqqqq")


def test_an_unknown_tag_of_a_timm_network_shows_the_nearest_and_the_list() -> None:
    message = r"no weights 'resnet18\.a1_in2k'; did you mean 'resnet18\.a1_in1k'\?; it has .*resnet18\.tv_in1k"
    with pytest.raises(UserError, match=message):
        network("timm/resnet18.a1_in2k")


def test_a_tag_of_a_timm_network_without_its_weights_is_the_network() -> None:
    assert outputs(network("timm/test_resnet.r160_in1k")).shape == (2, 3)


def test_a_weights_entry_of_timm_belongs_in_the_name() -> None:
    with pytest.raises(
        UserError, match=r"weights = 'a1_in1k': .* --model timm/resnet18\.TAG; it has resnet18\.a1_in1k"
    ):
        network("timm/resnet18", weights="a1_in1k")


def test_channels_are_handed_on_by_the_provider_alone() -> None:
    backbone = Timm(TimmConfig()).build_model(
        "timm/test_efficientnet", "none", RunConfig(model=ModelConfig(channels=5))
    )

    assert backbone is not None
    assert backbone.input.channels == 5
    assert len(backbone.input.mean) == 5
    with torch.no_grad():
        assert len(backbone.module.eval()(torch.randn(1, 5, 64, 64))) == 1


def test_a_timm_file_is_adapted_as_timm_adapts_its_own_weights(tmp_path: Path) -> None:
    model, file = saved("timm/test_vit", tmp_path)
    state = model.state_dict()

    found = network("timm/test_vit", "model.image_size=96", "model.channels=1", weights=file).module.state_dict()

    assert differing(found, state) == {"pos_embed", "patch_embed.proj.weight", "head.weight", "head.bias"}
    wanted = resample_abs_pos_embed(state["pos_embed"], new_size=[6, 6], old_size=[10, 10])
    torch.testing.assert_close(found["pos_embed"], wanted)
    torch.testing.assert_close(found["patch_embed.proj.weight"], state["patch_embed.proj.weight"].sum(1, keepdim=True))


def test_a_timm_file_made_for_the_asked_size_and_channels_is_loaded_as_it_is(tmp_path: Path) -> None:
    model, file = saved("timm/test_vit", tmp_path, img_size=96, in_chans=1, num_classes=4)

    found = network("timm/test_vit", "model.image_size=96", "model.channels=1", weights=file).module.state_dict()

    assert differing(found, model.state_dict()) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("name", "sets", "message"),
    [
        ("timm/test_vit", ("model.image_size=100",), r"image_size = 100; sizes it takes: .*96, .*112, .*160"),
        ("torchvision/maxvit_t", ("model.image_size=160",), r"image_size = 160; sizes it takes: 224, 448$"),
        ("torchvision/inception_v3", ("model.image_size=64",), r"image_size = 64; sizes it takes: 299, 598$"),
        ("torchvision/vit_b_32", ("model.image_size=100",), r"image_size = 100; sizes it takes: .*96, "),
        ("torchvision/vit_b_32", ("model.image_size=[96, 128]",), r"size = \[96, 128\]; sizes it takes: 96, 128, 160"),
        ("timm/test_vit", ("model.image_size=[96, 100]",), r"size = \[96, 100\]; sizes it takes: \[96, 112\], "),
    ],
)
def test_what_an_architecture_refuses_is_an_error_with_what_it_takes(
    name: str, sets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        network(name, *sets)


@pytest.mark.filterwarnings("ignore:CSATv2 is designed for 3-channel RGB input")
def test_channels_that_an_architecture_refuses_are_an_error_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"timm/csatv2 does not take model\.channels = 5: .*broadcast.* length 3"):
        network("timm/csatv2", "model.channels=5")


@pytest.mark.parametrize("name", ["timm/test_resnet", "torchvision/squeezenet1_1"])
@pytest.mark.parametrize("sets", [(), ("model.channels=1",), ("model.image_size=64",)])
def test_a_backbone_says_how_its_network_is_built_without_ftcore_or_not_at_all(
    name: str, sets: tuple[str, ...]
) -> None:
    made = network(name, *sets)

    if made.backbone.builder_code is None:
        assert sets == ("model.image_size=64",) or (sets and name.startswith("torchvision"))
    else:
        names: dict[str, Any] = {"timm": timm, "torchvision": torchvision}
        exec("\n".join(made.backbone.builder_code(3)), names)
        names["model"].load_state_dict(made.module.state_dict())
        assert not sets or name.startswith("timm")


@needs_shared
@pytest.mark.slow
def test_real_timm_weights_tell_waste_apart_after_three_epochs(tmp_path: Path) -> None:
    sets = ("model.mean=0.5", "model.std=0.5", "weighted_ce.weights=balanced")

    result = real_run(tmp_path, "timm/mobilenetv2_100", "timm-mobilenetv2_100.safetensors", *sets)

    assert result.code == 0
    assert result.report["best"]["accuracy"] > 2 / 6


@pytest.mark.parametrize(
    ("name", "option"),
    [("timm/convnext_atto", "timm.drop_path"), ("torchvision/convnext_tiny", "torchvision.drop_path")],
)
def test_stochastic_depth_rises_from_the_first_block_to_the_last(name: str, option: str) -> None:
    asked = load_config(
        None, CliOverrides(name, "digits:5-6", sets=(f"{option}=0.3", "model.weights=none", "model.image_size=32"))
    )

    network = prepare(asked).assembly.network.module

    dropping: list[Any] = [m for m in network.modules() if type(m).__name__ in {"DropPath", "StochasticDepth"}]
    chances = [module.drop_prob if hasattr(module, "drop_prob") else module.p for module in dropping]
    assert chances == sorted(chances)
    assert chances[-1] == pytest.approx(0.3)
    assert chances[0] <= 0.05


@pytest.mark.parametrize(
    ("name", "option"), [("timm/vgg11", "timm.drop_path"), ("torchvision/resnet18", "torchvision.drop_path")]
)
def test_a_network_without_stochastic_depth_refuses_it(name: str, option: str) -> None:
    with pytest.raises(UserError, match=rf"{name} has no stochastic depth, so {option} cannot be set"):
        prepare(load_config(None, CliOverrides(name, "digits:5-6", sets=(f"{option}=0.3", "model.weights=none"))))


def test_the_stages_and_blocks_of_a_timm_network_are_timms_own() -> None:
    backbone = build_on_meta(lambda: Timm(TimmConfig()).build_model("timm/resnet18", "none", RunConfig()))

    assert backbone is not None
    assert parameters_in(backbone.stages, backbone.module) == timms_own(backbone.module, coarse=True)
    assert parameters_in(backbone.blocks, backbone.module) == timms_own(backbone.module, coarse=False)
    assert (max(backbone.stages.values()), max(backbone.blocks.values())) == (4, 8)
    assert by_module(backbone.stages)["layer4.1.bn2"] == 4
