"""What an optimizer step does beside the loss, or in another way: agreement of two passes, sharpness."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.func import functional_call
from torch.nn.functional import cross_entropy, kl_div

from ftcore import UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.model import freezing
from ftcore.runs.prepared import prepare
from ftcore.training.loop import backward, train_step
from ftcore.training.state import Progress
from ftcore_plugins.steps.r_drop import _is_random, symmetric_kl
from ftcore_plugins.steps.sam import sam_gradient

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ftcore.data.loader import Batch
    from ftcore.training.state import TrainingParts

PLAIN = ("train.epochs=1", "sgd.momentum=0", "sgd.lr=0.1")


def build(
    *sets: str, plugins: tuple[str, ...] = (), model: str = "digits/cnn", data: str = "digits:5-6"
) -> TrainingParts:
    """290 images to train on, a head that is not zero, and plain gradient descent."""
    head = "mlp_head.std=0.1" if "mlp_head" in plugins else "linear.std=0.1"
    flags = CliOverrides(model, data, plugins=("sgd", "constant", *plugins), sets=(*PLAIN, head, *sets))
    return prepare(load_config(None, flags)).assembly.parts


def first(parts: TrainingParts, batches: int = 1) -> list[Batch]:
    epoch = parts.data.train.epoch(0)
    return [next(epoch) for _ in range(batches)]


def ready(parts: TrainingParts) -> TrainingParts:
    """In the mode of the first epoch."""
    parts.network.train()
    freezing.set_frozen_eval(parts.network, parts.plan, 0)
    return parts


def state(parts: TrainingParts) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in parts.network.state_dict().items()}


def images_and_targets(window: list[Batch]) -> tuple[Tensor, Tensor]:
    return torch.cat([batch.images for batch in window]), torch.cat([batch.targets for batch in window])


Outputs = st.tuples(st.integers(1, 6), st.integers(2, 5), st.floats(0.1, 6), st.integers(0, 999))


def two(given_: tuple[int, int, float, int]) -> tuple[Tensor, Tensor]:
    rows, columns, scale, seed = given_
    generator = torch.Generator().manual_seed(seed)
    first, second = scale * torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
    return first, second


@given(Outputs)
def test_the_divergence_over_classes_is_the_mean_of_both_directions(shape: tuple[int, int, float, int]) -> None:
    one, other = two(shape)
    logs = one.log_softmax(1), other.log_softmax(1)
    both = [kl_div(a, b, reduction="batchmean", log_target=True) for a, b in (logs, logs[::-1])]

    found = symmetric_kl(one, other, "classification")

    assert float(found) == pytest.approx(float(sum(both)) / 2, rel=1e-9, abs=1e-12)
    p, q = Categorical(logits=one), Categorical(logits=other)
    assert float(found) == pytest.approx(
        float((kl_divergence(p, q) + kl_divergence(q, p)).mean()) / 2, rel=1e-6, abs=1e-9
    )


@given(Outputs)
def test_the_divergence_over_labels_is_the_mean_over_each_label_and_its_absence(
    shape: tuple[int, int, float, int],
) -> None:
    one, other = two(shape)
    p, q = Bernoulli(logits=one), Bernoulli(logits=other)

    found = symmetric_kl(one, other, "multilabel")

    assert float(found) == pytest.approx(
        float((kl_divergence(p, q) + kl_divergence(q, p)).mean()) / 2, rel=1e-6, abs=1e-9
    )


@pytest.mark.parametrize("batch_size", [8, 3])
def test_r_drop_compares_two_passes_and_learns_from_both(batch_size: int) -> None:
    sets = (f"train.batch_size={batch_size}", "train.accumulate=2", "r_drop.alpha=3")
    parts = ready(build(*sets, plugins=("mlp_head", "freeze_norm", "r_drop")))
    window = [
        type(batch)(*(part[: 8 - place] for part in batch)) for place, batch in enumerate(first(parts, 2))
    ]  # of sizes that differ
    model = copy.deepcopy(parts.network)
    samples = sum(len(batch.targets) for batch in window)
    expected: dict[str, Any] = {"loss": 0.0, "r_drop": 0.0}
    torch.manual_seed(5)
    for batch in window:
        one, other = model(batch.images), model(batch.images)
        expected["loss"] += cross_entropy(one, batch.targets, reduction="sum") / samples
        logs = one.log_softmax(1), other.log_softmax(1)
        both = [kl_div(a, b, reduction="sum", log_target=True) for a, b in (logs, logs[::-1])]
        expected["r_drop"] += 3 * sum(both) / 2 / samples
    sum(expected.values()).backward()

    torch.manual_seed(5)
    terms = backward(parts, Progress(), window, samples)

    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name].detach(), rtol=1e-5, atol=1e-7)
    assert float(terms["r_drop"]) > 0.01
    for p, other in zip(parts.network.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_r_drop_is_refused_for_numbers() -> None:
    with pytest.raises(UserError, match="r_drop compares probabilities, but a regression task has none"):
        build("data.task=regression", plugins=("mlp_head", "r_drop"))


@pytest.mark.parametrize("extra", [(), ("mlp_head.dropout=0",)])
def test_r_drop_is_refused_for_a_network_that_drops_nothing(extra: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="r_drop: the network has no dropout and no stochastic depth"):
        build(*extra, plugins=("r_drop", *(("mlp_head",) if extra else ())))


def swin_attention(**drops: float) -> nn.Module:
    attention: nn.Module = torchvision.models.swin_transformer.ShiftedWindowAttention(8, [2, 2], [0, 0], 2, **drops)
    return attention


RANDOM: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.1),
    "dropout2d": lambda: nn.Dropout2d(0.1),
    "all": lambda: nn.Dropout(1),
    "drop path": lambda: timm.layers.DropPath(0.1),
    "drop block": lambda: timm.layers.DropBlock2d(0.1),
    "patch dropout": lambda: timm.layers.PatchDropout(0.1),
    "stochastic depth": lambda: torchvision.ops.StochasticDepth(0.1, "row"),
    "torch's attention": lambda: nn.MultiheadAttention(8, 2, dropout=0.1),
    "torchvision's attention": lambda: swin_attention(attention_dropout=0.1),
    "torchvision's projection": lambda: swin_attention(dropout=0.1),
    "timm's attention": lambda: timm.layers.Attention(8, 2, attn_drop=0.1),
    "timm's drop_rate": lambda: timm.create_model("resnet18", drop_rate=0.1),
    "timm's drop_path_rate": lambda: timm.create_model("resnet18", drop_path_rate=0.1),
    "of the network's own": lambda: timm.create_model("ghostnet_100"),
    "in dense layers": lambda: torchvision.models.densenet121(drop_rate=0.1),
}
CERTAIN: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.0),
    "drop path": lambda: timm.layers.DropPath(0.0),
    "stochastic depth": lambda: torchvision.ops.StochasticDepth(0.0, "row"),
    "torch's attention": lambda: nn.MultiheadAttention(8, 2),
    "torchvision's attention": swin_attention,
    "timm's attention": lambda: timm.layers.Attention(8, 2),
    "a residual network": lambda: timm.create_model("resnet18"),
    "torchvision's": torchvision.models.resnet18,
    "generalised mean pooling, whose p is no probability": lambda: timm.create_model("resnet18", global_pool="avg"),
    "an exponent": lambda: nn.PairwiseDistance(p=2.0),
}


@pytest.mark.parametrize("name", RANDOM)
def test_what_drops_something_is_recognised(name: str) -> None:
    with torch.device("meta"):
        assert any(_is_random(module) for module in RANDOM[name]().modules())


@pytest.mark.parametrize("name", CERTAIN)
def test_what_drops_nothing_is_recognised(name: str) -> None:
    with torch.device("meta"):
        assert not any(_is_random(module) for module in CERTAIN[name]().modules())


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def hand_written_sam(loss: Any, params: dict[str, Tensor], rho: float, *, adaptive: bool) -> dict[str, Tensor]:
    """The gradient at w + e, e = rho T^2 g / |T g| (arXiv:2010.01412, eq. 2; arXiv:2102.11600, T = |w|)."""
    names = list(params)
    w = [params[name].detach().requires_grad_() for name in names]
    grads = torch.autograd.grad(loss(dict(zip(names, w, strict=True))), w)
    g, scale = flat(grads), flat(w).detach().abs() if adaptive else torch.ones(())
    e = rho * scale**2 * g / (scale * g).norm() if (scale * g).any() else torch.zeros_like(g)
    moved = [
        (p + part.view_as(p)).detach().requires_grad_()
        for p, part in zip(w, e.split([p.numel() for p in w]), strict=True)
    ]
    return dict(zip(names, torch.autograd.grad(loss(dict(zip(names, moved, strict=True))), moved), strict=True))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_steps_along_the_ascended_gradient_are_those_of_the_paper(rho: float, adaptive: bool) -> None:  # noqa: FBT001
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    images, targets = torch.randn(11, 5, dtype=torch.float64), torch.arange(11) % 3
    params = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(params: dict[str, Tensor]) -> Tensor:
        return cross_entropy(functional_call(model, params, (images,)), targets)

    def gradient() -> str:
        cross_entropy(model(images), targets).backward()  # type: ignore[no-untyped-call]
        return "terms"

    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(6):
        assert sam_gradient(gradient, model, rho, adaptive=adaptive) == "terms"
        optimizer.step()
        optimizer.zero_grad()
        grads = hand_written_sam(loss, params, rho, adaptive=adaptive)
        params = {name: p - 0.3 * grads[name] for name, p in params.items()}

    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), params[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("extra", [(), ("sam.adaptive=true",), ("l1.strength=0.01",), ("freeze_backbone.stages=[-1]",)])
def test_a_run_with_sam_takes_the_steps_of_the_paper(extra: tuple[str, ...]) -> None:
    named = tuple({text.partition(".")[0] for text in extra} - {"sam"})
    parts = ready(build("sam.rho=0.2", "train.batch_size=8", *extra, plugins=("sam", *named)))
    model, strength = copy.deepcopy(parts.network), 0.01 if "l1" in named else 0.0
    fixed = state(parts)
    params = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    batches = first(parts, 6)

    for batch in batches:

        def loss(params: dict[str, Tensor], batch: Batch = batch) -> Tensor:
            buffers = {name: tensor.clone() for name, tensor in fixed.items()}
            outputs = functional_call(model, {**buffers, **params}, (batch.images,))
            return cross_entropy(outputs, batch.targets) + strength * flat(params.values()).abs().sum()

        grads = hand_written_sam(loss, params, 0.2, adaptive="sam.adaptive=true" in extra)
        params = {name: p - 0.1 * grads[name] for name, p in params.items()}
        train_step(parts, [batch], Progress())

    found = {name: p.detach() for name, p in parts.network.named_parameters()}
    for name, p in found.items():
        torch.testing.assert_close(
            p, params.get(name, fixed[name]), rtol=0, atol=1e-5 if name in params else 0, msg=name
        )


def test_sam_leaves_parameters_and_running_statistics_as_a_plain_step_does_before_the_update() -> None:
    sam, plain = ready(build("sam.rho=1", plugins=("sam",))), ready(build())
    before = state(sam)
    seen: list[dict[str, Tensor]] = []
    sam.optimization.optimizer.register_step_pre_hook(lambda *_: seen.append(state(sam)))

    for parts in (sam, plain):
        train_step(parts, first(parts), Progress())

    buffers = {name for name, _ in sam.network.named_buffers()}
    assert all(torch.equal(seen[0][name], before[name]) for name in before.keys() - buffers)
    assert all(torch.equal(state(sam)[name], state(plain)[name]) for name in buffers)
    assert int(state(sam)["layer1.1.num_batches_tracked"]) == int(before["layer1.1.num_batches_tracked"]) + 1
    assert {name for name, _ in sam.network.named_buffers()} == {name for name, _ in plain.network.named_buffers()}


def test_both_passes_of_sam_see_the_same_dropout_and_the_next_step_another() -> None:
    parts = ready(build("train.batch_size=8", plugins=("sam", "mlp_head")))
    masks: list[Tensor] = []
    dropout = next(module for module in parts.network.modules() if isinstance(module, nn.Dropout))
    dropout.register_forward_hook(lambda _, inputs, output: masks.append(output == 0))
    dropout.register_forward_pre_hook(lambda _, inputs: (torch.ones_like(inputs[0]),))

    for step, batch in enumerate(first(parts, 2)):
        train_step(parts, [batch], Progress(step=step))

    same = [torch.equal(one, other) for one, other in pairwise(masks)]
    assert same == [True, False, True]


def test_sam_draws_no_more_random_numbers_than_one_pass() -> None:
    after = []
    for plugins in ((), ("sam",)):
        parts = ready(build(plugins=(*plugins, "mlp_head")))
        batches = first(parts)
        torch.manual_seed(3)
        train_step(parts, batches, Progress())
        after.append(torch.rand(3))

    assert torch.equal(*after)


def test_sam_ascends_once_for_a_whole_window() -> None:
    def after(batch_size: int, accumulate: int) -> dict[str, Tensor]:
        sets = (f"train.batch_size={batch_size}", f"train.accumulate={accumulate}", "sam.rho=0.5")
        parts = ready(build(*sets, plugins=("sam", "freeze_norm")))
        train_step(parts, first(parts, accumulate), Progress())
        return state(parts)

    torch.testing.assert_close(after(2, 4), after(8, 1), rtol=0, atol=1e-6)


def test_sam_recovers_from_an_overflow_of_the_scaled_gradient() -> None:
    parts = ready(build("fp16.init_scale=1e7", "train.batch_size=8", plugins=("sam", "fp16")))
    states, scales = [state(parts)], [parts.precision.scaler.get_scale()]
    for batch in first(parts, 12):
        train_step(parts, [batch], Progress())
        states.append(state(parts))
        scales.append(parts.precision.scaler.get_scale())

    skipped = [after < before for before, after in pairwise(scales)]
    assert {True, False} == set(skipped)
    assert all(tensor.isfinite().all() for tensor in states[-1].values())
    for (before, after), skip in zip(pairwise(states), skipped, strict=True):
        assert torch.equal(before["head.weight"], after["head.weight"]) == skip
