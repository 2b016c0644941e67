"""Where the classifiers of real architectures are, and how new ones get there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import get_model

from ftcore import Backbone, HeadSlot, InputSpec, UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.model.freezing import named_tensors
from ftcore.model.heads import (
    choose_head,
    derive_backbone,
    drop_rectifiers,
    find_heads,
    find_rectifiers,
    head_slot_at,
    replace_module,
)
from ftcore.model.shape_inference import as_tuple
from ftcore.model.stages import derive_stages
from ftcore.runs.prepared import prepare
from ftcore_plugins.heads import LinearConfig, LinearHead
from ftcore_plugins.tasks import Classification, Multilabel, Regression

if TYPE_CHECKING:
    from collections.abc import Callable


def of_timm(name: str) -> Callable[[int], nn.Module]:
    return lambda classes: timm.create_model(name, num_classes=classes)


def of_torchvision(name: str) -> Callable[[int], nn.Module]:
    options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    return lambda classes: get_model(name, num_classes=classes, **options)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", [("fc", 512)]),
        ("mobilenetv2_100", [("classifier", 1280)]),
        ("mobilenetv3_small_050", [("classifier", 1024)]),
        ("convnext_atto", [("head.fc", 320)]),
        ("vit_tiny_patch16_224", [("head", 192)]),
        ("deit_tiny_distilled_patch16_224", [("head", 192), ("head_dist", 192)]),
        ("levit_128s", [("head.linear", 384), ("head_dist.linear", 384)]),
    ],
)
def test_the_heads_of_timms_networks_are_found(name: str, expected: list[tuple[str, int]]) -> None:
    assert find_heads(of_timm(name)) == tuple(HeadSlot(path, features) for path, features in expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", [("fc", 512)]),
        ("mobilenet_v3_small", [("classifier.3", 1024)]),
        ("convnext_tiny", [("classifier.2", 768)]),
        ("vit_b_16", [("heads.head", 768)]),
        ("swin_t", [("head", 768)]),
        ("densenet121", [("classifier", 1024)]),
        ("vgg11", [("classifier.6", 4096)]),
        ("googlenet", [("aux1.fc2", 1024), ("aux2.fc2", 1024), ("fc", 1024)]),
        ("inception_v3", [("AuxLogits.fc", 768), ("fc", 2048)]),
    ],
)
def test_the_heads_of_torchvisions_networks_are_found(name: str, expected: list[tuple[str, int]]) -> None:
    assert find_heads(of_torchvision(name)) == tuple(HeadSlot(path, features) for path, features in expected)


def test_a_convolution_can_be_a_head() -> None:
    assert find_heads(of_torchvision("squeezenet1_0")) == (HeadSlot("classifier.1", 512, convolutional=True),)


@pytest.mark.parametrize("bias", [True, False])
def test_a_new_head_has_a_bias_if_the_old_one_had(bias: bool) -> None:  # noqa: FBT001
    (slot,) = find_heads(lambda classes: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, classes, bias=bias)))

    head = LinearHead(LinearConfig()).build_head(slot, Classification(names=("a", "b", "c")))

    assert slot == HeadSlot("1", 6, bias=bias)
    assert [name for name, _ in head.named_parameters()] == ["weight", "bias"][: 1 + bias]


def test_finding_heads_takes_no_memory() -> None:
    devices: set[str] = set()

    def build(classes: int) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, classes))
        devices.update(p.device.type for p in model.parameters())
        return model

    assert find_heads(build) == (HeadSlot("1", 4),)
    assert devices == {"meta"}


def test_the_head_of_a_bare_module_is_its_last_linear_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU())

    backbone = derive_backbone(model, None)

    assert backbone.module is model
    assert backbone.heads == (HeadSlot("4", 6),)


def test_a_bare_modules_head_can_be_named() -> None:
    model = nn.ModuleDict({"head": nn.Linear(8, 5), "decoder": nn.Linear(5, 8)})

    assert derive_backbone(model, "head").heads == (HeadSlot("head", 8),)


def behind(*layers: nn.Module) -> Backbone:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1), *layers, nn.Flatten())
    return find_rectifiers(Backbone(model, (head_slot_at(model, "2"),), InputSpec((4, 4))))


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ((nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)), "3"),
        ((nn.ReLU6(),), "3"),
        ((nn.AdaptiveAvgPool2d(1), nn.ReLU()), ""),  # not of what the head gives
        ((nn.GELU(),), ""),
        ((), ""),
    ],
)
def test_a_relu_that_takes_what_the_head_gives_is_found(layers: tuple[nn.Module, ...], found: str) -> None:
    assert behind(*layers).heads[0].rectifier == found


def test_the_relus_of_other_branches_than_the_heads_are_not_taken_for_one() -> None:
    model = get_model("googlenet", num_classes=3, init_weights=False)
    backbone = Backbone(model, find_heads(of_torchvision("googlenet")), InputSpec((64, 64)))

    assert [slot.rectifier for slot in find_rectifiers(backbone).heads] == ["", "", ""]


@pytest.mark.parametrize(("kind", "kept"), [(Classification, True), (Multilabel, False), (Regression, False)])
def test_it_stays_for_classes_and_goes_where_outputs_must_be_below_zero(
    kind: Any,
    kept: bool,  # noqa: FBT001 - a table
) -> None:
    backbone = behind(nn.ReLU())

    found = drop_rectifiers(backbone, kind(("a", "b")))

    assert isinstance(found.module.get_submodule("3"), nn.ReLU if kept else nn.Identity)
    assert found.heads[0].rectifier == ("3" if kept else "")


def test_a_module_without_layers_has_no_head() -> None:
    with pytest.raises(UserError, match="Flatten has no Linear or Conv2d, so there is no head to replace"):
        derive_backbone(nn.Flatten(), None)


def test_a_head_that_does_not_exist_is_an_error_with_the_candidates() -> None:
    model = nn.Sequential()
    model.features, model.classifier = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

    with pytest.raises(UserError, match=r"'clasifier' does not exist; did you mean 'classifier'") as caught:
        head_slot_at(model, "clasifier")

    assert str(caught.value).splitlines()[1:] == [
        "candidates, the last of the network first:",
        '  model.head = "classifier"  Linear 8 -> 5',
        '  model.head = "features"  Conv2d 3 -> 8, kernel 1 x 1',
    ]


def test_a_head_of_another_kind_is_an_error() -> None:
    with pytest.raises(UserError, match=r"model.head = '1' is a ReLU"):
        head_slot_at(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), "1")


def test_the_named_head_beats_what_the_provider_found() -> None:
    backbone = Backbone(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5)), (HeadSlot("1", 6),))

    assert choose_head(backbone, "0").heads == (HeadSlot("0", 8),)
    assert choose_head(backbone, None) is backbone


def test_a_head_is_put_in_place_below_other_modules() -> None:
    model, head = nn.Sequential(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5))), nn.Linear(6, 2)

    assert replace_module(model, HeadSlot("0.1", 6), head) is model
    assert model.get_submodule("0.1") is head


def test_a_network_of_a_single_layer_is_replaced_as_a_whole() -> None:
    head = nn.Linear(8, 2)
    backbone = derive_backbone(nn.Linear(8, 5), None)

    assert replace_module(backbone.module, backbone.heads[0], head) is head


class Bare:
    """A network that is no `Backbone`."""

    @hookimpl
    def build_model(self, name: str | None) -> nn.Module | None:
        layers = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 9)]
        return {"bare/net": nn.Sequential(*layers), "bare/behind": Unused(*layers)}.get(name or "")


class Unused(nn.Sequential):
    """The last layer is not on the way to the output."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), 9, device=images.device)


def bare_network(*sets: str, name: str = "bare/net") -> nn.Module:
    flags = CliOverrides(name, "digits:5-6", plugins=(f"{__name__}:Bare",), sets=("model.image_size=8", *sets))
    return prepare(load_config(None, flags)).assembly.parts.network


@pytest.mark.parametrize("sets", [(), ("model.head=4",)])
def test_a_plugins_bare_module_gets_a_head_for_the_classes(sets: tuple[str, ...]) -> None:
    shapes = {name: tuple(p.shape) for name, p in bare_network(*sets).named_parameters()}

    assert (shapes["2.weight"], shapes["4.weight"]) == ((7, 3), (2, 7))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bare/net", r"with '2' replaced, Sequential does not take images of 3 x 8 x 8 in train mode: RuntimeError"),
        (
            "bare/behind",
            r"with '4' replaced, .* returns \[\(2, 9\)\] for 2 images in train mode, not \[\(2, 2\)\]",
        ),
    ],
)
def test_a_head_that_does_not_give_the_classes_is_an_error_with_the_candidates(name: str, message: str) -> None:
    sets = ("model.head=2",) if name == "bare/net" else ()

    with pytest.raises(UserError, match=message) as caught:
        bare_network(*sets, name=name)

    assert '  model.head = "4"  Linear 7 -> ' in str(caught.value)


def test_a_wrong_model_head_names_the_candidates() -> None:
    with pytest.raises(UserError, match=r"(?s)model.head = '3' is a ReLU.*= .4.  Linear 7 -> 9.*= .2.  Linear 3 -> 7"):
        bare_network("model.head=3")


@pytest.mark.parametrize("name", ["timm/levit_128s", "torchvision/googlenet", "torchvision/squeezenet1_0"])
def test_every_head_of_a_network_gives_the_classes_of_the_data(name: str) -> None:
    flags = CliOverrides(name, "digits:5-7", sets=("model.weights=none",))

    network = prepare(load_config(None, flags)).assembly.network

    assert network.heads
    for path in network.heads:
        assert network.module.get_parameter(f"{path}.weight").shape[0] == 3


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("name", "in_training"),
    [("timm/deit_tiny_distilled_patch16_224", 1), ("torchvision/googlenet", 3), ("torchvision/inception_v3", 2)],
)
def test_a_network_of_several_heads_gives_what_its_provider_says(
    name: str,
    in_training: int,
    training: bool,  # noqa: FBT001 - a table
) -> None:
    flags = CliOverrides(name, "digits:5-7", sets=("model.weights=none",))
    network = prepare(load_config(None, flags)).assembly.network

    outputs = as_tuple(network.module.train(training)(torch.zeros(2, 3, *network.spec.size)))

    assert [tuple(output.shape) for output in outputs] == [(2, 3)] * (in_training if training else 1)


class Wrong:
    """Backbones that are not true of their network."""

    @hookimpl
    def build_model(self, name: str | None) -> Backbone | None:
        net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        slot = (HeadSlot("2", 3),)
        return {
            "wrong/path": Backbone(net, (HeadSlot("fc", 3),)),
            "wrong/none": Backbone(net, ()),
            "wrong/stage": Backbone(net, slot, stages={"2.wieght": 0}),
            "wrong/layer": Backbone(net, slot, blocks={"2.wieght": 0}),
            "wrong/decay": Backbone(net, slot, no_decay=frozenset({"2.wieght"})),
        }[name or ""]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "wrong/path",
            r"a head of .* = 'fc' does not exist.*\n.*\n  model.head = .2.  Linear 3 -> 2",
        ),
        ("wrong/none", r"the Backbone of Sequential has no heads\n.*\n  model.head = .2.  Linear 3 -> 2"),
        ("wrong/stage", r"stages of .* '2.wieght', which is not a parameter or buffer; did you mean '2.weight'"),
        ("wrong/layer", r"layers of .* '2.wieght', which"),
        ("wrong/decay", r"no_decay of .* '2.wieght', which"),
    ],
)
def test_what_a_provider_says_of_its_network_is_checked(name: str, message: str) -> None:
    flags = CliOverrides(name, "digits:5-6", (f"{__name__}:Wrong",), sets=("model.image_size=8",))
    with pytest.raises(UserError, match=message):
        prepare(load_config(None, flags))


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(192, 2)),
        nn.Linear(8, 2),
        nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Flatten(), nn.Linear(4, 2))),
        nn.ModuleDict({"features": nn.Sequential(nn.ReLU(), nn.ReLU()), "fc": nn.Linear(2, 2)}),
    ],
)
def test_stages_are_derived_for_any_network(net: nn.Module) -> None:
    head = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]

    for numbers in derive_stages(net, head):
        assert set(numbers) <= set(named_tensors(net))


def test_a_wrapped_network_has_the_stages_of_what_it_wraps() -> None:
    inner = get_model("resnet18")
    wrapped = nn.Sequential(inner)

    assert derive_stages(wrapped, ["0.fc"])[0] == {f"0.{n}": i for n, i in derive_stages(inner, ["fc"])[0].items()}
