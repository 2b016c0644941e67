"""Warnings where the numbers of a run say that something is wrong: said once, where it is so, and nowhere else."""

from __future__ import annotations

import math
import time
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np
import pytest
import structlog
from PIL import Image

from ftcore import EpochEnded, RunStarted, StepLogged, Task
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.log import read_warnings
from ftcore.runs.run import fit
from ftcore.testing import invoke
from ftcore.training.loop import timed_windows
from ftcore.training.state import EpochProgress
from ftcore_plugins.observers.advice import (
    TrainingAdvisor,
    chance_level_loss,
    check_accuracy,
    check_classes,
    check_losses,
    check_waiting,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftcore import Event
    from ftcore.data.loader import Batch

PETS = Task("classification", ("cat", "dog", "owl"))
LABELS = Task("multilabel", ("sun", "sea"))
KILOS = Task("regression", ("kilos",))


def epoch(number: int, train: float, val: float = 0.5, *, seconds: float = 1.0, wait: float = 0.0) -> EpochEnded:
    best = False
    return EpochEnded(number, number, {"loss": train}, {"loss": val}, best, "loss", seconds, 10.0, wait)


def trained(data: str, folder: Path, *sets: str) -> list[str]:
    """Train the digits' network on data, and return what was warned of."""
    given = (f"run.folder={folder}", "train.batch_size=32", "train.threads=1", *sets)
    said = invoke("run", "--model", "digits/cnn", "--data", data, *(word for key in given for word in ("--set", key)))
    assert said.code == 0, said.err
    return [text for _, text in read_warnings(folder / "log.jsonl")]


def noise(folder: Path, images: dict[str, int]) -> str:
    """Make pictures on which there is nothing to be seen."""
    random = np.random.default_rng(0)
    for name, number in images.items():
        (folder / name).mkdir(parents=True)
        for place in range(number):
            pixels = random.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{place}.png")
    return str(folder)


def test_a_run_that_goes_well_is_warned_of_nothing(tmp_path: Path) -> None:
    assert trained("digits:5-9", tmp_path / "run", "train.epochs=10") == []


def test_a_run_that_learns_nothing_is_warned_of_once(tmp_path: Path) -> None:
    found = trained("digits:5-9", tmp_path / "run", "train.epochs=4", "adamw.lr=1e-12")

    assert sum("stays at ln(5) = 1.6094, that of guessing" in text for text in found) == 1


def test_a_class_that_is_never_predicted_and_an_accuracy_that_one_class_has_are_warned_of(tmp_path: Path) -> None:
    data = noise(tmp_path / "pictures", {"common": 100, "rare": 10})

    never, best = trained(data, tmp_path / "run", "train.epochs=4", "adamw.lr=1e-4")

    assert never.startswith("never predicted on validation: 'rare' (2 images); ")
    assert best.startswith("accuracy 0.9091 in the best epoch is no better than 0.9091, that of always saying 'common'")


def test_pictures_that_are_learnt_by_heart_are_warned_of_and_the_report_says_so(tmp_path: Path) -> None:
    data = noise(tmp_path / "pictures", {"some": 60, "others": 60})

    found = trained(data, tmp_path / "run", "train.epochs=30", "adamw.lr=0.01")

    assert sum("pictures are learnt by heart" in text for text in found) == 1
    page = unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert all(text in page for text in found)


@pytest.mark.parametrize(("task", "loss"), [(PETS, math.log(3)), (LABELS, math.log(2))])
def test_the_loss_of_guessing_is_that_of_equal_probabilities(task: Task, loss: float) -> None:
    assert chance_level_loss(task)[0] == pytest.approx(loss)


def test_numbers_have_no_loss_of_guessing() -> None:
    assert list(check_losses(KILOS, [epoch(1, math.log(2)), epoch(2, math.log(2))])) == []


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([1.0986, 1.0987], ["guessing"]),
        ([1.0986], []),
        ([1.0986, 1.07], []),
        ([1.07, 1.0986, 1.0986], ["guessing"]),
    ],
    ids=["two epochs", "one epoch says little", "it learns", "it fell back"],
)
def test_a_training_loss_that_stays_at_guessing_is_found(losses: list[float], said: list[str]) -> None:
    epochs = [epoch(place, loss) for place, loss in enumerate(losses, 1)]

    assert [name for name, _ in check_losses(PETS, epochs)] == said


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([(0.9, 0.8), (0.5, 1.0), (0.2, 1.3)], ["by heart"]),
        ([(0.9, 0.8), (0.5, 1.0), (0.2, 1.1)], []),
        ([(0.9, 0.8), (0.5, 1.3)], []),
        ([(0.2, 0.8), (0.5, 1.0), (0.9, 1.3)], []),
        ([(0.9, 0.0), (0.5, 1.0), (0.2, 1.3)], []),
    ],
    ids=["risen", "not by much", "one epoch may be bad", "the training is bad too", "from nothing"],
)
def test_a_validation_loss_that_rises_while_the_training_loss_falls_is_found(
    losses: list[tuple[float, float]], said: list[str]
) -> None:
    epochs = [epoch(place, *loss) for place, loss in enumerate(losses, 1)]

    assert [name for name, _ in check_losses(PETS, epochs)] == said


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (epoch(2, 0.5, wait=0.6, seconds=30.0), ["waiting"]),
        (epoch(2, 0.5, wait=0.4, seconds=30.0), []),
        (epoch(2, 0.5, wait=0.6, seconds=3.0), []),
    ],
    ids=["long", "not much of it", "short epochs"],
)
def test_waiting_for_images_is_found(last: EpochEnded, said: list[str]) -> None:
    assert [name for name, _ in check_waiting([epoch(1, 0.5), last])] == said
    assert list(check_waiting([attrs.evolve(last, epoch=1)])) == []  # in which the workers start


def test_what_is_waited_for_is_the_data_and_not_what_is_done_with_it() -> None:
    def slow() -> Iterator[list[Batch]]:
        for _ in range(3):
            time.sleep(0.02)
            yield []

    current, other = EpochProgress(), EpochProgress()
    for _ in timed_windows(slow(), current):
        time.sleep(0.01)
    for _ in timed_windows(iter([[], []]), other):
        time.sleep(0.5)

    assert current.data_wait_s >= 0.06
    assert other.data_wait_s < 0.5


def test_the_share_that_was_waited_is_told_with_each_step_and_epoch(tmp_path: Path) -> None:
    told: list[StepLogged | EpochEnded] = []

    def observe(event: Event) -> None:
        if isinstance(event, StepLogged | EpochEnded):
            told.append(event)

    sets = (f"run.folder={tmp_path / 'run'}", "train.epochs=2", "train.log_every=1")
    fit(load_config(None, CliOverrides("digits/cnn", "digits:5-6", sets=sets)), [observe])

    assert len({event.data_wait for event in told}) > 2
    assert all(0 < event.data_wait < 1 for event in told)


def test_classes_that_are_there_and_never_predicted_are_found() -> None:
    matrix = [[5, 1, 0], [0, 6, 0], [2, 2, 0]]

    assert [text for _, text in check_classes(PETS, {"confusion_matrix": matrix})] == [
        "never predicted on validation: 'owl' (4 images); `weighted_ce` weighs rare classes, `balanced_sampling` draws "
        "them more often"
    ]
    assert list(check_classes(PETS, {"confusion_matrix": [[5, 1, 0], [0, 6, 0], [0, 0, 0]]})) == []
    assert list(check_classes(PETS, {"accuracy": 0.5})) == []


def test_of_many_classes_a_few_are_named() -> None:
    task = Task("classification", tuple("abcdefgh"))
    matrix = [[1, *[0] * 7] for _ in range(8)]

    ((_, text),) = check_classes(task, {"confusion_matrix": matrix})

    assert "'b' (1 images), 'c' (1 images), 'd' (1 images), 'e' (1 images), 'f' (1 images) and 2 more;" in text


def test_an_accuracy_that_one_class_has_is_found() -> None:
    ((_, text),) = check_accuracy(PETS, {"confusion_matrix": [[4, 2, 0], [0, 2, 0], [0, 2, 0]]})

    assert text == "accuracy 0.6000 in the best epoch is no better than 0.6000, that of always saying 'cat'"
    assert list(check_accuracy(PETS, {"confusion_matrix": [[5, 1, 0], [0, 2, 0], [0, 2, 0]]})) == []
    assert list(check_accuracy(PETS, {"accuracy": 0.1})) == []
    assert list(check_accuracy(PETS, {"confusion_matrix": [[6, 0, 0], [0, 0, 0], [0, 0, 0]]})) == []  # one class alone


def test_what_is_kept_of_an_epoch_does_not_grow_with_the_classes() -> None:
    watch = TrainingAdvisor(structlog.get_logger(), RunStarted(Path(), {}, (), 9, 1, task=PETS))

    watch.observe(attrs.evolve(epoch(1, 0.5), val={"loss": 0.5, "confusion_matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}))

    assert [kept.val for kept in watch.epochs] == [{"loss": 0.5}]
