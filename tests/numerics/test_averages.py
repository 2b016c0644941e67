"""A second network that follows the first: an exponential average over steps, a mean over epochs."""

from __future__ import annotations

import copy
import json
import math
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn

from ftcore import EpochEnded, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.inference import load as saved
from ftcore.model import freezing
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore.training.evaluation import evaluate
from ftcore.training.loop import fit
from ftcore.training.state import Progress
from ftcore.training.weight_averaging import recompute_bn_statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from ftcore import Event, WeightAverage
    from ftcore.training.state import TrainingParts

State = dict[str, "Tensor"]


def build(*sets: str, plugins: tuple[str, ...]) -> TrainingParts:
    """Ten steps of 32 images an epoch."""
    flags = CliOverrides("digits/cnn", "digits:5-6", plugins=plugins, sets=("train.epochs=3", "adamw.lr=0.003", *sets))
    return prepare(load_config(None, flags)).assembly.parts


def average(parts: TrainingParts) -> WeightAverage:
    assert parts.optimization.average is not None
    return parts.optimization.average


def wide(model: nn.Module) -> State:
    """What a network holds, in float64."""
    return {name: tensor.detach().clone().double() for name, tensor in model.state_dict().items()}


def train(parts: TrainingParts) -> tuple[list[State], list[State], list[EpochEnded], Progress]:
    """What the network holds after each step that was made and after each epoch, and what was told."""
    steps: list[State] = []
    epochs: list[State] = []
    events: list[EpochEnded] = []
    progress = Progress()
    parts.optimization.optimizer.register_step_post_hook(lambda *_: steps.append(wide(parts.network)))

    def observe(event: Event) -> None:
        if isinstance(event, EpochEnded):
            epochs.append(wide(parts.network))
            events.append(event)

    fit(attrs.evolve(parts, observers=(observe,)), progress, lambda _: None)
    return steps, epochs, events, progress


def moving(states: Sequence[State], decays: Sequence[float]) -> State:
    """The recursion e <- d e + (1 - d) w, from the first state on."""
    found = states[0]
    for state, d in zip(states[1:], decays, strict=True):
        found = {name: d * found[name] + (1 - d) * tensor for name, tensor in state.items()}
    counts = {name: tensor for name, tensor in states[-1].items() if name.endswith("num_batches_tracked")}
    return found | counts


def warm(number: int, most: float, gamma: float = 1.0, power: float = 2 / 3) -> list[float]:
    return [min(most, 1 - (1 + n / gamma) ** -power) for n in range(1, number)]


def assert_equal(found: nn.Module, expected: Mapping[str, Tensor]) -> None:
    torch.testing.assert_close(wide(found), dict(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sets", "decays"),
    [
        (("ema.decay=0.9", "ema.warmup=false"), [0.9] * 29),
        (("ema.decay=0",), [0.0] * 29),
        ((), warm(30, 0.9998)),
        (("ema.decay=0.6", "ema.gamma=3", "ema.power=0.5"), warm(30, 0.6, 3, 0.5)),
    ],
)
def test_ema_is_the_recursion_over_the_steps_of_a_run(sets: tuple[str, ...], decays: list[float]) -> None:
    parts = build(*sets, plugins=("ema",))

    steps, _, _, progress = train(parts)

    assert (len(steps), progress.averages) == (30, 30)
    assert_equal(average(parts).network, moving(steps, decays))


@pytest.mark.parametrize("sets", [(), ("ema.warmup=false", "ema.decay=0.9"), ("ema.warmup=false", "ema.decay=0.9999")])
def test_the_initial_share_is_what_an_average_still_holds_of_its_first_network(sets: tuple[str, ...]) -> None:
    """Of a network that is all ones at its first update and all zeros from then on, the average holds the share."""
    followed = average(build(*sets, plugins=("ema",)))
    assert followed.initial_share is not None
    network = copy.deepcopy(followed.network)

    for count in range(12):
        for parameter in network.parameters():
            nn.init.constant_(parameter, float(count == 0))
        followed.update(network, count)

        held = {float(value) for parameter in followed.network.parameters() for value in parameter.detach().flatten()}
        assert max(held) == pytest.approx(followed.initial_share(count + 1), rel=1e-5)
        assert min(held) == pytest.approx(max(held))


@pytest.mark.parametrize(
    ("plugin", "sets", "expected"),
    [
        ("ema", ("ema.warmup=false", "ema.decay=0.99"), [0.99**9, 0.99**19, 0.99**29]),
        ("ema", (), [math.prod(warm(updates, 0.9998)) for updates in (10, 20, 30)]),
        ("swa", (), [0.0] * 3),
    ],
)
def test_an_epoch_tells_how_much_of_an_average_is_still_its_start(
    plugin: str, sets: tuple[str, ...], expected: list[float]
) -> None:
    _, _, events, _ = train(build(*sets, plugins=(plugin,)))

    assert [event.initial_share for event in events] == pytest.approx(expected)


def test_the_warm_up_reaches_what_it_says() -> None:
    decays = warm(31_602, 1.0)

    assert (decays[998], decays[31_598]) == pytest.approx((0.99, 0.999), abs=1e-5)


def test_ema_starts_in_its_epoch_and_is_evaluated_from_then_on() -> None:
    parts = build("ema.start=1", "ema.decay=0.9", "ema.warmup=false", plugins=("ema",))
    plain = build(plugins=("adamw",))

    steps, _, events, progress = train(parts)
    _, _, expected, _ = train(plain)

    assert progress.averages == 20
    assert_equal(average(parts).network, moving(steps[10:], [0.9] * 19))
    assert events[0].val == expected[0].val
    assert all(event.val["loss"] != other.val["loss"] for event, other in zip(events[1:], expected[1:], strict=True))
    assert [event.train for event in events] == [event.train for event in expected]  # the average teaches nothing


@pytest.mark.slow
def test_steps_that_are_not_made_are_not_averaged() -> None:
    parts = build(
        "ema.decay=0.9",
        "ema.warmup=false",
        "fp16.init_scale=1e10",
        "adamw.fused=false",
        plugins=("ema", "fp16", "adamw"),
    )

    steps, _, _, progress = train(parts)

    assert 0 < len(steps) < 30
    assert progress.averages == len(steps)
    assert_equal(average(parts).network, moving(steps, [0.9] * (len(steps) - 1)))


@pytest.mark.parametrize("plugin", ["ema", "swa"])
def test_what_is_frozen_is_bit_for_bit_the_same_in_an_average(plugin: str) -> None:
    parts = build("ema.decay=0.7" if plugin == "ema" else "swa.start=0", plugins=(plugin, "freeze_backbone"))

    train(parts)

    network, found = parts.network.state_dict(), average(parts).network.state_dict()
    frozen = {*freezing.frozen_tensors(parts.network, parts.plan, 2)}
    assert frozen == {name for name in network if "head" not in name}
    assert {name for name in network if torch.equal(network[name], found[name])} == frozen


@pytest.mark.parametrize("plugin", ["bf16_pure", "bf16"])
def test_ema_of_half_precision_is_in_float32(plugin: str) -> None:
    parts = build("ema.decay=0.9", "ema.warmup=false", plugins=("ema", plugin))

    steps, _, events, _ = train(parts)

    assert {tensor.dtype for tensor in average(parts).network.parameters()} == {torch.float32}
    assert_equal(average(parts).network, moving(steps, [0.9] * 29))
    assert events[-1].val["accuracy"] > 0.5


@pytest.mark.parametrize("start", [0, 1])
def test_swa_is_the_mean_over_the_ends_of_epochs(start: int) -> None:
    parts = build(f"swa.start={start}", plugins=("swa",))

    _, epochs, _, progress = train(parts)

    names = [name for name, _ in parts.network.named_parameters()]
    found = {name: tensor for name, tensor in wide(average(parts).network).items() if name in names}
    mean = {name: torch.stack([state[name] for state in epochs[start:]]).mean(0) for name in names}
    assert progress.averages == 3 - start
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-7)


def test_swa_begins_with_the_last_quarter() -> None:
    assert [average(build(f"train.epochs={n}", plugins=("swa",))).start for n in (1, 4, 10)] == [0, 3, 7]


@pytest.mark.parametrize("freeze", [(), ("freeze_modules",)])
def test_running_statistics_of_swa_are_those_of_update_bn(freeze: tuple[str, ...]) -> None:
    sets = ("swa.start=1", *(('freeze_modules.names=["layer1"]',) if freeze else ()))
    parts = build(*sets, plugins=("swa", *freeze))
    train(parts)
    network = average(parts).network
    expected: Any = copy.deepcopy(network)
    held = 1 if freeze else 0  # the first block keeps its own

    with torch.no_grad():
        seen = [expected[:held](batch.images) for batch in parts.data.train.epoch(2)]
    update_bn(seen, expected[held:])

    for name, tensor in network.named_buffers():
        if freeze and name.startswith("layer1"):
            assert torch.equal(tensor, parts.network.get_buffer(name))
        else:
            torch.testing.assert_close(tensor, expected.get_buffer(name), rtol=1e-5, atol=1e-6, msg=name)
    assert {norm.momentum for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.1}


def test_statistics_are_renewed_without_dropout_and_without_a_graph() -> None:
    parts = build("swa.start=0", plugins=("swa", "mlp_head"))
    network = average(parts).network
    seen: list[tuple[bool, bool]] = []
    dropout = next(module for module in network.modules() if isinstance(module, nn.Dropout))
    dropout.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))

    recompute_bn_statistics(network, parts, 0)

    assert seen == [(False, False)] * 10


def test_a_network_without_batch_norm_is_not_passed_over_again() -> None:
    parts = build("swa.start=0", plugins=("swa", "freeze_norm"))
    seen: list[object] = []
    average(parts).network.register_forward_pre_hook(lambda *given: seen.append(given))

    recompute_bn_statistics(average(parts).network, parts, 0)

    assert seen == []


def test_the_network_itself_is_evaluated_before_swa_starts() -> None:
    parts, plain = build("swa.start=2", plugins=("swa",)), build(plugins=("adamw",))

    _, _, events, _ = train(parts)
    _, _, expected, _ = train(plain)

    same = [event.val == other.val for event, other in zip(events, expected, strict=True)]
    assert same == [True, True, False]
    assert events[-1].val == evaluate(parts, average(parts).network)


def arguments(folder: Path, *sets: str, plugins: Sequence[str]) -> list[str]:
    texts = (f"run.folder={folder}", "train.epochs=3", "adamw.lr=0.003", "run.keep=9", *sets)
    named = [part for plugin in plugins for part in ("--plugin", plugin)]
    return [
        "run",
        "--data",
        "digits:5-6",
        "--model",
        "digits/cnn",
        *named,
        *(x for text in texts for x in ("--set", text)),
    ]


@pytest.mark.parametrize(("plugin", "option"), [("ema", "ema.decay=0.9"), ("swa", "swa.start=0")])
def test_the_average_is_what_is_saved_and_what_its_metrics_are_of(plugin: str, option: str, tmp_path: Path) -> None:
    result = invoke(*arguments(tmp_path / "run", option, plugins=(plugin,)), "--json")
    assert result.code == 0, result.err
    described: dict[str, Any] = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    checkpoint = tmp_path / "run" / "checkpoints" / f"step-{10 * described['epoch']:08d}"
    model, network, mean = (
        load_file(file)
        for file in (
            tmp_path / "run" / "model" / "model.safetensors",
            checkpoint / "model.safetensors",
            checkpoint / "average.safetensors",
        )
    )

    assert all(torch.equal(model[name], mean[name]) for name in model.keys() | mean.keys())
    assert not torch.equal(model["head.weight"], network["head.weight"]) or described["epoch"] == 1
    batches = list(build(plugins=()).data.val.epoch(0))
    images, targets = torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches])
    with torch.no_grad():
        outputs = saved.load(tmp_path / "run").module(images)
    assert described["metrics"]["loss"] == pytest.approx(float(cross_entropy(outputs, targets)), abs=1e-6)
    assert described["metrics"]["accuracy"] == pytest.approx(float((outputs.argmax(1) == targets).float().mean()))
    assert result.report["best"]["loss"] == described["metrics"]["loss"]


def test_averages_are_in_checkpoints_from_their_start_on(tmp_path: Path) -> None:
    result = invoke(*arguments(tmp_path / "run", "ema.start=1", plugins=("ema",)))
    assert result.code == 0, result.err

    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())

    states = [json.loads((folder / "state.json").read_text())["progress"] for folder in folders]
    assert [(folder / "average.safetensors").exists() for folder in folders] == [False, True, True]
    assert [state["averages"] for state in states] == [0, 10, 20]


def test_two_averages_are_refused() -> None:
    with pytest.raises(UserError, match=r"(?s)make_average.*ema.*swa"):
        build(plugins=("ema", "swa"))


@pytest.mark.parametrize(
    ("plugin", "option", "message"),
    [
        ("ema", "ema.start=3", r"ema.start = 3 \(from 0\) is beyond train.epochs = 3"),
        ("swa", "swa.start=3", r"swa.start = 3 \(from 0\) is beyond train.epochs = 3"),
        ("ema", "ema.decay=1", "decay"),
    ],
)
def test_an_average_that_would_never_be_is_refused(plugin: str, option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(option, plugins=(plugin,))


def test_the_shape_of_a_warm_up_that_is_not_made_is_refused() -> None:
    with pytest.raises(UserError, match="gamma and power set the warm-up"):
        build("ema.warmup=false", "ema.gamma=2", plugins=("ema",))
