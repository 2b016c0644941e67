"""Parameters in bfloat16 whose updates are not lost to its eight bits."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

from ftcore import RunConfig, UserError
from ftcore.checkpoints import checkpoint
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore.training.loop import fit, train_step
from ftcore.training.state import Progress
from ftcore_plugins.precision.bf16_params import PureBf16, PureBf16Config, stochastically_rounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ftcore.training.state import TrainingParts

UPDATES = ("master", "stochastic")
BF16_MAX = 2.0**127 * (2 - 2.0**-7)


def build(*sets: str, plugins: tuple[str, ...] = ("sgd",)) -> TrainingParts:
    usual = ("train.epochs=1", "linear.std=0.1")
    flags = CliOverrides("digits/cnn", "digits:5-6", plugins=("bf16_pure", *plugins), sets=(*usual, *sets))
    return prepare(load_config(None, flags)).assembly.parts


def wrapped(optimizer: torch.optim.Optimizer, update: Any, seed: int = 0) -> torch.optim.Optimizer:
    """The optimizer as the plugin hands it on."""
    config = load_config(None, CliOverrides(sets=(f"train.seed={seed}",)))
    wrapper = PureBf16(PureBf16Config(update)).make_optimizer(config)
    next(wrapper)
    with pytest.raises(StopIteration) as stopped:
        wrapper.send(optimizer)
    found: torch.optim.Optimizer = stopped.value.value
    return found


def rounded(values: Tensor, times: int = 1) -> Tensor:
    """(times, *shape) bfloat16: a value rounded again and again."""
    generator = torch.Generator().manual_seed(3)
    return torch.stack([stochastically_rounded(values, generator) for _ in range(times)])


def neighbours(values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest bfloat16 not above and the smallest not below, by torch's own steps from the nearest one."""
    near = values.to(torch.bfloat16)
    infinite = torch.full_like(near, math.inf)
    below = torch.where(near.double() > values.double(), torch.nextafter(near, -infinite), near)
    above = torch.where(near.double() < values.double(), torch.nextafter(near, infinite), near)
    return below, above


# Stochastic rounding


def test_the_mean_of_many_roundings_is_the_number() -> None:
    """Within 4 standard deviations of the mean of n draws from {below, above}: 4 gap sqrt(q (1 - q) / n)."""
    torch.manual_seed(0)
    values = torch.cat([torch.randn(200), 1e-30 * torch.randn(50), 1e30 * torch.randn(50), 1e-40 * torch.randn(50)])
    n = 4000

    found = rounded(values, n).double()

    below, above = (edge.double() for edge in neighbours(values))
    gap = above - below
    share = (values.double() - below) / gap
    deviation = gap * (share * (1 - share) / n).sqrt()
    errors = (found.mean(0) - values.double()).abs() / deviation
    assert float(errors.max()) < 4
    assert 0.5 < float(errors.square().mean()) < 1.5  # neither more spread than such draws have, nor less


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_a_rounding_is_one_of_the_two_neighbours(numbers: list[float]) -> None:
    values = torch.tensor(numbers)
    below, above = neighbours(values)

    found = rounded(values, 8)

    assert bool(((found == below) | (found == above)).all())


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=50))
def test_what_bfloat16_can_hold_never_changes(bits: list[int]) -> None:
    """Zeros of both signs, subnormal and largest numbers, infinities and nan among them."""
    held = torch.tensor(bits, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)

    found = rounded(held.float(), 4)

    assert bool((found.isnan() == held.isnan()).all())
    numbers = ~held.isnan()
    assert bool((found.view(torch.int16)[:, numbers] == held.view(torch.int16)[numbers]).all())


@pytest.mark.parametrize(
    ("number", "allowed"),
    [
        (0.0, {0.0}),
        (-0.0, {-0.0}),
        (math.inf, {math.inf}),
        (-math.inf, {-math.inf}),
        (BF16_MAX, {BF16_MAX}),
        (-BF16_MAX, {-BF16_MAX}),
        (float(torch.finfo(torch.float32).max), {BF16_MAX, math.inf}),
        (1 + 2.0**-8, {1.0, 1 + 2.0**-7}),
        (-1 - 2.0**-8, {-1.0, -1 - 2.0**-7}),
        (1.5 * 2.0**-133, {2.0**-133, 2.0**-132}),
        (-1.5 * 2.0**-133, {-(2.0**-133), -(2.0**-132)}),
        (2.0**-149, {0.0, 2.0**-133}),
    ],
)
def test_the_edges_of_the_range(number: float, allowed: set[float]) -> None:
    found = rounded(torch.full((100_000,), number))

    assert set(found.flatten().tolist()) <= allowed
    assert math.copysign(1, float(found[0, 0])) == math.copysign(1, number)


def test_nan_stays_nan_whatever_its_bits() -> None:
    bits = torch.tensor([0x7FFFFFFF, 0x7F800001, 0x7FC00000, -1, -0x7FFFFF], dtype=torch.int32)

    assert bool(rounded(bits.view(torch.float32), 50).isnan().all())


def test_a_number_between_is_rounded_both_ways_as_often_as_it_is_near() -> None:
    found = rounded(torch.full((40_000,), 1 + 2.0**-9)).float()  # a quarter of the way to 1 + 2^-7

    assert float((found > 1).float().mean()) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 40_000))


def test_elements_are_rounded_independently_and_keep_their_layout() -> None:
    values = torch.full((8, 16, 3, 3), 1 + 2.0**-8).to(memory_format=torch.channels_last)

    found = rounded(values)[0]

    flips = (found.float() > 1).float()
    assert 0.4 < float(flips.mean()) < 0.6
    assert float(flips.mean(dim=(1, 2, 3)).std()) < 0.2
    assert stochastically_rounded(values, torch.Generator()).is_contiguous(memory_format=torch.channels_last)


# Updates

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.01),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=0.1),
    "fused sgd": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, fused=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "fused adamw": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "foreach adamw": lambda params: torch.optim.AdamW(params, lr=0.01, foreach=True),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.01),
    "fused adagrad": lambda params: torch.optim.Adagrad(params, lr=0.01, fused=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.001, momentum=0.5, centered=True),
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=0.01),
}


def params(dtype: torch.dtype) -> list[nn.Parameter]:
    """The same numbers in every dtype; the last never has a gradient."""
    torch.manual_seed(0)
    shapes = ((4, 6), (6,), (3, 2, 2, 2), (2,))
    return [nn.Parameter(torch.randn(shape).to(torch.bfloat16).to(dtype)) for shape in shapes]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    """In bfloat16 first, so that every dtype gets the same; the second parameter has none in step 2."""
    generator = torch.Generator().manual_seed(step)
    for place, parameter in enumerate(parameters[:-1]):
        drawn = torch.randn(parameter.shape, generator=generator).to(torch.bfloat16)
        parameter.grad = None if (place, step) == (1, 2) else drawn.to(parameter.dtype)


def tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masters_are_what_a_float32_optimizer_makes_of_the_same_gradients(name: str) -> None:
    halves, wides = params(torch.bfloat16), params(torch.float32)
    optimizer, reference = wrapped(OPTIMIZERS[name](halves), "master"), OPTIMIZERS[name](wides)

    for step in range(6):
        for parameters, each in ((halves, optimizer), (wides, reference)):
            set_gradients(parameters, step)
            each.step()
        for half, wide in zip(halves, wides, strict=True):
            assert torch.equal(half.detach(), wide.detach().to(torch.bfloat16))

    for half, wide in zip(halves[:-1], wides[:-1], strict=True):
        state = tensors(optimizer.state[half])
        assert torch.equal(state.pop("master"), wide)
        expected = tensors(reference.state[wide])
        assert {value.dtype for value in state.values()} <= {torch.float32}
        torch.testing.assert_close(state, expected, rtol=0, atol=0)
    assert not optimizer.state.get(halves[-1], {}).keys() & {"master", "step"} or name.endswith("adagrad")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rounded_step_is_the_float32_step_to_one_of_its_neighbours(name: str) -> None:
    """With masters taken anew from the parameters at each step."""
    halves, wides = params(torch.bfloat16), params(torch.float32)
    optimizer, reference = wrapped(OPTIMIZERS[name](halves), "stochastic"), OPTIMIZERS[name](wides)

    for step in range(6):
        for half, wide in zip(halves, wides, strict=True):
            wide.data.copy_(half.detach())
        for parameters, each in ((halves, optimizer), (wides, reference)):
            set_gradients(parameters, step)
            each.step()
        for half, wide in zip(halves, wides, strict=True):
            below, above = neighbours(wide.detach())
            assert bool(((half == below) | (half == above)).all())

    for half, wide in zip(halves[:-1], wides[:-1], strict=True):
        torch.testing.assert_close(tensors(optimizer.state[half]), tensors(reference.state[wide]), rtol=0, atol=0)


def plain(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return optimizer


@pytest.mark.parametrize("update", UPDATES)
def test_small_updates_are_not_lost(update: str) -> None:
    """1,000 steps of 10^-4 of the value each, whose last bit is 2^-8 of it: from 1 to 1.1."""
    found = {}
    for label, each in (("plain", plain), (update, lambda optimizer: wrapped(optimizer, update))):
        parameter = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
        optimizer = each(torch.optim.SGD([parameter], lr=1e-4))
        for _ in range(1000):
            parameter.grad = -torch.ones_like(parameter)
            optimizer.step()
        found[label] = parameter.detach().float()

    assert set(found["plain"].tolist()) == {1.0}
    assert float(found[update].mean()) == pytest.approx(1.1, abs=0.01)
    if update == "master":
        assert set(found[update].tolist()) == {float(torch.tensor(1.1).to(torch.bfloat16))}


def test_rounding_is_a_function_of_seed_and_step() -> None:
    def end(seed: int, *, draws: int = 0) -> Tensor:
        halves = params(torch.bfloat16)
        optimizer = wrapped(OPTIMIZERS["sgd"](halves), "stochastic", seed)
        for step in range(3):
            torch.rand(draws)  # dropout of a batch of another size, as on another rank
            set_gradients(halves, step)
            optimizer.step()
        return torch.cat([half.detach().flatten() for half in halves])

    assert torch.equal(end(0), end(0, draws=7))
    assert not torch.equal(end(0), end(1))


def test_each_step_rounds_in_its_own_way() -> None:
    parameter = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    optimizer = wrapped(torch.optim.SGD([parameter], lr=2.0**-8), "stochastic")
    ups = []
    for _ in range(2):
        parameter.data.fill_(1.0)
        parameter.grad = -torch.ones_like(parameter)
        optimizer.step()
        ups.append(parameter.detach().float() > 1)

    assert 0.4 < float((ups[0] == ups[1]).float().mean()) < 0.6


def test_an_optimizer_whose_step_runs_no_hooks_is_refused() -> None:
    class Own(torch.optim.Optimizer):
        def __init__(self, base: torch.optim.Optimizer) -> None:
            self.base, self.param_groups, self.state = base, base.param_groups, base.state

        def step(self, closure: Any = None) -> Any:
            return self.base.step(closure)

    own = Own(torch.optim.SGD(params(torch.bfloat16)))
    wrapper = PureBf16(PureBf16Config()).make_optimizer(RunConfig())
    next(wrapper)

    with pytest.raises(UserError, match="bf16_pure does not work with Own, whose step runs no hooks"):
        wrapper.send(own)


# Runs


def bytes_of(parts: TrainingParts) -> set[torch.dtype]:
    return {p.dtype for p in parts.network.parameters()}


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    ("plugins", "sets"),
    [
        (("sgd",), ("sgd.momentum=0", "sgd.lr=0.1")),
        (("sgd",), ("sgd.fused=true", "sgd.lr=0.05")),
        (("adamw",), ("adamw.fused=true", "adamw.lr=0.003")),
        (("adamw",), ("adamw.fused=false", "adamw.lr=0.003")),
        (("adagrad",), ("adagrad.lr=0.01",)),
        (("adamw", "ema"), ("ema.decay=0.5", "adamw.lr=0.003")),
        (("adamw",), ("train.clip_norm=0.5", "adamw.lr=0.003")),
        (("adamw",), ("train.clip_adaptive=0.1", "adamw.lr=0.003")),
        (("adamw",), ("train.accumulate=2", "adamw.lr=0.005")),
        (("adamw", "l1"), ("l1.strength=1e-6", "adamw.lr=0.003")),
        (("adamw", "channels_last", "checkpointing"), ("adamw.lr=0.003",)),
    ],
)
def test_it_learns_with(update: str, plugins: tuple[str, ...], sets: tuple[str, ...]) -> None:
    parts, progress = build(f"bf16_pure.update={update}", "train.epochs=3", *sets, plugins=plugins), Progress()

    fit(parts, progress, lambda _: None)

    assert bytes_of(parts) == {torch.bfloat16}
    states = [tensors(state) for state in parts.optimization.optimizer.state.values()]
    assert {value.dtype for state in states for value in state.values()} <= {torch.float32}
    assert all(("master" in state) == (update == "master") for state in states)
    assert progress.last["accuracy"] > 0.9
    assert all(p.grad is None for p in parts.network.parameters())


@pytest.mark.parametrize("update", UPDATES)
def test_a_frozen_backbone_stays_bit_for_bit_and_has_no_masters(update: str) -> None:
    parts = build(f"bf16_pure.update={update}", plugins=("adamw", "freeze_backbone"))
    before = {name: tensor.detach().clone() for name, tensor in parts.network.state_dict().items()}

    fit(parts, Progress(), lambda _: None)

    moved = {n for n, tensor in parts.network.state_dict().items() if not torch.equal(tensor, before[n])}
    assert moved == {"head.weight", "head.bias"}
    assert {id(p) for p in parts.optimization.optimizer.state} == {
        id(p) for p in parts.network.get_submodule("head").parameters()
    }


def test_the_average_is_in_float32_and_follows() -> None:
    parts = build("ema.decay=0.9", "ema.warmup=false", plugins=("sgd", "ema"))
    average = parts.model_at(0)
    (batch,) = [next(parts.data.train.epoch(0))]
    expected: Tensor = average.get_parameter("head.weight").detach().clone()

    for _ in range(3):
        train_step(parts, [batch], Progress())
        expected = 0.9 * expected + 0.1 * parts.network.get_parameter("head.weight").detach().float()

    assert {p.dtype for p in average.parameters()} == {torch.float32}
    # timm begins with the network itself
    torch.testing.assert_close(average.get_parameter("head.weight").detach(), expected, rtol=0, atol=1e-2)


def test_the_gradient_is_clipped_to_the_norm() -> None:
    parts, norms = build("train.clip_norm=0.01"), list[float]()

    def measure(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))

    parts.optimization.optimizer.register_step_pre_hook(measure)
    train_step(parts, [next(parts.data.train.epoch(0))], Progress())

    assert norms == pytest.approx([0.01], rel=0.01)  # of bfloat16, whose last bit is 0.4 %


@pytest.mark.parametrize("update", UPDATES)
def test_a_run_folder_holds_bfloat16_and_masters_and_predicts(tmp_path: Path, update: str) -> None:
    from PIL import Image

    folder = tmp_path / "run"
    words = ("--plugin", "bf16_pure", "--set", f"bf16_pure.update={update}", "--set", "train.epochs=2")
    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *words, "--set", f"run.folder={folder}")
    assert result.code == 0, result.err

    weights = load_file(folder / "model" / "model.safetensors")
    newest = folder / "checkpoints" / "step-00000020"
    network, optimizer = load_file(newest / "model.safetensors"), checkpoint.load_state(newest)["optimizer"]
    state = {f"{name}/{key}": value for name, held in optimizer["state"].items() for key, value in held.items()}
    learnt = {name for name, tensor in weights.items() if name.rpartition(".")[2] in {"weight", "bias"}}
    assert {weights[name].dtype for name in learnt} == {torch.bfloat16}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    masters = {name.removesuffix("/master"): tensor for name, tensor in state.items() if name.endswith("/master")}
    assert set(masters) == (learnt if update == "master" else set())
    assert all(torch.equal(tensor.to(torch.bfloat16), network[name]) for name, tensor in masters.items())
    assert {name for group in optimizer["groups"] for name in group["params"]} == learnt
    scan = next(image for image, digit in zip(*load_digits(return_X_y=True), strict=True) if digit == 6)
    Image.fromarray((scan.reshape(8, 8) * (255 / 16)).round().astype("uint8")).save(tmp_path / "6.png")
    said = invoke("predict", folder, tmp_path / "6.png", "--json")
    assert said.code == 0, said.err
    assert next(iter(json.loads(said.out)["values"])) == "6"


@pytest.mark.parametrize("other", ["bf16", "fp16", "fp32"])
def test_another_precision_beside_it_is_refused(other: str) -> None:
    with pytest.raises(UserError, match="2 plugins implement precision_context"):
        build(plugins=("sgd", other))


def one_of_two(rank: int, folder: Path) -> None:
    """A few updates on one of two processes whose batches and dropout are their own."""
    from torch import distributed

    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    for update in UPDATES:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4)).to(torch.bfloat16)
        wrapped_network = nn.parallel.DistributedDataParallel(network)
        optimizer = wrapped(torch.optim.AdamW(network.parameters(), lr=0.01), update)
        for _ in range(5):
            images = torch.randn(5 + 3 * rank, 8, dtype=torch.bfloat16)
            wrapped_network(images).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        torch.save(network.state_dict(), folder / f"{update} {rank}.pt")
    distributed.destroy_process_group()
    os._exit(0)  # a thread of torch's that asks for the GIL while Python ends aborts the process


@pytest.mark.slow
def test_two_processes_keep_the_same_weights(tmp_path: Path) -> None:
    """The hooks of DistributedDataParallel survive, and both round alike."""
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate()[1] for process in running]

    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
    for update in UPDATES:
        first, second = (torch.load(tmp_path / f"{update} {rank}.pt") for rank in range(2))
        torch.testing.assert_close(first, second, rtol=0, atol=0)


if __name__ == "__main__":
    one_of_two(int(sys.argv[1]), Path(sys.argv[2]))
