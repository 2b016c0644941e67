"""Classes that are numbers are in the order of numbers, and runs keep the order that they wrote down."""

from __future__ import annotations

import json
import os
import random
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attrs import evolve
from sklearn.metrics import accuracy_score, confusion_matrix
from tests.plugins.data.tables import write
from timm.data.readers.reader_image_folder import find_images_and_targets
from torchvision.datasets import ImageFolder

from ftcore import StepLogged
from ftcore.config.load import CliOverrides, load_config, load_run_config
from ftcore.inference.load import load
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.runs.run import fit, resume
from ftcore.system.signals import StoppedBySignal
from ftcore.testing import image_folder, invoke
from ftcore_plugins.tasks.vocabulary import order_names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftcore import Event, RunConfig

GRADES = tuple(map(str, range(12)))


def config(folder: Path, data: Path, plugins: Sequence[str] = (), sets: Sequence[str] = ()) -> RunConfig:
    settings = (f"run.folder={folder}", "train.epochs=2", "train.log_every=1", "train.threads=1", *sets)
    return load_config(None, CliOverrides("digits/cnn", str(data), plugins=plugins, sets=settings))


def test_numbers_are_in_their_order_as_timm_has_them(tmp_path: Path) -> None:
    image_folder(tmp_path, GRADES, per_class=1)
    _, of_timm = find_images_and_targets(str(tmp_path))

    assert order_names(random.Random(0).sample(GRADES, 12)) == tuple(of_timm) == GRADES


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "9", "-1", "+3"], ("-1", "+3", "9", "10")),
        (["10.5", "9.75", "0.5", "0.25"], ("0.25", "0.5", "9.75", "10.5")),
        (["2", "010", "1"], ("1", "2", "010")),
        (["1", "01"], ("01", "1")),
        (["n10", "n9"], ("n10", "n9")),
        (["10", "9", "other"], ("10", "9", "other")),
        (["1e3", "20"], ("1e3", "20")),
        (["²", "1"], ("1", "²")),
        (["b", "A", "a"], ("A", "a", "b")),
    ],
)
def test_only_where_all_names_are_numbers_do_their_values_count(names: list[str], ordered: tuple[str, ...]) -> None:
    assert order_names(names) == ordered


def test_other_names_are_in_the_order_of_torchvision(tmp_path: Path) -> None:
    image_folder(tmp_path, ("n10", "n9", "Owl", "cat", "猫"), per_class=1)

    assert list(order_names(ImageFolder(str(tmp_path)).classes)) == ImageFolder(str(tmp_path)).classes


def test_an_order_that_was_written_down_stays() -> None:
    assert order_names(["9", "10"], ("10", "9")) == ("10", "9")
    assert order_names(["9", "10"], ()) == ("10", "9")
    assert order_names(["9", "10", "11"], ("10", "9")) == ("9", "10", "11")


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_ordinal_grades_from_low_to_high_by_their_numbers(kind: str, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", GRADES, per_class=6)
    if kind == "table":
        rows = [(f"{grade}/{n}.jpg", grade) for grade in reversed(GRADES) for n in range(6)]
        data = write(data / "grades.csv", rows, ("path", "grade"))
    asked = config(tmp_path / "run", data, plugins=("ordinal",), sets=("data.task=classification",))
    calls = HookCalls(activate(asked))
    task = calls.build_data(asked.data.source).task
    loss = calls.make_loss(task)

    assert task.names == GRADES
    assert [row[1] for row in loss.tables[0].rows] == list(GRADES)
    said, far, near = (torch.tensor(place) for place in ([2], [10], [3]))
    outputs = 20 * torch.nn.functional.one_hot(said, 12).float()
    assert loss.function(outputs, far).item() == pytest.approx(8, rel=1e-3)  # places between 2 and 10
    assert loss.function(outputs, near).item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(
    ("names", "warned"), [(("grade 2", "grade 10"), True), (("grade 02", "grade 10"), False), (("2", "10"), False)]
)
def test_ordinal_says_where_numbers_in_names_do_not_count(
    *, names: tuple[str, ...], warned: bool, tmp_path: Path
) -> None:
    data = image_folder(tmp_path / "data", names, per_class=6)

    said = invoke("explain", "--data", data, "--model", "digits/cnn", "--plugin", "ordinal").err

    assert ("classes are sorted as strings; set another order with ordinal.order" in said) is warned
    assert ("order=grade 10, grade 2)" in said) is warned


def stop_after_a_step(event: Event) -> None:
    if isinstance(event, StepLogged):
        os.kill(os.getpid(), signal.SIGTERM)


def older_run(folder: Path, data: Path) -> Path:
    """Stop a run of two epochs after a step, in a folder as ftcore wrote it when classes were sorted as texts."""
    with pytest.raises(StoppedBySignal):
        fit(evolve(config(folder, data), class_names=()), [stop_after_a_step])
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    assert manifest["data"].pop("names") == ["10", "2"]
    del manifest["data"]["test"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_run_of_before_goes_on_and_is_measured_in_its_own_order(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", ("2", "10"), per_class=6)
    fit(evolve(config(tmp_path / "whole", data), class_names=()))
    run = older_run(tmp_path / "run", data)

    resume(run)

    expected, found = (load(folder) for folder in (tmp_path / "whole", run))
    assert found.task.names == expected.task.names == ("10", "2")
    torch.testing.assert_close(found.module.state_dict(), expected.module.state_dict(), rtol=0, atol=0)
    written = json.loads((run / "model" / "model.json").read_text())["metrics"]
    assert invoke("evaluate", run, "--json").report["metrics"]["loss"] == pytest.approx(written["loss"])


def test_a_run_writes_its_order_down_and_another_run_from_it_keeps_it(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", ("2", "10"), per_class=6)
    fit(evolve(config(tmp_path / "old", data), class_names=("10", "2")))
    again = invoke("run", "--from", tmp_path / "old", "--set", f"run.folder={tmp_path / 'again'}")

    assert again.code == 0, again.err
    for run in ("old", "again"):
        assert load_run_config(tmp_path / run).class_names == load(tmp_path / run).task.names == ("10", "2")


def test_data_in_the_new_order_is_measured_by_the_names_of_a_run_of_before(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", ("2", "10"), per_class=6)
    run = tmp_path / "run"
    fit(evolve(config(run, data, sets=("train.epochs=3", "adamw.lr=0.02")), class_names=("10", "2")))
    predicted = [json.loads(line) for line in invoke("predict", run, data, "--json").out.splitlines()]
    truth = [line["path"].split("/")[-2] for line in predicted]
    said = [max(line["values"], key=line["values"].get) for line in predicted]

    metrics = invoke("evaluate", run, "--split", "all", "--json").report["metrics"]

    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, said))
    assert metrics["confusion_matrix"] == confusion_matrix(truth, said, labels=["10", "2"]).tolist()
