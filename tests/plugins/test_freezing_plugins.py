"""Freezing by type and by name."""

from __future__ import annotations

import pytest
from torch import nn

from ftcore import FreezePlan, UserError
from ftcore_plugins.freezing import FreezeBackbone, FreezeModules, FreezeModulesConfig, FreezeNothing


def block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


@pytest.fixture
def model() -> nn.Module:
    names = ("layer1", "layer2", "layer10")
    return nn.ModuleDict({**{name: block() for name in names}, "head": nn.Linear(3, 2)})


def plan(model: nn.Module, *names: str, types: tuple[str, ...] = ()) -> FreezePlan:
    return FreezeModules(FreezeModulesConfig(types, names)).freeze(model)


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
    with pytest.raises(UserError, match="freeze_modules needs types or names"):
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
        plugin.freeze(model)
