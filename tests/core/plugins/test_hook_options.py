from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ftcore.config import CliOverrides, load_config
from ftcore.errors import UserError
from ftcore.plugins import HookCalls
from ftcore.plugins.startup import activate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftcore.plugins.host import Host

NO_RATE = """
import torch
from ftcore import hookimpl

@hookimpl
def make_optimizer(param_groups):
    return torch.optim.SGD([{"params": list(group.parameters)} for group in param_groups], lr=0.1)
"""


def host(plugins: Sequence[str] = (), sets: Sequence[str] = (), **flags: str) -> Host:
    return activate(load_config(None, CliOverrides(plugins=plugins, sets=sets, flags=flags)))


def option(plugin: str, name: str, of: Host) -> object:
    return getattr(next(one for one in of.plugins if one.name == plugin).config, name)


@pytest.mark.parametrize(
    ("plugins", "optimizer"),
    [
        ((), "adamw"),
        (("sgd",), "sgd"),
        (("timm_optim",), "timm_optim"),
        (("linear_probe",), "adamw"),
        (("lp_ft",), "adamw"),
    ],
)
def test_the_rate_is_that_of_the_optimizer_of_the_run_also_where_a_recipe_set_it(
    plugins: tuple[str, ...], optimizer: str
) -> None:
    sets = ("timm_optim.name=lion",) if optimizer == "timm_optim" else ()
    made = host(plugins, sets, lr="0.0123")

    assert option(optimizer, "lr", made) == 0.0123
    assert made.config.origin(f"plugin.{optimizer}.lr") == "--lr 0.0123"
    assert made.config.hook_options == ()


def test_the_rate_beats_that_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('plugins = ["sgd"]\n[plugin.sgd]\nlr = 0.5\n', encoding="utf-8")

    made = activate(load_config(file, CliOverrides(flags={"lr": "0.25"})))

    assert option("sgd", "lr", made) == 0.25


def test_a_value_that_does_not_fit_names_the_flag() -> None:
    with pytest.raises(UserError, match=r"sgd\.lr: .*-1.* \(--lr -1\)"):
        host(("sgd",), lr="-1")


def test_the_device_is_that_of_the_plugin_that_places_the_network() -> None:
    assert option("one_device", "device", host(device="cpu")) == "cpu"
    assert option("ddp", "device", host(("ddp",), device="cpu")) == "cpu"


def test_an_optimizer_without_a_rate_is_named(tmp_path: Path) -> None:
    (tmp_path / "rateless.py").write_text(NO_RATE, encoding="utf-8")

    with pytest.raises(UserError, match=r"--lr 0.1: rateless, which implements make_optimizer, has no option 'lr'"):
        host((str(tmp_path / "rateless.py"),), lr="0.1")


def test_of_two_optimizers_none_is_meant_unless_hooks_puts_one_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sgd and adam both implement make_optimizer"):
        host(("sgd", "adam"), lr="0.1")
    file = tmp_path / "run.toml"
    file.write_text('plugins = ["sgd", "adam"]\n[hooks]\nmake_optimizer = ["adam", "sgd"]\n', encoding="utf-8")

    made = activate(load_config(file, CliOverrides(flags={"lr": "0.25"})))

    assert option("adam", "lr", made) == 0.25
    assert option("sgd", "lr", made) != 0.25


def test_hyphens_stand_for_underscores_in_names_of_plugins_and_options() -> None:
    made = host(("linear-probe",), ("train.batch-size=8", "linear-probe.lr=0.5"))

    assert option("adamw", "lr", made) == 0.5
    assert made.config.train.batch_size == 8
    assert HookCalls(made) is not None
