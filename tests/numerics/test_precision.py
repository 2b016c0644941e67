"""fp32, bf16 and fp16 go through one loop; only fp16 scales."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch

from ftcore import EpochEnded, Loss, Placement, Step, StepLogged, UserError
from ftcore.checkpoints import checkpoint
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore.training.loop import fit, train_step
from ftcore.training.state import Progress, TrainingParts
from ftcore_plugins.precision.autocast import Fp32, Tf32

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ftcore import Event


def build(*sets: str, plugins: tuple[str, ...]) -> TrainingParts:
    flags = CliOverrides(
        "digits/cnn", "digits:5-6", plugins=plugins, sets=("train.epochs=2", "train.log_every=1", *sets)
    )
    return prepare(load_config(None, flags)).assembly.parts


def first_step(parts: TrainingParts) -> None:
    train_step(parts, [next(parts.data.train.epoch(0))], Progress())


def state_after_a_run(folder: Path, plugin: str) -> Any:
    sets = ["--set", f"run.folder={folder}", "--set", "train.epochs=1"]
    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", "--plugin", plugin, *sets)
    assert result.code == 0, result.err
    return checkpoint.load_state(folder / "checkpoints" / "step-00000010")


@pytest.mark.parametrize("plugin", [pytest.param("fp16", marks=pytest.mark.slow), "bf16", "fp32"])
def test_each_precision_learns_on_a_cpu(plugin: str) -> None:
    parts = build("adamw.lr=0.003", plugins=(plugin,))
    events: list[Event] = []

    fit(attrs.evolve(parts, observers=(events.append,)), Progress(), lambda _: None)

    steps = [event.loss for event in events if isinstance(event, StepLogged)]
    epochs = [event.train["loss"] for event in events if isinstance(event, EpochEnded)]
    assert all(math.isfinite(loss) for loss in steps)
    assert epochs[1] < 0.7 * epochs[0]


@pytest.mark.parametrize(
    ("plugin", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_the_network_computes_in_the_precision_and_the_loss_in_float32(plugin: str, dtype: torch.dtype) -> None:
    parts = build(plugins=(plugin,))
    inside, outside = [], []
    parts.network.get_submodule("head").register_forward_hook(lambda *given: inside.append(given[2].dtype))

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        outside.append(outputs.dtype)
        return torch.nn.functional.cross_entropy(outputs, targets)

    first_step(attrs.evolve(parts, objective=attrs.evolve(parts.objective, loss=Loss(loss))))

    assert (inside, outside) == ([dtype], [torch.float32])
    assert {p.dtype for p in parts.network.parameters()} == {torch.float32}


def test_the_state_of_the_scaler_is_in_the_checkpoint(tmp_path: Path) -> None:
    scaler = state_after_a_run(tmp_path / "run", "fp16")["scaler"]

    assert scaler["scale"] == 65536.0
    assert scaler["_growth_tracker"] == 10


@pytest.mark.parametrize("plugin", ["fp32", "bf16"])
def test_nothing_is_scaled_where_float32_has_the_range(tmp_path: Path, plugin: str) -> None:
    assert build(plugins=(plugin,)).precision.scaler.is_enabled() is False
    assert state_after_a_run(tmp_path / "run", plugin)["scaler"] == {}


def test_an_overflow_skips_the_step_and_the_schedule_and_lowers_the_scale() -> None:
    parts = build("fp16.init_scale=1e20", "cosine.warmup=0.5", plugins=("fp16", "cosine"))
    before = {name: p.detach().clone() for name, p in parts.network.named_parameters()}
    rate = parts.optimization.optimizer.param_groups[0]["lr"]

    first_step(parts)

    assert all(torch.equal(p, before[name]) for name, p in parts.network.named_parameters())
    assert parts.precision.scaler.get_scale() == pytest.approx(0.5e20)
    assert parts.optimization.optimizer.param_groups[0]["lr"] == rate


def test_without_an_overflow_the_schedule_goes_on() -> None:
    parts = build("cosine.warmup=0.5", plugins=("fp16", "cosine"))
    rate = parts.optimization.optimizer.param_groups[0]["lr"]

    first_step(parts)

    assert parts.optimization.optimizer.param_groups[0]["lr"] > rate


def test_the_gradient_is_clipped_without_its_scale() -> None:
    parts = build("train.clip_norm=1e-3", "fp16.init_scale=1024", "sgd.lr=1", "sgd.momentum=0", plugins=("fp16", "sgd"))
    norms = []

    def measure(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))

    parts.optimization.optimizer.register_step_pre_hook(measure)
    first_step(parts)

    assert norms == pytest.approx([1e-3], rel=1e-3)


def test_the_recorded_loss_is_not_scaled() -> None:
    scaled, plain = build(plugins=("fp16",)), build(plugins=("fp32",))

    losses = [float(train_step(p, [next(p.data.train.epoch(0))], Progress())[0]["loss"]) for p in (scaled, plain)]

    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


# tf32


@pytest.fixture
def _same_products() -> Iterator[None]:
    """What a process allows is put back."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [backend.allow_tf32 for backend in backends]
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def on(device: str) -> Placement:
    network = torch.nn.Identity()
    return Placement(torch.device(device), network, lambda model: model)


def test_tf32_is_refused_on_a_cpu_by_name() -> None:
    with pytest.raises(UserError, match=r"tf32: cpu has no TensorFloat-32, .* use fp32 or bf16"):
        build(plugins=("tf32",))


@pytest.mark.usefixtures("_same_products")
def test_float32_on_a_gpu_is_float32_in_convolutions_too_and_after_another_run() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    Fp32().precision_context(on("cuda"))

    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("_same_products")
def test_convolutions_on_a_gpu_are_as_exact_as_their_name_says() -> None:
    torch.manual_seed(0)
    images, weight = (torch.randn(4, 64, 16, 16, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda"))
    exact = torch.nn.functional.conv2d(images.double(), weight.double())
    errors = {}
    for plugin in (Fp32(), Tf32()):
        precision = plugin.precision_context(on("cuda"))
        with precision.autocast():
            found = torch.nn.functional.conv2d(images, weight)
        errors[precision.name] = float((found - exact).abs().mean() / exact.abs().mean())

    assert errors["fp32"] < 1e-5 < errors["tf32"] < 1e-2


# What else goes with fp16


def test_float16_learns_on_a_frozen_backbone() -> None:
    parts = build("adamw.lr=0.05", "train.epochs=4", plugins=("fp16", "freeze_backbone"))
    before = {name: tensor.detach().clone() for name, tensor in parts.network.state_dict().items()}
    progress = Progress()

    fit(parts, progress, lambda _: None)

    moved = {n for n, tensor in parts.network.state_dict().items() if not torch.equal(tensor, before[n])}
    assert moved == {"head.weight", "head.bias"}
    assert progress.last["train_loss"] < 0.5
    assert parts.precision.scaler.get_scale() == 65536.0


def test_a_term_of_the_step_and_a_regulariser_are_scaled_and_unscaled_with_the_loss() -> None:
    """One update with fp16's scale of 1 and of 4,096."""
    found = []
    for scale in (1, 4096):
        sets = (f"fp16.init_scale={scale}", "l1.strength=0.01", "sgd.lr=0.1", "sgd.momentum=0", "linear.std=0.1")
        parts = build(*sets, plugins=("fp16", "l1", "sgd"))
        parts = attrs.evolve(
            parts,
            objective=attrs.evolve(parts.objective, step=Step({"energy": lambda seen: seen.outputs.square().mean()})),
        )
        terms, _ = train_step(parts, [next(parts.data.train.epoch(0))], Progress())
        found.append((dict(parts.network.state_dict()), {name: float(term) for name, term in terms.items()}))

    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
    assert set(found[0][1]) == {"loss", "energy", "l1"}
