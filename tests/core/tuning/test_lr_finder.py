"""`ftcore find`: the learning-rate range test and the largest batch; neither leaves a trace."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import mmap
import random
import time
from contextlib import chdir
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from attrs import evolve
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ftcore import Backbone, HeadSlot, InputSpec, UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.data.loader import epoch_order
from ftcore.model import freezing
from ftcore.system import memory as measuring
from ftcore.system.memory import DeviceMemory, available, cgroup_headroom, rss
from ftcore.testing import invoke
from ftcore.training.loop import accumulation_windows, train_step
from ftcore.training.state import Progress, TrainingParts
from ftcore.tuning.batch_size import (
    BatchSizeSearch,
    BatchTrial,
    accumulation_hint,
    extrapolate_memory,
    find_batch_size,
    tables,
)
from ftcore.tuning.lr_finder import LRFinderResult, check, exponential_lrs, lr_range_test, steep, valley
from ftcore.tuning.trial import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ftcore import BatchTransform, Placement
    from ftcore.runs.prepared import PreparedRun

HERE = __name__
ROOT = Path(__file__).parents[2]


def ready(*plugins: str, sets: tuple[str, ...] = (), data: str = "digits:5-6") -> PreparedRun:
    """290 images of two digits to train on."""
    return prepare(load_config(None, CliOverrides("digits/cnn", data, plugins=plugins, sets=sets)))


# ------------------------------------------------------------------ fastai's formulas


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


# ------------------------------------------------------------------ the range test


def hand_written(parts: TrainingParts, rates: list[float], scales: dict[str, float]) -> tuple[list[float], list[float]]:
    """Losses, raw and smoothed as fastai's `AvgSmoothLoss`, of the same steps in plain PyTorch."""
    model = copy.deepcopy(parts.network).train()
    groups = [{"params": [p for n, p in model.named_parameters() if n.startswith(k)], "lr": 0.0} for k in scales]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    size = len(parts.train.samples)
    visits = [epoch_order(0, epoch, size)[start : start + 32] for epoch in range(9) for start in range(0, size, 32)]
    losses, smoothed, mean = [], [], 0.0
    for step, (rate, chosen) in enumerate(zip(rates, visits, strict=False)):
        for group, scale in zip(optimizer.param_groups, scales.values(), strict=True):
            group["lr"] = rate * scale
        items: list[Any] = [parts.train.dataset[(0, index)] for index in chosen]
        images = parts.train.on_device_transform(torch.stack([item[0] for item in items]))
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
    run.assembly.parts.optimizer.register_step_pre_hook(
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
    assert test.stop_reason.startswith(f"the smoothed loss was 4 times its best at a rate of {test.rates[-1]:.3g}")


def test_a_loss_that_is_not_finite_ends_the_test_and_is_no_part_of_it() -> None:
    test = lr_range_test(ready("sgd").assembly, [1e-3] * 11 + [1e38] * 10)

    assert all(map(math.isfinite, (*test.losses, *test.smoothed)))
    assert len(test.rates) < 21
    assert "not finite at a rate of 1e+38" in test.stop_reason or "4 times its best" in test.stop_reason


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
    assert test.stop_reason == f"the loss or its gradient was not finite at a rate of {rates[12]:.3g}"


def test_a_network_whose_first_loss_is_not_finite_is_an_error() -> None:
    words = r"not finite in the very first step, whatever the learning rate; precision fp32, classification"

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
    run = ready(f"{HERE}:Sizes", sets=("train.accumulate=3",))

    lr_range_test(run.assembly, exponential_lrs(1e-6, 1e-3, 10))

    assert Sizes.seen[:10] == [32] * 9 + [2]  # an epoch of 290 images is ten micro-batches, four steps
    assert len(Sizes.seen) == 26  # 4 + 4 + 2 steps


def test_a_split_smaller_than_a_batch_is_an_error() -> None:
    with pytest.raises(UserError, match=r"train.batch_size = 999 is more than the 290 images of the training split"):
        lr_range_test(ready(sets=("train.batch_size=999",)).assembly, exponential_lrs(1e-6, 1, 10))


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


# ------------------------------------------------------------------ the command


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


def test_neither_command_writes_anything_nor_minds_a_run_folder_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "taken").touch()
    sets = ("--set", f"run.folder={tmp_path}", "--set", "data.cache=disk", "--set", "data.cache_gb=1")

    with chdir(tmp_path):
        assert invoke("find", "lr", "--steps", "10", "--plugin", "ema").code == 0
        assert invoke("find", "lr", "--steps", "10", *sets).code == 0
        assert invoke("find", "batch", "--max", "4", *sets).code == 0

    theirs = {"matplotlib"}  # a list of fonts, which it makes where torchmetrics first imports it
    assert {path.name for path in tmp_path.iterdir()} - theirs == {"taken"}


# ------------------------------------------------------------------ no trace


def flat(value: Any) -> Iterator[bytes]:
    """Spell nested plain values and tensors as bytes."""
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} {value.requires_grad}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield repr(key).encode()
            yield from flat(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from flat(inner)
    elif isinstance(value, np.ndarray):
        yield value.tobytes()
    else:
        yield repr(value).encode()


def network_state(network: nn.Module) -> Any:
    modes = {name: module.training for name, module in network.named_modules()}
    grads = {name: p.grad for name, p in network.named_parameters()}
    tensors = [*network.named_parameters(), *network.named_buffers()]
    places = {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors}
    return [modes, grads, places, dict(network.named_parameters()), dict(network.named_buffers())]


def state_of(parts: TrainingParts) -> str:
    """SHA-256 of all that a step can change."""
    scheduler: Any = parts.schedule.scheduler
    warmup: Any = parts.schedule.warmup
    schedules = [
        {key: value for key, value in each.state_dict().items() if key != "lr_lambdas"}
        for each in (scheduler, warmup)
        if each
    ]
    state = [
        network_state(parts.placement.model),
        network_state(parts.average.network) if parts.average else None,
        parts.optimizer.state_dict(),
        schedules,
        parts.precision.scaler.state_dict(),
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002
        parts.train.sampler.epoch,
    ]
    digest = hashlib.sha256()
    for content in flat(state):
        digest.update(content)
    return digest.hexdigest()


class Stops:
    """Ends in an error in the middle of a step: after so many passes through the network."""

    after = 7
    error: ClassVar[Exception] = ValueError("as wished")

    @hookimpl(wrapper=True)
    def wrap_devices(self, model: nn.Module) -> Generator[None, Placement, Placement]:
        answer = yield
        calls: list[int] = []

        def stop(*_: Any) -> None:
            calls.append(1)
            if len(calls) > self.after:
                raise self.error

        model.get_submodule("head").register_forward_hook(stop)
        return answer


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
    for window in list(accumulation_windows(parts.train.epoch(0), parts.train_config.accumulate))[:3]:
        train_step(parts, window, progress)
    return parts


TRIALS: dict[str, Callable[[PreparedRun], Any]] = {
    "lr": lambda run: lr_range_test(run.assembly, exponential_lrs(1e-6, 1.0, 12)),
    "batch": lambda run: find_batch_size(run.assembly, most=4),
}


@pytest.mark.parametrize("trial", TRIALS)
@pytest.mark.parametrize("name", RUNS)
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
    run = ready(*plugins, f"{HERE}:Stops", sets=("train.accumulate=2",))  # in the second batch, or pass, of a step
    before = state_of(run.assembly.parts)

    with pytest.raises(ValueError, match="as wished"):
        TRIALS[trial](run)

    assert state_of(run.assembly.parts) == before


def test_a_full_device_in_the_second_pass_of_sam_leaves_everything_as_it_was() -> None:
    run = ready("sam", "fp16", "ema", f"{HERE}:FillsUp")
    before = state_of(run.assembly.parts)

    with pytest.raises(UserError, match=r"not even one image fits"):
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


# ------------------------------------------------------------------ the largest batch


class Sizes:
    """Notes the sizes of all batches."""

    seen: ClassVar[list[int]] = []
    fit: Callable[[int, int], bool] = staticmethod(lambda size, times: True)

    @hookimpl
    def batch_transforms(self) -> list[BatchTransform]:
        self.seen.clear()

        def note(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            self.seen.append(len(images))
            if not self.fit(len(images), self.seen.count(len(images))):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return images, targets

        return [note]


def found(fit: Callable[[int, int], bool], *, most: int | None = None, sets: tuple[str, ...] = ()) -> BatchSizeSearch:
    """Search where a batch fits by a rule: (its size, how many of it there were) -> whether."""
    Sizes.fit = staticmethod(fit)
    try:
        return find_batch_size(ready(f"{HERE}:Sizes", sets=sets).assembly, most)
    finally:
        Sizes.fit = staticmethod(lambda size, times: True)


def fitting(result: BatchSizeSearch) -> dict[int, bool]:
    return {trial.batch: not trial.note for trial in result.trials}


def test_the_batch_doubles_up_to_the_training_split() -> None:
    result = found(lambda size, times: True)

    assert fitting(result) == dict.fromkeys([2, 4, 8, 16, 32, 64, 128, 256, 290], True)
    assert result.largest == result.max_batch == 290
    assert all(trial.speed > 0 and trial.peak > 0 for trial in result.trials)


@pytest.mark.parametrize(
    ("largest", "trials", "suggested"),
    [
        (13, {2: True, 4: True, 8: True, 12: True, 16: False}, 12),
        (11, {2: True, 4: True, 8: True, 12: False, 16: False}, 8),
        (19, {2: True, 4: True, 8: True, 16: True, 18: True, 20: False}, 18),
        (3, {2: True, 3: True, 4: False}, 3),
        (2, {2: True, 3: False, 4: False}, 2),
        (1, {1: True, 2: False}, 1),
    ],
)
def test_what_does_not_fit_is_bisected_once(largest: int, trials: dict[int, bool], suggested: int) -> None:
    result = found(lambda size, times: size <= largest, most=20)

    assert (fitting(result), result.largest) == (trials, suggested)


def test_no_more_images_than_allowed_are_tried() -> None:
    assert list(fitting(found(lambda size, times: True, most=20))) == [2, 4, 8, 16, 20]
    assert list(fitting(found(lambda size, times: True, most=1))) == [1]


def test_a_size_that_does_not_hold_when_it_is_verified_is_not_suggested() -> None:
    result = found(lambda size, times: size < 8 or times <= 6, most=8)

    assert fitting(result)[8]
    assert result.largest == 4
    assert Sizes.seen.count(4) >= 2 + 3


def test_the_suggested_batch_gets_three_more_steps() -> None:
    found(lambda size, times: True, most=8)

    assert Sizes.seen[-3:] == [8, 8, 8]
    assert Sizes.seen.count(8) in range(2 + 3, 6 + 3 + 1)
    assert Sizes.seen.count(4) in range(2, 7)


def test_a_step_is_measured_with_its_accumulation() -> None:
    run = ready(f"{HERE}:Sizes", sets=("train.accumulate=3",))
    steps: list[int] = []
    run.assembly.parts.optimizer.register_step_pre_hook(lambda *_: steps.append(1))

    find_batch_size(run.assembly, most=4)

    assert len(Sizes.seen) == 3 * len(steps)


def test_not_even_one_image_that_fits_is_an_error() -> None:
    with pytest.raises(UserError, match=r"not even one image fits: a batch of 1 out of memory; before the first step"):
        found(lambda size, times: False)


def test_another_error_than_full_memory_comes_through() -> None:
    class Broken(Sizes):
        pass

    with pytest.raises(ValueError, match="as wished"):
        find_batch_size(ready(f"{HERE}:Stops").assembly)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"most": 291}, r"--max 291: a batch has from 1 to 290 images, which is all of the training split"),
        ({"most": 0}, r"--max 0: a batch has from 1 to 290 images"),
        ({"share": 0.0}, r"--memory 0 is a share of what is free, above 0 and at most 1"),
        ({"share": 1.1}, r"--memory 1.1 is a share"),
        ({"share": 1e-9}, r"not even one image fits: a batch of 1 not tried: expected to take more than 0.00 GB"),
    ],
)
def test_a_wrong_option_of_the_search_is_an_error(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_batch_size(ready().assembly, **arguments)


def test_images_are_real_ones_of_the_training_split_in_the_first_epochs_order() -> None:
    run = ready(sets=("train.batch_size=290",))
    parts = run.assembly.parts
    seen: list[Tensor] = []
    parts.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))

    find_batch_size(run.assembly, most=8)

    (batch,) = parts.train.epoch(0)
    assert torch.equal(seen[-1], batch.images[:8])


class Wide:
    """Answers for ``wide/net``: about 4 MB an image."""

    @hookimpl
    def build_model(self, name: str | None) -> Backbone | None:
        if name != "wide/net":
            return None
        layers: list[nn.Module] = [nn.Upsample(scale_factor=16), nn.Conv2d(1, 8, 1)]
        layers += [layer for _ in range(7) for layer in (nn.Conv2d(8, 8, 1), nn.Tanh())]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        head = str(len(model) - 1)
        return Backbone(model, (HeadSlot(head, 8),), InputSpec((8, 8), channels=1, mean=(0.5,), std=(0.5,)))


@pytest.mark.slow
@pytest.mark.machine
@pytest.mark.skipif(not (measuring.PROC / "self/clear_refs").exists(), reason="Linux counts exactly")
def test_on_a_cpu_no_size_is_tried_that_would_take_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    # in a new process, which keeps nothing that it frees: memory that is kept has holes, other ones each time, and a
    # peak that lies on no line
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**17))
    monkeypatch.syspath_prepend(str(ROOT))
    with get_context("spawn").Pool(1) as pool:
        result, allowed, peaks = pool.apply(search_within, (250_000_000,))

    assert result.budget == pytest.approx(allowed, rel=0.05)
    last = result.trials[-1]
    assert last.note.startswith("not tried: expected to take more than")
    assert last.batch > result.largest >= 8
    assert max(trial.peak for trial in result.trials if not trial.note) <= result.budget
    assert max(peaks) <= result.budget


def search_within(room: int) -> tuple[BatchSizeSearch, int, list[int]]:
    """Search with so many bytes more than the process has; return also those, and what it had behind each forward."""
    torch.set_num_threads(1)
    run = prepare(load_config(None, CliOverrides("wide/net", "digits:5-9", plugins=(f"{HERE}:Wide",))))
    allowed = rss() + room
    peaks: list[int] = []
    run.assembly.parts.network.register_forward_hook(lambda *_: peaks.append(rss()))

    return find_batch_size(run.assembly, share=allowed / (rss() + available())), allowed, peaks


def test_the_next_peak_lies_on_the_line_through_the_last_two() -> None:
    points = [(2, 70), (4, 100), (8, 180)]

    slope, start = np.polyfit([4, 8], [100, 180], 1)
    assert extrapolate_memory(points, 16) == pytest.approx(slope * 16 + start)
    assert extrapolate_memory([(4, 100), (8, 90)], 16) == 90
    assert extrapolate_memory([(0, 100)], 2) == 100


def test_the_smallest_size_that_is_as_fast_as_all_larger_ones_is_enough() -> None:
    speeds = {2: 50.0, 4: 90.0, 8: 98.0, 16: 100.0, 32: 102.0}
    trials = (*(BatchTrial(batch, speed, 1) for batch, speed in speeds.items()), BatchTrial(64, note="out of memory"))

    assert BatchSizeSearch(trials, largest=32, budget=9, max_batch=99).smallest_fast_batch == 8
    assert BatchSizeSearch(trials, largest=4, budget=9, max_batch=99).smallest_fast_batch == 4


def test_the_advice_is_to_keep_the_images_of_a_step_by_accumulation() -> None:
    settings = evolve(ready().assembly.parts.train_config, batch_size=64, accumulate=2)
    result = BatchSizeSearch((BatchTrial(16, 9.0, 1),), largest=16, budget=9, max_batch=99)

    said = accumulation_hint(result, settings)

    assert "A step has 128 images now; another number wants another learning rate" in said
    assert said.endswith("train.accumulate keeps it: --set train.batch_size=16 --set train.accumulate=8")
    for other in (128, 60, 256):
        assert "--set" not in accumulation_hint(evolve(result, largest=other), settings).splitlines()[1]
    assert [row[2] for row in tables(result)[1].rows] == ["--set train.batch_size=16"]


def test_the_search_is_a_table_for_people_and_an_object_for_programs() -> None:
    result = invoke("find", "batch", "--max", "8")
    machine = invoke("find", "batch", "--max", "8", "--json")

    assert (result.code, result.err) == (0, "")
    assert "--set train.batch_size=8" in result.out
    (line,) = machine.out.splitlines()
    values = json.loads(line)
    assert [(trial["batch"], trial["fits"]) for trial in values["batches"]] == [(2, True), (4, True), (8, True)]
    assert (values["largest"], values["flag"]) == (8, "--set train.batch_size=8")


# ------------------------------------------------------------------ memory


def allocate(megabytes: int) -> None:
    """Take memory from the system and give it back, past an allocator that may keep it from earlier tests."""
    with mmap.mmap(-1, megabytes * 1_000_000) as block:
        for start in range(0, len(block), mmap.PAGESIZE):
            block[start] = 1
        time.sleep(0.02)


@pytest.mark.parametrize("counted", [measuring._peak_of_process, None], ids=["count of Linux", "looking"])
def test_the_peak_is_what_was_taken_at_most_in_the_block(counted: Any) -> None:
    allocate(300)  # an earlier peak does not count
    before, peak = rss(), measuring.Peak()

    if counted:
        with counted() as peak:
            allocate(100)
    else:
        with measuring._poll_rss(peak):
            allocate(100)
            time.sleep(0.05)  # a later look does not count

    assert peak.bytes - before == pytest.approx(100_000_000, rel=0.1)
    assert rss() - before < 20_000_000


def group(folder: Path, *, limit: str, usage: int, inactive: int = 0, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    stat = "inactive_file" if version == 2 else "total_inactive_file"
    for name, value in zip((*names, "memory.stat"), (limit, usage, f"anon 5\n{stat} {inactive}\n"), strict=True):
        (folder / name).write_text(f"{value}\n", encoding="utf-8")


def test_a_control_group_and_each_above_it_limits_memory(tmp_path: Path) -> None:
    group(tmp_path / "outer", limit="1000", usage=700, inactive=100)
    group(tmp_path / "outer" / "inner", limit="900", usage=100)
    group(tmp_path / "outer" / "inner" / "free", limit="max", usage=50)
    (tmp_path / "of").write_text("0::/outer/inner/free\n", encoding="utf-8")

    assert sorted(cgroup_headroom(tmp_path / "of", tmp_path)) == [400, 800]


def test_control_groups_of_version_1_are_read_too(tmp_path: Path) -> None:
    group(tmp_path / "memory" / "job", limit="500", usage=600, inactive=20, version=1)
    (tmp_path / "of").write_text("3:cpuset:/job\n4:cpu,memory:/job\n0::/\n", encoding="utf-8")

    assert cgroup_headroom(tmp_path / "of", tmp_path) == [0]
    assert cgroup_headroom(tmp_path / "none", tmp_path) == []


@pytest.mark.skipif(not (measuring.PROC / "meminfo").exists(), reason="Linux")
def test_what_is_free_is_no_more_than_the_machine_has() -> None:
    lines = (measuring.PROC / "meminfo").read_text(encoding="utf-8").splitlines()
    total = 1024 * int(next(line for line in lines if line.startswith("MemTotal")).split()[1])

    assert 0 < available() < total
    assert 0 < rss() < total
    assert DeviceMemory(torch.device("cpu")).total() <= total


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_full_memory_is_told_from_other_errors(error: RuntimeError, *, full: bool) -> None:
    assert measuring.is_oom(error) is full


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device_the_batch_grows_until_its_memory_is_full() -> None:
    run = prepare(load_config(None, CliOverrides("wide/net", "digits", plugins=(f"{HERE}:Wide",))))
    before = state_of(run.assembly.parts)
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(1e9 / total)
    try:
        result = find_batch_size(run.assembly)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert result.trials[-1].note == "out of memory"
    assert 0.4e9 < max(trial.peak for trial in result.trials) <= 1e9
    assert state_of(run.assembly.parts) == before
