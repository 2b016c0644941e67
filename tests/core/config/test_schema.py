"""What the sections of a configuration hold, and refuse."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from ftcore.config.schema import (
    RESERVED,
    SECTIONS,
    DataConfig,
    ModelConfig,
    RunConfig,
    RunSection,
    TrainConfig,
)
from ftcore.config.validators import SAVE_INTERVAL

REFUSED: list[tuple[type, dict[str, Any], str]] = [
    (
        TrainConfig,
        {"clip_norm": 1.0, "clip_value": 0.5},
        "set at most one of clip_norm, clip_value and clip_adaptive, not clip_norm and clip_value",
    ),
    (TrainConfig, {"max_nonfinite": 3}, 'max_nonfinite needs on_nonfinite = "skip"'),
    (TrainConfig, {"views": 2, "precompute": "never"}, "views needs feature caching, which"),
    (TrainConfig, {"min_delta": 0.1}, "min_delta needs patience > 0"),
    (TrainConfig, {"epochs": 0}, "epochs' must be > 0"),
    (TrainConfig, {"epochs": 10**23}, "epochs' must be <= 1000000"),
    (TrainConfig, {"accumulate": 10**30}, "accumulate' must be <= 1000000"),
    (TrainConfig, {"threads": 100_000}, "threads' must be <= 1024"),
    (TrainConfig, {"workers": 100_000}, "workers' must be <= 1024"),
    (DataConfig, {"cache_gb": 1e300}, "cache_gb' must be <= 1000000"),
    (ModelConfig, {"image_size": 10**9}, "image_size' must be > 0 and <= 65536"),
    (RunSection, {"save_every": "9" * 5000 + " steps"}, "a number of steps, minutes or epochs"),
    (TrainConfig, {"seed": -1}, "seed' must be >= 0"),
    (ModelConfig, {"image_size": (64, 0)}, r"image_size' must be > 0 and <= 65536: \(64, 0\)"),
    (DataConfig, {"val_fraction": 1.0}, "val_fraction' must be < 1"),
    (DataConfig, {"val_fraction": 0.0}, "val_fraction' must be > 0"),
    (DataConfig, {"folds": 1}, "folds' must be >= 2"),
    (RunSection, {"keep": 0}, "keep' must be > 0"),
    (RunSection, {"save_every": "hour"}, "a number of steps, minutes or epochs, such as '500 steps' or '1 epoch'"),
]


@pytest.mark.parametrize(("section", "values", "words"), REFUSED)
def test_values_that_make_no_sense_are_refused(section: type, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        section(**values)


def test_settings_that_need_each_other_go_together() -> None:
    config = TrainConfig(max_nonfinite=3, on_nonfinite="skip", min_delta=0.1, patience=2, clip_norm=1.0)

    assert (config.max_nonfinite, config.min_delta) == (3, 0.1)


@pytest.mark.parametrize(("given", "images"), [(None, 24), (100, 100)])
def test_batches_in_evaluation_are_those_of_training_unless_said_otherwise(given: int | None, images: int) -> None:
    assert TrainConfig(batch_size=24, eval_batch_size=given).effective_eval_batch_size == images


@pytest.mark.parametrize(("given", "size"), [(None, None), (64, (64, 64)), ((64, 96), (64, 96))])
def test_one_number_is_the_size_of_a_square(given: Any, size: tuple[int, int] | None) -> None:
    assert ModelConfig(image_size=given).size == size


@pytest.mark.parametrize("text", ["1 step", "500 steps", "30 minutes", "2 epochs", "1 epoch"])
def test_a_run_is_saved_every_so_many_steps_minutes_or_epochs(text: str) -> None:
    assert SAVE_INTERVAL.fullmatch(RunSection(save_every=text).save_every)


@pytest.mark.parametrize("text", ["0 steps", "-1 steps", "1.5 epochs", "1  step", "steps", "1 hour", "1 step ", ""])
def test_another_interval_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a number of steps, minutes or epochs"):
        RunSection(save_every=text)


def test_a_value_knows_where_it_was_set() -> None:
    config = RunConfig(origins={"train.epochs": "--set train.epochs=3"})

    assert (config.origin("train.epochs"), config.origin("train.seed")) == ("--set train.epochs=3", "default")


def test_sections_and_what_else_a_config_holds_are_no_names_of_plugins() -> None:
    assert set(SECTIONS) == {"model", "data", "train", "run", "observers"}
    assert {*SECTIONS, "hooks", "plugin", "plugins", "without"} == RESERVED


def test_no_section_can_be_changed() -> None:
    for section in (RunConfig, *SECTIONS.values()):
        with pytest.raises(attrs.exceptions.FrozenInstanceError, match="can't set attribute"):
            setattr(section(), attrs.fields(section)[0].name, None)
