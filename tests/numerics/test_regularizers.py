"""Penalties on the parameters, and how terms beside the loss are added up."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ftcore import EpochEnded, FreezePlan, StepLogged, UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.model import freezing
from ftcore.runs.prepared import prepare
from ftcore.training.loop import fit, train_step
from ftcore.training.state import EpochProgress, Progress
from ftcore_plugins.data.digits import WEIGHTS
from ftcore_plugins.regularizers import L2SP, L2SPConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftcore import Event
    from ftcore.data.loader import Batch
    from ftcore.training.state import TrainingParts

PLAIN = ("train.epochs=1", "linear.std=0.1", "sgd.momentum=0", "sgd.weight_decay=0")


def build(*sets: str, plugins: tuple[str, ...] = ()) -> TrainingParts:
    """290 images to train on; a head that is not zero, and plain gradient descent."""
    flags = CliOverrides("digits/cnn", "digits:5-6", plugins=("sgd", "constant", *plugins), sets=(*PLAIN, *sets))
    return prepare(load_config(None, flags)).assembly.parts


def train(parts: TrainingParts) -> list[Event]:
    events: list[Event] = []
    fit(attrs.evolve(parts, observers=(events.append,)), Progress(), lambda _: None)
    return events


def trained(parts: TrainingParts) -> list[dict[str, Any]]:
    return [dict(event.train) for event in train(parts) if isinstance(event, EpochEnded)]


def first(parts: TrainingParts, batches: int = 1) -> list[Batch]:
    epoch = parts.data.train.epoch(0)
    return [next(epoch) for _ in range(batches)]


def magnitude(parts: TrainingParts, *under: str) -> float:
    """The sum of absolute values of parameters, in float64."""
    params = [p for name, p in parts.network.named_parameters() if freezing.is_submodule_of(name, under)]
    return float(sum(p.detach().double().abs().sum() for p in params))


def test_l1_is_the_sum_of_absolute_values_of_all_that_learns() -> None:
    parts = build("l1.strength=0.01", plugins=("l1",))

    found = parts.objective.regularizers[0].penalty()

    assert float(found.detach()) == pytest.approx(0.01 * magnitude(parts, ""), rel=1e-5)


def test_l1_may_leave_vectors_out() -> None:
    parts = build("l1.strength=0.01", "l1.vectors=false", plugins=("l1",))
    matrices = [p for p in parts.network.parameters() if p.ndim > 1]

    found = parts.objective.regularizers[0].penalty()

    assert float(found.detach()) == pytest.approx(0.01 * float(sum(p.detach().abs().sum() for p in matrices)), rel=1e-5)
    assert float(found.detach()) < 0.01 * magnitude(parts, "")


class OnlyVectors:
    @hookimpl
    def freeze(self, model: nn.Module) -> FreezePlan:
        return FreezePlan(frozenset(name for name, p in model.named_parameters() if p.ndim > 1))


def test_l1_without_vectors_is_refused_where_only_vectors_learn() -> None:
    with pytest.raises(UserError, match=r"l1.vectors = false leaves nothing to penalise: only vectors are trainable"):
        build("l1.vectors=false", plugins=("l1", f"{__name__}:OnlyVectors"))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_l1_adds_its_gradient_once_a_step_however_the_window_is_cut(accumulate: int) -> None:
    sets = (f"train.batch_size={8 // accumulate}", f"train.accumulate={accumulate}", "l1.strength=0.01", "sgd.lr=0.1")
    parts = build(*sets, plugins=("l1", "freeze_norm"))
    freezing.set_frozen_eval(parts.network.train(), parts.plan, 0)
    window = first(parts, accumulate)
    model = copy.deepcopy(parts.network)
    images, targets = torch.cat([b.images for b in window]), torch.cat([b.targets for b in window])
    torch.nn.functional.cross_entropy(model(images), targets).backward()  # type: ignore[no-untyped-call]

    train_step(parts, window, Progress())

    for (name, p), now in zip(model.named_parameters(), parts.network.parameters(), strict=True):
        moved = 0 if p.grad is None else 0.1 * (p.grad + 0.01 * p.detach().sign())
        torch.testing.assert_close(now, p.detach() - moved, rtol=0, atol=1e-6, msg=name)


def test_what_is_frozen_does_not_count_in_l1_until_it_is_released() -> None:
    sets = ("train.epochs=2", "l1.strength=0.01", "sgd.lr=1e-12", 'gradual_unfreeze.at={0 = "head", 1 = "all"}')
    parts = build(*sets, plugins=("l1", "gradual_unfreeze"))
    head, everything = magnitude(parts, "head"), magnitude(parts, "")

    epochs = trained(parts)

    assert [epoch["l1"] for epoch in epochs] == pytest.approx([0.01 * head, 0.01 * everything], rel=1e-5)
    assert head < 0.5 * everything


def test_terms_are_reported_beside_the_loss_and_not_in_it() -> None:
    sets = ("sgd.lr=1e-12", "train.log_every=1", "train.accumulate=3")
    with_l1, without = train(build(*sets, "l1.strength=1", plugins=("l1",))), train(build(*sets))
    steps = [[event for event in events if isinstance(event, StepLogged)] for events in (with_l1, without)]

    ended, expected = with_l1[-1], without[-1]
    assert isinstance(ended, EpochEnded)
    assert isinstance(expected, EpochEnded)
    assert ended.train.keys() == {"loss", "l1"}
    assert ended.train["loss"] == pytest.approx(expected.train["loss"], abs=1e-6)
    assert [step.loss for step in steps[0]] == pytest.approx([step.loss for step in steps[1]], abs=1e-6)
    assert all(step.loss_terms["l1"] == pytest.approx(ended.train["l1"], rel=1e-6) for step in steps[0])


@pytest.mark.parametrize("precision", ["fp16", "bf16", "bf16_pure"])
def test_penalties_are_taken_in_float32_whatever_the_network_is_in(precision: str) -> None:
    parts = build(plugins=("l1", "l2_sp", precision))

    assert [r.penalty().dtype for r in parts.objective.regularizers] == [torch.float32] * 2
    assert all(math.isfinite(term) for term in trained(parts)[0].values())


def l2_sp(parts: TrainingParts, alpha: float, beta: float) -> float:
    """Equation 2 of arXiv:1802.01483 in float64, against the weights on disk."""
    before = load_file(WEIGHTS)
    named = {name: p.detach().double() for name, p in parts.network.named_parameters()}
    moved = sum((p - before[name].double()).square().sum() for name, p in named.items() if "head" not in name)
    return float(alpha / 2 * moved + beta / 2 * sum(p.square().sum() for n, p in named.items() if "head" in n))


@given(alpha=st.floats(0.01, 2), beta=st.floats(0.01, 2), noise=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_l2_sp_is_equation_2(alpha: float, beta: float, noise: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(5, 4), "head": torch.nn.Linear(4, 3)}).double()
    learning, start = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    [regularizer] = L2SP(L2SPConfig(alpha, beta)).make_regularizers(learning, ("head",))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise * torch.randn_like(p))

    regularizer.penalty().backward()  # type: ignore[no-untyped-call]

    flat = {name: torch.nn.utils.parameters_to_vector(model[name].parameters()) for name in ("body", "head")}
    then = torch.cat([start["body.weight"].flatten(), start["body.bias"]])
    expected = alpha / 2 * (flat["body"] - then).norm() ** 2 + beta / 2 * flat["head"].norm() ** 2
    assert float(regularizer.penalty().detach()) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-9)
    for name, p in model.named_parameters():
        pull = beta * p if "head" in name else alpha * (p - start[name])
        torch.testing.assert_close(p.grad, pull, rtol=1e-5, atol=1e-6, check_dtype=False)


def test_l2_sp_is_nothing_at_the_start_but_for_the_head() -> None:
    parts = build("l2_sp.alpha=1", "l2_sp.beta=1", plugins=("l2_sp",))
    head = sum(p.detach().double().square().sum() for p in parts.network.get_submodule("head").parameters())

    assert float(parts.objective.regularizers[0].penalty().detach()) == pytest.approx(0.5 * float(head), rel=1e-6)


def test_l2_sp_measures_from_the_weights_that_a_run_starts_with() -> None:
    parts = build("l2_sp.alpha=0.3", "l2_sp.beta=0.2", "sgd.lr=0.1", plugins=("l2_sp",))

    train(parts)

    found = float(parts.objective.regularizers[0].penalty().detach())
    assert found == pytest.approx(l2_sp(parts, 0.3, 0.2), rel=1e-5)
    assert found > 0.01


def test_l2_sp_holds_a_network_near_its_start() -> None:
    def distance(*sets: str, plugins: tuple[str, ...] = ()) -> float:
        parts = build("sgd.lr=0.05", "train.epochs=2", *sets, plugins=plugins)
        train(parts)
        return l2_sp(parts, 1.0, 0.0)

    assert distance("l2_sp.alpha=5", plugins=("l2_sp",)) < 0.4 * distance()


def test_what_is_frozen_does_not_count_in_l2_sp_until_it_is_released() -> None:
    sets = ("train.epochs=2", 'gradual_unfreeze.at={0 = ["head", "layer3"], 1 = "all"}', "linear.std=0")
    parts = build(*sets, "l2_sp.alpha=1", "l2_sp.beta=3", plugins=("l2_sp", "gradual_unfreeze"))
    with torch.no_grad():
        for p in parts.network.parameters():
            p.add_(0.5)

    found = []
    for epoch in range(2):
        freezing.apply_requires_grad(parts.network, parts.plan, epoch)
        found.append(float(parts.objective.regularizers[0].penalty().detach()))

    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.network.named_children()}
    bodies = [sizes["layer3"], sizes["layer1"] + sizes["layer2"] + sizes["layer3"]]
    assert found == pytest.approx([body / 8 + 3 * sizes["head"] / 8 for body in bodies], rel=1e-5)


def test_l2_sp_without_a_strength_is_refused() -> None:
    with pytest.raises(UserError, match="alpha and beta are both 0"):
        build("l2_sp.alpha=0", "l2_sp.beta=0", plugins=("l2_sp",))


Steps = st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 9), st.floats(-5, 5)), min_size=1, max_size=8)


@given(steps=Steps)
def test_the_loss_is_averaged_by_its_divisor_and_a_term_by_steps(steps: list[tuple[float, float, float]]) -> None:
    means = EpochProgress()
    for loss, divisor, term in steps:
        terms: dict[str, Tensor] = {
            "loss": torch.tensor(loss, dtype=torch.float64),
            "l1": torch.tensor(term, dtype=torch.float64),
        }
        means.add(terms, divisor)
        means.add({}, divisor)  # a step that was not made

    found = means.means()

    losses, divisors, others = np.array(steps).T
    assert found["loss"] == pytest.approx(np.average(losses, weights=divisors), abs=1e-9)
    assert found["l1"] == pytest.approx(others.mean(), abs=1e-9)


def test_the_loss_of_no_steps_is_not_a_number() -> None:
    assert math.isnan(EpochProgress().means()["loss"])
