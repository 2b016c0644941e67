"""The heads that ship."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from ftcore import HeadSlot, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.model.build import build_network
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore_plugins.heads import LinearConfig, LinearHead, MlpHead, MlpHeadConfig
from ftcore_plugins.tasks import Classification, Regression

TASK = Classification(tuple("abcde"), (1,) * 5)
FLAT, MAP = HeadSlot("head", 64), HeadSlot("head", 64, convolutional=True)
PLUGINS = [LinearHead(LinearConfig()), MlpHead(MlpHeadConfig()), MlpHead(MlpHeadConfig((32, 16)))]


def last_layer(head: nn.Module) -> nn.Linear | nn.Conv2d:
    layers = [module for module in head.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[-1]


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("shape", [(7, 64), (7, 3, 64)])
def test_a_head_on_features_gives_a_number_for_each_class(plugin: LinearHead | MlpHead, shape: tuple[int, ...]) -> None:
    assert plugin.build_head(FLAT, TASK)(torch.randn(shape)).shape == (*shape[:-1], 5)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_head_on_a_map_of_features_keeps_the_map(plugin: LinearHead | MlpHead) -> None:
    assert plugin.build_head(MAP, TASK)(torch.randn(7, 64, 4, 6)).shape == (7, 5, 4, 6)


def test_a_regression_has_one_output() -> None:
    task = Regression(("target",), mean=(0.0,), std=(1.0,))

    assert LinearHead(LinearConfig()).build_head(FLAT, task)(torch.randn(7, 64)).shape == (7, 1)


@pytest.mark.parametrize("slot", [FLAT, MAP])
def test_an_mlp_is_layers_of_the_widths_with_relu_and_dropout_between(slot: HeadSlot) -> None:
    head = MlpHead(MlpHeadConfig((32, 16), dropout=0.25)).build_head(slot, TASK)

    kind = nn.Conv2d if slot.convolutional else nn.Linear
    assert [type(layer) for layer in head.children()] == [kind, nn.ReLU, nn.Dropout] * 2 + [kind]
    assert [layer.weight.shape[:2] for layer in head.children() if isinstance(layer, kind)] == [
        (32, 64),
        (16, 32),
        (5, 16),
    ]
    assert {layer.p for layer in head.children() if isinstance(layer, nn.Dropout)} == {0.25}


@pytest.mark.parametrize("slot", [FLAT, MAP])
def test_a_map_head_does_at_each_place_what_a_flat_head_does(slot: HeadSlot) -> None:
    head = MlpHead(MlpHeadConfig(std=1.0)).build_head(slot, TASK).eval()
    features = torch.randn(2, 64, 3, 3)
    whole = head(features) if slot.convolutional else head(features.movedim(1, -1)).movedim(-1, 1)

    place = features[:, :, 1:2, 2:3] if slot.convolutional else features[:, :, 1, 2]

    torch.testing.assert_close(head(place).flatten(1), whole[:, :, 1, 2])


@pytest.mark.parametrize("slot", [FLAT, MAP])
@pytest.mark.parametrize("std", [0.0, 0.01, 0.5])
def test_the_last_layer_has_weights_of_std_and_a_zero_bias(slot: HeadSlot, std: float) -> None:
    torch.manual_seed(0)
    task = Classification(tuple(map(str, range(200))), (1,) * 200)

    heads = [
        LinearHead(LinearConfig(std)).build_head(slot, task),
        MlpHead(MlpHeadConfig((64,), std=std)).build_head(slot, task),
    ]

    for last in map(last_layer, heads):
        assert last.weight.std().item() == pytest.approx(std, rel=0.05)
        assert last.bias is not None
        assert not last.bias.any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_head_under_a_relu_begins_with_the_loss_of_guessing_and_learns_every_class(
    plugin: LinearHead | MlpHead,
    bias: bool,  # noqa: FBT001 - a table
) -> None:
    torch.manual_seed(0)
    slot = HeadSlot("head", 64, convolutional=True, bias=bias, rectifier="relu")
    head = plugin.build_head(slot, TASK)

    outputs = functional.relu(head(torch.randn(50, 64, 6, 6).relu())).mean((2, 3))
    loss = functional.cross_entropy(outputs, torch.arange(50) % 5)
    (gradient,) = torch.autograd.grad(loss, [last_layer(head).weight])

    assert loss.item() == pytest.approx(math.log(5), abs=0.05)
    assert gradient.flatten(1).any(dim=1).all()


def test_the_hidden_layers_are_not_small() -> None:
    torch.manual_seed(0)
    head = MlpHead(MlpHeadConfig((64,))).build_head(FLAT, TASK)

    first = next(head.children())
    assert isinstance(first, nn.Linear)
    assert first.weight.std() > 0.05


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("slot", [FLAT, MAP])
def test_features_of_unit_scale_give_the_loss_of_guessing(plugin: LinearHead | MlpHead, slot: HeadSlot) -> None:
    torch.manual_seed(0)
    features = torch.randn(50, 64, 2, 2) if slot.convolutional else torch.randn(50, 64)

    outputs = plugin.build_head(slot, TASK).eval()(features)

    targets = (torch.arange(50) % 5).reshape(-1, *[1] * (outputs.ndim - 2)).expand(50, *outputs.shape[2:])
    loss = functional.cross_entropy(outputs, targets)
    assert loss.item() == pytest.approx(math.log(5), abs=0.02)


@pytest.mark.parametrize("head", ["linear", "mlp_head"])
@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_efficientnet"])
def test_the_first_loss_is_near_that_of_guessing(name: str, head: str) -> None:
    sets = ("model.weights=none", "model.image_size=64")
    host = activate(load_config(None, CliOverrides(name, "digits", plugins=(head,), sets=sets)))
    model = build_network(host.config, HookCalls(host), TASK).module.eval()

    with torch.no_grad():
        loss = functional.cross_entropy(model(torch.randn(10, 3, 64, 64)), torch.arange(10) % 5)

    assert float(loss) == pytest.approx(math.log(5), abs=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear.std=-1", "'std' must be >= 0"),
        ("linear.hidden=[3]", r"unknown option 'linear\.hidden'"),
        ("mlp_head.hidden=[]", r"mlp_head\.hidden"),
        ("mlp_head.hidden=[64, 0]", "'hidden' must be > 0"),
        ("mlp_head.hidden=64", r"mlp_head\.hidden: expected a list"),
        ("mlp_head.dropout=1", "'dropout' must be < 1"),
        ("mlp_head.dropout=-0.1", "'dropout' must be >= 0"),
        ("mlp_head.std=-1", "'std' must be >= 0"),
    ],
)
def test_options_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        activate(load_config(None, CliOverrides(plugins=(text.partition(".")[0],), sets=(text,))))
