"""Freezing by type, by name, by depth and by epoch."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ftcore import Backbone, FreezePlan, UserError
from ftcore.config import Flags, load
from ftcore.freezing import apply, hold, is_under
from ftcore.run import prepare
from ftcore_plugins.freezing import (
    FreezeBackbone,
    FreezeModules,
    FreezeModulesConfig,
    FreezeNorm,
    FreezeNormConfig,
    FreezeNothing,
)


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
    assert found.held == {"layer1", "layer1.0", "layer1.1"}


def test_a_glob_goes_over_one_segment(model: nn.Module) -> None:
    assert plan(model, "layer*").frozen == below(*(f"layer{n}.{child}" for n in (1, 2, 10) for child in (0, 1)))
    assert plan(model, "layer?").frozen == below("layer1.0", "layer1.1", "layer2.0", "layer2.1")
    assert plan(model, "layer[12].0").frozen == below("layer1.0", "layer2.0")
    assert plan(model, "*.1").frozen == below("layer1.1", "layer2.1", "layer10.1")


def test_a_name_can_be_that_of_a_parameter(model: nn.Module) -> None:
    found = plan(model, "head.bias", "layer2.*.bias")

    assert found.frozen == {"head.bias", "layer2.0.bias", "layer2.1.bias"}
    assert found.held == frozenset()


def test_a_type_freezes_and_holds_its_modules_alone(model: nn.Module) -> None:
    found = plan(model, types=("BatchNorm2d",))

    assert found.frozen == below("layer1.1", "layer2.1", "layer10.1")
    assert found.held == {"layer1.1", "layer2.1", "layer10.1"}


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
        match=r"no module with .* is a 'BatchNorm1d'; did you mean 'BatchNorm2d'\?; there are .*Conv2d",
    ):
        plan(model, types=("BatchNorm1d",))


def test_nothing_to_freeze_is_an_error(model: nn.Module) -> None:
    with pytest.raises(UserError, match="freeze_modules needs types, names or stages"):
        plan(model)


def test_the_backbone_is_all_but_the_heads_and_what_holds_them(model: nn.Module) -> None:
    whole = nn.ModuleDict({"body": model, "aux": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})

    found = FreezeBackbone().freeze(whole, ("body.head", "aux.1"))

    learning = {name for name, _ in whole.named_parameters()} - found.frozen
    assert learning == below("body.head", "aux.1")
    assert found.held.isdisjoint({"", "body", "body.head", "aux", "aux.1"})
    assert {"body.layer1", "body.layer1.1", "aux.0"} <= found.held


def test_a_type_without_parameters_of_its_own_cannot_be_frozen() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
    plugin = FreezeModules(FreezeModulesConfig(types=("ReLU",)))

    with pytest.raises(UserError, match=r"no module with parameters of its own is a 'ReLU'.*there are Linear"):
        plugin.freeze(model, (), Backbone(model, ()))


def test_a_parametrised_layer_is_frozen_with_the_tensors_that_stand_for_its_weight() -> None:
    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 3, 1)), nn.Linear(2, 2))

    found = plan(model, types=("Conv2d",))

    assert found.frozen == {"0.bias", "0.parametrizations.weight.original"}
    assert found.held == {"0"}


def planned(model: str, *sets: str, plugins: tuple[str, ...]) -> tuple[nn.Module, FreezePlan]:
    flags = Flags(model, "digits:5-6", plugins=plugins, sets=("model.weights=none", *sets))
    parts = prepare(load(None, flags)).assembly.parts
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
def test_stages_are_counted_behind_the_stem(model: str, stages: int, frozen: set[str]) -> None:
    network, found = planned(model, f"freeze_modules.stages={stages}", plugins=("freeze_modules",))

    assert found.frozen == {name for name, _ in network.named_parameters() if is_under(name, frozen)}
    owners = {name for name, module in network.named_modules() if is_under(name, frozen) and list(module.parameters())}
    assert found.held == owners


def test_more_stages_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match="stages = 5: the architecture has 4 stages behind its stem"):
        planned("timm/resnet18", "freeze_modules.stages=5", plugins=("freeze_modules",))


def test_frozen_norm_layers_are_those_of_the_backbone(model: nn.Module) -> None:
    network, found = planned("timm/test_vit", plugins=("freeze_norm",))

    assert found.always == {n for n, m in network.named_modules() if isinstance(m, nn.LayerNorm)}
    assert found.frozen == frozenset()


def test_norm_layers_of_one_type_are_chosen_by_it() -> None:
    _, found = planned("timm/levit_128s", 'freeze_norm.types=["BatchNorm1d"]', plugins=("freeze_norm",))
    _, whole = planned("timm/levit_128s", plugins=("freeze_norm",))

    assert found.always < whole.always


def test_a_norm_layer_inside_a_convolution_block_is_meant_and_the_block_is_not() -> None:
    _, found = planned("torchvision/mobilenet_v2", plugins=("freeze_norm",))

    assert "features.0.1" in found.always
    assert "features.0" not in found.always


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
        apply(network, found, epoch)
        return {name for name, p in network.named_parameters() if p.requires_grad}

    def under(*roots: str) -> set[str]:
        return {name for name, _ in network.named_parameters() if is_under(name, roots)}

    assert [learning(epoch) for epoch in (0, 2)] == [under("fc")] * 2
    assert learning(3) == under("fc", "layer4")
    assert learning(5) == under("fc", "layer4", "layer3", "layer2.1")
    assert learning(8) == under("")


def test_what_waits_is_in_eval_mode() -> None:
    network, found = planned("torchvision/resnet18", AT, plugins=("gradual_unfreeze",))

    def training(epoch: int) -> set[str]:
        network.train()
        hold(network, found, epoch)
        return {name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}

    assert training(2) == set()
    assert {name.split(".")[0] for name in training(3)} == {"layer4"}
    assert len(training(8)) == 20


def test_all_groups_exist_from_the_first_epoch() -> None:
    flags = Flags("torchvision/resnet18", "digits:5-6", ("gradual_unfreeze",), sets=("model.weights=none", AT))

    optimizer = prepare(load(None, flags)).assembly.parts.optimizer

    assert sum(len(group["params"]) for group in optimizer.param_groups) == 62


def test_norm_layers_stay_frozen_when_what_holds_them_is_released() -> None:
    network, found = planned("torchvision/resnet18", AT, plugins=("gradual_unfreeze", "freeze_norm"))

    apply(network, found, 9)
    network.train()
    hold(network, found, 9)

    norms = {name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {n for n, p in network.named_parameters() if not p.requires_grad} == {
        f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")
    }
    assert {name for name, m in network.named_modules() if not m.training} == norms


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ('{1 = "head"}', r"something must learn from epoch 0 on"),
        ('{0 = "head", later = "all"}', "an epoch is a whole number from 0, not 'later' .*--set gradual_unfreeze.at="),
        ('{0 = "head", 00 = "all"}', "an epoch is a whole number from 0, not '00'"),
        ('{0 = "head", 10 = "all"}', r"epoch 10 \(from 0\) is beyond train.epochs = 10"),
        ('{0 = "all", 3 = "head"}', "in epoch 3 everything that it names learns already"),
        ('{0 = "layer4", 3 = "head"}', "no new head learns in the first epoch; it starts at zero"),
        ('{0 = "head", 2 = "layer5"}', r"gradual_unfreeze.at: 'layer5' matches no module .* mean 'layer[1-4]'"),
        ('"head"', "at: expected a table"),
    ],
)
def test_a_plan_that_cannot_be_is_an_error(at: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned("torchvision/resnet18", f"gradual_unfreeze.at={at}", plugins=("gradual_unfreeze",))


def test_a_new_head_is_not_frozen_by_its_type() -> None:
    _, found = planned("timm/test_vit", 'freeze_modules.types=["Linear"]', plugins=("freeze_modules",))

    assert not {name for name in found.frozen | found.held if is_under(name, ["head"])}
    assert "blocks.0.mlp.fc1.weight" in found.frozen


def test_a_new_head_frozen_by_its_name_is_an_error() -> None:
    with pytest.raises(UserError, match="no new head learns in the first epoch; it starts at zero"):
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

    assert stopped.value.value.always == {"1"}
