from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from ftcore import Backbone, InputSpec, RunConfig, UserError, load
from ftcore.model import head_slot_at, named_tensors
from ftcore.testing import image_folder, invoke
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import conv2d, linear

from ftcore_peft import Lora, LoraOptions, merge
from ftcore_peft.__main__ import main
from ftcore_peft.adapters import adapted, check_called, only_adapters, tuners
from ftcore_peft.merging import is_ours, merge_adapters
from ftcore_peft.plugins import checked

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore.testing import Result

VIT = "vit_tiny_patch16_224"
METHODS = ("ia3", "loha", "lokr", "hira", "oft", "hra")
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("photos") / "set")


def vit() -> Backbone:
    torch.manual_seed(0)
    module = timm.create_model(VIT, img_size=32, depth=2).eval()
    return Backbone(module, (head_slot_at(module, "head"),), InputSpec((32, 32)))


def conv_net() -> Backbone:
    torch.manual_seed(0)
    module = timm.create_model("resnet10t", zero_init_last=False).eval()  # else its blocks add nothing
    return Backbone(module, (head_slot_at(module, "fc"),), InputSpec((32, 32)))


def pictures(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=dtype)


def lora(backbone: Backbone, *patterns: str, **settings: Any) -> Backbone:
    torch.manual_seed(0)
    return adapted(backbone, None, "lora", {**LORA, **settings}, patterns or None)


def perturb(module: nn.Module) -> None:
    """Move every adapter from where it starts."""
    generator = torch.Generator().manual_seed(2)
    for layer in tuners(module).values():
        for name, parameter in layer.named_parameters():
            if not name.startswith("base_layer"):
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                parameter.data.add_(0.05 * noise)


def run(data: object, folder: Path, *more: str, plugin: str = "lora", model: str = f"timm/{VIT}") -> Result:
    settings = ("model.image_size=32", "model.weights=none", "train.epochs=1", "train.batch_size=4", "train.workers=0")
    return invoke(
        *("run", "--plugin", plugin, "--data", str(data), "--model", model, "--json"),
        *(word for setting in (*settings, f"run.folder={folder}") for word in ("--set", setting)),
        *more,
    )


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def probabilities(folder: Path, picture: Path) -> dict[str, float]:
    result = invoke("predict", str(folder), str(picture), "--json")
    assert result.code == 0, result.err
    values: dict[str, float] = result.report["values"]
    return values


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}, {"lora_dropout": 0.5}])
@pytest.mark.parametrize(("make", "patterns"), [(vit, ()), (conv_net, ("conv1", "conv2"))])
def test_the_first_forward_is_that_of_the_plain_network(
    make: Any, patterns: tuple[str, ...], settings: dict[str, Any]
) -> None:
    plain = make().module(pictures())
    assert torch.allclose(lora(make(), *patterns, **settings).module(pictures()), plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("settings", "factor"), [({}, 8 / 4), ({"use_rslora": True}, 8 / math.sqrt(4))])
def test_an_adapted_layer_computes_equation_3_of_the_paper(settings: dict[str, Any], factor: float) -> None:
    module = lora(vit(), "blocks.1.mlp.fc1", **settings).module.double()
    perturb(module)
    layer: Any = module.get_submodule("blocks.1.mlp.fc1")
    x = torch.randn(3, 192, dtype=torch.float64)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    wanted = x @ layer.base_layer.weight.T + layer.base_layer.bias + factor * (x @ a.T) @ b.T
    assert a.shape == (4, 192)
    assert b.shape == (768, 4)
    assert torch.allclose(layer(x), wanted, rtol=1e-12, atol=1e-12)


def test_an_adapted_convolution_has_the_kernel_w_plus_b_a() -> None:
    module = lora(conv_net(), "layer1.0.conv1").module.double()
    perturb(module)
    layer: Any = module.get_submodule("layer1.0.conv1")
    x = torch.randn(2, layer.base_layer.in_channels, 8, 8, dtype=torch.float64)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    kernel = layer.base_layer.weight + 8 / 4 * torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    assert torch.allclose(layer(x), conv2d(x, kernel, padding=1), rtol=1e-10, atol=1e-10)


def test_dora_has_the_weight_of_equation_5_of_its_paper() -> None:
    module = lora(vit(), "blocks.0.attn.proj", use_dora=True).module.double()
    perturb(module)
    layer: Any = module.get_submodule("blocks.0.attn.proj")
    base, length = layer.base_layer, layer.lora_magnitude_vector["default"].weight
    direction = base.weight + 8 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    weight = length[:, None] * direction / direction.norm(dim=1, keepdim=True)
    x = torch.randn(3, 192, dtype=torch.float64)
    assert torch.allclose(layer(x), linear(x, weight, base.bias), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}])
@pytest.mark.parametrize(("make", "patterns"), [(vit, ()), (conv_net, ("conv1", "conv2"))])
def test_merged_equals_unmerged(make: Any, patterns: tuple[str, ...], settings: dict[str, Any]) -> None:
    plain = make().module
    module = lora(make(), *patterns, **settings).module.double()
    perturb(module)
    x = pictures(torch.float64)
    moved = module(x)
    assert not torch.allclose(moved, plain.double()(x), atol=1e-4)
    merge_adapters(module, "it")
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert torch.allclose(module(x), moved, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "patterns", "method"),
    [
        *((vit, None, method) for method in METHODS),
        *((conv_net, ("layer1.0.conv1",), method) for method in METHODS if method != "oft"),
    ],
)
def test_each_other_method_begins_with_the_plain_network_and_merges(
    make: Any, patterns: tuple[str, ...] | None, method: str
) -> None:
    plain = make().module(pictures())
    torch.manual_seed(0)
    backbone = adapted(make(), None, method, checked(method, {}), patterns, "peft")
    module = backbone.module.eval()
    assert torch.allclose(module(pictures()), plain, rtol=0, atol=1e-5)
    check_called(module, backbone.input, "peft")
    perturb(module)
    moved = module(pictures())
    assert not torch.allclose(moved, plain, atol=1e-5)
    merge_adapters(module, "it")
    assert torch.allclose(module(pictures()), moved, rtol=1e-3, atol=1e-4)


def test_the_number_of_learning_parameters_is_that_of_the_formula() -> None:
    module = lora(vit()).module
    plan = only_adapters(module, ("head",))
    learning = sum(p.numel() for name, p in module.named_parameters() if name not in plan.frozen)
    width = 192  # r (in + out) for qkv, proj, fc1 and fc2 of two blocks, and the head
    sizes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    assert learning == 2 * sum(4 * (a + b) for a, b in sizes) + 1000 * (width + 1)


def test_stages_and_exemptions_follow_the_tensors_to_their_new_names() -> None:
    plain = vit()
    numbers = {name: place for place, name in enumerate(named_tensors(plain.module)) if not name.startswith("head")}
    given = Backbone(plain.module, plain.heads, plain.input, (), numbers, numbers, frozenset({"blocks.1.mlp.fc1.bias"}))
    identity = {name: id(tensor) for name, tensor in named_tensors(plain.module).items()}
    after = lora(given)
    tensors = named_tensors(after.module)
    by_tensor = {id(tensors[name]): number for name, number in after.stages.items()}
    assert {name: by_tensor[identity[name]] for name in numbers} == numbers
    assert after.blocks == after.stages
    assert set(tensors) - set(after.stages) == {"head.weight", "head.bias"}
    weight = after.stages["blocks.1.mlp.fc1.base_layer.weight"]
    assert after.stages["blocks.1.mlp.fc1.lora_A.default.weight"] == weight == numbers["blocks.1.mlp.fc1.weight"]
    assert after.no_decay == {"blocks.1.mlp.fc1.base_layer.bias"}


def test_a_bare_module_keeps_its_own_head_and_gets_stages() -> None:
    after = adapted(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2)), None, "lora", LORA, ("0",))
    assert [slot.path for slot in after.heads] == ["2"]
    assert after.blocks["0.lora_A.default.weight"] == after.blocks["0.base_layer.weight"] == 0
    assert after.blocks["1.weight"] == 1


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("qvk",), r"lora.target_modules: 'qvk' matches no layer; did you mean '.*qkv'\?; layers: fc1, fc2, proj, qkv"),
        (("qkv", "norm1"), "'norm1' matches LayerNorm, and no Linear or Conv2d"),
        (("head",), "'head' matches the head alone, which learns as a whole"),
        (("blocks.?.attn",), "'blocks.\\?.attn' matches Attention, and no Linear"),
    ],
)
def test_a_pattern_that_matches_no_layer_is_an_error(patterns: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lora(vit(), *patterns)


def test_no_pattern_at_all_and_no_usual_layer_are_errors() -> None:
    with pytest.raises(UserError, match="target_modules is empty, so nothing would be adapted"):
        adapted(vit(), None, "lora", LORA, ())
    with pytest.raises(UserError, match=r"the network has none of attn.qkv, .*layers: 0, 1, 3, 6, conv1, conv2"):
        lora(conv_net())


def test_patterns_match_by_segment() -> None:
    assert set(tuners(lora(vit(), "blocks.0.attn.*").module)) == {"blocks.0.attn.qkv", "blocks.0.attn.proj"}
    assert "patch_embed.proj" not in tuners(lora(vit()).module)
    assert len(tuners(lora(vit(), "*").module)) == 4 * 2 + 1  # not the head
    assert len(tuners(lora(vit(), "proj").module)) == 2 + 1


def test_layers_that_are_read_and_not_called_are_refused() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 2))
    with pytest.raises(UserError, match=r"0\.linear1 is in a TransformerEncoderLayer, which reads the weights"):
        lora(Backbone(encoder, (head_slot_at(encoder, "1"),)), "linear1")
    beit = timm.create_model("beit_base_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2)
    backbone = lora(Backbone(beit, (head_slot_at(beit, "head"),), InputSpec((32, 32))))
    with pytest.raises(UserError, match=r"the network never calls 1 of the layers.*: blocks.0.attn.qkv; leave them"):
        check_called(backbone.module, backbone.input, "lora")
    hooks = [len(layer._forward_pre_hooks) for layer in tuners(backbone.module).values()]
    assert not any(hooks)


def test_the_plan_holds_running_statistics_and_leaves_dropout_of_adapters_on() -> None:
    module = lora(conv_net(), "conv1", lora_dropout=0.5).module
    plan = only_adapters(module, ("fc",))
    norms = {name for name, child in module.named_modules() if isinstance(child, nn.BatchNorm2d)}
    assert plan.eval_modules == norms
    learning = set(named_tensors(module)) - plan.frozen
    assert {name.split(".")[-3] for name in learning if not name.startswith("fc.")} == {"lora_A", "lora_B"}
    assert {"fc.weight", "fc.bias"} <= learning


def test_a_module_around_adapters_is_not_held_for_a_buffer_of_its_own() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    network.register_buffer("table", torch.zeros(3))
    module = adapted(network, None, "lora", {**LORA, "lora_dropout": 0.5}, ("0",)).module
    plan = only_adapters(module, ("2",))
    assert plan.eval_modules == {"1"}  # eval mode of the root would reach the dropout of the adapter
    assert {"table", "1.running_mean", "0.base_layer.weight"} <= plan.frozen


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        (LoraOptions(r=4), 1.0),
        (LoraOptions(r=4, alpha=2.0), 0.5),
        (LoraOptions(r=4, alpha=2.0, use_rslora=True), 1.0),
        (LoraOptions(r=2, dropout=0.25, use_dora=True, target_modules=("fc1",)), 1.0),
    ],
)
def test_the_options_of_lora_reach_peft(options: LoraOptions, factor: float) -> None:
    wrapper = Lora(options).build_model(RunConfig())
    next(wrapper)
    with pytest.raises(StopIteration, match="Backbone") as stop:  # what a generator returns
        wrapper.send(vit())
    layers = tuners(stop.value.value.module)
    layer: Any = layers["blocks.1.mlp.fc1"]
    assert layer.scaling["default"] == pytest.approx(factor)
    assert layer.lora_A["default"].weight.shape == (options.r, 192)
    assert getattr(layer.lora_dropout["default"], "p", 0.0) == options.dropout
    assert layer.use_dora["default"] is options.use_dora
    assert len(layers) == (2 if options.target_modules else 8)


def test_oft_takes_no_convolutions() -> None:
    with pytest.raises(UserError, match=r"oft is for Linear, and layer1.0.conv1 is a Conv2d"):
        adapted(conv_net(), None, "oft", {}, ("layer1.0.conv1",), "peft")


def test_what_peft_refuses_is_said_in_one_message() -> None:
    with pytest.raises(UserError, match="peft: PEFT cannot put oft into this network"):
        adapted(vit(), None, "oft", {"r": 7, "oft_block_size": 5}, None, "peft")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpa": 1}, r"peft.options: loha has no setting 'alpa'; did you mean 'alpha'\?"),
        ({"target_modules": ["qkv"]}, "loha has no setting 'target_modules'"),
        ({"inference_mode": True}, "loha has no setting 'inference_mode'"),
        ({"r": "4"}, "r of loha is like 8, not '4'"),
        ({"r": True}, "r of loha is like 8, not True"),
    ],
)
def test_options_are_checked_against_the_class_of_peft(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked("loha", options)
    assert checked("loha", {"r": 4}) == {"r": 4}


def test_ia3_scales_the_input_of_feedforward_modules_alone() -> None:
    def ia3(*feedforward: str) -> nn.Module:
        settings = checked("ia3", {"feedforward_modules": list(feedforward)})
        return adapted(vit(), None, "ia3", settings, ("mlp.fc1", "mlp.fc2"), "peft").module

    sizes = {name: layer.ia3_l["default"].numel() for name, layer in tuners(ia3("fc2")).items()}
    assert sizes == {f"blocks.{block}.mlp.fc{place}": 768 for block in (0, 1) for place in (1, 2)}
    assert tuners(ia3())["blocks.0.mlp.fc2"].ia3_l["default"].numel() == 192
    with pytest.raises(UserError, match=r"feedforward_modules: 'fc3' matches no layer; did you mean 'fc\d'"):
        ia3("fc3")
    with pytest.raises(UserError, match=r"feedforward_modules: blocks.0.attn.qkv is not among peft.target_modules"):
        ia3("qkv")


def test_a_run_learns_adapters_and_head_alone_and_repeats(photos: Path, tmp_path: Path) -> None:
    more = sets("lora.r=2", "lora.dropout=0.1", "timm.drop_path=0.1", "groups.layer_decay=0.8")
    first, again = (run(photos, tmp_path / name, *more) for name in ("first", "again"))
    assert (first.code, again.code) == (0, 0), first.err
    moved, repeated = weights(tmp_path / "first"), weights(tmp_path / "again")
    assert all(torch.equal(moved[name], repeated[name]) for name in moved)
    updates = [tensor for name, tensor in moved.items() if ".lora_B." in name]
    assert len(updates) == 12 * 4
    assert all(update.abs().max() > 0 for update in updates)
    rank = sum(2 * (a + b) * 192 for a, b in ((1, 3), (1, 1), (1, 4), (4, 1))) * 12
    assert first.report["frozen_tensors"] == len(moved) - 12 * 4 * 2 - 2
    assert sum(t.numel() for name, t in moved.items() if ".lora_" in name) == rank


def test_another_seed_draws_other_adapters(photos: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert run(photos, tmp_path / str(seed), *sets(f"train.seed={seed}")).code == 0
    name = "blocks.0.attn.qkv.lora_A.default.weight"
    assert not torch.allclose(weights(tmp_path / "0")[name], weights(tmp_path / "1")[name], atol=0.05)


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        ("lora", ("lora.alpha=64.0",)),
        ("lora", ("lora.use_dora=true",)),
        ("peft", ("peft.method=ia3", 'peft.target_modules=["mlp.fc2"]')),
    ],
)
def test_a_merged_run_is_the_plain_network_and_predicts_the_same(
    photos: Path, tmp_path: Path, plugin: str, options: tuple[str, ...]
) -> None:
    folder, out, picture = tmp_path / "run", tmp_path / "new" / "merged", photos / "red" / "0.jpg"
    result = run(photos, folder, *sets(*options), plugin=plugin)
    assert result.code == 0, result.err
    assert merge(folder, out) == out
    unmerged = probabilities(folder, picture)
    assert probabilities(out, picture) == pytest.approx(unmerged, abs=1e-5)
    network, names = load(folder).module, timm.create_model(VIT, img_size=32, num_classes=3).state_dict().keys()
    assert weights(out).keys() == names
    base = {name.replace(".base_layer", ""): tensor for name, tensor in network.state_dict().items()}
    assert not torch.equal(weights(out)["blocks.0.mlp.fc2.weight"], base["blocks.0.mlp.fc2.weight"])
    description = json.loads((out / "model" / "model.json").read_text())
    assert description["plugins"] == []
    assert plugin not in description["options"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["merged"]


def test_a_merged_run_is_a_folder_for_the_hub_that_timm_loads(photos: Path, tmp_path: Path) -> None:
    assert run(photos, tmp_path / "run").code == 0
    merge(tmp_path / "run", tmp_path / "merged")

    said = invoke("export", str(tmp_path / "merged"), "--format", "hf", "--out", str(tmp_path / "hub"))

    assert said.code == 0, said.err
    network = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(network(pictures()), load(tmp_path / "merged").module(pictures()))


def test_a_merged_run_is_used_without_peft_and_this_package(photos: Path, tmp_path: Path) -> None:
    folder, out, picture = tmp_path / "run", tmp_path / "merged", photos / "red" / "0.jpg"
    assert run(photos, folder, *sets("lora.alpha=64.0")).code == 0
    merge(folder, out)
    code = (
        "import sys; sys.modules['peft'] = sys.modules['ftcore_peft'] = None\n"
        "from ftcore.testing import invoke\n"
        f"for words in [['predict', {str(out)!r}, {str(picture)!r}], ['evaluate', {str(out)!r}]]:\n"
        "    done = invoke(*words, '--json'); print(done.out.splitlines()[-1] if done.out else done.err)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    predicted, evaluated = map(json.loads, done.stdout.splitlines())
    assert predicted["values"] == pytest.approx(probabilities(folder, picture), abs=1e-5)
    measured = invoke("evaluate", str(folder), "--json").report["metrics"]
    assert evaluated["metrics"]["loss"] == pytest.approx(measured["loss"], abs=1e-5)
    assert evaluated["metrics"]["accuracy"] == measured["accuracy"]


def test_the_command_merges_and_says_what_is_wrong(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, plain = tmp_path / "run", tmp_path / "plain"
    assert run(photos, folder).code == 0
    assert main(["merge", str(folder), "--out", str(tmp_path / "merged")]) == 0
    assert main(["merge", str(folder), "--out", str(tmp_path / "merged")]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert run(photos, plain, plugin="freeze_backbone").code == 0
    assert main(["merge", str(plain), "--out", str(tmp_path / "other")]) == 2
    assert f"error: {plain} has no adapters to merge" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "merged"), "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


def test_adapters_that_are_not_finite_do_not_merge() -> None:
    module = lora(vit(), "fc1").module
    module.get_parameter("blocks.0.mlp.fc1.lora_B.default.weight").data.fill_(math.nan)
    with pytest.raises(UserError, match=r"it: the adapter of blocks.0.mlp.fc1 does not merge"):
        merge_adapters(module, "it")


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("lora", True),
        ("peft@ftcore-peft", True),
        ("ftcore_peft:Lora", True),
        ("ftcore_peft.plugins:Peft", True),
        ("lora@other", False),
        ("ftcore_pefts:Lora", False),
        ("/home/hooks.py:Lora", False),
    ],
)
def test_the_plugins_of_this_package_are_known_as_they_are_written(text: str, ours: bool) -> None:  # noqa: FBT001
    assert is_ours(text) is ours


def test_a_convolutional_network_keeps_its_running_statistics(photos: Path, tmp_path: Path) -> None:
    more = sets('lora.target_modules=["conv?"]')
    result = run(photos, tmp_path / "run", *more, model="timm/resnet10t")
    assert result.code == 0, result.err
    fresh = timm.create_model("resnet10t").state_dict()
    for name, tensor in weights(tmp_path / "run").items():
        if "running_" in name:
            assert torch.equal(tensor, fresh[name.replace(".base_layer", "")])
    merge(tmp_path / "run", tmp_path / "merged")
    picture = photos / "blue" / "1.jpg"
    wanted = pytest.approx(probabilities(tmp_path / "run", picture), abs=1e-5)
    assert probabilities(tmp_path / "merged", picture) == wanted


@pytest.mark.parametrize("other", ["bf16", "bf16_pure", "ema", "freeze_norm", "checkpointing"])
def test_it_works_beside_other_plugins(photos: Path, tmp_path: Path, other: str) -> None:
    result = run(photos, tmp_path / "run", "--plugin", other, *sets("lora.use_dora=true"))
    assert result.code == 0, result.err
    merge(tmp_path / "run", tmp_path / "merged")
    picture = photos / "blue" / "1.jpg"
    wanted = pytest.approx(probabilities(tmp_path / "run", picture), abs=1e-2 if other == "bf16_pure" else 1e-5)
    assert probabilities(tmp_path / "merged", picture) == wanted


def test_it_does_not_share_freezing_with_another_plugin(photos: Path, tmp_path: Path) -> None:
    result = run(photos, tmp_path / "run", "--plugin", "freeze_backbone")
    assert result.code == 2
    assert "2 plugins implement freeze" in result.err


def test_listing_imports_neither_torch_nor_peft() -> None:
    code = "import sys, ftcore_peft; print({'torch', 'peft', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lora.r=0", "lora.r: 'r' must be > 0"),
        ("lora.alpha=0.0", "lora.alpha: 'alpha' must be > 0"),
        ("lora.dropout=1.0", "lora.dropout: 'dropout' must be < 1"),
        ('lora.target_modules=["qkw"]', "'qkw' matches no layer; did you mean 'qkv'?; layers: fc1, fc2, proj, qkv"),
    ],
)
def test_mistakes_in_options_end_with_one_message(photos: Path, tmp_path: Path, setting: str, message: str) -> None:
    result = run(photos, tmp_path / "run", "--set", setting)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "run").exists()
