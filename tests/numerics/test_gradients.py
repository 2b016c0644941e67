"""Between the gradient and the update: clipping, and what is not finite."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from timm.utils.agc import adaptive_clip_grad

from ftcore import EpochEnded, Loss, StepLogged, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.model.freezing import is_submodule_of
from ftcore.runs.prepared import prepare
from ftcore.training.gradients import clip_adaptive_
from ftcore.training.loop import fit, train_step
from ftcore.training.state import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ftcore import Event
    from ftcore.data.loader import Batch
    from ftcore.training.state import TrainingParts

WAYS = ("train.clip_norm=0.02", "train.clip_value=0.001", "train.clip_adaptive=0.001")


def build(*sets: str, plugins: tuple[str, ...] = ("sgd", "constant"), model: str = "digits/cnn") -> TrainingParts:
    """290 images: ten steps of 32; a head that is not zero, so that all parameters have a gradient."""
    usual = ("train.epochs=1", "linear.std=0.1", *(("sgd.lr=0.1", "sgd.momentum=0") if "sgd" in plugins else ()))
    return prepare(
        load_config(None, CliOverrides(model, "digits:5-6", plugins=plugins, sets=(*usual, *sets)))
    ).assembly.parts


def weights(parts: TrainingParts) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parts.network.named_parameters()}


def first(parts: TrainingParts, batches: int = 1) -> list[Batch]:
    epoch = parts.data.train.epoch(0)
    return [next(epoch) for _ in range(batches)]


def gradient_of(parts: TrainingParts, window: list[Batch]) -> dict[str, Tensor]:
    """Of the mean loss over the images of a window, in plain PyTorch; batch norms see micro-batches."""
    model = copy.deepcopy(parts.network).train()
    total = sum(len(batch.targets) for batch in window)
    for batch in window:
        loss = torch.nn.functional.cross_entropy(model(batch.images), batch.targets)
        (loss * len(batch.targets) / total).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def gradients_at_the_update(parts: TrainingParts) -> list[dict[str, Tensor]]:
    """A list to which each update adds the gradient that the optimizer is given."""
    seen: list[dict[str, Tensor]] = []

    def note(*_: Any) -> None:
        grads = {name: p.grad.clone() for name, p in parts.network.named_parameters() if p.grad is not None}
        seen.append(grads)

    parts.optimization.optimizer.register_step_pre_hook(note)
    return seen


def clipped(way: str, grads: dict[str, Tensor], parts: TrainingParts) -> dict[str, Tensor]:
    """The gradient as another source clips it."""
    size, inside = float(way.partition("=")[2]), [n for n in grads if not is_submodule_of(n, parts.heads)]
    params = {name: torch.nn.Parameter(p) for name, p in weights(parts).items()}
    for name, grad in grads.items():
        params[name].grad = grad.clone()
    if "norm" in way:
        torch.nn.utils.clip_grad_norm_(params.values(), size)
    elif "value" in way:
        torch.nn.utils.clip_grad_value_(params.values(), size)
    else:
        adaptive_clip_grad([params[name] for name in inside], size)
    return {name: params[name].grad for name in grads}  # type: ignore[misc]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_of_the_whole_window_is_clipped_once(way: str, accumulate: int) -> None:
    parts = build(way)
    window = first(parts, accumulate)
    whole = gradient_of(parts, window)
    expected = clipped(way, whole, parts)
    seen = gradients_at_the_update(parts)

    train_step(parts, window, Progress())

    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-7)
    changed = {name for name in whole if not torch.allclose(expected[name], whole[name], rtol=1e-3, atol=0)}
    assert len(changed) > 3  # it acts


@pytest.mark.parametrize("way", WAYS)
def test_in_float16_what_is_clipped_has_no_scale(way: str) -> None:
    parts = build(way, "fp16.init_scale=512", plugins=("sgd", "constant", "fp16"))
    (batch,) = first(parts)
    model = copy.deepcopy(parts.network).train()
    with torch.autocast("cpu", torch.float16):
        outputs = model(batch.images)
    loss = torch.nn.functional.cross_entropy(outputs.float(), batch.targets)
    (loss * 512).backward()  # type: ignore[no-untyped-call]
    whole = {name: p.grad / 512 for name, p in model.named_parameters() if p.grad is not None}
    seen = gradients_at_the_update(parts)

    terms, _ = train_step(parts, [batch], Progress())

    torch.testing.assert_close(seen[0], clipped(way, whole, parts), rtol=1e-4, atol=1e-7)
    assert float(terms["loss"]) == pytest.approx(float(loss.detach()), abs=1e-6)


def paper(weight: Tensor, grad: Tensor, threshold: float) -> Tensor:
    """Brock et al. 2021, eq. 3: row i of G becomes lambda |W_i|*/|G_i| G_i where |G_i|/|W_i|* > lambda.

    |W_i|* = max(|W_i|, 10^-3); a vector is one unit. In float64.
    """
    units = grad.double().reshape(len(grad), -1) if grad.ndim > 1 else grad.double().reshape(1, -1)
    rows = weight.double().reshape(units.shape)
    for i, (unit, row) in enumerate(zip(units.clone(), rows, strict=True)):
        size, most = unit.norm(), threshold * max(float(row.norm()), 1e-3)
        if size > most:
            units[i] = unit * (most / size)
    return units.reshape(grad.shape)


def test_adaptive_clipping_is_equation_3_of_the_paper_and_leaves_the_head_out() -> None:
    parts = build("train.clip_adaptive=0.002")
    with torch.no_grad():
        parts.network.get_parameter("layer3.0.weight")[:5] = 0  # units without a size have that of 10^-3
    window = first(parts)
    whole, before = gradient_of(parts, window), weights(parts)
    seen = gradients_at_the_update(parts)

    train_step(parts, window, Progress())

    for name, grad in whole.items():
        expected = grad.double() if name.startswith("head.") else paper(before[name], grad, 0.002)
        torch.testing.assert_close(seen[0][name].double(), expected, rtol=1e-5, atol=1e-9)
    norms = {name: (seen[0][name] - grad).abs().max() > 1e-6 for name, grad in whole.items()}
    assert norms["layer1.0.weight"]
    assert not norms["head.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (6, 4, 3, 3), (4, 1, 2, 2, 2)])
@pytest.mark.parametrize("limit", [1e-6, 0.01, 1.0])
def test_adaptive_clipping_is_timms_to_the_bit(dtype: torch.dtype, shape: tuple[int, ...], limit: float) -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for _ in range(2))
    weight, grad = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    if len(shape) > 1:
        weight[0], grad[-1] = 0, 0  # neither a weight nor a gradient without a size is divided by
    for param in (ours, theirs):
        param.data, param.grad = weight.clone(), grad.clone()

    clip_adaptive_([ours], limit)
    adaptive_clip_grad([theirs], limit)

    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
    assert torch.equal(ours, weight)


def test_adaptive_clipping_of_a_frozen_network_acts_on_nothing() -> None:
    parts = build("train.clip_adaptive=1e-6", plugins=("sgd", "constant", "freeze_backbone"))
    seen = gradients_at_the_update(parts)

    train_step(parts, first(parts), Progress())

    assert seen[0].keys() == {"head.weight", "head.bias"}
    assert float(seen[0]["head.weight"].norm()) > 1e-3


def test_a_gradient_below_every_limit_stays_bit_for_bit() -> None:
    for way in ("train.clip_norm=1e6", "train.clip_value=1e6", "train.clip_adaptive=1e6"):
        limited, free = build(way), build()
        seen = [gradients_at_the_update(parts) for parts in (limited, free)]
        for parts in (limited, free):
            train_step(parts, first(parts), Progress())
        assert all(torch.equal(seen[0][0][name], grad) for name, grad in seen[1][0].items()), way


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)])
def test_two_ways_to_clip_are_refused_with_where_each_was_set(pair: tuple[int, int]) -> None:
    one, other = (WAYS[place] for place in pair)
    names = [way.removeprefix("train.").partition("=")[0] for way in (one, other)]

    with pytest.raises(
        UserError, match=f"set at most one of clip_norm, clip_value and clip_adaptive, not {names[0]} and {names[1]}"
    ) as told:
        load_config(None, CliOverrides(sets=(one, other)))

    assert f"{names[0]}: --set {one}; {names[1]}: --set {other}" in str(told.value)


def test_a_limit_of_zero_is_none() -> None:
    assert load_config(None, CliOverrides(sets=("train.clip_norm=1", "train.clip_value=0"))).train.clip_norm == 1


# What is not finite


class Bad:
    """A loss that is nan in some steps (from 1), and keeps what the run was before each.

    Attributes:
        parts: the run.
        steps: in which it is nan.
        states: weights, state of the optimizer and learning rate before each step.
    """

    def __init__(self, parts: TrainingParts, steps: set[int]) -> None:
        self.parts, self.steps = parts, steps
        self.states: list[Any] = []

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad:
            self.states.append(self.state())
        loss = torch.nn.functional.cross_entropy(outputs, targets)
        return loss * math.nan if outputs.requires_grad and len(self.states) in self.steps else loss

    def state(self) -> Any:
        optimizer = self.parts.optimization.optimizer
        kept = [{key: copy.copy(value) for key, value in state.items()} for state in optimizer.state.values()]
        kept = [{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()} for state in kept]
        return weights(self.parts), kept, [group["lr"] for group in optimizer.param_groups]


def run(parts: TrainingParts, steps: set[int]) -> tuple[Bad, Progress, list[Event]]:
    bad, progress, events = Bad(parts, steps), Progress(), list[Any]()
    fit(
        attrs.evolve(parts, objective=attrs.evolve(parts.objective, loss=Loss(bad)), observers=(events.append,)),
        progress,
        lambda _: None,
    )
    bad.states.append(bad.state())
    return bad, progress, events


def is_same(one: Any, other: Any) -> bool:
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    except AssertionError:
        return False
    return True


def test_a_step_that_is_not_finite_stops_the_run_and_says_all() -> None:
    parts = build("train.batch_size=4", "train.accumulate=2", plugins=("adamw", "constant", "bf16"))
    before = weights(parts)

    with pytest.raises(
        UserError, match=r"the loss is nan and the norm of the gradient nan in step 1 \(epoch 1\)"
    ) as told:
        run(parts, {2})

    names = [parts.data.train.samples.name(int(index)) for batch in first(parts, 2) for index in batch.indices]
    assert f"precision bf16, learning rates [0.001, 0.001], samples {', '.join(names)}" in str(told.value)
    assert all(torch.equal(p, before[name]) for name, p in weights(parts).items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_skipping_leaves_an_update_out_with_all_that_goes_with_it(precision: str, optimizer: str) -> None:
    parts = build("train.on_nonfinite=skip", "cosine.warmup=0.5", plugins=(optimizer, "cosine", precision))

    bad, progress, events = run(parts, {3, 4, 7})

    same = [step for step in range(1, 11) if is_same(bad.states[step - 1], bad.states[step])]
    assert same == [3, 4, 7]
    assert progress.skipped == 3
    ended = events[-1]
    assert isinstance(ended, EpochEnded)
    assert math.isfinite(ended.train["loss"])
    assert parts.optimization.schedule.scheduler.last_epoch == 7


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_what_was_skipped_is_as_if_its_batch_had_not_been_there(precision: str) -> None:
    """Batch norms aside, which saw it; so they are held."""
    still = ("freeze_modules", "sgd", "constant", precision)
    sets = ("train.on_nonfinite=skip", 'freeze_modules.types=["BatchNorm2d"]', "sgd.momentum=0.9")
    skipping, without = build(*sets, plugins=still), build(*sets, plugins=still)
    (bad, *others) = first(skipping, 4)
    skipping = attrs.evolve(skipping, objective=attrs.evolve(skipping.objective, loss=Loss(Bad(skipping, {1}))))
    progress = Progress()

    terms = [train_step(skipping, [batch], progress)[0] for batch in (bad, *others)]
    for batch in others:
        train_step(without, [batch], Progress())

    assert [bool(found) for found in terms] == [False, True, True, True]
    torch.testing.assert_close(weights(skipping), weights(without), rtol=1e-3 if precision == "fp16" else 0, atol=1e-4)


@pytest.mark.slow
def test_a_scaler_that_skipped_lowers_its_scale_and_is_ready_for_the_next_step() -> None:
    parts = build("train.on_nonfinite=skip", plugins=("sgd", "constant", "fp16"))

    bad, progress, _ = run(parts, {2})

    assert parts.precision.scaler.get_scale() == 65536.0 / 2
    assert progress.skipped == 1
    assert not is_same(bad.states[2], bad.states[3])


@pytest.mark.parametrize(("limit", "allowed"), [((), 10), (("train.max_nonfinite=2",), 2)])
def test_more_than_the_limit_stops_the_run(limit: tuple[str, ...], allowed: int) -> None:
    parts = build("train.on_nonfinite=skip", "train.epochs=3", *limit)

    message = rf"in step {allowed + 2} \(epoch .\); the update was skipped, as were {allowed} before it"
    with pytest.raises(UserError, match=message):
        run(parts, set(range(2, 30)))


def test_a_run_that_skipped_as_often_as_it_may_goes_on() -> None:
    _, progress, _ = run(build("train.on_nonfinite=skip", "train.max_nonfinite=2"), {1, 10})

    assert (progress.skipped, progress.step) == (2, 10)


def test_a_limit_without_skipping_is_refused() -> None:
    with pytest.raises(UserError, match=r'max_nonfinite needs on_nonfinite = "skip" .*--set train.max_nonfinite=3'):
        load_config(None, CliOverrides(sets=("train.max_nonfinite=3",)))


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_found_behind_a_finite_loss(number: float) -> None:
    parts = build("train.on_nonfinite=skip")
    before = weights(parts)
    parts.network.get_parameter("layer1.0.weight").register_hook(lambda grad: grad * number)  # type: ignore[no-untyped-call]
    progress = Progress()

    terms, _ = train_step(parts, first(parts), progress)

    assert (terms, progress.skipped) == ({}, 1)
    assert all(torch.equal(p, before[name]) for name, p in weights(parts).items())


@pytest.mark.slow
def test_a_small_scale_that_was_asked_for_is_none_that_nothing_helped() -> None:
    parts = build("fp16.init_scale=1e-5", plugins=("sgd", "constant", "fp16"))

    _, progress, _ = run(parts, set())

    assert progress.step == 10
    assert parts.precision.scaler.get_scale() == pytest.approx(1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda grad: grad * math.nan, lambda grad: grad * math.inf])
def test_an_overflow_at_every_scale_stops_the_run_instead_of_learning_nothing(
    change: Callable[[Tensor], Tensor],
) -> None:
    parts = build("fp16.init_scale=0.001", plugins=("sgd", "constant", "fp16"))
    before = weights(parts)
    parts.network.get_parameter("layer1.0.weight").register_hook(change)  # type: ignore[no-untyped-call]

    with pytest.raises(UserError, match=r"not finite in float16, even with the loss scale reduced to 3\.1"):
        run(parts, set())

    assert all(torch.equal(p, before[name]) for name, p in weights(parts).items())


@pytest.mark.parametrize("way", WAYS)
def test_observers_are_told_the_norm_of_the_gradient_before_it_was_clipped(way: str) -> None:
    parts, told = build(way, "train.log_every=1"), list[Any]()
    grads = gradient_of(parts, first(parts))

    fit(attrs.evolve(parts, observers=(told.append,)), Progress(), lambda _: None)

    norms = [event.gradient_norm for event in told if isinstance(event, StepLogged)]
    assert norms[0] == pytest.approx(math.sqrt(sum(float(grad.square().sum()) for grad in grads.values())), rel=1e-4)
    assert len(set(norms)) == 10


def test_the_last_step_of_an_epoch_is_told_whatever_the_interval() -> None:
    told = list[Any]()

    fit(attrs.evolve(build("train.log_every=4"), observers=(told.append,)), Progress(), lambda _: None)

    assert [event.step for event in told if isinstance(event, StepLogged)] == [4, 8, 10]
