"""Optimizers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from torch import nn

from ftcore import ParamGroup, UserError
from ftcore.config import Flags, load
from ftcore.run import activate
from ftcore.testing import invoke
from ftcore_plugins.optimizers import (
    Adam,
    AdamConfig,
    AdamW,
    AdamWConfig,
    RMSprop,
    RMSpropConfig,
    Sgd,
    SgdConfig,
)

if TYPE_CHECKING:
    from pathlib import Path

BUILT_IN = [(Sgd, SgdConfig), (Adam, AdamConfig), (AdamW, AdamWConfig), (RMSprop, RMSpropConfig)]


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {"weight": nn.Parameter(torch.randn(3, 4)), "bias": nn.Parameter(torch.randn(3))}


def three_steps(optimizer: torch.optim.Optimizer, params: dict[str, nn.Parameter]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in params.values():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        optimizer.step()
    return [parameter.detach().clone() for parameter in params.values()]


@pytest.mark.parametrize(
    ("plugin", "config", "torchs", "options"),
    [
        (Sgd, SgdConfig, torch.optim.SGD, {"lr": 0.1}),
        (Sgd, SgdConfig, torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
        (Adam, AdamConfig, torch.optim.Adam, {}),
        (Adam, AdamConfig, torch.optim.Adam, {"lr": 0.1, "betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.1}),
        (AdamW, AdamWConfig, torch.optim.AdamW, {}),
        (AdamW, AdamWConfig, torch.optim.AdamW, {"lr": 0.1, "betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.5}),
        (RMSprop, RMSpropConfig, torch.optim.RMSprop, {"lr": 0.02, "weight_decay": 0.1}),
        (RMSprop, RMSpropConfig, torch.optim.RMSprop, {"lr": 0.1, "alpha": 0.5, "momentum": 0.5, "centered": True}),
    ],
)
def test_three_steps_equal_those_of_torchs_own(plugin: Any, config: Any, torchs: Any, options: dict[str, Any]) -> None:
    ours, theirs = parameters(), parameters()
    made = plugin(config(**options)).make_optimizer([ParamGroup("all", ours)])
    momentum = {"momentum": 0.9} if plugin is Sgd and "momentum" not in options else {}

    found = three_steps(made, ours)

    expected = three_steps(torchs(list(theirs.values()), **options, **momentum), theirs)
    assert type(made) is torchs
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not torch.equal(found[0], parameters()["weight"])


@pytest.mark.parametrize(("plugin", "config"), BUILT_IN)
def test_every_option_is_one_of_torchs(plugin: Any, config: Any) -> None:
    torchs = inspect.signature(getattr(torch.optim, plugin.torch_name)).parameters

    assert {option.name for option in attrs.fields(config)} <= set(torchs)


@pytest.mark.parametrize(("plugin", "config"), BUILT_IN)
def test_defaults_are_torchs_unless_the_docstring_says_otherwise(plugin: Any, config: Any) -> None:
    torchs = inspect.signature(getattr(torch.optim, plugin.torch_name)).parameters

    found = {name: value for name, value in attrs.asdict(config()).items() if torchs[name].default != value}

    expected = {Sgd: {"lr": 0.01, "momentum": 0.9}, RMSprop: {"lr": 0.001}}.get(plugin, {})
    assert found == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sgd.betas=[0.9, 0.999]", r"unknown option 'sgd\.betas' .*allowed: lr, momentum, nesterov, weight_decay"),
        ("adam.momentum=0.9", r"unknown option 'adam\.momentum'"),
        ("adamw.weight_deacy=0.1", r"'adamw\.weight_deacy'; did you mean 'weight_decay'\?"),
        ("rmsprop.betas=[0.9, 0.9]", r"unknown option 'rmsprop\.betas'"),
        ("sgd.lr=0", r"sgd\.lr: 'lr' must be > 0"),
        ("sgd.momentum=1", r"sgd\.momentum: 'momentum' must be < 1"),
        ("sgd.weight_decay=-1", r"sgd\.weight_decay: 'weight_decay' must be >= 0"),
        ("adam.betas=[0.9, 1.0]", r"adam\.betas: 'betas' must be < 1"),
        ("adam.betas=[0.9]", r"adam\.betas: expected 2 values, got 1"),
        ("adamw.eps=0", r"adamw\.eps: 'eps' must be > 0"),
        ("rmsprop.alpha=1", r"rmsprop\.alpha: 'alpha' must be < 1"),
    ],
)
def test_options_that_torch_lacks_or_refuses_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        activate(load(None, Flags(plugins=(text.partition(".")[0],), sets=(text,))))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_learning_rate_is_a_finite_number(value: str) -> None:
    with pytest.raises(UserError, match=r"sgd\.lr: expected a finite number, got"):
        activate(load(None, Flags(plugins=("sgd",), sets=(f"sgd.lr={value}",))))


def test_nesterov_without_momentum_ends_with_one_message(tmp_path: Path) -> None:
    sets = ("sgd.nesterov=true", "sgd.momentum=0", f"run.folder={tmp_path / 'run'}")

    result = invoke("run", "--plugin", "sgd", *(flag for text in sets for flag in ("--set", text)))

    assert result.code == 2
    assert "nesterov" in result.err


def by_dimension(params: dict[str, nn.Parameter]) -> list[ParamGroup]:
    return [ParamGroup(name, {name: p}, decay=p.ndim > 1) for name, p in params.items()]


@pytest.mark.parametrize(("plugin", "config"), BUILT_IN)
def test_weight_decay_moves_only_what_decays(plugin: Any, config: Any) -> None:
    params = parameters()
    optimizer = plugin(config(lr=0.1, weight_decay=0.5)).make_optimizer(by_dimension(params))
    for parameter in params.values():
        parameter.grad = torch.zeros_like(parameter)

    optimizer.step()

    assert not torch.equal(params["weight"], parameters()["weight"])
    assert torch.equal(params["bias"], parameters()["bias"])


@pytest.mark.parametrize(("plugin", "config"), BUILT_IN)
def test_a_groups_scale_is_a_factor_on_the_learning_rate(plugin: Any, config: Any) -> None:
    params = parameters()
    groups = [
        ParamGroup("still", {"weight": params["weight"]}, lr_scale=0.0),
        ParamGroup("slow", {"bias": params["bias"]}, lr_scale=0.1),
    ]

    optimizer = plugin(config(lr=0.5)).make_optimizer(groups)
    weight, bias = three_steps(optimizer, params)

    assert [group["lr"] for group in optimizer.param_groups] == [0.0, pytest.approx(0.05)]
    assert torch.equal(weight, parameters()["weight"])
    assert not torch.equal(bias, parameters()["bias"])
