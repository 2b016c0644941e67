"""What runs there are, and how they stand."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from ftcore import StepLogged
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.lock import is_locked, lock_run_folder
from ftcore.runs.run import fit
from ftcore.testing import invoke

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore import Event


def run(folder: Path, *arguments: str) -> int:
    sets = ("train.epochs=2", "train.batch_size=96", "train.threads=1", f"run.folder={folder}")
    flags = [word for text in sets for word in ("--set", text)]
    return invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *flags, *arguments).code


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that are finished, failed and killed, on two levels."""
    root = tmp_path_factory.mktemp("runs")
    assert run(root / "a", "--plugin", "ema") == 0
    assert run(root / "below" / "b", "--plugin", "linear_probe", "--set", "train.epochs=3") == 0
    assert run(root / "diverged", "--plugin", "sgd", "--set", "sgd.lr=1e30") == 2
    shutil.copytree(root / "a", root / "killed")
    log = root / "killed" / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if "RunEnded" not in line))
    return root


def listed(root: Path, *where: str) -> dict[str, dict[str, Any]]:
    flags = [word for text in where for word in ("--where", text)]
    result = invoke("runs", root, *flags, "--json")
    assert result.code == 0, result.err
    return {row["folder"].removeprefix(f"{root}/"): row for row in json.loads(result.out)}


def test_each_run_is_there_once_with_how_it_stands(root: Path) -> None:
    rows = listed(root)

    assert {name: row["state"] for name, row in rows.items()} == {
        "a": "finished",
        "below/b": "finished",
        "diverged": "failed",
        "killed": "killed",
    }
    assert rows["a"]["plugins"] == ["ema"]
    assert rows["below/b"]["epochs"] == 3


def test_the_best_is_what_the_run_says_of_it(root: Path) -> None:
    events = [json.loads(line) for line in (root / "a" / "log.jsonl").read_text().splitlines()]
    (report,) = (event["report"] for event in events if event["event"] == "RunEnded")

    row = listed(root)["a"]

    assert (row["monitor"], row["best"]) == ("accuracy", report["best"]["accuracy"])
    assert listed(root)["diverged"]["best"] is None


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (("state=finished",), {"a", "below/b"}),
        (("state=f*", "plugins=ema"), {"a"}),
        (("train.epochs=3",), {"below/b"}),
        (("model.name=timm/*",), set()),
        (("plugins=linear_probe",), {"below/b"}),
    ],
)
def test_filters_leave_what_they_ask_for(root: Path, where: tuple[str, ...], names: set[str]) -> None:
    assert listed(root, *where).keys() == names


def test_people_see_a_table(root: Path) -> None:
    result = invoke("runs", root, "--where", "train.epochs=3")

    assert "3 of 3" in result.out
    assert "digits/cnn" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--where", "state"), "--where state: expected KEY=PATTERN"),
        (("--where", "train.epoch=3"), "has no 'train.epoch'; did you mean 'train.epochs'?"),
    ],
)
def test_a_filter_that_is_none_is_refused(root: Path, arguments: tuple[str, ...], message: str) -> None:
    result = invoke("runs", root, *arguments)

    assert result.code == 2
    assert message in result.err


def test_a_damaged_run_is_listed_with_what_is_wrong_beside_the_others(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "a", tmp_path / "a")
    shutil.copytree(root / "a", tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_text("{")

    rows = listed(tmp_path)

    assert (rows["a"]["state"], rows["b"]["state"]) == ("finished", "damaged")
    assert "JSONDecodeError" in invoke("runs", tmp_path).out
    assert listed(tmp_path, "train.epochs=2").keys() == {"a"}


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert f"no folder {tmp_path / 'gone'}" in invoke("runs", tmp_path / "gone").err


def test_a_run_that_goes_is_running(tmp_path: Path) -> None:
    states: list[str] = []

    def look(event: Event) -> None:
        if isinstance(event, StepLogged):
            states.append(listed(tmp_path)["run"]["state"])

    sets = ("train.epochs=1", "train.batch_size=96", "train.log_every=2", f"run.folder={tmp_path / 'run'}")
    fit(load_config(None, CliOverrides("digits/cnn", "digits:5-6", sets=sets)), [look])

    assert set(states) == {"running"}


def test_to_look_at_a_lock_takes_it_from_nobody(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with lock_run_folder(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
