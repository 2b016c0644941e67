from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from ftcore import UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.plugins.discovery import discover
from ftcore.plugins.recipes import expand_recipes
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ftcore.config.schema import RunConfig

NESTED = """
from ftcore import Recipe, hookimpl

class Outer:
    def recipe(self):
        return Recipe(("linear_probe", "sgd"), {"train.epochs": 7, "sgd.lr": 0.5, "linear_probe.lr": 0.03})

class Wrong:
    def recipe(self):
        return ["sgd"]

class Unknown:
    def recipe(self):
        return Recipe((), {"train.epoch": 7})

class Stray:
    def recipe(self):
        return Recipe((), {"sgd.lr": 0.1})
"""


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "nested.py").write_text(NESTED, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "nested.py"
    sys.modules.pop("nested", None)


def expanded(*plugins: str, sets: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> RunConfig:
    return expand_recipes(load_config(None, CliOverrides(plugins=plugins, sets=sets, without=without)), discover())


def names(config: RunConfig) -> list[str]:
    return [named.text for named in config.plugins]


def test_a_recipe_names_plugins_and_sets_options_and_says_who_did() -> None:
    config = expanded("linear_probe")

    assert names(config) == ["linear_probe", "freeze_backbone", "adamw"]
    assert config.options["adamw"] == {"lr": 0.01, "weight_decay": 0.0}
    assert config.origin("plugin.adamw.lr") == "recipe linear_probe, from linear_probe.lr"
    assert {named.origin for named in config.plugins[1:]} == {"recipe linear_probe"}


def test_what_the_user_sets_beats_the_recipe() -> None:
    config = expanded("linear_probe", "adamw", sets=("adamw.lr=0.5", "linear_probe.lr=0.7"))

    assert names(config) == ["linear_probe", "adamw", "freeze_backbone"]
    assert str(config.options["adamw"]["lr"].value()) == "0.5"
    assert config.origin("plugin.adamw.lr") == "--set adamw.lr=0.5"


def test_the_options_of_a_recipe_reach_what_it_sets() -> None:
    assert expanded("linear_probe", sets=("linear_probe.lr=0.7",)).options["adamw"]["lr"] == 0.7


def test_without_leaves_out_what_a_recipe_names_with_its_options() -> None:
    config = expanded("linear_probe", "sgd", without=("adamw",))

    assert "adamw" not in config.options
    ready = prepare(config)
    assert type(ready.assembly.parts.optimization.optimizer).__name__ == "SGD"


def test_a_plugin_that_contradicts_a_recipe_is_named_with_the_way_out() -> None:
    with pytest.raises(
        UserError, match=r"2 plugins implement make_optimizer[\s\S]*recipe linear_probe[\s\S]*--without adamw"
    ):
        prepare(load_config(None, CliOverrides(plugins=("linear_probe", "sgd"))))


def test_a_recipe_may_name_a_recipe_and_set_sections(hooks: Path) -> None:
    config = expanded(f"{hooks}:Outer", without=("adamw",))

    assert names(config)[1:] == ["linear_probe", "sgd", "freeze_backbone", "adamw"]
    assert (config.train.epochs, config.origin("train.epochs")) == (7, "recipe outer")
    assert expanded(f"{hooks}:Outer", sets=("train.epochs=3",)).train.epochs == 3


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("Wrong", r"wrong\.recipe returned list \['sgd'\]; expected a Recipe"),
        ("Unknown", r"unknown option 'train\.epoch'; did you mean 'epochs'\?.*recipe unknown"),
        ("Stray", r"plugin 'sgd' has options but is not enabled.*recipe stray"),
    ],
)
def test_a_wrong_recipe_is_named(hooks: Path, recipe: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(load_config(None, CliOverrides(plugins=(f"{hooks}:{recipe}",))))


def test_what_was_left_out_of_a_recipe_stays_left_out_when_the_run_is_repeated(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    asked = ("--plugin", "linear_probe", "--plugin", "sgd", "--without", "adamw", "--data", "digits:5-6")
    one = invoke(
        "run", "--model", "digits/cnn", *asked, "--set", "train.epochs=1", "--set", f"run.folder={first}", "--json"
    )
    two = invoke("run", "--from", first, "--set", f"run.folder={again}", "--json")

    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert two.report["hooks"]["make_optimizer"] == "sgd"
    assert one.report["last"] == two.report["last"]


def test_explain_says_which_recipe_set_an_option() -> None:
    result = invoke("explain", "--plugin", "lp_ft", "--json")

    assert result.code == 0, result.err
    assert '"recipe lp_ft"' in result.out
