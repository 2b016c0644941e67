"""Which settings are faster: real steps of real runs, in pairs; here with settings whose speed is known."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen

from ftcore import hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.testing import invoke
from ftcore.tuning import speed
from ftcore.tuning.speed import SpeedOption, Trial, candidate_options, find_faster_settings, flags, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from ftcore.config.schema import RunConfig

DIGITS = ("--data", "digits:5-6", "--model", "digits/cnn")
SLOW, SETS = f"{__name__}:Slow", ("train.threads=1", "train.workers=0", "train.batch_size=8")
SLOWER, FASTER = SpeedOption("slower", sets=("slow.seconds=0.5",)), SpeedOption("faster", sets=("slow.seconds=0",))
TRIED = ["channels_last", "bf16", "compile"]


@frozen
class SlowConfig:
    """Seconds that each step waits."""

    seconds: float = 0.1


class Slow:
    """Makes each step wait, so that how busy the machine is hardly matters."""

    Config = SlowConfig

    def __init__(self, config: SlowConfig) -> None:
        self.config = config

    @hookimpl
    def batch_transforms(self) -> list[Any]:
        seconds = self.config.seconds

        def wait(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            time.sleep(seconds)
            return images, targets

        return [wait]


class Refused:
    """Cannot be used."""

    @hookimpl
    def batch_transforms(self) -> list[Any]:
        raise NotImplementedError("not on this machine\nat all")


def configure(plugins: Sequence[str], sets: Sequence[str]) -> RunConfig:
    return load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=(SLOW, *plugins), sets=(*SETS, *sets)))


@pytest.fixture(scope="module")
def three() -> Iterator[list[Trial]]:
    """Trials of settings that are known: slower, none, and faster."""
    tried = [SLOWER, SpeedOption("refused", (f"{__name__}:Refused",)), FASTER]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "candidate_options", lambda config, device: tried)
        yield list(find_faster_settings(configure, 3.0))


@pytest.mark.machine
def test_what_is_faster_is_kept_and_what_is_slower_or_cannot_be_is_not(three: list[Trial]) -> None:
    slower, refused, faster = three

    assert (slower.is_faster, refused.is_faster, faster.is_faster) == (False, False, True)
    assert slower.ratios[-1] < 1
    assert refused.note.endswith("not on this machine")
    assert faster.after > faster.before > slower.after
    assert flags(three) == ["--set", "slow.seconds=0"]


@pytest.mark.machine
def test_the_table_says_what_came_of_each(three: list[Trial]) -> None:
    rows = {row[0]: row[1:] for row in table(three).rows}

    assert rows["slower"][3] == "no faster"
    assert rows["refused"][3].startswith("not tried: ")
    assert rows["faster"][3] == "kept"


def test_what_is_a_little_faster_or_not_always_is_not_kept() -> None:
    setting = SpeedOption("any")

    assert Trial(setting, 1, 1, (1.01, 1.05, 1.09)).is_faster
    assert not Trial(setting, 1, 1, (1.01, 1.02, 1.09)).is_faster
    assert not Trial(setting, 1, 1, (0.99, 1.05, 1.09)).is_faster
    assert not Trial(setting, note="no").is_faster


def test_what_is_named_or_set_already_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "available_cpus", lambda: 2)
    free = load_config(None, CliOverrides("digits/cnn", "digits:5-6"))
    sets = ("train.workers=0", "train.threads=1")
    bound = load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=("bf16",), sets=sets))

    assert [one.name for one in candidate_options(free, "cpu")] == [*TRIED, "one thread", "2 loader processes"]
    assert [one.name for one in candidate_options(free, "cuda")] == [*TRIED, "0 loader processes"]
    assert [one.name for one in candidate_options(bound, "cpu")] == ["channels_last", "compile"]


@pytest.mark.slow
@pytest.mark.machine
def test_the_command_prints_the_flags_to_copy_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "candidate_options", lambda config, device: [SLOWER, FASTER])
    words = ("find", "speed", *DIGITS, "--plugin", SLOW, "--set", "train.batch_size=8", "--seconds", "1")

    shown, as_json = invoke(*words), invoke(*words, "--json")

    assert shown.code == 0, shown.err
    assert shown.out.endswith("to use: --set slow.seconds=0\n")
    assert shown.err.splitlines()[-2:] == ["slower: no faster", "faster: kept"]
    values = json.loads(as_json.out)
    assert values["flags"] == ["--set", "slow.seconds=0"]
    assert [trial["kept"] for trial in values["trials"]] == [False, True]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_none_is_said(tmp_path: Path) -> None:
    said = invoke("find", "speed", "--data", tmp_path / "nowhere", "--model", "digits/cnn")

    assert said.code == 2
    assert "nowhere" in said.err
