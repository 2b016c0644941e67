"""Optimizers of torch."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from torch import nn

from ftcore import ParamGroup, UserError
from ftcore.checkpoints.serialization import serialize
from ftcore.config.load import CliOverrides, load_config
from ftcore.plugins.startup import activate
from ftcore.testing import invoke
from ftcore.training.resume_state import optimizer_state
from ftcore_plugins.optimizers.adaptive import (
    Adadelta,
    AdadeltaConfig,
    Adafactor,
    AdafactorConfig,
    Adagrad,
    AdagradConfig,
    Asgd,
    AsgdConfig,
)
from ftcore_plugins.optimizers.torch_optimizers import (
    Adam,
    Adamax,
    AdamaxConfig,
    AdamConfig,
    AdamW,
    AdamWConfig,
    NAdam,
    NAdamConfig,
    RAdam,
    RAdamConfig,
    RMSprop,
    RMSpropConfig,
    Sgd,
    SgdConfig,
)

if TYPE_CHECKING:
    from pathlib import Path

BUILT_IN: list[Any] = [Sgd, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta, Adafactor, Asgd]

LEFT_OUT = {"params", "foreach", "capturable", "differentiable", "maximize"}
"""Of torch's options."""

FUSED: list[tuple[Any, Any]] = [
    (Sgd, SgdConfig(0.1, momentum=0.5, nesterov=True, weight_decay=0.1)),
    (Sgd, SgdConfig(0.1, momentum=0.5, dampening=0.3)),
    (Adam, AdamConfig(0.1, weight_decay=0.1, amsgrad=True)),
    (AdamW, AdamWConfig(0.1, weight_decay=0.1)),
    (Adagrad, AdagradConfig(0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5)),
]


def torchs(plugin: Any) -> Any:
    return getattr(torch.optim, plugin.torch_name)


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {"weight": nn.Parameter(torch.randn(3, 4, dtype=dtype)), "bias": nn.Parameter(torch.randn(3, dtype=dtype))}


def three_steps(optimizer: torch.optim.Optimizer, params: dict[str, nn.Parameter]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in params.values():
            parameter.grad = torch.randn(parameter.shape, generator=random).to(parameter.dtype)
        optimizer.step()
    return [parameter.detach().clone() for parameter in params.values()]


@pytest.mark.parametrize(
    ("plugin", "config"),
    [
        *FUSED,
        (Sgd, SgdConfig(0.1, momentum=0.0)),
        (Adam, AdamConfig()),
        (Adam, AdamConfig(0.1, (0.5, 0.6), 0.1, 0.1)),
        (AdamW, AdamWConfig()),
        (AdamW, AdamWConfig(0.1, (0.5, 0.6), 0.1, weight_decay=0.5, amsgrad=True)),
        (NAdam, NAdamConfig()),
        (NAdam, NAdamConfig((0.5, 0.6), 0.1, 0.5, lr=0.1, decoupled_weight_decay=True, momentum_decay=0.1)),
        (RAdam, RAdamConfig()),
        (RAdam, RAdamConfig(0.1, (0.5, 0.6), 0.1, 0.5, decoupled_weight_decay=True)),
        (Adamax, AdamaxConfig((0.5, 0.6), 0.1, 0.5, lr=0.1)),
        (RMSprop, RMSpropConfig(0.02, weight_decay=0.1)),
        (RMSprop, RMSpropConfig(0.1, alpha=0.5, momentum=0.5, eps=0.1, centered=True)),
        (Adadelta, AdadeltaConfig(0.5, 0.5, 0.1, 0.1)),
        (Adafactor, AdafactorConfig()),
        (Adafactor, AdafactorConfig(0.1, -0.5, (1e-4, 0.1), 1.5, 0.1)),
        (Asgd, AsgdConfig(0.1, 0.1, 0.5, 1.0, 0.1)),
    ],
)
def test_three_steps_equal_those_of_torchs_own(plugin: Any, config: Any) -> None:
    ours, theirs = parameters(), parameters()
    made = plugin(config).make_optimizer([ParamGroup("all", ours)])
    options = attrs.asdict(config)
    if "fused" in options:
        options["fused"] = True

    found = three_steps(made, ours)

    expected = three_steps(torchs(plugin)(list(theirs.values()), **options), theirs)
    assert type(made) is torchs(plugin)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not torch.equal(found[0], parameters()["weight"])


@pytest.mark.parametrize(("plugin", "config"), FUSED)
def test_the_fused_kernel_agrees_with_the_steps_that_it_fuses(plugin: Any, config: Any) -> None:
    ours, theirs = parameters(), parameters()
    fused = plugin(config).make_optimizer([ParamGroup("all", ours)])
    plain = plugin(attrs.evolve(config, fused=False)).make_optimizer([ParamGroup("all", theirs)])

    found, expected = three_steps(fused, ours), three_steps(plain, theirs)

    assert (fused.param_groups[0]["fused"], plain.param_groups[0]["fused"]) == (True, False)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("plugin", [Sgd, Adam, AdamW, Adagrad])
def test_parameters_that_no_fused_kernel_takes_are_updated_without_one(plugin: Any) -> None:
    params = parameters(torch.complex64)

    optimizer = plugin(plugin.Config()).make_optimizer([ParamGroup("all", params)])
    three_steps(optimizer, params)

    assert optimizer.param_groups[0]["fused"] is False
    assert not torch.equal(params["weight"], parameters(torch.complex64)["weight"])


def test_sgd_moves_parameters_that_start_to_learn_later() -> None:
    first, later = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    groups = [ParamGroup("all", {"first": first, "later": later})]
    optimizer = Sgd(SgdConfig(lr=0.1)).make_optimizer(groups)

    for parameter in (first, later):
        parameter.requires_grad = True
        torch.stack([p.sum() for p in (first, later) if p.requires_grad]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    assert first.tolist() == pytest.approx([1 - 0.1 - 0.1 * 1.9] * 2)
    assert later.tolist() == pytest.approx([0.9] * 2)
    later.requires_grad = False
    with pytest.raises(UserError, match="does not support parameters that are unfrozen later, such as later"):
        Sgd(SgdConfig(fused=True)).make_optimizer(groups)


def test_a_fused_kernel_that_there_is_not_is_refused_where_it_was_asked_for() -> None:
    with pytest.raises(UserError, match=r"adamw\.fused = true: .* not torch\.complex64 on cpu"):
        AdamW(AdamWConfig(fused=True)).make_optimizer([ParamGroup("all", parameters(torch.complex64))])
    with pytest.raises(UserError, match=r"not torch\.float32 on meta"):
        Sgd(SgdConfig(fused=True)).make_optimizer(
            [ParamGroup("all", {"a": nn.Parameter(torch.ones(1, device="meta"))})]
        )


@pytest.mark.parametrize("plugin", BUILT_IN)
def test_every_option_of_torchs_is_offered_or_known_to_be_left_out(plugin: Any) -> None:
    theirs = set(inspect.signature(torchs(plugin)).parameters)
    adamw = {"decoupled_weight_decay"} if plugin is Adam else set()  # Adam with it is AdamW

    assert {option.name for option in attrs.fields(plugin.Config)} == theirs - LEFT_OUT - adamw


@pytest.mark.parametrize("plugin", BUILT_IN)
def test_defaults_are_torchs_unless_the_docstring_says_otherwise(plugin: Any) -> None:
    theirs = inspect.signature(torchs(plugin)).parameters

    found = {name: value for name, value in attrs.asdict(plugin.Config()).items() if theirs[name].default != value}

    expected = {Sgd: {"lr": 0.01, "momentum": 0.9}, RMSprop: {"lr": 0.001}}.get(plugin, {})
    assert found == expected
    assert all(f"torch's {float(theirs[name].default)}" in plugin.Config.__doc__ for name in found)


@pytest.mark.parametrize("plugin", BUILT_IN)
def test_every_option_is_documented(plugin: Any) -> None:
    assert all(f"        {option.name}: " in plugin.Config.__doc__ for option in attrs.fields(plugin.Config))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sgd.betas=[0.9, 0.999]", r"unknown option 'sgd\.betas' .*allowed: lr, momentum, dampening, nesterov, weight"),
        ("adam.momentum=0.9", r"unknown option 'adam\.momentum'"),
        ("adam.decoupled_weight_decay=true", r"unknown option 'adam\.decoupled_weight_decay'"),
        ("adamw.weight_deacy=0.1", r"'adamw\.weight_deacy'; did you mean 'weight_decay'\?"),
        ("rmsprop.betas=[0.9, 0.9]", r"unknown option 'rmsprop\.betas'"),
        ("sgd.lr=0", r"sgd\.lr: 'lr' must be > 0.* 0\.0"),
        ("nadam.lr=-1", r"nadam\.lr: 'lr' must be > 0.* -1\.0"),
        ("adadelta.lr=-1", r"adadelta\.lr: 'lr' must be > 0"),
        ("sgd.momentum=1", r"sgd\.momentum: 'momentum' must be < 1.* 1\.0"),
        ("sgd.dampening=1", r"sgd\.dampening: 'dampening' must be < 1"),
        ("sgd.weight_decay=-1", r"sgd\.weight_decay: 'weight_decay' must be >= 0"),
        ("adam.betas=[0.9, 1.0]", r"adam\.betas: 'betas' must be < 1"),
        ("adamax.betas=[-0.1, 0.5]", r"adamax\.betas: 'betas' must be >= 0"),
        ("adam.betas=[0.9]", r"adam\.betas: expected 2 values, got 1"),
        ("adamw.eps=0", r"adamw\.eps: 'eps' must be > 0"),
        ("rmsprop.alpha=1", r"rmsprop\.alpha: 'alpha' must be < 1"),
        ("nadam.momentum_decay=-1", r"nadam\.momentum_decay: 'momentum_decay' must be >= 0"),
        ("adagrad.lr_decay=-1", r"adagrad\.lr_decay: 'lr_decay' must be >= 0"),
        ("adagrad.initial_accumulator_value=-1", r"'initial_accumulator_value' must be >= 0"),
        ("adadelta.rho=1", r"adadelta\.rho: 'rho' must be < 1"),
        ("adafactor.beta2_decay=0", r"adafactor\.beta2_decay: 'beta2_decay' must be < 0"),
        ("adafactor.d=0.5", r"adafactor\.d: 'd' must be >= 1"),
        ("adafactor.eps=[0, 1]", r"adafactor\.eps: 'eps' must be > 0"),
        ("asgd.t0=-1", r"asgd\.t0: 't0' must be >= 0"),
        ("asgd.alpha=-1", r"asgd\.alpha: 'alpha' must be >= 0"),
        ("asgd.lambd=-1", r"asgd\.lambd: 'lambd' must be >= 0"),
        ("nadam.decoupled_weight_decay=true", r"nadam: decoupled_weight_decay = true needs weight_decay > 0"),
        ("radam.decoupled_weight_decay=true", r"radam: decoupled_weight_decay = true needs weight_decay > 0"),
    ],
)
def test_options_that_torch_lacks_or_refuses_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        activate(load_config(None, CliOverrides(plugins=(text.partition(".")[0],), sets=(text,))))


def test_dampening_without_what_it_dampens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dampening = 0\.1 needs momentum > 0 and nesterov = false"):
        SgdConfig(momentum=0.0, dampening=0.1)
    with pytest.raises(ValueError, match=r"dampening = 0\.1 needs momentum > 0 and nesterov = false"):
        SgdConfig(nesterov=True, dampening=0.1)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_learning_rate_is_a_finite_number(value: str) -> None:
    with pytest.raises(UserError, match=r"sgd\.lr: expected a finite number, got"):
        activate(load_config(None, CliOverrides(plugins=("sgd",), sets=(f"sgd.lr={value}",))))


def test_nesterov_without_momentum_ends_with_one_message(tmp_path: Path) -> None:
    sets = ("sgd.nesterov=true", "sgd.momentum=0", f"run.folder={tmp_path / 'run'}")

    result = invoke("run", "--plugin", "sgd", *(flag for text in sets for flag in ("--set", text)))

    assert result.code == 2
    assert "nesterov" in result.err


def by_dimension(params: dict[str, nn.Parameter]) -> list[ParamGroup]:
    return [ParamGroup(name, {name: p}, weight_decay=p.ndim > 1) for name, p in params.items()]


@pytest.mark.parametrize("plugin", BUILT_IN)
def test_weight_decay_moves_only_what_decays(plugin: Any) -> None:
    params = parameters()
    no_pull = {"lambd": 0.0} if plugin is Asgd else {}
    optimizer = plugin(plugin.Config(lr=0.1, weight_decay=0.5, **no_pull)).make_optimizer(by_dimension(params))
    for parameter in params.values():
        parameter.grad = torch.zeros_like(parameter)

    optimizer.step()

    assert not torch.equal(params["weight"], parameters()["weight"])
    assert torch.equal(params["bias"], parameters()["bias"])


@pytest.mark.parametrize("plugin", BUILT_IN)
def test_a_groups_scale_is_a_factor_on_the_learning_rate(plugin: Any) -> None:
    params = parameters()
    groups = [
        ParamGroup("still", {"weight": params["weight"]}, lr_scale=0.0),
        ParamGroup("slow", {"bias": params["bias"]}, lr_scale=0.1),
    ]

    optimizer = plugin(plugin.Config(lr=0.5)).make_optimizer(groups)
    weight, bias = three_steps(optimizer, params)

    assert [group["lr"] for group in optimizer.param_groups] == [0.0, pytest.approx(0.05)]
    assert torch.equal(weight, parameters()["weight"])
    assert not torch.equal(bias, parameters()["bias"])


class Net(nn.Module):
    """A module with the parameters of these tests."""

    def __init__(self) -> None:
        super().__init__()
        for name, parameter in parameters().items():
            self.register_parameter(name, parameter)


@pytest.mark.parametrize("plugin", BUILT_IN)
def test_the_state_is_saved_by_name_and_plain(plugin: Any) -> None:
    net = Net()
    params = dict(net.named_parameters())
    optimizer = plugin(plugin.Config(lr=0.1)).make_optimizer([ParamGroup("all", params)])
    three_steps(optimizer, params)

    state = optimizer_state(net, optimizer)

    assert state["state"] == {name: optimizer.state[parameter] for name, parameter in params.items()} != {}
    assert json.loads(json.dumps(serialize(state, "optimizer", {})))["groups"][0]["lr"] == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["sgd", "adam", "adamw", "adagrad"])
def test_float16_with_its_scaler_learns_with_a_fused_kernel(tmp_path: Path, plugin: str) -> None:
    sets = (f"{plugin}.fused=true", f"run.folder={tmp_path / 'run'}", "train.epochs=2")
    plugins = ("--plugin", "fp16", "--plugin", plugin)

    result = invoke(
        "run",
        "--data",
        "digits:5-6",
        "--model",
        "digits/cnn",
        *plugins,
        *(flag for text in sets for flag in ("--set", text)),
    )

    assert result.code == 0, result.err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line)["train"]["loss"] for line in lines)
    assert second < 0.8 * first
