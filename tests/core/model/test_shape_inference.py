"""Networks without memory, and what running them without memory leaves behind: nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import get_model

from ftcore import InputSpec, UserError
from ftcore.model.freezing import named_tensors
from ftcore.model.shape_inference import (
    accepted_image_sizes,
    accepts_image_size,
    as_tuple,
    build_on_meta,
    on_meta,
    output_shapes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


class ReadsANumber(nn.Module):
    """Its constructor takes a width from a tensor, which has no content on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.width = int(torch.linspace(2, 6, 3)[1].item())
        self.layer = nn.Linear(self.width, 3)
        self.register_buffer("factors", torch.arange(self.width) / 2)


class RunsItself(nn.Module):
    """Its constructor finds the width of its features by running the first layer on zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        with torch.no_grad():
            self.head = nn.Linear(self.stem(torch.zeros(1, 3, 8, 8)).flatten(1).shape[1], 5)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(ReadsANumber, id="reads a number"),
        pytest.param(RunsItself, id="runs itself"),
        pytest.param(lambda: timm.create_model("test_resnet"), id="timm/test_resnet"),
        pytest.param(lambda: timm.create_model("vit_tiny_r_s16_p8_224"), id="timm/vit_tiny_r_s16_p8_224"),
        pytest.param(lambda: get_model("regnet_y_400mf"), id="torchvision/regnet_y_400mf"),
    ],
)
def test_a_network_without_memory_has_the_names_and_shapes_of_the_real_one(build: Callable[[], nn.Module]) -> None:
    model = on_meta(build)

    assert {tensor.device.type for tensor in named_tensors(model).values()} == {"meta"}
    assert shapes_of(model) == shapes_of(build())


def test_a_constructor_that_reads_a_number_gets_the_real_number() -> None:
    model = on_meta(ReadsANumber)

    assert isinstance(model, ReadsANumber)
    assert (model.width, model.layer.in_features) == (4, 4)


def test_anything_can_be_built_without_memory() -> None:
    (model, number), plain = build_on_meta(lambda: (ReadsANumber(), torch.ones(2).sum().item())), nn.Linear(2, 2)

    assert number == 2
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in plain.parameters()} == {"cpu"}


def test_what_a_constructor_refuses_comes_through() -> None:
    def refuse() -> nn.Module:
        raise RuntimeError("no such depth")

    with pytest.raises(RuntimeError, match="no such depth"):
        on_meta(refuse)


class Small(nn.Module):
    """Batch statistics, dropout, a buffer that is not saved and one that counts its calls: all that could move."""

    calls: torch.Tensor
    hidden: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 7)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("hidden", torch.rand(4, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> Any:
        self.calls += 1
        features = self.norm(self.stem(images) * self.hidden)
        outputs = self.head(features.mean((2, 3)))
        return (outputs, features) if self.training else outputs


class Plain(Small):
    """Holds a tensor that is neither a parameter nor a buffer, and so stays where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.full((3, 1, 1), 2.0)

    def forward(self, images: torch.Tensor) -> Any:
        return super().forward(images * self.scale)


def devices_seen(model: nn.Module) -> list[str]:
    """Return a list that grows with the device of each image that the network, or a copy of it, sees."""
    seen: list[str] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].device.type))
    return seen


def snapshot(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, int], dict[str, bool]]:
    tensors = named_tensors(model)
    return (
        {name: tensor.detach().clone() for name, tensor in tensors.items()},
        {name: id(tensor) for name, tensor in tensors.items()},
        {name: module.training for name, module in model.named_modules()},
    )


def assert_untouched(model: nn.Module, before: tuple[dict[str, torch.Tensor], dict[str, int], dict[str, bool]]) -> None:
    after = snapshot(model)
    assert before[1:] == after[1:]
    assert [name for name, tensor in before[0].items() if not torch.equal(tensor, after[0][name])] == []


@both_modes
@pytest.mark.parametrize(("kind", "seen"), [(Small, ["meta"]), (Plain, ["meta", "cpu"])], ids=["meta", "fallback"])
def test_asking_for_shapes_leaves_modes_buffers_and_parameters_as_they_were(
    kind: type[Small],
    seen: list[str],
    training: bool,  # noqa: FBT001 - a table
) -> None:
    model = kind()
    model.norm.eval()  # modes are mixed, as in a network of which a part is frozen
    devices, before = devices_seen(model), snapshot(model)

    shapes = output_shapes(model, InputSpec(size=(9, 7)), training=training)

    assert shapes == ([(2, 7), (2, 4, 4, 3)] if training else [(2, 7)])
    assert devices == seen
    assert_untouched(model, before)


@both_modes
def test_asking_a_network_in_eval_mode_leaves_it_there(training: bool) -> None:  # noqa: FBT001 - a table
    model = Plain().eval()
    before = snapshot(model)

    output_shapes(model, InputSpec(size=(9, 7)), training=training)

    assert_untouched(model, before)


@both_modes
def test_asking_a_real_network_for_shapes_leaves_it_as_it_was(training: bool) -> None:  # noqa: FBT001 - a table
    model = timm.create_model("test_resnet", num_classes=5)
    model.layer1.eval()
    before = snapshot(model)

    assert output_shapes(model, InputSpec(size=(96, 64)), training=training) == [(2, 5)]
    assert_untouched(model, before)


def reparametrised(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(4 * 7 * 5, 6))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(nn.utils.weight_norm, id="old weight_norm"),
        pytest.param(nn.utils.spectral_norm, id="old spectral_norm"),
        pytest.param(nn.utils.parametrizations.weight_norm, id="weight_norm"),
        pytest.param(nn.utils.parametrizations.spectral_norm, id="spectral_norm"),
    ],
)
def test_weights_that_are_computed_from_others_are_no_hindrance(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = reparametrised(norm)
    before = snapshot(model)

    assert output_shapes(model, InputSpec(size=(9, 7)), training=True) == [(2, 6)]
    assert_untouched(model, before)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
def test_a_network_that_cannot_be_copied_stays_as_it_was_even_if_it_refuses_the_images() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), reparametrised(nn.utils.weight_norm)).eval()
    before = snapshot(model)

    with pytest.raises(UserError, match="does not take images of 3 x 9 x 9 in train mode"):
        output_shapes(model, InputSpec(size=(9, 9)), training=True)
    assert_untouched(model, before)


def test_a_network_of_several_outputs_gives_the_shape_of_each() -> None:
    model, spec = on_meta(lambda: get_model("googlenet", num_classes=6, init_weights=False)), InputSpec()

    assert output_shapes(model, spec, training=True) == [(2, 6)] * 3
    assert output_shapes(model, spec, training=False) == [(2, 6)]


def test_an_output_that_is_no_tensor_is_given_by_its_type() -> None:
    class Describes(nn.Linear):
        def forward(self, images: torch.Tensor) -> Any:
            return [super().forward(images), {"loss": 0}]

    assert output_shapes(Describes(5, 3), InputSpec(size=(4, 5)), training=True) == [(2, 3, 4, 3), "dict"]


def test_a_single_output_is_a_tuple_of_itself() -> None:
    output = torch.zeros(2)

    assert as_tuple(output)[0] is output
    assert as_tuple([output, output]) == (output, output)


@both_modes
def test_a_size_that_the_network_refuses_is_an_error_with_the_size(training: bool) -> None:  # noqa: FBT001 - a table
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 7))
    model[0].eval()
    before, mode = snapshot(model), "train" if training else "eval"

    with pytest.raises(
        UserError, match=rf"Sequential does not take images of 3 x 5 x 8 in {mode} mode: RuntimeError: .*5 x 8.*7 x 7"
    ):
        output_shapes(model, InputSpec(size=(5, 8)), training=training)
    assert_untouched(model, before)


@pytest.mark.parametrize("memory", [on_meta, lambda build: build()], ids=["meta", "cpu"])
def test_a_transformer_refuses_a_size_that_it_was_not_built_for(memory: Callable[..., nn.Module]) -> None:
    model = memory(lambda: timm.create_model("vit_tiny_patch16_224", depth=1))

    with pytest.raises(
        UserError, match=r"VisionTransformer does not take images of 3 x 64 x 48 in eval mode: AssertionError"
    ):
        output_shapes(model, InputSpec(size=(64, 48)), training=False)


def vision_transformer(side: int) -> nn.Module:
    """Patches of 16 pixels: its constructor refuses every other side."""
    return get_model("vit_b_16", image_size=side)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("side", "expected"), [(224, True), (96, True), (100, False), (8, False)])
def test_a_transformer_takes_the_sides_that_its_patches_divide(
    side: int,
    expected: bool,  # noqa: FBT001 - a table
) -> None:
    assert accepts_image_size(vision_transformer, side, channels=3) is expected


def test_a_network_that_can_only_predict_at_a_size_does_not_take_it() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.aux = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 9)

        def forward(self, images: torch.Tensor) -> Any:
            return (self.main(images), self.aux(images)) if self.training else self.main(images)

    assert output_shapes(Auxiliary(), InputSpec(size=(8, 8)), training=False) == [(2, 4, 6, 6)]
    assert not accepts_image_size(lambda _: Auxiliary().eval(), 8, channels=3)
    assert accepts_image_size(lambda _: Auxiliary().eval(), 9, channels=3)


@pytest.mark.parametrize(("channels", "expected"), [(3, True), (1, False)])
def test_a_network_takes_the_channels_of_its_first_layer(
    channels: int,
    expected: bool,  # noqa: FBT001 - a table
) -> None:
    assert accepts_image_size(lambda _: nn.Conv2d(3, 4, 1), 8, channels) is expected


def test_the_sizes_taken_are_those_near_the_one_asked_for_and_the_usual_ones() -> None:
    assert accepted_image_sizes(vision_transformer, 100, 224, channels=3) == [96, 112, 128, 224, 448]


def test_sizes_that_are_refused_and_the_one_asked_for_are_not_among_those_taken() -> None:
    asked: list[int] = []

    def windows_of_28(side: int) -> nn.Module:
        asked.append(side)
        assert side % 28 == 0, side
        return nn.Conv2d(1, 1, 28)

    assert accepted_image_sizes(windows_of_28, 48, 112, channels=1) == [28, 56, 112, 224]
    assert asked
    assert not {0, 48} & set(asked)


def test_the_usual_size_is_taken_whatever_else_is() -> None:
    def only_the_usual(side: int) -> nn.Module:
        raise ValueError(f"{side} pixels")

    assert accepted_image_sizes(only_the_usual, 50, 112, channels=3) == [112]


def test_of_rectangles_those_near_are_named_before_squares() -> None:
    def patches_of_32(size: Any) -> nn.Module:
        height, width = (size, size) if isinstance(size, int) else size
        return nn.Conv2d(3, 4, 1 if height % 32 == width % 32 == 0 else 10_000)

    assert accepts_image_size(patches_of_32, (64, 96), channels=3)
    assert not accepts_image_size(patches_of_32, (64, 100), channels=3)
    assert accepted_image_sizes(patches_of_32, (64, 100), 224, channels=3) == [[64, 96], 64, 96, 128, 224, 448]
