"""A trial leaves everything in memory as it was, bit for bit."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from tests.core.tuning.trials import STOPS, Stops, flat, ready, state_of
from torch import nn

from ftcore import UserError, hookimpl
from ftcore.model import freezing
from ftcore.training.loop import accumulation_windows, train_step
from ftcore.training.state import Progress, TrainingParts
from ftcore.tuning.batch_size import find_batch_size
from ftcore.tuning.lr_finder import exponential_lrs, lr_range_test

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ftcore import Placement
    from ftcore.runs.prepared import PreparedRun

HERE = __name__


class FillsUp(Stops):
    """The same, with what a full device says; every pass from one on."""

    error: ClassVar[Exception] = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Exchanges:
    """Gives each parameter and each buffer new memory at each step, and the network new buffers."""

    @hookimpl(wrapper=True)
    def make_optimizer(self) -> Generator[None, torch.optim.Optimizer, torch.optim.Optimizer]:
        optimizer = yield

        def exchange(*_: Any) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.data = parameter.detach().clone()

        optimizer.register_step_post_hook(exchange)
        return optimizer

    @hookimpl(wrapper=True)
    def wrap_devices(self, model: nn.Module) -> Generator[None, Placement, Placement]:
        placement = yield

        def exchange(*_: Any) -> None:
            for module in model.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    setattr(module, name, buffer.clone())

        model.register_forward_hook(exchange)
        return placement


RUNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "fresh": ((), ()),
    "sam, ema, fp16": (("sam", "ema", "fp16", "sgd"), ()),
    "mixup, l2_sp, augment": (("mixup", "l2_sp", "augment"), ()),
    "frozen, onecycle": (("freeze_backbone", "onecycle"), ()),
    "gradual, plateau": (("gradual_unfreeze", "plateau"), ("plateau.patience=2", "plateau.warmup=0.1")),
    "bf16_pure, master": (("bf16_pure",), ("bf16_pure.update=master",)),
    "lookahead": (("timm_optim",), ("timm_optim.name=lookahead_lamb", "train.accumulate=2")),
    "exchanged memory": ((f"{HERE}:Exchanges",), ()),
    "checkpointing, swa": (("checkpointing", "swa", "adafactor"), ()),
}


def started(run: PreparedRun) -> TrainingParts:
    """Let a few steps of the second epoch of the run itself go before, so that there is a state to lose."""
    parts, progress = run.assembly.parts, Progress(epoch=1)
    freezing.apply_requires_grad(parts.network, parts.plan, epoch=1)
    parts.placement.model.train()
    for window in list(accumulation_windows(parts.data.train.epoch(0), parts.train_config.accumulate))[:3]:
        train_step(parts, window, progress)
    return parts


TRIALS: dict[str, Callable[[PreparedRun], Any]] = {
    "lr": lambda run: lr_range_test(run.assembly, exponential_lrs(1e-6, 1.0, 12)),
    "batch": lambda run: find_batch_size(run.assembly, most=4),
}


@pytest.mark.parametrize("trial", TRIALS)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * ("fp16" in n)) for n in RUNS])
def test_a_trial_leaves_everything_as_it_was(name: str, trial: str) -> None:
    plugins, sets = RUNS[name]
    run = ready(*plugins, sets=sets)
    parts = run.assembly.parts if name == "fresh" else started(run)
    before = state_of(parts)

    TRIALS[trial](run)

    assert state_of(parts) == before


@pytest.mark.parametrize("trial", TRIALS)
@pytest.mark.parametrize("plugins", [(), ("sam", "ema", "fp16"), ("bf16_pure",)], ids=",".join)
def test_an_error_in_the_middle_of_a_step_leaves_everything_as_it_was(trial: str, plugins: tuple[str, ...]) -> None:
    run = ready(*plugins, STOPS, sets=("train.accumulate=2",))  # in the second batch, or pass, of a step
    before = state_of(run.assembly.parts)

    with pytest.raises(ValueError, match="as wished"):
        TRIALS[trial](run)

    assert state_of(run.assembly.parts) == before


def test_a_full_device_in_the_second_pass_of_sam_leaves_everything_as_it_was() -> None:
    run = ready("sam", "fp16", "ema", f"{HERE}:FillsUp")
    before = state_of(run.assembly.parts)

    with pytest.raises(UserError, match=r"not even a batch of one image fits"):
        find_batch_size(run.assembly)

    assert state_of(run.assembly.parts) == before


def test_a_run_after_a_trial_is_the_run_without_one() -> None:
    def after(*trials: Callable[[PreparedRun], Any]) -> str:
        run = ready("sam", "ema", "augment", sets=("train.epochs=1",))
        for trial in trials:
            trial(run)
        parts = started(run)
        return hashlib.sha256(b"".join(flat(parts.network.state_dict()))).hexdigest()

    assert after(*TRIALS.values()) == after()


def test_a_trial_changes_the_weights_while_it_goes() -> None:
    run = ready()
    weight = next(run.assembly.parts.network.parameters())
    seen: list[float] = []
    run.assembly.parts.network.register_forward_pre_hook(lambda *_: seen.append(float(weight.detach().sum())))

    lr_range_test(run.assembly, exponential_lrs(1e-4, 1e-1, 10))

    assert len(set(seen)) == 10
