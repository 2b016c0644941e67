from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.authoring.checks import CHECKS
from ftcore.cli import main
from ftcore.config.load import load_config
from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.plugins.discovery import discover
from ftcore.testing import invoke

if TYPE_CHECKING:
    import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_hooks_file_of_the_readme_answers_and_wraps(tmp_path: Path) -> None:
    (text,) = [block for block in blocks("python") if block.startswith("# hooks.py")]
    (tmp_path / "hooks.py").write_text(text, encoding="utf-8")

    result = invoke("explain", "--plugin", tmp_path / "hooks.py", "--json")

    tables = json.loads(result.out)
    answers = {row["hook"]: row for row in tables["who answers"]}
    assert answers["make_loss"]["plugin"] == "hooks"
    assert answers["param_groups"]["wrapped by"] == "hooks"
    assert {group["lr"] for group in tables["parameter groups of AdamW"]} == {"0.0001"}


def test_the_config_file_of_the_readme_is_one(tmp_path: Path) -> None:
    (text,) = [block for block in blocks("toml") if "[model]" in block]
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")

    config = load_config(tmp_path / "run.toml")

    assert (config.model.name, config.train.epochs) == ("timm/resnet50", 10)
    assert config.options == {"sgd": {"lr": 0.01, "momentum": 0.9}}


def masked(text: str) -> list[str]:
    """Lines of what a run shows, without what differs between machines: times, folder, last digits, the best epoch."""
    text = re.sub(r"\d+ images/s|runs/[\d-]+", "_", text.replace(" *\n", "\n"))
    return re.sub(r"\d+\.\d+|(?<=in epoch )\d+", "_", text).splitlines()


def test_the_output_that_the_readme_shows_is_what_its_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown,) = [block for block in blocks("") if block.startswith("data ")]
    monkeypatch.chdir(tmp_path)

    said = invoke("run", "--plugin", "weighted_ce")

    assert masked(said.err) == masked(shown)


def test_the_readme_names_every_hook_in_order() -> None:
    section = README.partition("## Write a hooks file")[2].partition("\n## ")[0]

    assert tuple(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)) == tuple(HOOK_ARGUMENTS)


def test_the_readme_names_every_check_in_order() -> None:
    section = README.partition("### Check it")[2].partition("\n### ")[0]

    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == list(CHECKS)


def check_names(text: str, but: set[str]) -> None:
    """Check that each command and each plugin that a text names exists, but for plugins of other packages."""
    commands = set(re.findall(r"ftcore (run|predict|plugins|explain|[a-z]+)\b(?= \.\.\.| RUN| --|`)", text))
    plugins = set(re.findall(r"--plugin ([a-z0-9_]+)", text)) - but

    assert commands <= set(main.commands)
    assert plugins <= {plugin.name for plugin in discover()}


def test_commands_and_plugins_of_the_readme_exist() -> None:
    check_names(README, but={"poly", "acme_focal"})
