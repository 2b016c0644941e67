"""The recipes that come with ftcore."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from ftcore import UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke

if TYPE_CHECKING:
    from pathlib import Path

RECIPES = ("linear_probe", "lp_ft", "fine_tune", "surgical", "bitfit", "norm_tune")


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_runs_and_its_resolved_config_runs_the_same_again(recipe: str, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    asked = ("--plugin", recipe, "--set", "train.epochs=4", "--data", "digits:5-6", "--json")
    one = invoke("run", "--model", "digits/cnn", *asked, "--set", f"run.folder={first}")
    two = invoke("run", "--from", first, "--set", f"run.folder={again}", "--json")

    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert one.report["last"] == two.report["last"]
    configs = [tomllib.loads((folder / "config.toml").read_text()) for folder in (first, again)]
    assert configs[0]["plugin"] == configs[1]["plugin"]
    assert configs[0]["plugins"] == configs[1]["plugins"]


@pytest.mark.parametrize(
    ("recipe", "sets", "message"),
    [
        ("lp_ft", ("train.epochs=3",), r"gradual_unfreeze\.at: epoch 3 \(from 0\) is beyond train\.epochs = 3"),
        ("lp_ft", ("lp_ft.factor=2",), r"lp_ft\.factor: .*<= 1"),
        ("surgical", ("surgical.stage=9",), r"freeze_backbone\.stages: no stage 9; the architecture has stages 0"),
        ("linear_probe", ("linear_probe.lr=-1",), r"linear_probe\.lr: .*> 0.*-1"),
    ],
)
def test_a_recipe_that_does_not_fit_the_run_says_why(recipe: str, sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(load_config(None, CliOverrides(plugins=(recipe,), sets=sets)))
