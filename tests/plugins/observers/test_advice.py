"""Warnings where the numbers of a run say that something is wrong: said once, where it is so, and nowhere else."""

from __future__ import annotations

import math
import time
from html import unescape
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import pytest
import structlog
import torch
from PIL import Image

from ftcore import Context, EpochEnded, RunConfig, RunStarted, StepLogged, Task
from ftcore.config.load import CliOverrides, load_config
from ftcore.data import ImageFiles, ImageSplit
from ftcore.runs.log import read_warnings
from ftcore.runs.run import fit
from ftcore.testing import invoke
from ftcore.training.loop import timed_windows
from ftcore.training.state import EpochProgress
from ftcore_plugins.losses.bce import BinaryCrossEntropy, BinaryCrossEntropyConfig
from ftcore_plugins.losses.cross_entropy import (
    CrossEntropy,
    CrossEntropyConfig,
    WeightedCrossEntropy,
    WeightedCrossEntropyConfig,
)
from ftcore_plugins.losses.focal import Focal, FocalConfig
from ftcore_plugins.losses.regression import MeanSquaredError
from ftcore_plugins.observers.advice import (
    TrainingAdvisor,
    check_accuracy,
    check_average,
    check_chance,
    check_classes,
    check_overfitting,
    check_waiting,
)
from ftcore_plugins.tasks import Classification, Multilabel, Regression

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftcore import Event
    from ftcore.data.loader import Batch

PETS = Classification(("cat", "dog", "owl"))
LABELS = Multilabel(("sun", "sea"))
KILOS = Regression(("kilos",))


def epoch(number: int, train: float, val: float = 0.5, *, seconds: float = 1.0, wait: float = 0.0) -> EpochEnded:
    best = False
    return EpochEnded(number, number, {"loss": train}, {"loss": val}, best, "loss", seconds, 10.0, wait)


def run(task: Task, **facts: Any) -> RunStarted:
    """A run of three epochs of which ten of ten parameters learn, if nothing else is said."""
    return RunStarted(
        Path(), {}, (), 3, 1, **{"task": task, "trainable_parameters": 10, "total_parameters": 10, **facts}
    )


def heard(started: RunStarted, *epochs: EpochEnded) -> list[str]:
    """Names of what is said in a run, in order."""
    advisor = TrainingAdvisor(structlog.get_logger(), RunConfig())
    said: list[str] = []
    events: tuple[Event, ...] = (started, *epochs)
    for event in events:
        advisor.observe(event)
        said += [name for name in sorted(advisor.said) if name not in said]
    return said


def trained(data: str, folder: Path, *sets: str, plugins: tuple[str, ...] = ()) -> list[str]:
    """Train the digits' network on data, and return what was warned of."""
    given = (f"run.folder={folder}", "train.batch_size=32", "train.threads=1", *sets)
    words = [*(word for key in given for word in ("--set", key)), *(w for name in plugins for w in ("--plugin", name))]
    said = invoke("run", "--model", "digits/cnn", "--data", data, *words)
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

    assert sum("stays at 1.6094, chance level" in text for text in found) == 1


def test_a_class_that_is_never_predicted_and_an_accuracy_that_one_class_has_are_warned_of(tmp_path: Path) -> None:
    data = noise(tmp_path / "pictures", {"common": 100, "rare": 10})

    never, best = trained(data, tmp_path / "run", "train.epochs=4", "adamw.lr=1e-4")

    assert never.startswith("never predicted on validation: 'rare' (2 images); ")
    assert best.startswith(
        "accuracy 0.9091 in the best epoch is no better than 0.9091, the majority-class baseline ('common'"
    )


def test_pictures_that_are_learnt_by_heart_are_warned_of_and_the_report_says_so(tmp_path: Path) -> None:
    data = noise(tmp_path / "pictures", {"some": 60, "others": 60})

    found = trained(data, tmp_path / "run", "train.epochs=30", "adamw.lr=0.01")

    assert sum("the model is overfitting" in text for text in found) == 1
    page = unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert all(text in page for text in found)


CHANCE: dict[str, tuple[Any, Task, float | None]] = {
    "cross_entropy": (CrossEntropy(CrossEntropyConfig(0.1)), PETS, math.log(3)),
    "weighted_ce": (WeightedCrossEntropy(WeightedCrossEntropyConfig((1.0, 2.0, 30.0))), PETS, math.log(3)),
    "bce of labels": (BinaryCrossEntropy(BinaryCrossEntropyConfig()), LABELS, math.log(2)),
    "bce of classes": (BinaryCrossEntropy(BinaryCrossEntropyConfig()), PETS, None),
    "focal": (Focal(FocalConfig()), PETS, None),
    "mse": (MeanSquaredError(), KILOS, None),
}


@pytest.mark.parametrize("name", CHANCE)
def test_the_loss_of_guessing_is_that_of_equal_probabilities_where_it_is_known(name: str) -> None:
    plugin, task, level = CHANCE[name]
    loss = plugin.make_loss(
        **{
            argument: {"task": task, "ctx": Context(Path(), structlog.get_logger())}[argument]
            for argument in signature(plugin.make_loss).parameters
        }
    )

    assert loss.chance_level == level
    if level is not None:
        targets = torch.tensor([0, 1, 2, 2]) if task is PETS else torch.tensor([[0.0, 1.0], [1.0, 1.0]])
        assert float(loss.function(torch.zeros(len(targets), task.outputs), targets)) == pytest.approx(level)


@pytest.mark.parametrize("level", [None, math.log(3)])
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
def test_a_training_loss_that_stays_at_guessing_is_found(
    losses: list[float], said: list[str], level: float | None
) -> None:
    epochs = [epoch(place, loss, 1.1) for place, loss in enumerate(losses, 1)]

    found = [name for name, _ in check_chance(run(PETS, chance_level=level), epochs)]

    assert found == (said if level else [])


def test_a_training_loss_on_mixtures_is_no_guessing_where_the_validation_loss_falls() -> None:
    assert list(check_chance(run(PETS, chance_level=math.log(3)), [epoch(1, 1.099, 0.9), epoch(2, 1.099, 0.6)])) == []


@pytest.mark.parametrize(("learns", "said"), [(5, True), (10, False)])
def test_of_what_is_frozen_is_spoken_where_something_is(learns: int, said: bool) -> None:  # noqa: FBT001
    epochs = [epoch(1, 1.099, 1.1), epoch(2, 1.099, 1.1)]

    ((_, text),) = check_chance(run(PETS, chance_level=math.log(3), trainable_parameters=learns), epochs)

    assert ("shows what is frozen" in text) == said


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([(0.9, 0.8), (0.5, 1.0), (0.2, 1.3)], ["overfitting"]),
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

    assert [name for name, _ in check_overfitting(run(PETS), RunConfig(), epochs)] == said


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "train.patience": ({}, {"train.patience": 2}),
    "`augment`": ({"augmented": True}, {}),
    "`freeze_backbone`": ({"trainable_parameters": 5}, {}),
}
"""What is advised against learning by heart -> facts or settings of a run that does it."""


def by_heart(facts: dict[str, Any], settings: dict[str, Any]) -> str:
    epochs = [epoch(1, 0.9, 0.8), epoch(2, 0.5, 1.0), epoch(3, 0.2, 1.3)]
    config = RunConfig()
    if settings:
        config = attrs.evolve(config, train=attrs.evolve(config.train, patience=settings["train.patience"]))
    ((_, text),) = check_overfitting(run(PETS, **facts), config, epochs)
    return text


@pytest.mark.parametrize("way", WAYS)
def test_what_a_run_does_against_learning_by_heart_is_not_advised_and_the_rest_is(way: str) -> None:
    text = by_heart(*WAYS[way])

    assert [other for other in WAYS if other not in text] == [way]
    assert all(each in by_heart({}, {}) for each in WAYS)


@pytest.mark.parametrize(
    "facts", [{"releases": {4: ("",)}}, {"trainable_parameters": 9}], ids=["released later", "frozen"]
)
def test_to_a_run_that_augments_freezes_and_stops_other_things_are_advised(facts: dict[str, Any]) -> None:
    text = by_heart({"augmented": True, **facts}, {"train.patience": 2})

    assert text.endswith("the model is overfitting; use more samples or a smaller network")


def test_texts_are_not_augmented_and_a_network_from_scratch_is_not_frozen() -> None:
    epochs = [epoch(1, 0.9, 0.8), epoch(2, 0.5, 1.0), epoch(3, 0.2, 1.3)]
    config = RunConfig()
    scratch = attrs.evolve(config, model=attrs.evolve(config.model, weights="none"))

    ((_, text),) = check_overfitting(run(PETS, reads_text=True), scratch, epochs)

    assert text.endswith("overfitting; train.patience=3 stops early")


JUMP = [(0.9, 0.5), (0.8, 0.45), (0.79, 1.4), (0.75, 1.3), (0.7, 1.2)]
"""Losses of a run whose network is released in the third epoch, and is better from epoch to epoch then."""


@pytest.mark.parametrize(("releases", "said"), [({}, ["overfitting"]), ({3: ("",)}, [])], ids=["frozen", "released"])
def test_a_loss_that_jumped_when_the_network_was_released_is_no_learning_by_heart(
    releases: dict[int, tuple[str, ...]], said: list[str]
) -> None:
    assert heard(run(PETS, releases=releases), *(epoch(n, *losses) for n, losses in enumerate(JUMP, 1))) == said


def test_what_is_learnt_by_heart_after_a_release_is_said() -> None:
    losses = [*JUMP, (0.3, 1.5), (0.2, 2.0)]
    epochs = [epoch(n, *both) for n, both in enumerate(losses, 1)]

    assert heard(run(PETS, releases={3: ("",)}), *epochs) == ["overfitting"]


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
    started, config = run(PETS), RunConfig()

    assert [name for name, _ in check_waiting(started, config, [epoch(1, 0.5), last])] == said
    assert list(check_waiting(started, config, [attrs.evolve(last, epoch=1)])) == []  # in which the workers start


def waiting(val: Any, workers: int, cache: Any) -> str:
    config = RunConfig()
    config = attrs.evolve(
        config,
        train=attrs.evolve(config.train, workers=workers),
        data=attrs.evolve(config.data, cache=cache),
    )
    epochs = [epoch(1, 0.5), epoch(2, 0.5, wait=0.6, seconds=30.0)]
    ((_, text),) = check_waiting(run(PETS, val=val), config, epochs)
    return text


def test_more_processes_and_a_cache_are_advised_where_there_are_none() -> None:
    files: Any = ImageSplit(ImageFiles.__new__(ImageFiles), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))

    assert "increase train.workers, and set data.cache=ram" in waiting(files, 0, None)
    assert "train.workers" not in waiting(files, 1000, None)
    assert "data.cache" not in waiting(files, 0, "ram")
    assert "data.cache" not in waiting([], 0, None)  # other samples are not cached
    assert waiting(files, 1000, "disk").endswith("waiting for data: use smaller files")


def test_the_first_epoch_after_a_release_in_which_workers_start_is_no_waiting() -> None:
    slow = epoch(3, 0.5, wait=0.9, seconds=30.0)
    epochs = [epoch(1, 0.5), epoch(2, 0.5), slow]

    assert heard(run(PETS), *epochs) == ["waiting"]
    assert heard(run(PETS, releases={3: ("",)}), *epochs) == []


@pytest.mark.parametrize(("share", "said"), [(0.0, []), (0.4, []), (0.9, ["average"])])
def test_an_average_that_is_still_the_start_is_found(share: float, said: list[str]) -> None:
    assert [name for name, _ in check_average(attrs.evolve(epoch(1, 0.5), initial_share=share))] == said


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_an_average_that_has_hardly_moved_is_no_judge_of_classes_or_of_learning_by_heart(share: float) -> None:
    matrix = {"confusion_matrix": [[5, 0, 0], [6, 0, 0], [4, 0, 0]]}
    losses = [(0.9, 0.8), (0.5, 1.0), (0.2, 1.3)]
    epochs = [attrs.evolve(epoch(n, *both), initial_share=share) for n, both in enumerate(losses, 1)]
    epochs = [attrs.evolve(each, val={**each.val, **matrix}) for each in epochs]

    assert heard(run(PETS), *epochs) == (["average"] if share else ["classes", "overfitting"])


@pytest.mark.parametrize(("sets", "said"), [((), False), (("ema.warmup=false", "ema.decay=0.9999"), True)])
def test_an_ema_without_warm_up_in_a_short_run_is_blamed_and_not_the_classes(
    sets: tuple[str, ...],
    said: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    found = trained("digits:5-9", tmp_path / "run", "train.epochs=3", "adamw.lr=0.003", *sets, plugins=("ema",))

    assert [text.partition(" of the average")[0] for text in found] == (["100%"] if said else [])


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


MATRIX = {"confusion_matrix": [[5, 1, 0], [0, 6, 0], [2, 2, 0]]}
NEVER = "never predicted on validation: 'owl' (4 images)"


def test_classes_that_are_there_and_never_predicted_are_found() -> None:
    assert [text for _, text in check_classes(run(PETS), MATRIX)] == [NEVER]
    assert list(check_classes(run(PETS), {"confusion_matrix": [[5, 1, 0], [0, 6, 0], [0, 0, 0]]})) == []
    assert list(check_classes(run(PETS), {"accuracy": 0.5})) == []


@pytest.mark.parametrize(
    ("counts", "facts", "said"),
    [
        ((50, 50, 5), {}, True),
        ((50, 50, 50), {}, False),
        ((50, 50, 5), {"rebalanced": True}, False),
        ((5, 50, 50), {}, False),
    ],
    ids=["rare", "balanced", "weighed already", "another is rare"],
)
def test_weights_are_advised_for_classes_that_are_rare_and_not_weighed_yet(
    counts: tuple[int, ...],
    facts: dict[str, Any],
    said: bool,  # noqa: FBT001
) -> None:
    ((_, text),) = check_classes(run(attrs.evolve(PETS, counts=counts), **facts), MATRIX)

    assert text == NEVER + ("; the loss `weighted_ce` weights rare classes" if said else "")


def test_of_many_classes_a_few_are_named() -> None:
    task = Classification(tuple("abcdefgh"))
    matrix = [[1, *[0] * 7] for _ in range(8)]

    ((_, text),) = check_classes(run(task), {"confusion_matrix": matrix})

    assert text.endswith("'b' (1 images), 'c' (1 images), 'd' (1 images), 'e' (1 images), 'f' (1 images) and 2 more")


@pytest.mark.parametrize("plugins", [("weighted_ce",), ("balanced_sampling",), ()])
def test_weights_are_not_advised_to_a_run_that_has_them(plugins: tuple[str, ...], tmp_path: Path) -> None:
    data = noise(tmp_path / "pictures", {"common": 100, "rare": 10})

    found = trained(data, tmp_path / "run", "train.epochs=3", "adamw.lr=1e-9", plugins=plugins)

    advised = [text for text in found if "weighted_ce" in text or "balanced_sampling" in text]
    assert all(text.startswith("never predicted on validation: 'rare'") for text in advised)
    assert not (plugins and advised)


FACTS = {
    "nothing": ((), (), (False, False)),
    "augment": (("augment",), (), (True, False)),
    "mixup": (("mixup",), (), (True, False)),
    "weighted_ce": (("weighted_ce",), ("weighted_ce.weights={6 = 9}",), (False, False)),
    "balanced_sampling": (("balanced_sampling",), (), (False, True)),
}
"""Plugins and settings -> what an observer is told of them: augmented, rebalanced."""


@pytest.mark.parametrize("name", FACTS)
def test_a_run_tells_what_it_does(name: str, tmp_path: Path) -> None:
    plugins, sets, expected = FACTS[name]
    told: list[RunStarted] = []

    def observe(event: Event) -> None:
        if isinstance(event, RunStarted):
            told.append(event)

    sets = (f"run.folder={tmp_path / 'run'}", "train.epochs=1", *sets)
    fit(load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=plugins, sets=sets)), [observe])

    assert [(event.augmented, event.rebalanced) for event in told] == [expected]


def test_an_accuracy_that_one_class_has_is_found() -> None:
    ((_, text),) = check_accuracy(PETS, {"confusion_matrix": [[4, 2, 0], [0, 2, 0], [0, 2, 0]]})

    assert text == "accuracy 0.6000 in the best epoch is no better than 0.6000, the majority-class baseline ('cat'"
    assert list(check_accuracy(PETS, {"confusion_matrix": [[5, 1, 0], [0, 2, 0], [0, 2, 0]]})) == []
    assert list(check_accuracy(PETS, {"accuracy": 0.1})) == []
    assert list(check_accuracy(PETS, {"confusion_matrix": [[6, 0, 0], [0, 0, 0], [0, 0, 0]]})) == []  # one class alone


def test_what_is_kept_of_an_epoch_does_not_grow_with_the_classes() -> None:
    watch = TrainingAdvisor(structlog.get_logger(), RunConfig(), run(PETS))

    watch.observe(attrs.evolve(epoch(1, 0.5), val={"loss": 0.5, "confusion_matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}))

    assert [kept.val for kept in watch.epochs] == [{"loss": 0.5}]
