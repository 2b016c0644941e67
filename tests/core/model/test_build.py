"""A network with its new head; what providers make of names and weights is in tests/plugins/models."""

from __future__ import annotations

import torch

from ftcore import InputSpec
from ftcore.config.load import CliOverrides, load_config
from ftcore.config.schema import ModelConfig
from ftcore.model.build import Network, _input, build_network
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore_plugins.tasks import Classification

TASK = Classification(("a", "b", "c"), (1, 1, 1), images=3)


def built(*sets: str, spec: InputSpec | None = None) -> Network:
    host = activate(load_config(None, CliOverrides("digits/cnn", "digits:5-7", sets=("linear.std=0.1", *sets))))
    return build_network(host.config, HookCalls(host), TASK, spec)


def head(network: Network) -> torch.Tensor:
    weight = network.module.get_parameter("head.weight")
    return weight.detach()


def test_a_new_head_stands_in_the_place_of_the_old() -> None:
    network = built()

    assert network.heads == ("head",)
    assert network.module(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert network.module is network.backbone.module


def test_the_head_is_that_of_the_seed_whatever_was_drawn_before() -> None:
    first = head(built("train.seed=3"))
    torch.rand(100)

    assert torch.equal(head(built("train.seed=3")), first)
    assert not torch.equal(head(built("train.seed=4")), first)


def test_the_seed_of_the_head_is_none_of_the_network() -> None:
    pretrained, fresh = built("train.seed=3"), built("train.seed=3", "model.weights=none")

    assert torch.equal(head(pretrained), head(fresh))
    assert not torch.equal(*(n.module.get_parameter("layer1.0.weight") for n in (pretrained, fresh)))


def test_the_model_section_changes_the_input_and_leaves_the_rest_of_it() -> None:
    own, changed = built().spec, built("model.image_size=12", "model.mean=0.25").spec

    assert (changed.size, changed.mean) == ((12, 12), (0.25,))
    assert (changed.std, changed.channels, changed.interpolation) == (own.std, own.channels, own.interpolation)


def test_the_crop_that_is_chosen_shows_the_whole_picture_but_for_the_centre() -> None:
    own = InputSpec(crop_fraction=0.9, crop_mode="squash")
    found = {crop: _input(own, ModelConfig(crop=crop)) for crop in (None, "center", "squash", "pad")}

    assert {crop: (spec.crop_mode, spec.crop_fraction) for crop, spec in found.items()} == {
        None: ("squash", 0.9),
        "center": ("center", 0.9),
        "squash": ("squash", 1.0),
        "pad": ("pad", 1.0),
    }


def test_a_rectangle_is_height_and_width() -> None:
    assert built("model.image_size=[10, 12]").spec.size == (10, 12)


def test_an_input_that_is_settled_is_taken_as_it_is() -> None:
    spec = InputSpec((10, 9), channels=1, mean=(0.1,), std=(0.2,))

    assert built("model.image_size=12", spec=spec).spec == spec


def test_stages_and_blocks_are_derived_where_the_provider_names_none() -> None:
    backbone = built().backbone

    assert max(backbone.stages.values()) >= 1
    assert backbone.blocks
    assert not any(name.startswith("head") for name in backbone.stages)


def test_the_network_computes_in_the_threads_that_were_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        built("train.threads=2")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
