"""Freezing by type, by name, by depth and by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ftcore import Backbone, FreezePlan, RunConfig, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.model.freezing import apply_requires_grad, is_submodule_of, named_tensors, set_frozen_eval, tensor_digests
from ftcore.model.shape_inference import build_on_meta
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.runs.prepared import prepare
from ftcore.training.loop import fit
from ftcore.training.state import Progress
from ftcore_plugins.freezing import (
    FreezeBackbone,
    FreezeBackboneConfig,
    FreezeModules,
    FreezeModulesConfig,
    FreezeNorm,
    FreezeNormConfig,
    FreezeNothing,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


def block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


@pytest.fixture
def model() -> nn.Module:
    names = ("layer1", "layer2", "layer10")
    return nn.ModuleDict({**{name: block() for name in names}, "head": nn.Linear(3, 2)})


def plan(model: nn.Module, *names: str, types: tuple[str, ...] = ()) -> FreezePlan:
    return FreezeModules(FreezeModulesConfig(types, names)).freeze(model, (), Backbone(model, ()))


def below(*modules: str) -> set[str]:
    return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def test_freezing_nothing_freezes_nothing() -> None:
    assert FreezeNothing().freeze() == FreezePlan()


def test_a_name_is_a_whole_segment(model: nn.Module) -> None:
    found = plan(model, "layer1")

    assert found.frozen == below("layer1.0", "layer1.1")
    assert found.eval_modules == {"layer1", "layer1.0", "layer1.1"}


def test_a_glob_goes_over_one_segment(model: nn.Module) -> None:
    assert plan(model, "layer*").frozen == below(*(f"layer{n}.{child}" for n in (1, 2, 10) for child in (0, 1)))
    assert plan(model, "layer?").frozen == below("layer1.0", "layer1.1", "layer2.0", "layer2.1")
    assert plan(model, "layer[12].0").frozen == below("layer1.0", "layer2.0")
    assert plan(model, "*.1").frozen == below("layer1.1", "layer2.1", "layer10.1")


def test_a_name_can_be_that_of_a_parameter(model: nn.Module) -> None:
    found = plan(model, "head.bias", "layer2.*.bias")

    assert found.frozen == {"head.bias", "layer2.0.bias", "layer2.1.bias"}
    assert found.eval_modules == frozenset()


def test_a_type_freezes_and_holds_its_modules_alone(model: nn.Module) -> None:
    found = plan(model, types=("BatchNorm2d",))

    assert found.frozen == below("layer1.1", "layer2.1", "layer10.1")
    assert found.eval_modules == {"layer1.1", "layer2.1", "layer10.1"}


def test_a_type_may_be_a_base_class(model: nn.Module) -> None:
    assert plan(model, types=("_BatchNorm",)) == plan(model, types=("BatchNorm2d",))


def test_a_type_of_ones_own_is_found_by_its_name() -> None:
    class Scale(nn.Linear):
        pass

    model = nn.Sequential(Scale(2, 2), nn.Linear(2, 2))

    assert plan(model, types=("Scale",)).frozen == below("0")


def test_types_and_names_add_up(model: nn.Module) -> None:
    found = plan(model, "head", types=("Conv2d",))

    assert found.frozen == below("head", "layer1.0", "layer2.0", "layer10.0")


def test_nothing_is_released_later(model: nn.Module) -> None:
    assert plan(model, "layer1").unfreeze_at == {}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("layr1", "layer1"), ("layer1.2", r"layer1\.[01]"), ("haed", "head"), ("head.weigth", "head.weight")],
)
def test_a_name_that_matches_nothing_is_an_error_with_the_nearest(model: nn.Module, name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}' matches no module or parameter; did you mean '{nearest}'\?"):
        plan(model, "layer2", name)


def test_a_name_that_is_like_no_other_shows_the_top_level(model: nn.Module) -> None:
    with pytest.raises(
        UserError, match="'qqq' matches no module or parameter; top level: head, layer1, layer10, layer2"
    ):
        plan(model, "qqq")


def test_a_glob_does_not_cross_a_dot(model: nn.Module) -> None:
    with pytest.raises(UserError, match=r"'lay\*\.\*\.\*\.\*' matches no module or parameter"):
        plan(model, "lay*.*.*.*")


def test_an_empty_name_does_not_mean_everything(model: nn.Module) -> None:
    with pytest.raises(UserError, match="'' matches no module or parameter"):
        plan(model, "")


def test_a_type_that_matches_nothing_is_an_error_with_the_nearest(model: nn.Module) -> None:
    with pytest.raises(
        UserError,
        match=r"no module with .* is a 'BatchNorm1d'; did you mean 'BatchNorm2d'\?; the types are .*Conv2d",
    ):
        plan(model, types=("BatchNorm1d",))


def test_nothing_to_freeze_is_an_error(model: nn.Module) -> None:
    with pytest.raises(UserError, match="freeze_modules needs types, names or stages"):
        plan(model)


def test_the_backbone_is_all_but_the_heads_and_what_holds_them(model: nn.Module) -> None:
    whole = nn.ModuleDict({"body": model, "aux": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})

    found = FreezeBackbone(FreezeBackboneConfig()).freeze(whole, ("body.head", "aux.1"), Backbone(whole, ()))

    learning = {name for name, _ in whole.named_parameters()} - found.frozen
    assert learning == below("body.head", "aux.1")
    assert found.eval_modules.isdisjoint({"", "body", "body.head", "aux", "aux.1"})
    assert {"body.layer1", "body.layer1.1", "aux.0"} <= found.eval_modules


def test_a_type_without_parameters_of_its_own_cannot_be_frozen() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
    plugin = FreezeModules(FreezeModulesConfig(types=("ReLU",)))

    with pytest.raises(UserError, match=r"no module with its own parameters is a 'ReLU'.*the types are Linear"):
        plugin.freeze(model, (), Backbone(model, ()))


def test_a_parametrised_layer_is_frozen_with_the_tensors_that_stand_for_its_weight() -> None:
    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 3, 1)), nn.Linear(2, 2))

    found = plan(model, types=("Conv2d",))

    assert found.frozen == {"0.bias", "0.parametrizations.weight.original"}
    assert found.eval_modules == {"0"}


def planned(model: str, *sets: str, plugins: tuple[str, ...]) -> tuple[nn.Module, FreezePlan]:
    flags = CliOverrides(model, "digits:5-6", plugins=plugins, sets=("model.weights=none", *sets))
    parts = prepare(load_config(None, flags)).assembly.parts
    return parts.network, parts.plan


@pytest.mark.parametrize(
    ("model", "stages", "frozen"),
    [
        ("timm/resnet18", 0, {"conv1", "bn1"}),
        ("timm/resnet18", 2, {"conv1", "bn1", "layer1", "layer2"}),
        ("torchvision/resnet18", 2, {"conv1", "bn1", "layer1", "layer2"}),
        ("torchvision/densenet121", 1, {f"features.{n}" for n in ("conv0", "norm0", "denseblock1", "transition1")}),
        ("torchvision/regnet_y_400mf", 0, {"stem"}),
        ("timm/test_vit", 2, {"cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.1"}),
    ],
)
@pytest.mark.slow
def test_stages_are_counted_behind_the_stem(model: str, stages: int, frozen: set[str]) -> None:
    network, found = planned(model, f"freeze_modules.stages={stages}", plugins=("freeze_modules",))

    assert found.frozen == {name for name, _ in network.named_parameters() if is_submodule_of(name, frozen)}
    owners = {
        name for name, module in network.named_modules() if is_submodule_of(name, frozen) and list(module.parameters())
    }
    assert found.eval_modules == owners


def test_more_stages_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match="stages = 5: the architecture has 4 stages after its stem"):
        planned("timm/resnet18", "freeze_modules.stages=5", plugins=("freeze_modules",))


def test_frozen_norm_layers_are_those_of_the_backbone(model: nn.Module) -> None:
    network, found = planned("timm/test_vit", plugins=("freeze_norm",))

    assert found.never_unfreeze == {n for n, m in network.named_modules() if isinstance(m, nn.LayerNorm)}
    assert found.frozen == frozenset()


def test_norm_layers_of_one_type_are_chosen_by_it() -> None:
    _, found = planned("timm/levit_128s", 'freeze_norm.types=["BatchNorm1d"]', plugins=("freeze_norm",))
    _, whole = planned("timm/levit_128s", plugins=("freeze_norm",))

    assert found.never_unfreeze < whole.never_unfreeze


def test_a_norm_layer_inside_a_convolution_block_is_meant_and_the_block_is_not() -> None:
    _, found = planned("torchvision/mobilenet_v2", plugins=("freeze_norm",))

    assert "features.0.1" in found.never_unfreeze
    assert "features.0" not in found.never_unfreeze


def test_a_block_without_norm_layers_is_none_whatever_its_name() -> None:
    with pytest.raises(UserError, match="freeze_norm: the network has no norm layers; it has none"):
        planned("timm/test_nfnet", plugins=("freeze_norm",))


@pytest.mark.parametrize(
    ("sets", "model", "message"),
    [
        (('freeze_norm.types=["LayerNorm"]',), "timm/resnet18", "no norm layers of type LayerNorm; it has BatchNorm2d"),
        ((), "torchvision/squeezenet1_1", "no norm layers; it has none"),
    ],
)
def test_no_norm_layers_to_freeze_is_an_error(sets: tuple[str, ...], model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(model, *sets, plugins=("freeze_norm",))


AT = 'gradual_unfreeze.at={0 = "head", 3 = "layer4", 5 = ["layer3", "layer2.1.*"], 8 = "all"}'


def test_parts_are_released_in_their_epochs() -> None:
    network, found = planned("torchvision/resnet18", AT, plugins=("gradual_unfreeze",))

    def learning(epoch: int) -> set[str]:
        apply_requires_grad(network, found, epoch)
        return {name for name, p in network.named_parameters() if p.requires_grad}

    def under(*roots: str) -> set[str]:
        return {name for name, _ in network.named_parameters() if is_submodule_of(name, roots)}

    assert [learning(epoch) for epoch in (0, 2)] == [under("fc")] * 2
    assert learning(3) == under("fc", "layer4")
    assert learning(5) == under("fc", "layer4", "layer3", "layer2.1")
    assert learning(8) == under("")


def test_what_waits_is_in_eval_mode() -> None:
    network, found = planned("torchvision/resnet18", AT, plugins=("gradual_unfreeze",))

    def training(epoch: int) -> set[str]:
        network.train()
        set_frozen_eval(network, found, epoch)
        return {name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}

    assert training(2) == set()
    assert {name.split(".")[0] for name in training(3)} == {"layer4"}
    assert len(training(8)) == 20


def test_all_groups_exist_from_the_first_epoch() -> None:
    flags = CliOverrides("torchvision/resnet18", "digits:5-6", ("gradual_unfreeze",), sets=("model.weights=none", AT))

    optimizer = prepare(load_config(None, flags)).assembly.parts.optimization.optimizer

    assert sum(len(group["params"]) for group in optimizer.param_groups) == 62


def test_norm_layers_stay_frozen_when_what_holds_them_is_released() -> None:
    network, found = planned("torchvision/resnet18", AT, plugins=("gradual_unfreeze", "freeze_norm"))

    apply_requires_grad(network, found, 9)
    network.train()
    set_frozen_eval(network, found, 9)

    norms = {name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {n for n, p in network.named_parameters() if not p.requires_grad} == {
        f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")
    }
    assert {name for name, m in network.named_modules() if not m.training} == norms


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ('{1 = "head"}', r"something must be trainable from epoch 0 on"),
        ('{0 = "head", later = "all"}', "an epoch must be an integer >= 0, not 'later' .*--set gradual_unfreeze.at="),
        ('{0 = "head", 00 = "all"}', "an epoch must be an integer >= 0, not '00'"),
        ('{0 = "head", 10 = "all"}', r"epoch 10 \(from 0\) is beyond train.epochs = 10"),
        ('{0 = "all", 3 = "head"}', "in epoch 3 everything it names is already trainable"),
        ('{0 = "layer4", 3 = "head"}', "no new head is trainable in the first epoch; it is zero-initialised"),
        ('{0 = "head", 2 = "layer5"}', r"gradual_unfreeze.at: 'layer5' matches no module .* mean 'layer[1-4]'"),
        ('"head"', "at: expected a table"),
    ],
)
def test_a_plan_that_cannot_be_is_an_error(at: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned("torchvision/resnet18", f"gradual_unfreeze.at={at}", plugins=("gradual_unfreeze",))


def test_a_new_head_is_not_frozen_by_its_type() -> None:
    _, found = planned("timm/test_vit", 'freeze_modules.types=["Linear"]', plugins=("freeze_modules",))

    assert not {name for name in found.frozen | found.eval_modules if is_submodule_of(name, ["head"])}
    assert "blocks.0.mlp.fc1.weight" in found.frozen


def test_a_new_head_frozen_by_its_name_is_an_error() -> None:
    with pytest.raises(UserError, match="no new head is trainable in the first epoch; it is zero-initialised"):
        planned("timm/test_resnet", 'freeze_modules.names=["layer3", "fc"]', plugins=("freeze_modules",))


def test_a_shared_parameter_is_frozen_by_each_of_its_names() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight

    assert plan(model, "b").frozen == {"a.weight", "b.bias"}


def test_a_spectral_norm_is_no_norm_layer() -> None:
    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3), nn.Linear(2, 2))
    wrapper = FreezeNorm(FreezeNormConfig()).freeze(model, ("2",))
    next(wrapper)

    with pytest.raises(StopIteration) as stopped:
        wrapper.send(FreezePlan())

    assert stopped.value.value.never_unfreeze == {"1"}


# What freeze_backbone excepts

SMALL = ("train.epochs=1", "model.image_size=32", "linear.std=0.1", "adamw.lr=0.01")
NETWORKS = ("timm/resnet18", "timm/convnext_atto", "timm/vit_tiny_patch16_224")
LAST = {
    "timm/resnet18": ("layer4",),
    "timm/convnext_atto": ("stages.3",),
    "timm/vit_tiny_patch16_224": ("blocks.11", "norm"),
}
STEM = {
    "timm/resnet18": ("conv1", "bn1"),
    "timm/convnext_atto": ("stem",),
    "timm/vit_tiny_patch16_224": ("cls_token", "pos_embed", "patch_embed"),
}


def moved_in_an_epoch(model: str, *sets: str, plugins: tuple[str, ...]) -> tuple[nn.Module, tuple[str, ...], set[str]]:
    """The network, its heads, and the tensors whose bytes an epoch of 32 pixels changed."""
    settings = ("model.weights=none", *SMALL, *sets)
    parts = prepare(load_config(None, CliOverrides(model, "digits:5-6", plugins=plugins, sets=settings))).assembly.parts
    for module in parts.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm begins with zeros behind each residual, which no gradient passes
    before = tensor_digests(dict(parts.network.state_dict()))
    fit(parts, Progress(), lambda _: None)
    after = tensor_digests(dict(parts.network.state_dict()))
    return parts.network, parts.heads, {name for name in before if before[name] != after[name]}


def saved_under(network: nn.Module, roots: Iterable[str]) -> set[str]:
    return {name for name in network.state_dict() if is_submodule_of(name, roots)}


def norm_layers(network: nn.Module) -> set[str]:
    kinds = (nn.BatchNorm2d, nn.LayerNorm)  # timm's own are derived from them
    return {name for name, module in network.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("model", NETWORKS)
def test_bitfit_moves_the_biases_and_the_head_and_nothing_else(model: str) -> None:
    network, heads, moved = moved_in_an_epoch(model, plugins=("bitfit",))

    biases = {
        f"{path}.bias"
        for path, module in network.named_modules()
        if isinstance(getattr(module, "bias", None), nn.Parameter)
    }
    assert len(biases) > 15
    assert moved == biases | saved_under(network, heads)


@pytest.mark.parametrize("model", NETWORKS)
def test_norm_tune_moves_the_norm_layers_with_their_statistics_and_the_head_and_nothing_else(model: str) -> None:
    network, heads, moved = moved_in_an_epoch(model, plugins=("norm_tune",))

    norms = norm_layers(network)
    assert len(norms) > 15
    assert moved == saved_under(network, [*norms, *heads])


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.slow
def test_surgical_moves_one_stage_with_its_statistics_and_the_head_and_nothing_else(model: str) -> None:
    for stage, roots in ((-1, LAST[model]), (0, STEM[model])):
        network, heads, moved = moved_in_an_epoch(model, f"surgical.stage={stage}", plugins=("surgical",))

        assert moved == saved_under(network, [*roots, *heads])


@pytest.mark.parametrize(
    "model", ["torchvision/vit_b_16", "timm/swinv2_tiny_window8_256", "timm/beit_base_patch16_224"]
)
def test_every_bias_is_one_whatever_stands_before_its_name(model: str) -> None:
    """Those of attention are called in_proj_bias or q_bias; a table of relative positions is none."""
    backbone = build_on_meta(lambda: HookCalls(activate(RunConfig())).build_model(model, "none"))
    assert isinstance(backbone, Backbone)
    network = backbone.module.to("meta")
    heads = tuple(slot.path for slot in backbone.heads)

    found = FreezeBackbone(FreezeBackboneConfig(("bias",))).freeze(network, heads, backbone)

    names = {name for name, _ in network.named_parameters()}
    learning = names - found.frozen - saved_under(network, heads)
    assert learning == {name for name in names if name.endswith("bias") and not is_submodule_of(name, heads)}
    assert {name.rpartition(".")[2] for name in learning} > {"bias"}


def excepted(model: nn.Module, *but: str, stages: tuple[int, ...] = (), of: dict[str, int] | None = None) -> FreezePlan:
    backbone = Backbone(model, (), stages=of or {})
    return FreezeBackbone(FreezeBackboneConfig(but, stages)).freeze(model, ("head",), backbone)


def learning_and_training(model: nn.Module, found: FreezePlan) -> tuple[set[str], set[str]]:
    """Parameters that learn, and modules of tensors that are in train mode."""
    apply_requires_grad(model, found, 0)
    model.train()
    set_frozen_eval(model, found, 0)
    training = {
        n for n, m in model.named_modules() if m.training and [*m.parameters(recurse=False), *m.buffers(recurse=False)]
    }
    return {name for name, p in model.named_parameters() if p.requires_grad}, training


def test_a_bias_learns_without_its_module(model: nn.Module) -> None:
    learning, training = learning_and_training(model, excepted(model, "bias"))

    assert learning == below("head") | {f"{name}.{c}.bias" for name in ("layer1", "layer2", "layer10") for c in (0, 1)}
    assert training == {"head"}


def test_a_norm_layer_learns_and_leaves_eval_mode(model: nn.Module) -> None:
    found = excepted(model, "norm")
    learning, training = learning_and_training(model, found)

    norms = {f"{name}.1" for name in ("layer1", "layer2", "layer10")}
    assert learning == below("head", *norms)
    assert training == {"head", *norms}
    assert not {name for name in found.frozen if is_submodule_of(name, norms)}
    assert found.eval_modules == {"layer1.0", "layer2.0", "layer10.0"}


@pytest.mark.parametrize(
    ("but", "modules", "singles"),
    [
        (("layer1",), {"layer1.0", "layer1.1"}, set()),
        (("layer1?",), {"layer10.0", "layer10.1"}, set()),
        (("*.1",), {"layer1.1", "layer2.1", "layer10.1"}, set()),
        (("layer2.1.weight",), set(), {"layer2.1.weight"}),
        (("layer2.*.bias", "layer1.1"), {"layer1.1"}, {"layer2.0.bias", "layer2.1.bias"}),
        (("layer2", "layer2.1.weight"), {"layer2.0", "layer2.1"}, set()),
        (("bias", "layer2.1"), {"layer2.1"}, {f"layer{n}.{c}.bias" for n in (1, 2, 10) for c in (0, 1)}),
    ],
)
def test_what_is_excepted_by_path_learns_and_its_modules_leave_eval_mode(
    model: nn.Module, but: tuple[str, ...], modules: set[str], singles: set[str]
) -> None:
    found = excepted(model, *but)
    learning, training = learning_and_training(model, found)

    assert learning == below("head", *modules) | singles
    assert training == {"head", *modules}
    statistics = {name for name, _ in model.named_buffers() if not is_submodule_of(name, modules)}
    assert {name for name in found.frozen if name in dict(model.named_buffers())} == statistics


def test_a_scale_that_is_excepted_alone_moves_without_its_running_statistics() -> None:
    settings = ('freeze_backbone.but=["layer2.0.1.weight"]', "train.epochs=1", "linear.std=0.1")
    parts = prepare(
        load_config(None, CliOverrides("digits/cnn", "digits:5-6", ("freeze_backbone",), sets=settings))
    ).assembly.parts
    before = tensor_digests(dict(parts.network.state_dict()))

    fit(parts, Progress(), lambda _: None)

    after = tensor_digests(dict(parts.network.state_dict()))
    assert {n for n in before if before[n] != after[n]} == {"layer2.0.1.weight", "head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("stages", "roots"),
    [
        ((0,), {"layer1"}),
        ((-1,), {"layer10"}),
        ((1, -3), {"layer1", "layer2"}),
        ((0, 1, 2), {"layer1", "layer2", "layer10"}),
    ],
)
def test_stages_are_numbered_from_the_stem_or_from_the_end(
    model: nn.Module, stages: tuple[int, ...], roots: set[str]
) -> None:
    of = {
        n: i
        for i, root in enumerate(("layer1", "layer2", "layer10"))
        for n in named_tensors(model)
        if is_submodule_of(n, [root])
    }

    learning, training = learning_and_training(model, excepted(model, stages=stages, of=of))

    assert learning == below("head", *(f"{root}.{child}" for root in roots for child in (0, 1)))
    assert training == {"head", *(f"{root}.{child}" for root in roots for child in (0, 1))}


@pytest.mark.parametrize("stage", [3, -4, 100])
def test_a_stage_that_is_not_there_is_an_error(model: nn.Module, stage: int) -> None:
    of = {"layer1.0.weight": 0, "layer2.0.weight": 1, "layer10.0.weight": 2}

    with pytest.raises(UserError, match=rf"no stage {stage}; the architecture has stages 0 \(the stem\) to 2"):
        excepted(model, stages=(stage,), of=of)


@pytest.mark.parametrize(
    ("but", "message"),
    [
        ("bias", "freeze_backbone.but: the network has no biases"),
        ("norm", "freeze_backbone.but: the network has no norm layers"),
        ("layer7", "freeze_backbone.but: 'layer7' matches no module or parameter"),
    ],
)
def test_an_exception_that_there_is_none_of_is_an_error(but: str, message: str) -> None:
    model = nn.ModuleDict({"layer1": nn.Conv2d(3, 3, 1, bias=False), "head": nn.Linear(3, 2, bias=False)})

    with pytest.raises(UserError, match=message):
        excepted(model, but)
