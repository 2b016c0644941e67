"""Every optimizer of timm."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from torch import nn
from torch.nn import functional

from ftcore import ParamGroup, UserError
from ftcore.checkpoints.serialization import deserialize, serialize
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore.training.resume_state import load_optimizer, optimizer_state
from ftcore_plugins.optimizers.timm_optimizers import TimmOptimizer, TimmOptimizerConfig, unusable

if TYPE_CHECKING:
    from torch.optim import Optimizer

USABLE = [name for name in list_optimizers() if not unusable(name)]
LOOKING_AHEAD = ["lookahead_sgd", "lookahead_adamw", "lookahead_lamb", "lookahead_muon"]


class Net(nn.Module):
    """Both convolutions, a norm and a head, large enough for what factors matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 20, 3, bias=False), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 20, 3))
        self.head = nn.Linear(20, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.body(images).mean((2, 3)))
        return found


def groups(net: nn.Module) -> list[ParamGroup]:
    named = dict(net.named_parameters())
    return [
        ParamGroup("matrices", {name: p for name, p in named.items() if p.ndim > 1}),
        ParamGroup("slow", {"head.bias": named["head.bias"]}, lr_scale=0.1, weight_decay=False),
        ParamGroup("vectors", {n: p for n, p in named.items() if p.ndim == 1 and n != "head.bias"}, weight_decay=False),
    ]


def make(net: nn.Module, name: str, lr: float | None = 0.01, **options: Any) -> Optimizer:
    return TimmOptimizer(TimmOptimizerConfig(name, lr, 0.05, options)).make_optimizer(groups(net))


def take_steps(net: nn.Module, optimizer: Optimizer, steps: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        images = torch.randn(8, 3, 8, 8, generator=random)
        loss = functional.cross_entropy(net(images), torch.randint(0, 4, (8,), generator=random))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("name", [*USABLE, *LOOKING_AHEAD])
def test_each_takes_finite_steps_with_all_parameters(name: str) -> None:
    net = Net()
    optimizer = make(net, name)
    before = weights(net)

    take_steps(net, optimizer, 3, seed=1)

    assert all(p.isfinite().all() for p in net.parameters())
    assert [n for n, p in net.named_parameters() if torch.equal(p, before[n])] == []
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())


@pytest.mark.parametrize("name", [*USABLE, *LOOKING_AHEAD])
def test_each_goes_on_from_its_saved_state_as_if_nothing_had_been(name: str) -> None:
    net, other = Net(), Net()
    optimizer = make(net, name)
    take_steps(net, optimizer, 7, seed=1)

    tensors: dict[str, torch.Tensor] = {}
    plain = serialize(optimizer_state(net, optimizer), "optimizer", tensors)
    other.load_state_dict(net.state_dict())
    again = make(other, name)
    state = deserialize(json.loads(json.dumps(plain)), safetensors.torch.load(safetensors.torch.save(tensors)))
    load_optimizer(other, again, state, Path("saved"))
    take_steps(net, optimizer, 5, seed=2)
    take_steps(other, again, 5, seed=2)

    torch.testing.assert_close(weights(other), weights(net), rtol=0, atol=0)
    kept, found = optimizer_state(net, optimizer), optimizer_state(other, again)
    torch.testing.assert_close(found["state"], kept["state"], rtol=0, atol=0)
    assert found["groups"] == kept["groups"]


@pytest.mark.parametrize("name", [*USABLE, "lookahead_adamw"])
def test_each_equals_timms_own(name: str) -> None:
    net, other = Net(), Net()
    made = [
        {"params": list(g.params.values()), "lr": 0.01 * g.lr_scale, "weight_decay": 0.05 * g.weight_decay}
        for g in groups(other)
    ]

    take_steps(net, make(net, name), 7, seed=1)
    take_steps(other, create_optimizer_v2(made, name, lr=0.01, weight_decay=0.05), 7, seed=1)

    torch.testing.assert_close(weights(net), weights(other), rtol=0, atol=0)


def test_options_reach_the_optimizer() -> None:
    settings = make(Net(), "lion", betas=[0.5, 0.6], caution=True).param_groups[0]

    assert (settings["betas"], settings["caution"]) == ((0.5, 0.6), True)


@pytest.mark.parametrize("name", USABLE)
def test_the_rate_is_the_optimizers_own_where_none_is_given(name: str) -> None:
    own = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters["lr"].default

    if isinstance(own, float):
        assert [g["lr"] for g in make(Net(), name, None).param_groups] == pytest.approx([own, 0.1 * own, own])
    else:
        with pytest.raises(UserError, match=f"timm_optim.lr must be set: {name} has no default learning rate"):
            make(Net(), name, None)


def test_muon_leaves_vectors_to_adam() -> None:
    net = Net()
    optimizer = make(net, "muon")

    take_steps(net, optimizer, 1, seed=1)

    by_muon = {name for name, p in net.named_parameters() if "momentum_buffer" in optimizer.state[p]}
    assert by_muon == {"body.0.weight", "body.3.weight"} | ({"head.weight"} & by_muon)
    assert all("exp_avg" in optimizer.state[p] for name, p in net.named_parameters() if name not in by_muon)


def test_lookahead_goes_half_the_way_back_every_six_steps() -> None:
    net, other = Net(), Net()
    looking, plain = (
        make(net, "lookahead_sgd", momentum=0.0, nesterov=False),
        make(other, "sgd", momentum=0.0, nesterov=False),
    )
    states = []
    for seed in range(13):
        take_steps(net, looking, 1, seed)
        take_steps(other, plain, 1, seed)
        states.append(weights(other))
        if seed == 5:  # timm's slow weights begin here
            other.load_state_dict(net.state_dict())
        if seed == 11:
            half = {name: (states[5][name] + p) / 2 for name, p in weights(other).items()}
            torch.testing.assert_close(weights(net), half, rtol=1e-5, atol=1e-6)
            return


@pytest.mark.parametrize("name", sorted(set(list_optimizers()) - set(USABLE)))
def test_what_cannot_be_used_is_refused_by_name_with_the_reason(name: str) -> None:
    reasons = "needs apex|needs bitsandbytes|needs second derivatives|keeps a dtype|keeps lists of tensors"

    with pytest.raises(UserError, match=rf"timm_optim\.name = '{name}' cannot be used: it ({reasons})"):
        make(Net(), name)
    with pytest.raises(UserError, match=rf"'lookahead_{name}' cannot be used"):
        make(Net(), f"lookahead_{name}")


def test_what_cannot_be_used_is_little() -> None:
    refused = {name for name in set(list_optimizers()) - set(USABLE) if not name.startswith(("bnb", "fused"))}

    assert refused == {"adahessian", "kron", "kronc", "kronw"} | {
        f"{c}adafactorbv{d}" for c in ("", "c") for d in ("", "c")
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "lamp",
            {},
            r"timm_optim\.name = 'lamp' is not an optimizer of timm; did you mean 'lamb'\? \(available: adabelief",
        ),
        ("lookahead_adamv", {}, r"'lookahead_adamv' is not an optimizer of timm; did you mean 'lookahead_adam"),
        ("lion", {"beta": [0.9, 0.99]}, r"timm_optim\.options\.beta: lion takes no 'beta'; did you mean 'betas'\?"),
        ("lion", {"eps": 1e-8}, r"lion takes no 'eps' \(it takes betas, caution, corrected_weight_decay\)"),
        ("lion", {"lr": 1.0}, r"timm_optim\.options\.lr is set as timm_optim\.lr"),
        ("lion", {"weight_decay": 1.0}, r"timm_optim\.options\.weight_decay is set as timm_optim\.weight_decay"),
        ("lion", {"maximize": True}, r"lion takes no 'maximize'"),
        ("lion", {"betas": [0.9]}, r"options\.betas: expected 2 numbers, got \[0\.9\]"),
        ("lion", {"betas": 0.9}, r"options\.betas: expected 2 numbers, got 0\.9"),
        ("lion", {"betas": ["a", "b"]}, r"options\.betas: expected 2 numbers"),
        (
            "lion",
            {"betas": [1.5, 0.9]},
            r"timm_optim\.options = \{'betas': \[1\.5, 0\.9\]\}: lion rejects them: Invalid beta",
        ),
        ("lion", {"caution": "false"}, r"options\.caution: expected true or false, got 'false'"),
        ("lamb", {"eps": "a"}, r"options\.eps: expected a finite number, got 'a'"),
        ("lamb", {"eps": float("inf")}, r"options\.eps: expected a finite number, got inf"),
        ("muon", {"ns_steps": 2.5}, r"options\.ns_steps: expected an integer, got 2\.5"),
        ("muon", {"conv_mode": "x"}, r"muon rejects them: Invalid conv_mode: x"),
        ("mars", {"mars_type": "x"}, r"mars rejects them: MARS type not supported"),
        ("sgd", {"momentum": 0.0}, r"sgd rejects them: Nesterov momentum requires a momentum and zero dampening"),
    ],
)
def test_what_an_optimizer_does_not_take_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TimmOptimizer(TimmOptimizerConfig(name, 0.01, options=options)).make_optimizer(groups(Net()))


def test_lists_of_options_are_as_good_as_timms_tuples() -> None:
    net, other = Net(), Net()

    take_steps(net, make(net, "adan", betas=[0.5, 0.6, 0.7]), 3, seed=1)
    take_steps(other, make(other, "adan", betas=(0.5, 0.6, 0.7)), 3, seed=1)

    torch.testing.assert_close(weights(net), weights(other), rtol=0, atol=0)
    assert not torch.equal(net.head.weight, Net().head.weight)


def test_options_are_set_on_the_command_line() -> None:
    sets = ("timm_optim.name=muon", "timm_optim.options={ns_steps = 3, betas = [0.8, 0.9]}")
    flags = CliOverrides("digits/cnn", "digits:5-6", plugins=("timm_optim",), sets=("train.epochs=1", *sets))

    settings = prepare(load_config(None, flags)).assembly.parts.optimization.optimizer.param_groups[0]

    assert (settings["ns_steps"], settings["betas"], settings["momentum"]) == (3, (0.8, 0.9), 0.9)


@pytest.mark.parametrize("name", ["lamb", "lookahead_adamw", "muon"])
def test_a_run_learns_and_is_saved(tmp_path: Path, name: str) -> None:
    sets = (f"timm_optim.name={name}", "timm_optim.lr=0.003", f"run.folder={tmp_path / 'run'}", "train.epochs=2")

    result = invoke(
        "run",
        "--data",
        "digits:5-6",
        "--model",
        "digits/cnn",
        "--plugin",
        "timm_optim",
        *(flag for text in sets for flag in ("--set", text)),
    )

    assert result.code == 0, result.err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line)["train"]["loss"] for line in lines)
    assert second < first
