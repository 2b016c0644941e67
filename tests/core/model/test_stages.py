"""How deep each tensor of a network lies: in which stage, and in which block."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import timm
import torch
from tests.core.model.numbering import by_module, parameters_in, timms_own
from torch import nn

from ftcore.model.freezing import named_tensors
from ftcore.model.shape_inference import on_meta
from ftcore.model.stages import TRUNK_NAMES, derive_stages, number_by_patterns


def chain(**modules: nn.Module) -> nn.Sequential:
    """Modules that run one after the other, by name."""
    return nn.Sequential(OrderedDict(modules))


def block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def test_names_are_numbered_in_the_order_of_the_patterns() -> None:
    names = ["layer2.0.bn1.bias", "bn1.bias", "layer1.0.conv1.weight", "conv1.weight"]

    assert number_by_patterns(names, ["conv1|bn1", r"layer(\d+)"]) == {
        "conv1.weight": 0,
        "bn1.bias": 0,
        "layer1.0.conv1.weight": 1,
        "layer2.0.bn1.bias": 2,
    }


def test_captured_numbers_are_ordered_as_numbers() -> None:
    names = [f"layer{number}.weight" for number in (10, 9, 2, 1)]

    assert number_by_patterns(names, [r"layer(\d+)"]) == {
        "layer1.weight": 0,
        "layer2.weight": 1,
        "layer9.weight": 2,
        "layer10.weight": 3,
    }


def test_the_second_captured_number_decides_among_equal_first_ones() -> None:
    names = ["stage2.block0", "stage1.block10", "stage1.block2", "stage2.down"]

    assert number_by_patterns(names, [r"stage(\d+)\.(?:block(\d+)|down)"]) == {
        "stage1.block2": 0,
        "stage1.block10": 1,
        "stage2.down": 2,
        "stage2.block0": 3,
    }


def test_what_no_pattern_matches_from_its_beginning_is_left_out() -> None:
    names = ["stem.weight", "deep.stem.weight", "head.weight"]

    assert number_by_patterns(names, ["stem"]) == {"stem.weight": 0}


def test_the_first_pattern_that_matches_counts() -> None:
    assert number_by_patterns(["a.weight", "ab.weight"], ["a", "ab"]) == {"a.weight": 0, "ab.weight": 0}


def test_stages_that_a_network_lacks_leave_no_gap() -> None:
    assert number_by_patterns(["stem.w", "layer3.w", "layer7.w"], ["stem", "neck", r"layer(\d+)"]) == {
        "stem.w": 0,
        "layer3.w": 1,
        "layer7.w": 2,
    }


def test_without_a_trunk_the_stages_are_the_modules_that_have_modules() -> None:
    model = chain(
        conv1=nn.Conv2d(3, 4, 3),
        bn1=nn.BatchNorm2d(4),
        relu=nn.ReLU(),
        layer1=nn.Sequential(block(), block()),
        layer2=nn.Sequential(block()),
        norm=nn.BatchNorm2d(4),
        fc=nn.Linear(4, 2),
    )

    stages, blocks = derive_stages(model, ["fc"])

    assert by_module(stages) == {
        "conv1": 0,
        "bn1": 0,
        "layer1.0.0": 1,
        "layer1.0.1": 1,
        "layer1.1.0": 1,
        "layer1.1.1": 1,
        "layer2.0.0": 2,
        "layer2.0.1": 2,
        "norm": 2,
    }
    assert by_module(blocks) == {
        "conv1": 0,
        "bn1": 0,
        "layer1.0.0": 1,
        "layer1.0.1": 1,
        "layer1.1.0": 2,
        "layer1.1.1": 2,
        "layer2.0.0": 3,
        "layer2.0.1": 3,
        "norm": 3,
    }


@pytest.mark.parametrize("trunk", TRUNK_NAMES)
def test_the_stages_are_the_children_of_a_trunk_behind_a_stem(trunk: str) -> None:
    parts: nn.Module = nn.Sequential(block(), nn.Sequential(block(), block()))
    for name in reversed(trunk.split(".")[1:]):
        parts = chain(**{name: parts})
    model = chain(
        patches=nn.Conv2d(3, 4, 2),
        norm_pre=nn.GroupNorm(2, 4),
        **{trunk.partition(".")[0]: parts},
        norm=nn.BatchNorm2d(4),
        head=nn.Linear(4, 2),
    )

    stages, blocks = derive_stages(model, ["head"])

    assert by_module(stages) == {
        "patches": 0,
        "norm_pre": 0,
        f"{trunk}.0.0": 1,
        f"{trunk}.0.1": 1,
        f"{trunk}.1.0.0": 2,
        f"{trunk}.1.0.1": 2,
        f"{trunk}.1.1.0": 2,
        f"{trunk}.1.1.1": 2,
    }
    assert by_module(blocks) == {**by_module(stages), f"{trunk}.1.1.0": 3, f"{trunk}.1.1.1": 3}


def test_the_buffers_of_a_stem_belong_to_the_stage_of_its_parameters() -> None:
    model = chain(stem=block(), blocks=nn.Sequential(block(), block()), head=nn.Linear(4, 2))

    for numbers in derive_stages(model, ["head"]):
        assert {name for name in named_tensors(model) if name not in numbers} == {"head.weight", "head.bias"}
        assert by_module(numbers)["stem.1"] == 0


def test_parameters_of_the_network_itself_belong_to_the_stem() -> None:
    model = chain(patches=nn.Conv2d(3, 4, 2), blocks=nn.Sequential(block(), block()), head=nn.Linear(4, 2))
    model.register_parameter("class_token", nn.Parameter(torch.zeros(4)))

    stages, blocks = derive_stages(model, ["head"])

    assert stages["class_token"] == blocks["class_token"] == stages["patches.weight"] == 0
    assert stages["blocks.0.0.weight"] == 1


def test_a_trunk_of_a_single_module_is_none() -> None:
    model = chain(features=nn.Sequential(block()), neck=block(), head=nn.Linear(4, 2))

    stages, _ = derive_stages(model, ["head"])

    assert by_module(stages) == {"features.0.0": 0, "features.0.1": 0, "neck.0": 1, "neck.1": 1}


def test_a_chain_of_layers_is_cut_behind_each_pooling() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )

    stages, blocks = derive_stages(model, ["10"])

    assert by_module(stages) == {"0": 0, "3": 1, "5": 1, "7": 2}
    assert by_module(blocks) == {"0": 0, "3": 1, "5": 2, "7": 3}


def test_a_norm_layer_joins_the_block_before_it() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)),
        *(nn.Conv2d(4, 4, 3), nn.Linear(4, 2)),
    )

    stages, blocks = derive_stages(model, ["6"])

    assert by_module(blocks) == {"0": 0, "1": 0, "3": 1, "4": 1, "5": 2}
    assert set(stages.values()) == {0}


def test_what_lies_beside_the_head_is_in_no_stage() -> None:
    model = chain(
        layer1=block(),
        conv5=block(),
        classifier=nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
    )

    for numbers in derive_stages(model, ["classifier.2"]):
        assert by_module(numbers) == {"layer1.0": 0, "layer1.1": 0, "conv5.0": 1, "conv5.1": 1}


def test_every_head_of_a_network_is_left_out() -> None:
    model = chain(layer1=block(), aux=nn.Sequential(block(), nn.Linear(4, 2)), layer2=block(), fc=nn.Linear(4, 2))

    for numbers in derive_stages(model, ["aux.1", "fc"]):
        assert by_module(numbers) == {"layer1.0": 0, "layer1.1": 0, "layer2.0": 1, "layer2.1": 1}


def test_patterns_beat_what_is_derived_for_the_stages_alone() -> None:
    model = chain(a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3), c=nn.Conv2d(4, 4, 3), d=block(), head=nn.Linear(4, 2))

    stages, blocks = derive_stages(model, ["head"], ["[ab]", "c"])

    assert by_module(stages) == {"a": 0, "b": 0, "c": 1}
    assert by_module(blocks) == {"a": 0, "b": 1, "c": 2, "d.0": 3, "d.1": 3}


@pytest.mark.parametrize(
    ("model", "head"),
    [
        pytest.param(nn.Linear(8, 5), "", id="the head is the network"),
        pytest.param(nn.Sequential(nn.Flatten(), nn.Linear(8, 5)), "1", id="nothing before the head has tensors"),
        pytest.param(chain(a=nn.Flatten(), b=nn.Sequential(block(), nn.Linear(4, 2))), "b.1", id="all is beside it"),
    ],
)
def test_a_network_in_which_nothing_lies_before_the_head_has_no_stages(model: nn.Module, head: str) -> None:
    assert derive_stages(model, [head]) == ({}, {})


def test_the_stages_are_found_inside_a_wrapper() -> None:
    inner = chain(stem=nn.Conv2d(3, 4, 3), blocks=nn.Sequential(block(), block()), fc=nn.Linear(4, 2))

    for numbers in derive_stages(chain(wrapper=chain(net=inner)), ["wrapper.net.fc"]):
        assert by_module(numbers) == {
            f"wrapper.net.{name}": number
            for name, number in {"stem": 0, "blocks.0.0": 1, "blocks.0.1": 1, "blocks.1.0": 2, "blocks.1.1": 2}.items()
        }


def test_what_is_derived_for_a_timm_network_is_what_timm_says() -> None:
    model = on_meta(lambda: timm.create_model("resnet18"))

    stages, blocks = derive_stages(model, ["fc"])

    assert parameters_in(stages, model) == timms_own(model, coarse=True)
    assert parameters_in(blocks, model) == timms_own(model, coarse=False)
