"""`ftcore find lr`: the learning-rate range test."""

from __future__ import annotations

import copy
import json
import math
from contextlib import chdir
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.core.tuning.trials import SIZES, Sizes, ready
from torch import Tensor
from torch.nn import functional

from ftcore import UserError, hookimpl
from ftcore.data.loader import epoch_order
from ftcore.testing import invoke
from ftcore.tuning.batch_size import find_batch_size
from ftcore.tuning.lr_finder import LRFinderResult, check, exponential_lrs, lr_range_test, steep, valley

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore import BatchTransform
    from ftcore.training.state import TrainingParts

HERE = __name__


def fastai_valley(lrs: Any, losses: Any) -> float:
    """`fastai.callback.schedule.valley`, as published in version 2.7."""
    n = len(losses)
    max_start, max_end = 0, 0
    lds = [1] * n
    for i in range(1, n):
        for j in range(i):
            if (losses[i] < losses[j]) and (lds[i] < lds[j] + 1):
                lds[i] = lds[j] + 1
            if lds[max_end] < lds[i]:
                max_end = i
                max_start = max_end - lds[max_end]
    sections = (max_end - max_start) / 3
    return float(lrs[max_start + int(sections) + int(sections / 2)])


def fastai_steep(lrs: Tensor, losses: Tensor) -> float:
    """`fastai.callback.schedule.steep`, likewise."""
    grads = (losses[1:] - losses[:-1]) / (lrs[1:].log() - lrs[:-1].log())
    return float(lrs[grads.argmin()])


def curve(seed: int, size: int = 90) -> tuple[list[float], list[float]]:
    """A synthetic range test: flat, falling, rising, with noise."""
    rates = np.geomspace(1e-7, 10, size)
    place = np.log10(rates)
    noise = np.random.default_rng(seed).normal(0, 0.02, size)
    losses = 2 - 1.2 / (1 + np.exp(-(place + 3) * 2)) + np.exp(2 * (place - 0.5)) + noise
    return rates.tolist(), losses.tolist()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [3, 7, 20, 90])
def test_suggestions_are_those_of_fastai(seed: int, size: int) -> None:
    rates, losses = curve(seed, size)
    lrs, values = (torch.tensor(each, dtype=torch.float64) for each in (rates, losses))

    place, steepest = valley(losses), steep(rates, losses)

    assert place is not None
    assert steepest is not None
    if place > 0 or size > 7:  # fastai's index wraps to the last point where the valley starts at the first
        assert rates[place] == fastai_valley(lrs, values)
    assert rates[steepest] == fastai_steep(lrs, values)


def test_a_curve_that_never_falls_suggests_nothing() -> None:
    rising = LRFinderResult(
        tuple(exponential_lrs(1e-3, 1, 30)), (1.0,) * 30, tuple(map(float, range(30))), requested_steps=30
    )

    assert (valley([1.0, 2.0]), steep([1.0, 2.0], [1.0, 2.0]), steep([1.0], [1.0]), valley([])) == (None,) * 4
    assert rising.suggestions() == {}


def test_suggestions_leave_out_the_ends_as_fastai_does() -> None:
    rates, losses = curve(3, 100)
    losses[2], losses[97] = -9.0, -10.0  # the steepest falls of all
    test = LRFinderResult(tuple(rates), tuple(losses), tuple(losses), requested_steps=100)
    lrs, values = (torch.tensor(each[100 // 10 : -5], dtype=torch.float64) for each in (rates, losses))

    found = {name: rates[step] for name, step in test.suggestions().items()}

    assert found == {"valley": fastai_valley(lrs, values), "steep": fastai_steep(lrs, values)}


def test_a_test_that_ended_early_suggests_from_what_there_is() -> None:
    assert LRFinderResult((1.0, 2.0), (2.0, 1.0), (2.0, 1.0), requested_steps=100).suggestions() == {}


def test_rates_grow_exponentially_and_include_both_ends() -> None:
    np.testing.assert_allclose(exponential_lrs(1e-6, 10, 30), np.geomspace(1e-6, 10, 30), rtol=1e-12)


def hand_written(parts: TrainingParts, rates: list[float], scales: dict[str, float]) -> tuple[list[float], list[float]]:
    """Losses, raw and smoothed as fastai's `AvgSmoothLoss`, of the same steps in plain PyTorch."""
    model = copy.deepcopy(parts.network).train()
    groups = [{"params": [p for n, p in model.named_parameters() if n.startswith(k)], "lr": 0.0} for k in scales]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    size = len(parts.data.train.samples)
    visits = [epoch_order(0, epoch, size)[start : start + 32] for epoch in range(9) for start in range(0, size, 32)]
    losses, smoothed, mean = [], [], 0.0
    for step, (rate, chosen) in enumerate(zip(rates, visits, strict=False)):
        for group, scale in zip(optimizer.param_groups, scales.values(), strict=True):
            group["lr"] = rate * scale
        items: list[Any] = [parts.data.train.dataset[(0, index)] for index in chosen]
        images = parts.data.train.on_device_transform(torch.stack([item[0] for item in items]))
        loss = functional.cross_entropy(model(images), torch.tensor([item[1] for item in items]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        mean = loss.item() + 0.98 * (mean - loss.item())  # torch.lerp(loss, mean, beta)
        smoothed.append(mean / (1 - 0.98 ** (step + 1)))
    return losses, smoothed


def test_the_steps_are_those_of_plain_pytorch_over_several_epochs() -> None:
    sets = ("sgd.weight_decay=0", "groups.backbone_lr=0.1", "groups.decay_all=true", "train.epochs=1")
    run = ready("sgd", sets=sets)
    rates = exponential_lrs(1e-4, 0.3, 25)

    test = lr_range_test(run.assembly, rates)

    losses, smoothed = hand_written(run.assembly.parts, rates, {"layer": 0.1, "head": 1.0})
    assert run.assembly.parts.steps_per_epoch == 10
    assert test.rates == tuple(rates)
    assert list(test.losses) == pytest.approx(losses, rel=1e-4)
    assert list(test.smoothed) == pytest.approx(smoothed, rel=1e-4)
    assert min(losses) < 0.2


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "step", "constant", "plateau", "phases"])
def test_each_group_keeps_its_ratio_and_the_schedule_plays_no_part(schedule: str) -> None:
    warm = {"constant": ("constant.warmup=0.5",), "plateau": ("plateau.warmup=0.2", "plateau.patience=3")}
    sets = ("groups.layer_decay=0.5", "step.size=2") if schedule == "step" else ("groups.layer_decay=0.5",)
    run = ready("adamw", schedule, sets=(*sets, *warm.get(schedule, ())))
    seen: list[list[float]] = []
    run.assembly.parts.optimization.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append([group["lr"] for group in optimizer.param_groups])
    )

    lr_range_test(run.assembly, exponential_lrs(1e-6, 1e-3, 12))

    scales = [group.lr_scale for group in run.assembly.groups]
    assert len(set(scales)) > 2
    np.testing.assert_allclose(seen, [[rate * scale for scale in scales] for rate in exponential_lrs(1e-6, 1e-3, 12)])


def test_a_loss_that_explodes_ends_the_test_at_four_times_its_best() -> None:
    test = lr_range_test(ready("sgd").assembly, exponential_lrs(1e-4, 1e4, 200))

    assert len(test.rates) < 200
    best = [min(test.smoothed[: place + 1]) for place in range(len(test.smoothed))]
    assert [now > 4 * low for now, low in zip(test.smoothed, best, strict=True)] == [False] * (len(best) - 1) + [True]
    assert test.stop_reason.startswith(
        f"stopped: the smoothed loss exceeded 4 times its minimum at learning rate {test.rates[-1]:.3g}"
    )


def test_a_loss_that_is_not_finite_ends_the_test_and_is_no_part_of_it() -> None:
    test = lr_range_test(ready("sgd").assembly, [1e-3] * 11 + [1e38] * 10)

    assert all(map(math.isfinite, (*test.losses, *test.smoothed)))
    assert len(test.rates) < 21
    assert "not finite at learning rate 1e+38" in test.stop_reason or "4 times its minimum" in test.stop_reason


class NotFinite:
    """Spoils batches from one on."""

    after = 0

    @hookimpl
    def batch_transforms(self) -> list[BatchTransform]:
        calls: list[int] = []

        def spoil(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(1)
            return images * (math.nan if len(calls) > self.after else 1.0), targets

        return [spoil]


class NotFiniteLater(NotFinite):
    after = 12


def test_a_step_that_is_not_finite_ends_the_test_with_the_rate() -> None:
    rates = exponential_lrs(1e-6, 1e-3, 30)

    test = lr_range_test(ready(f"{HERE}:NotFiniteLater").assembly, rates)

    assert test.rates == tuple(rates[:12])
    assert test.stop_reason == f"the loss or its gradient was not finite at learning rate {rates[12]:.3g}"


def test_a_network_whose_first_loss_is_not_finite_is_an_error() -> None:
    words = r"not finite in the first step at any learning rate; precision fp32, classification"

    with pytest.raises(UserError, match=words):
        lr_range_test(ready(f"{HERE}:NotFinite").assembly, exponential_lrs(1e-6, 1e-3, 30))
    with pytest.raises(UserError, match=words):
        find_batch_size(ready(f"{HERE}:NotFinite").assembly)


def test_the_penalties_count_in_the_loss() -> None:
    rates = exponential_lrs(1e-7, 1e-6, 10)

    plain, penalised = (lr_range_test(ready(*plugins).assembly, rates).losses[0] for plugins in ((), ("l1",)))

    weights = sum(float(p.detach().abs().sum()) for p in ready().assembly.parts.network.parameters())
    assert penalised - plain == pytest.approx(1e-5 * weights, rel=1e-3)


def test_the_first_epochs_freezing_holds_through_all_epochs_of_the_test() -> None:
    run = ready("gradual_unfreeze", sets=('gradual_unfreeze.at={0 = "head", 1 = "all"}',))
    network: Any = run.assembly.parts.network
    seen: set[tuple[bool, bool, bool]] = set()
    network.layer1.register_forward_hook(
        lambda module, *_: seen.add((module.training, module[0].weight.requires_grad, network.head.training))
    )

    lr_range_test(run.assembly, exponential_lrs(1e-6, 1e-3, 25))

    assert seen == {(False, False, True)}


def test_a_step_takes_as_many_micro_batches_as_in_the_run() -> None:
    run = ready(SIZES, sets=("train.accumulate=3",))

    lr_range_test(run.assembly, exponential_lrs(1e-6, 1e-3, 10))

    assert Sizes.seen[:10] == [32] * 9 + [2]  # an epoch of 290 images is ten micro-batches, four steps
    assert len(Sizes.seen) == 26  # 4 + 4 + 2 steps


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--from", "1", "--to", "1"), "--from 1 must be less than --to 1"),
        (("--from", "0"), "learning rates are > 0"),
        (("--to", "nan"), "learning rates are > 0"),
        (("--to", "inf"), "learning rates are > 0"),
        (("--steps", "9"), "--steps 9 is too few to see a curve; at least 10"),
        (("--png", "no/such/lr.png"), "--png no/such/lr.png: there is no folder no/such; make it first"),
    ],
)
def test_a_wrong_option_of_the_range_test_is_one_message(flags: tuple[str, ...], words: str) -> None:
    result = invoke("find", "lr", *flags)

    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert result.err.startswith("ftcore: ")
    assert len(result.err.splitlines()) == 1


def test_valid_options_pass() -> None:
    check(1e-7, 10, 10)


def test_the_command_draws_the_curve_and_gives_the_flag_to_copy(tmp_path: Path) -> None:
    with chdir(tmp_path):
        result = invoke("find", "lr", "--steps", "40", "--plugin", "sgd", "--png", "lr.png")

    assert (result.code, result.err) == (0, "")
    assert "┌──" in result.out
    assert "\x1b" not in result.out
    (row,) = [line.split() for line in result.out.splitlines() if line.startswith("valley ")]
    assert row[-2:] == ["--set", f"sgd.lr={row[1]}"]
    assert invoke("explain", *row[-2:], "--plugin", "sgd").code == 0
    with Image.open(tmp_path / "lr.png") as image:
        assert image.format == "PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]


def test_programs_get_one_object_without_the_drawing() -> None:
    result = invoke("find", "lr", "--steps", "40", "--json")

    (line,) = result.out.splitlines()
    found = json.loads(line)
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"])
    for suggestion in found["suggestions"].values():
        assert suggestion["rate"] in found["rates"]
        assert suggestion["flag"] == f"--set adamw.lr={suggestion['rate']:.3g}"


HOOKS = """
import torch
from ftcore import hookimpl

@hookimpl
def make_optimizer(param_groups):
    groups = [{"params": list(group.params.values()), "lr": group.lr_scale * 0.1} for group in param_groups]
    return torch.optim.SGD(groups)
"""


def test_an_optimizer_without_an_option_for_its_rate_gets_no_flag(tmp_path: Path) -> None:
    (tmp_path / "own_hooks.py").write_text(HOOKS, encoding="utf-8")

    result = invoke("find", "lr", "--steps", "40", "--plugin", tmp_path / "own_hooks.py")

    assert result.code == 0, result.err
    assert "valley" in result.out
    assert "--set" not in result.out
