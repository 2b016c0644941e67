"""Networks of timm and torchvision."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torchvision.models.vision_transformer import interpolate_embeddings

from ftcore import Backbone, HeadSlot, InputSpec, Task, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.config.schema import ModelConfig, RunConfig
from ftcore.model.build import Network, build_network
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.runs.prepared import prepare
from ftcore.testing import Result, invoke
from ftcore_plugins.models.timm import Timm, TimmConfig, with_pooling
from ftcore_plugins.models.torchvision import Torchvision, TorchvisionConfig, _resolve_input

if TYPE_CHECKING:
    from torch import nn

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder with real pictures is not here")
TASK = Task("classification", ("a", "b", "c"), (1, 1, 1))


def network(name: str, *sets: str, weights: str | Path = "none") -> Network:
    host = activate(load_config(None, CliOverrides(name, "digits", sets=(f"model.weights={weights}", *sets))))
    return build_network(host.config, HookCalls(host), TASK)


def outputs(made: Network, images: int = 2) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = made.module.eval()(torch.randn(images, made.spec.channels, *made.spec.size))
    return found


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


def test_the_input_of_a_torchvision_network_is_that_of_its_default_weights() -> None:
    preset = torchvision.models.EfficientNet_B0_Weights.DEFAULT.transforms()

    spec = network("torchvision/efficientnet_b0").spec

    assert [*spec.size] == preset.crop_size * 2
    assert ([*spec.mean], [*spec.std]) == (preset.mean, preset.std)
    assert spec.interpolation == preset.interpolation.value
    assert int(spec.size[0] / spec.crop_fraction) == preset.resize_size[0]


def test_the_model_section_beats_what_comes_with_the_weights() -> None:
    spec = network("timm/test_resnet", "model.image_size=64", "model.mean=0.5", "model.std=[0.1, 0.2, 0.3]").spec

    assert (spec.size, spec.mean, spec.std) == ((64, 64), (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


@pytest.mark.parametrize("size", [64, 96])
def test_a_transformer_is_built_for_the_size_of_the_images(size: int) -> None:
    made = network("timm/test_vit", f"model.image_size={size}")

    assert outputs(made).shape == (2, 3)


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


def test_an_unknown_timm_network_shows_several_near_ones() -> None:
    with pytest.raises(UserError, match=r"'mobilenetv3_smal'; nearest: timm/mobilenetv3_small_\d+, timm/\w+"):
        network("timm/mobilenetv3_smal")


def test_a_timm_network_that_is_like_no_other_says_so() -> None:
    with pytest.raises(UserError, match="no network 'qqqqqq'; nearest: none"):
        network("timm/qqqqqq")


def test_unknown_torchvision_weights_show_the_nearest_and_the_list() -> None:
    message = r"no weights 'IMAGENET1K_V3'; did you mean 'IMAGENET1K_V\d'\?; it has IMAGENET1K_V1, IMAGENET1K_V2"
    with pytest.raises(UserError, match=message):
        network("torchvision/resnet50", weights="IMAGENET1K_V3")


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


def test_the_logits_of_a_squeezenet_may_be_negative() -> None:
    found = outputs(network("torchvision/squeezenet1_0", "linear.std=0.1"), images=4)

    assert (found < 0).any()
    assert (found != 0).all()


def test_channels_are_handed_on_by_the_provider_alone() -> None:
    backbone = Timm(TimmConfig()).build_model(
        "timm/test_efficientnet", "none", RunConfig(model=ModelConfig(channels=5))
    )

    assert backbone is not None
    assert backbone.input.channels == 5
    assert len(backbone.input.mean) == 5
    with torch.no_grad():
        assert len(backbone.module.eval()(torch.randn(1, 5, 64, 64))) == 1


def saved(name: str, folder: Path, **options: Any) -> tuple[nn.Module, Path]:
    """A network with weights of its own, and the file that holds them."""
    torch.manual_seed(7)
    provider, _, network_name = name.partition("/")
    make = timm.create_model if provider == "timm" else torchvision.models.get_model
    model: nn.Module = make(network_name, **options)
    save_file(model.state_dict(), folder / "weights.safetensors")
    return model, folder / "weights.safetensors"


def differing(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> set[str]:
    assert found.keys() == wanted.keys()
    return {k for k in wanted if found[k].shape != wanted[k].shape or not torch.equal(found[k], wanted[k])}


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


@pytest.mark.parametrize(
    ("name", "sets", "message"),
    [
        ("timm/test_vit", ("model.image_size=100",), r"image_size = 100; sizes it takes: \[.*96.*112.*160.*\]"),
        ("torchvision/maxvit_t", ("model.image_size=160",), r"image_size = 160; sizes it takes: \[224, 448\]"),
        ("torchvision/inception_v3", ("model.image_size=64",), r"image_size = 64; sizes it takes: \[299, 598\]"),
        ("torchvision/vit_b_32", ("model.image_size=100",), r"image_size = 100; sizes it takes: \[.*96.*\]"),
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


def test_an_encoder_without_a_classifier_gets_the_mean_of_its_tokens_and_a_linear_layer() -> None:
    encoder = timm.create_model("test_vit", num_classes=0, global_pool="").eval()
    made = with_pooling(Backbone(encoder, (), InputSpec((160, 160)), stages={"pos_embed": 0}))

    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        wanted = made.module.get_submodule("head")(encoder(images).mean(1))
        torch.testing.assert_close(made.module(images), wanted)
    assert made.heads == (HeadSlot("head", 64),)
    assert made.stages == {"encoder.pos_embed": 0}


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


def test_a_network_with_a_pooling_of_ftcores_is_none_that_timm_builds() -> None:
    encoder = timm.create_model("test_vit", num_classes=0, global_pool="")

    made = with_pooling(Backbone(encoder, (), InputSpec((160, 160)), builder_code=lambda _: ["model = None"]))

    assert made.builder_code is None


def few_pictures(folder: Path, per_class: int = 10) -> Path:
    for source in sorted(path for path in (SHARED / "trashnet").iterdir() if path.is_dir()):
        (folder / source.name).mkdir(parents=True)
        for picture in sorted(source.glob("*.jpg"))[:per_class]:
            shutil.copyfile(picture, folder / source.name / picture.name)
    return folder


def real_run(tmp_path: Path, model: str, weights: str, *sets: str) -> Result:
    plugins = ("freeze_backbone", "weighted_ce", "adamw")
    size = ("model.image_size=96", "train.epochs=3", "train.batch_size=8", "data.val_fraction=0.4", "adamw.lr=0.01")
    given = (f"model.weights={SHARED / 'weights' / weights}", f"run.folder={tmp_path / 'run'}", *size, *sets)
    flags = [flag for plugin in plugins for flag in ("--plugin", plugin)]
    flags += [flag for text in given for flag in ("--set", text)]
    return invoke("run", "--model", model, "--data", few_pictures(tmp_path / "data"), *flags, "--json")


@needs_shared
@pytest.mark.slow
def test_real_timm_weights_tell_waste_apart_after_three_epochs(tmp_path: Path) -> None:
    sets = ("model.mean=0.5", "model.std=0.5", "weighted_ce.weights=balanced")

    result = real_run(tmp_path, "timm/mobilenetv2_100", "timm-mobilenetv2_100.safetensors", *sets)

    assert result.code == 0
    assert result.report["best"]["accuracy"] > 2 / 6


@needs_shared
@pytest.mark.slow
def test_real_torchvision_weights_tell_waste_apart_after_three_epochs(tmp_path: Path) -> None:
    result = real_run(tmp_path, "torchvision/squeezenet1_0", "torchvision-squeezenet1_0.safetensors", "adamw.lr=0.003")

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
