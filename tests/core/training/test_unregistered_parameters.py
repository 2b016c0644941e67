"""A parameter that no optimizer has is found before training; the way out that the error names is one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from ftcore import UserError
from ftcore.config import CliOverrides, load_config
from ftcore.runs import fit
from ftcore.runs.prepared import prepare
from ftcore.training.unregistered_parameters import unregistered

if TYPE_CHECKING:
    from pathlib import Path

TOP = """
from functools import partial
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, normalize
from ftcore import Loss, Regularizer, Step, hookimpl

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, outputs, targets):
        return cross_entropy(self.scale * outputs, targets)

scaled = Scaled()
"""

HOLDING = {
    "a module": ("make_loss", "def make_loss():\n    return Loss(Scaled())"),
    "a bare module": ("make_loss", "def make_loss():\n    return Scaled()"),
    "a method": ("make_loss", "def make_loss():\n    return Loss(Scaled().forward)"),
    "a partial": ("make_loss", "def make_loss():\n    return Loss(partial(Scaled()))"),
    "a closure": ("make_loss", "def make_loss():\n    s = Scaled()\n    return Loss(lambda o, t: s(o, t))"),
    "a global": ("make_loss", "def make_loss():\n    return Loss(lambda o, t: scaled(o, t))"),
    "a term": ("make_step", "def make_step():\n    s = Scaled()\n    return Step({'mine': lambda seen: s.scale})"),
    "a penalty": (
        "make_regularizers",
        "def make_regularizers():\n    p = nn.Parameter(torch.ones(3))\n    return [Regularizer('mine', p.sum)]",
    ),
}


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_scaled", raising=False)
    return tmp_path / "acme_scaled.py"


def config(hooks: Path, text: str, *sets: str) -> Any:
    hooks.write_text(f"{TOP}\n{text}\n", encoding="utf-8")
    name = f"{hooks}:Acme" if "class Acme" in text else str(hooks)
    return load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=(name,), sets=sets))


@pytest.mark.parametrize("how", HOLDING)
def test_parameters_that_would_never_learn_are_refused_with_the_plugin_and_the_way_out(how: str, hooks: Path) -> None:
    hook, text = HOLDING[how]

    with pytest.raises(UserError) as told:
        prepare(config(hooks, f"@hookimpl\n{text}"))

    assert "acme_scaled" in str(told.value)
    assert "has parameters that would not be trained, because the optimizer only gets those of the network" in str(
        told.value
    )
    assert "let build_head of the plugin return a head that registers them" in str(told.value)
    assert told.value.faulty_plugins[0] == "acme_scaled"
    assert hook in str(told.value)


WAY_OUT = """
class Cosines(nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, features) * 0.1)
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, features):
        return linear(normalize(features), normalize(self.weight)) * {inside}

class Margin(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, outputs, targets):
        margin = 0.1 * torch.nn.functional.one_hot(targets, outputs.shape[1])
        return cross_entropy(self.scale * (outputs - margin), targets)

class Acme:
    @hookimpl
    def build_head(self, slot, task):
        self.head = Cosines(slot.in_features, task.outputs)
        return self.head

    @hookimpl
    def make_loss(self):
        return Loss({loss})
"""


@pytest.mark.parametrize(
    ("inside", "loss"),
    [("self.scale", "lambda o, t: cross_entropy(o, t)"), ("1", "Margin(self.head.scale)")],
    ids=["used by the head", "shared with the loss"],
)
def test_parameters_of_the_head_learn_also_where_the_loss_shares_them(inside: str, loss: str, hooks: Path) -> None:
    folder = hooks.parent / "run"
    sets = ("train.epochs=2", f"run.folder={folder}", "adamw.lr=0.01")

    asked = config(hooks, WAY_OUT.format(inside=inside, loss=loss), *sets)
    report = fit(asked)

    from ftcore import load

    head: Any = load(folder).module.get_submodule("head")
    assert head.scale.item() != 5.0
    assert report["best"]["accuracy"] > 0.9


def test_what_the_network_shares_and_what_is_frozen_is_let_pass() -> None:
    network, teacher = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(requires_grad=False)
    known = {id(parameter) for parameter in network.parameters()} | {id(network)}

    class Holds:
        def __init__(self) -> None:
            self.parts: dict[str, Any] = {"network": network, "teacher": teacher, "weight": network.weight}

        def __call__(self) -> Any:
            return self.parts["weight"].sum()

    own = nn.Parameter(torch.ones(2))
    holds = Holds()
    assert unregistered(lambda: (network, teacher, holds), known) == {}
    holds.parts["own"] = own
    assert list(unregistered(holds, known)) == ["parts.own"]
