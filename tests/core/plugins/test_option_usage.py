"""An option that was set and that nothing reads is an error, not a shrug."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from attrs import field, frozen, validators

from ftcore.config.load import CliOverrides, load_config
from ftcore.plugins.option_usage import track_reads
from ftcore.runs.prepared import prepare
from ftcore_plugins.optimizers.torch_optimizers import AdamWConfig, Sgd, SgdConfig

if TYPE_CHECKING:
    from pathlib import Path


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

    again: Any = pickle.loads(pickle.dumps(parts.data.train.dataset))

    found, expected = (dataset[(0, 3)] for dataset in (again, parts.data.train.dataset))
    assert bool((found[0] == expected[0]).all())
