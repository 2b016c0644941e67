"""Config and plugins become a run, or are refused where something in them would do nothing."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from ftcore import UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_a_plugin_that_was_named_and_answers_nothing_is_refused() -> None:
    result = invoke("explain", "--plugin", "mse")

    assert result.code == 2
    assert re.search(r"plugin mse \(ftcore .*, --plugin mse\) was enabled but supplies nothing in this run", result.err)
    assert "it declined its hooks, make_loss" in result.err


def test_options_of_a_default_that_answers_nothing_are_refused() -> None:
    result = invoke("explain", "--plugin", "sgd", "--set", "adamw.lr=0.1")

    assert result.code == 2
    assert "plugin 'adamw' has options but supplies nothing in this run (--set adamw.lr=0.1)" in result.err


READS_ONE = """
import attrs
from ftcore import hookimpl


@attrs.frozen
class Config:
    used: float = 1.0
    forgotten: int = 3
    table: dict[str, float] = attrs.field(factory=dict)


class Forgets:
    Config = Config

    def __init__(self, config):
        self.config = config

    @hookimpl
    def make_observers(self):
        self.config.used
        return []


class Keeps(Forgets):
    @hookimpl
    def make_observers(self):
        return [lambda event: self.config.forgotten]


class ReadsAll(Forgets):
    @hookimpl
    def make_observers(self):
        attrs.asdict(self.config)
        return []


class ReadsAtOnce(Forgets):
    def __init__(self, config):
        self.number = config.forgotten

    @hookimpl
    def make_observers(self):
        return []
"""


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "forgetful.py").write_text(READS_ONE, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "forgetful.py"
    sys.modules.pop("forgetful", None)


def prepared(plugin: str, *sets: str) -> None:
    prepare(load_config(None, CliOverrides("digits/cnn", "digits:5-6", (plugin,), sets=sets)))


# A run
def test_an_option_that_no_hook_reads_is_refused_with_where_it_was_set(hooks: Path) -> None:
    message = (
        r"forgets\.forgotten was set, but nothing in this run reads it \(--set forgets\.forgotten=4\); if forgets "
        "reads it during training, let it read its options in its hooks"
    )
    with pytest.raises(UserError, match=message):
        prepared(f"{hooks}:Forgets", "forgets.used=2", "forgets.forgotten=4")


def test_an_option_that_was_set_in_a_file_is_refused_with_the_file(hooks: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    text = 'plugins = ["./forgetful.py:Forgets"]\n[model]\nname = "digits/cnn"\n[data]\nsource = "digits:5-6"\n'
    file.write_text(f"{text}[plugin.forgets]\nforgotten = 4\n")

    with pytest.raises(UserError, match=r"forgets\.forgotten was set, .* reads it \(.*run\.toml\)"):
        prepare(load_config(file))


@pytest.mark.parametrize(
    ("plugin", "sets"),
    [
        ("Forgets", ()),
        ("Forgets", ("forgets.used=2",)),
        ("Forgets", ("forgets.forgotten=3",)),
        ("Forgets", ("forgets.table={}",)),
        ("ReadsAll", ("reads_all.forgotten=4", "reads_all.table={a = 1}")),
        ("ReadsAtOnce", ("reads_at_once.forgotten=4",)),
    ],
)
def test_what_was_read_or_changes_nothing_is_let_pass(hooks: Path, plugin: str, sets: tuple[str, ...]) -> None:
    prepared(f"{hooks}:{plugin}", *sets)


def test_an_option_that_would_be_read_while_it_trains_is_refused_too(hooks: Path) -> None:
    with pytest.raises(UserError, match=r"keeps\.forgotten was set, but nothing in this run reads it"):
        prepared(f"{hooks}:Keeps", "keeps.forgotten=4")


def test_an_option_of_a_plugin_that_answers_another_task_is_refused() -> None:
    with pytest.raises(UserError, match=r"plugin 'mse' has options but is not enabled|plugin 'mse' has no options"):
        prepared("sgd", "mse.x=1")
    with pytest.raises(UserError, match=r"plugin huber .* was enabled but supplies nothing in this run"):
        prepared("huber", "huber.delta=2")


HALVES = """
from attrs import evolve
from ftcore import hookimpl


class Halves:
    def __init__(self, samples, first):
        self.samples, self.first = samples, first

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        image, target = self.samples[index]
        return image, target if index < self.first else 0.5

    def name(self, index):
        return f"row {{index}}"


@hookimpl(wrapper=True)
def build_data():
    data = yield
    return evolve(data, {split}=Halves(data.{split}, {first}))
"""


@pytest.mark.parametrize(("split", "first"), [("train", 0), ("val", 0), ("train", 7)])
def test_a_target_of_another_form_is_refused_with_its_plugin_and_its_sample(
    split: str, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "acme_halves", raising=False)
    file = tmp_path / "acme_halves.py"
    file.write_text(HALVES.format(split=split, first=first), encoding="utf-8")
    sets = ("--set", f"run.folder={tmp_path / 'run'}", "--set", "train.batch_size=290")

    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", "--plugin", file, *sets)

    assert result.code == 2
    assert re.search(r"acme_halves.*: the target of sample \d+, row \d+, is 0\.5, a float; a class must be", result.err)
    assert not (tmp_path / "run").exists()
