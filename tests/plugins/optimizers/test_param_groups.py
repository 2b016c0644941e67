"""Which parameters share a learning rate, and which decay."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from ftcore import Backbone, HeadSlot, ParamGroup, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.prepared import prepare
from ftcore_plugins.optimizers.param_groups import Groups, GroupsConfig

NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(4), nn.Linear(4, 2))


def grouped(learning: dict[str, nn.Parameter], *, decay_all: bool = False) -> list[ParamGroup]:
    config = GroupsConfig(decay_all=decay_all)
    return Groups(config).param_groups(learning, NET, ("3",), Backbone(NET, (HeadSlot("3", 4),)))


@given(st.dictionaries(st.text(), st.integers(0, 4), max_size=12), st.booleans())
def test_groups_partition_what_learns(dimensions: dict[str, int], decay_all: bool) -> None:  # noqa: FBT001 - drawn
    learning = {name: nn.Parameter(torch.zeros([1] * count)) for name, count in dimensions.items()}

    groups = grouped(learning, decay_all=decay_all)

    assert sorted(name for group in groups for name in group.params) == sorted(learning)
    assert all(learning[name] is p for group in groups for name, p in group.params.items())
    assert all(group.params for group in groups)
    assert len({group.name for group in groups}) == len(groups)


def test_biases_and_norm_layers_do_not_decay() -> None:
    assert {group.name: {*group.params} for group in grouped(dict(NET.named_parameters()))} == {
        "decay": {"0.weight", "3.weight"},
        "no_decay": {"0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.bias"},
    }


def test_everything_decays_with_decay_all() -> None:
    (group,) = grouped(dict(NET.named_parameters()), decay_all=True)

    assert group.weight_decay
    assert len(group.params) == 8


def groups_of(model: str, *sets: str, plugins: tuple[str, ...] = ()) -> dict[str, ParamGroup]:
    """The groups of a run: parameter name -> its group."""
    flags = CliOverrides(model, "digits:5-6", plugins=plugins, sets=("model.weights=none", *sets))
    return {name: group for group in prepare(load_config(None, flags)).assembly.groups for name in group.params}


def test_the_backbone_learns_at_its_own_rate() -> None:
    found = groups_of("timm/test_resnet", "groups.backbone_lr=0.1")

    assert {name: group.lr_scale for name, group in found.items()} == {
        name: 1.0 if name.startswith("fc.") else 0.1 for name in found
    }
    assert {group.name for group in found.values()} == {
        "backbone.decay",
        "head.decay",
        "backbone.no_decay",
        "head.no_decay",
    }


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_resnet", "mobilenetv2_050", "convnext_atto"])
def test_layer_decay_is_timms_where_nothing_is_frozen(name: str) -> None:
    model = timm.create_model(name, num_classes=2)
    theirs = param_groups_layer_decay(
        model, 0.05, model.no_weight_decay() if name == "test_vit" else (), layer_decay=0.7
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    wanted = {names[p]: (group["lr_scale"], group["weight_decay"] > 0) for group in theirs for p in group["params"]}

    found = groups_of(f"timm/{name}", "groups.layer_decay=0.7")

    assert found.keys() == wanted.keys()
    for parameter, group in found.items():
        assert group.lr_scale == pytest.approx(wanted[parameter][0]), parameter
        assert group.weight_decay == wanted[parameter][1], parameter


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18", "torchvision/vit_b_16"])
@pytest.mark.slow
def test_layer_decay_does_not_depend_on_what_is_frozen(name: str) -> None:
    pattern = "encoder.layers.encoder_layer_?" if "vit" in name else "layer[123]"
    frozen = f'freeze_modules.names=["{pattern}"]'

    free = groups_of(name, "groups.layer_decay=0.7")
    part = groups_of(name, "groups.layer_decay=0.7", frozen, plugins=("freeze_modules",))

    assert 0 < len(part) < len(free)
    assert {n: group.lr_scale for n, group in part.items()} == {n: free[n].lr_scale for n in part}


def test_blocks_of_a_torchvision_network_decay_from_the_head_down() -> None:
    found = groups_of("torchvision/resnet18", "groups.layer_decay=0.5")

    scales = [found[name].lr_scale for name in ("fc.weight", "layer4.1.conv2.weight", "layer4.0.bn1.bias")]
    assert scales == [1.0, 0.5, 0.25]
    assert found["conv1.weight"].lr_scale == found["bn1.weight"].lr_scale == 0.5**9


def test_rates_by_name_multiply_with_the_others() -> None:
    sets = ("groups.backbone_lr=0.1", 'groups.lr={"layer4" = 3.0, "layer4.1.bn?" = 2.0, "fc" = 5.0}')
    found = groups_of("torchvision/resnet18", *sets)

    names = ("conv1.weight", "layer4.0.conv1.weight", "layer4.1.bn2.bias", "fc.weight")
    assert [found[name].lr_scale for name in names] == pytest.approx([0.1, 0.3, 0.6, 5.0])


@pytest.mark.parametrize(
    ("sets", "plugins", "message"),
    [
        (("groups.backbone_lr=0.1",), ("freeze_backbone",), "groups.backbone_lr = 0.1 has no effect"),
        (("groups.layer_decay=0.5",), ("freeze_backbone",), "groups.layer_decay = 0.5 has no effect"),
        (('groups.lr={"layer5" = 0.1}',), (), "groups.lr: 'layer5' matches no module .* mean 'layer[1-4]'"),
        (('groups.lr={"layer1" = 0.1}',), ("freeze_backbone",), "'layer1' matches only frozen parameters"),
        (("groups.backbone_lr=0",), (), "'backbone_lr' must be > 0"),
        (("groups.layer_decay=1.5",), (), "'layer_decay' must be <= 1"),
        (('groups.lr={"layer1" = 0.0}',), (), "'lr' must be > 0|must be > 0"),
    ],
)
def test_a_rule_that_nothing_falls_under_is_refused(
    sets: tuple[str, ...], plugins: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        groups_of("torchvision/resnet18", *sets, plugins=plugins)


@pytest.mark.parametrize(
    ("name", "exempt"),
    [
        ("timm/test_vit", {"pos_embed", "cls_token"}),
        ("timm/swin_tiny_patch4_window7_224", {"layers.0.blocks.0.attn.relative_position_bias_table"}),
        ("timm/levit_128s", {"stages.0.blocks.0.attn.attention_biases"}),
        ("torchvision/vit_b_16", {"class_token", "encoder.pos_embedding"}),
        ("torchvision/swin_t", {"features.1.0.attn.relative_position_bias_table"}),
    ],
)
def test_what_an_architecture_exempts_does_not_decay(name: str, exempt: set[str]) -> None:
    found = groups_of(name)

    assert all(not found[parameter].weight_decay for parameter in exempt)
    assert all(found[parameter].params[parameter].ndim > 1 for parameter in exempt)


def test_timm_and_ftcore_agree_on_what_decays() -> None:
    model = timm.create_model("test_vit", num_classes=2)
    theirs = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    names = {parameter: name for name, parameter in model.named_parameters()}
    decaying = {names[p] for group in theirs if group["weight_decay"] for p in group["params"]}

    assert {name for name, group in groups_of("timm/test_vit").items() if group.weight_decay} == decaying


def test_a_name_that_a_rule_of_its_own_has_too_still_multiplies() -> None:
    free = groups_of("torchvision/resnet18", "groups.layer_decay=0.5")
    slower = groups_of("torchvision/resnet18", "groups.layer_decay=0.5", 'groups.lr={"layer1" = 0.1}')

    for name in ("layer1.0.conv1.weight", "layer1.1.conv1.weight"):
        assert slower[name].lr_scale == pytest.approx(free[name].lr_scale * 0.1)
    assert slower["conv1.weight"].lr_scale == free["conv1.weight"].lr_scale
