"""The loop against twenty lines of PyTorch, and the laws of a step."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from torch.nn import functional

from ftcore import EpochEnded, FreezePlan, Loss, StepLogged, UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.data.loader import epoch_order
from ftcore.runs.prepared import prepare
from ftcore.training.evaluation import evaluate
from ftcore.training.loop import fit
from ftcore.training.state import Progress, TrainingParts

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from ftcore import Event

FROZEN_NORM = ("train.batch_size=4", 'freeze_modules.types=["BatchNorm2d"]', "sgd.lr=0.001", "sgd.weight_decay=0.01")
"""Batch norm in eval mode, so that what a batch gives does not depend on how it is cut."""


def build(*sets: str, plugins: tuple[str, ...] = ()) -> TrainingParts:
    """290 images to train on: ten steps of 32."""
    flags = CliOverrides(
        "digits/cnn", "digits:5-6", plugins=plugins, sets=("train.epochs=1", "train.log_every=1", *sets)
    )
    return prepare(load_config(None, flags)).assembly.parts


def train(parts: TrainingParts, observe: Callable[[Event], None] = lambda _: None) -> list[Event]:
    events: list[Event] = []
    fit(attrs.evolve(parts, observers=(events.append, observe)), Progress(), lambda _: None)
    return events


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, StepLogged)]


def weights(parts: TrainingParts) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in parts.network.state_dict().items()}


def images_and_targets(parts: TrainingParts, chosen: list[int]) -> tuple[Tensor, Tensor]:
    targets = [parts.data.train.samples[index][1] for index in chosen]
    items: list[Any] = [parts.data.train.dataset[(0, index)] for index in chosen]
    return parts.data.train.on_device_transform(torch.stack([item[0] for item in items])), torch.tensor(targets)


def hand_written(
    parts: TrainingParts,
    make: Callable[..., torch.optim.Optimizer],
    rate: Callable[[int], float],
    max_norm: float = math.inf,
) -> tuple[nn.Module, list[float]]:
    model = copy.deepcopy(parts.network).train()
    vectors = [p for p in model.parameters() if p.ndim == 1]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    optimizer = make([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}])
    visits = epoch_order(seed=0, epoch=0, size=len(parts.data.train.samples))
    found = []
    for step, start in enumerate(range(0, len(visits), 32)):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        images, targets = images_and_targets(parts, visits[start : start + 32])
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        found.append(loss.item())
    return model, found


def assert_same_run(parts: TrainingParts, found: list[float], model: nn.Module, expected: list[float]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights(parts), dict(model.state_dict()), rtol=0, atol=1e-6)


def test_ten_steps_of_sgd_with_momentum_equal_a_hand_written_loop() -> None:
    parts = build("sgd.lr=0.05", "sgd.weight_decay=0.01", plugins=("sgd", "constant"))
    make = partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01)
    model, expected = hand_written(parts, make, lambda _: 0.05)

    found = losses(train(parts))

    assert len(found) == 10
    assert_same_run(parts, found, model, expected)


def test_ten_steps_of_adamw_with_a_cosine_equal_a_hand_written_loop() -> None:
    parts = build("adamw.lr=0.003", "adamw.weight_decay=0.1", "cosine.warmup=0.2")
    rates = [0.001, 0.002, *(0.003 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8))]
    model, expected = hand_written(parts, partial(torch.optim.AdamW, weight_decay=0.1), rates.__getitem__)

    found = losses(train(parts))

    assert len(found) == 10
    assert_same_run(parts, found, model, expected)


def test_clipping_equals_clip_grad_norm_in_a_hand_written_loop() -> None:
    parts = build("sgd.lr=0.05", "train.clip_norm=0.3", plugins=("sgd", "constant"))
    make = partial(torch.optim.SGD, momentum=0.9)
    model, expected = hand_written(parts, make, lambda _: 0.05, max_norm=0.3)

    found = losses(train(parts))

    assert_same_run(parts, found, model, expected)


def test_the_gradient_is_clipped_once_a_step_to_the_norm() -> None:
    parts = build("train.clip_norm=0.001", "train.accumulate=3", plugins=("sgd",))
    norms = []

    def measure(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))

    parts.optimization.optimizer.register_step_pre_hook(measure)
    train(parts)

    assert norms == pytest.approx([0.001] * 4, rel=1e-3)


@pytest.mark.parametrize(
    "loss", [(), ("weighted_ce.weights={5 = 10}",), ("weighted_ce.weights={5 = 10}", "weighted_ce.divide_by=samples")]
)
@pytest.mark.parametrize("clip", ["train.clip_norm=0", "train.clip_norm=0.2"])
def test_four_times_two_accumulated_equals_batches_of_eight(loss: tuple[str, ...], clip: str) -> None:
    plugins = ("sgd", "constant", "freeze_modules", *(("weighted_ce",) if loss else ()))
    whole = build(*FROZEN_NORM, *loss, clip, "train.batch_size=8", plugins=plugins)
    cut = build(*FROZEN_NORM, *loss, clip, "train.batch_size=4", "train.accumulate=2", plugins=plugins)

    expected, found = losses(train(whole)), losses(train(cut))

    assert len(found) == 37  # the last window has one batch of two images
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights(cut), weights(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_recorded_loss_is_the_weighted_mean_over_the_epoch(accumulate: int) -> None:
    plugins = ("sgd", "weighted_ce", "freeze_modules")
    sets = ("weighted_ce.weights={5 = 10}", f"train.accumulate={accumulate}")
    parts = build(*FROZEN_NORM, "sgd.lr=1e-12", "train.batch_size=32", *sets, plugins=plugins)

    ended = train(parts)[-1]

    images, targets = images_and_targets(parts, list(range(len(parts.data.train.samples))))
    with torch.no_grad():
        expected = functional.cross_entropy(parts.network.eval()(images), targets, torch.tensor([10.0, 1.0]))
    assert isinstance(ended, EpochEnded)
    assert ended.train["loss"] == pytest.approx(float(expected), abs=1e-6)


def test_the_validation_loss_is_the_mean_over_samples_and_not_over_batches() -> None:
    parts = build("train.batch_size=32")
    batches = list(parts.data.val.epoch(0))
    images, targets = torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches])

    found = evaluate(parts)["loss"]

    with torch.no_grad():
        expected = functional.cross_entropy(parts.network(images), targets)
    assert [len(batch.targets) for batch in batches] == [32, 32, 9]
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    parts = build(plugins=("sgd",))
    seen: list[dict[str, Tensor]] = []

    def fails_in_the_third_step(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append({name: p.detach().clone() for name, p in parts.network.named_parameters()})
        loss = functional.cross_entropy(outputs, targets)
        return loss * math.nan if len(seen) == 3 else loss

    with pytest.raises(UserError, match=r"loss is nan .* in step 3 \(epoch 1\); the update was skipped"):
        train(attrs.evolve(parts, objective=attrs.evolve(parts.objective, loss=Loss(fails_in_the_third_step))))

    assert all(torch.equal(p, seen[2][name]) for name, p in parts.network.named_parameters())
    assert not torch.equal(parts.network.get_parameter("head.weight"), seen[1]["head.weight"])


def test_a_loss_that_is_not_finite_names_its_samples() -> None:
    parts = build("train.batch_size=3", "train.accumulate=2")
    names = [parts.data.train.samples.name(index) for index in epoch_order(0, 0, len(parts.data.train.samples))[:6]]

    with pytest.raises(UserError, match="in step 1") as caught:
        train(
            attrs.evolve(
                parts, objective=attrs.evolve(parts.objective, loss=Loss(lambda outputs, _: outputs.sum() * math.inf))
            )
        )

    assert f"samples {', '.join(names)}" in str(caught.value)


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    parts = build()
    before = {name: p.detach().clone() for name, p in parts.network.named_parameters()}

    with pytest.raises(UserError, match="norm of the gradient nan in step 1"):
        train(
            attrs.evolve(
                parts,
                objective=attrs.evolve(parts.objective, loss=Loss(lambda outputs, _: (outputs * 0).abs().sqrt().sum())),
            )
        )

    assert all(torch.equal(p, before[name]) for name, p in parts.network.named_parameters())


class UnfreezesLater:
    """`layer2` learns from the second epoch on, `layer1` from the third."""

    @hookimpl
    def freeze(self, model: nn.Module) -> FreezePlan:
        frozen = frozenset(name for name, _ in model.named_parameters() if name.startswith(("layer1", "layer2")))
        held = frozenset({"layer1", "layer2"})
        return FreezePlan(frozen, held, {1: frozenset({"layer2"}), 2: frozenset({"layer1"})})


def test_parameters_start_to_move_exactly_in_their_epoch() -> None:
    parts = build("train.epochs=3", plugins=(f"{__name__}:UnfreezesLater", "adamw"))
    states = [weights(parts)]
    moved: list[set[str]] = []

    def compare(event: Event) -> None:
        if isinstance(event, EpochEnded):
            states.append(weights(parts))
            moved.append({name for name in states[-1] if not torch.equal(states[-1][name], states[-2][name])})

    train(parts, compare)

    children = [{name.partition(".")[0] for name in names} for names in moved]
    assert children == [{"layer3", "head"}, {"layer2", "layer3", "head"}, {"layer1", "layer2", "layer3", "head"}]


def test_all_of_a_module_moves_once_it_is_released() -> None:
    parts = build("train.epochs=2", plugins=(f"{__name__}:UnfreezesLater", "adamw"))
    before = weights(parts)

    train(parts)

    unmoved = {name for name, tensor in weights(parts).items() if torch.equal(tensor, before[name])}
    assert unmoved == {name for name in before if name.startswith("layer1.")}


def test_unfreezing_leaves_the_groups_of_the_optimizer_as_they_were() -> None:
    parts = build("train.epochs=3", plugins=(f"{__name__}:UnfreezesLater",))
    before = [[id(p) for p in group["params"]] for group in parts.optimization.optimizer.param_groups]

    train(parts)

    assert [[id(p) for p in group["params"]] for group in parts.optimization.optimizer.param_groups] == before
    assert sum(map(len, before)) == len(list(parts.network.parameters()))
