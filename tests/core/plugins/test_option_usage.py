"""An option that was set and that nothing reads is an error, not a shrug."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import sys
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from attrs import field, frozen, validators

from ftcore import UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.plugins.option_usage import track_reads
from ftcore.runs.prepared import prepare
from ftcore_plugins.optimizers.torch_optimizers import AdamWConfig, Sgd, SgdConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


@frozen
class Checked:
    """Options whose check counts how often it runs."""

    low: int = field(default=1, validator=validators.ge(0))
    high: int = 5
    names: tuple[str, ...] = ()
    table: dict[str, int] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")

    def width(self) -> int:
        return self.high - self.low

    @property
    def first(self) -> str:
        return self.names[0]


@attrs.define(frozen=True, slots=False)
class WithoutSlots:
    number: int = 1


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
        "would read it later, while it trains, let it read its options in its hooks"
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
    with pytest.raises(UserError, match=r"plugin 'mse' has options but was not named|plugin 'mse' has no options"):
        prepared("sgd", "mse.x=1")
    with pytest.raises(UserError, match=r"plugin huber .* was named but answers nothing in this run"):
        prepared("huber", "huber.delta=2")


# The object


def test_an_option_counts_once_it_is_read_and_not_before() -> None:
    copy_, read = track_reads(SgdConfig(lr=0.5))

    assert read == set()
    assert (copy_.lr, copy_.momentum, read) == (0.5, 0.9, {"lr", "momentum"})


def test_what_a_method_reads_counts_and_the_method_does_not() -> None:
    copy_, read = track_reads(Checked(names=("a",)))

    assert (copy_.width(), read) == (4, {"low", "high"})
    assert (copy_.first, read) == ("a", {"low", "high", "names"})


def test_two_copies_are_watched_apart() -> None:
    (one, first), (_, second) = track_reads(SgdConfig()), track_reads(SgdConfig())

    assert one.lr == 0.01
    assert (first, second) == ({"lr"}, set())


def test_reading_the_original_counts_for_nobody() -> None:
    original = SgdConfig()
    _, read = track_reads(original)

    assert original.lr == 0.01
    assert read == set()


@pytest.mark.parametrize("plain", [SgdConfig(lr=0.5), AdamWConfig(betas=(0.5, 0.6)), Checked(2, 3), WithoutSlots(7)])
def test_the_copy_is_as_good_as_the_original(plain: Any) -> None:
    copy_, _ = track_reads(plain)

    assert isinstance(copy_, type(plain))
    assert copy_ == plain
    assert plain == copy_
    assert copy_ == track_reads(plain)[0]
    assert repr(copy_) == repr(plain)
    assert attrs.asdict(copy_) == attrs.asdict(plain)
    assert attrs.astuple(copy_) == attrs.astuple(plain)
    assert attrs.fields(type(copy_)) == attrs.fields(type(plain))


def test_hashes_are_equal_where_there_are_any() -> None:
    assert hash(track_reads(SgdConfig(lr=0.5))[0]) == hash(SgdConfig(lr=0.5))


def test_other_values_are_not_equal() -> None:
    assert track_reads(SgdConfig(lr=0.5))[0] != SgdConfig(lr=0.6)
    assert track_reads(SgdConfig(lr=0.5))[0] != track_reads(SgdConfig(lr=0.6))[0]


def test_evolving_gives_the_plain_class_and_checks_again() -> None:
    copy_, _ = track_reads(Checked())

    changed = attrs.evolve(copy_, low=3)

    assert type(changed) is Checked
    assert changed == Checked(3)
    with pytest.raises(ValueError, match="low is above high"):
        attrs.evolve(copy_, low=9)
    with pytest.raises(ValueError, match="must be >= 0"):
        attrs.evolve(copy_, low=-1)


def test_the_copy_cannot_be_changed() -> None:
    copy_, _ = track_reads(SgdConfig())

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        copy_.lr = 3.0  # type: ignore[misc]


@pytest.mark.parametrize("again", [lambda o: pickle.loads(pickle.dumps(o)), copy.copy, copy.deepcopy])
def test_a_copy_of_the_copy_is_of_the_plain_class_and_watched_no_more(again: Any) -> None:
    copy_, read = track_reads(Checked(2, 7, ("a",), {"b": 1}))

    found = again(copy_)

    assert type(found) is Checked
    assert found == Checked(2, 7, ("a",), {"b": 1})
    assert found.low == 2
    assert read == set()


def test_a_plugin_that_holds_its_options_works_in_a_spawned_process() -> None:
    """One of an installed module, for what pytest has imported is not there."""
    plugin = Sgd(track_reads(SgdConfig(lr=0.25, nesterov=True))[0])

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(attrgetter("config.lr"), (plugin,)) == 0.25
        assert pool.apply(repr, (plugin.config,)) == repr(plugin.config)
        assert type(pool.apply(attrgetter("config"), (plugin,))) is SgdConfig


def test_a_split_whose_transforms_hold_options_can_be_sent_to_workers(tmp_path: Path) -> None:
    """The transforms of `augment` hold what they were told."""
    parts: Any = prepare(
        load_config(
            None,
            CliOverrides("digits/cnn", "digits:5-6", ("augment",), sets=("train.epochs=1", "augment.preset=light")),
        )
    ).assembly.parts

    again: Any = pickle.loads(pickle.dumps(parts.train.dataset))

    found, expected = (dataset[(0, 3)] for dataset in (again, parts.train.dataset))
    assert bool((found[0] == expected[0]).all())
