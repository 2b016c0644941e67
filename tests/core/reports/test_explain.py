from __future__ import annotations

import json
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attrs import evolve
from torch.optim import lr_scheduler

from ftcore import Schedule, StepLogged, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.plugins.discovery import discover
from ftcore.reports.explain import explain, explain_without_building
from ftcore.reports.lr_preview import MAX_STEPS, preview_learning_rates, table
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore.training.loop import fit
from ftcore.training.state import Progress

if TYPE_CHECKING:
    from ftcore import Event, Table
    from ftcore.reports.lr_preview import LRPreview
    from ftcore.training.assemble import Assembly

HOOKS = """
from ftcore import hookimpl

@hookimpl(wrapper=True)
def make_loss():
    return (yield)
"""


def explained(*plugins: str, without: tuple[str, ...] = (), sets: tuple[str, ...] = ()) -> dict[str, Table]:
    tables, _ = explain(load_config(None, CliOverrides(plugins=plugins, without=without, sets=sets)))
    return {table.title: table for table in tables}


def rows(table: Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_it_says_who_answered_and_who_named_it_and_who_did_not() -> None:
    answers = rows(explained("weighted_ce")["who answers"])

    assert answers["make_loss"]["plugin"] == "weighted_ce"
    assert answers["make_loss"]["named by"] == "--plugin weighted_ce"
    assert answers["make_loss"]["from"].startswith("ftcore ")
    assert answers["make_loss"]["not asked"] == "cross_entropy, bce, mse"
    assert answers["build_model"]["passed"] == "timm, torchvision"
    assert answers["make_optimizer"]["named by"] == "default"


def test_it_shows_the_line_of_the_code_that_answered() -> None:
    place = rows(explained("weighted_ce")["who answers"])["make_loss"]["code"]

    file, _, line = place.rpartition(":")
    assert "hookimpl" in Path(file).read_text(encoding="utf-8").splitlines()[int(line) - 1]


def test_it_shows_wrappers_and_hooks_files(tmp_path: Path) -> None:
    file = tmp_path / "explained_hooks.py"
    file.write_text(HOOKS, encoding="utf-8")

    out = invoke("explain", "--plugin", file).out

    (line,) = [line for line in out.splitlines() if line.startswith("make_loss")]
    assert "explained_hooks" in line
    assert "cross_entropy" in line


def test_it_shows_every_option_and_who_set_it() -> None:
    options = rows(explained("sgd", sets=("sgd.lr=0.5",))["options"])

    assert (options["sgd.lr"]["value"], options["sgd.lr"]["set by"]) == ("0.5", "--set sgd.lr=0.5")
    assert (options["sgd.momentum"]["value"], options["sgd.momentum"]["set by"]) == ("0.9", "default")
    assert "adamw.lr" not in options


def test_it_says_what_is_frozen_and_what_is_held() -> None:
    learning = rows(explained("freeze_backbone")["what learns"])

    assert learning["layer1"] == {
        "module": "layer1",
        "state": "frozen",
        "parameters": "352",
        "learning": "0",
        "modules held in eval": "4",
    }
    assert (learning["head"]["state"], learning["head"]["learning"]) == ("learns", "325")
    assert learning["pool"]["state"] == "no parameters"


def test_a_module_of_which_a_part_is_frozen_is_called_so() -> None:
    learning = rows(explained("freeze_modules", sets=('freeze_modules.types=["Conv2d"]',))["what learns"])

    assert (learning["layer1"]["state"], learning["layer1"]["learning"]) == ("partly frozen", "64")


def test_it_shows_the_parameter_groups_with_what_the_optimizer_made_of_them() -> None:
    sets = ("sgd.lr=0.5", "sgd.weight_decay=0.1")

    groups = rows(explained("sgd", sets=sets)["parameter groups of SGD"])

    assert {name: (group["lr"], group["weight decay"]) for name, group in groups.items()} == {
        "decay": ("0.5", "0.1"),
        "no_decay": ("0.5", "0"),
    }
    assert groups["decay"]["names"] == "layer1.0.weight, layer2.0.0.weight, layer3.0.weight ..."
    assert sum(int(group["parameters"].replace(",", "")) for group in groups.values()) == 56_229


def test_frozen_parameters_are_in_no_group() -> None:
    groups = rows(explained("freeze_backbone")["parameter groups of AdamW"])

    assert [(name, group["names"]) for name, group in groups.items()] == [
        ("decay", "head.weight"),
        ("no_decay", "head.bias"),
    ]


def test_the_tables_of_the_data_and_the_loss_are_shown() -> None:
    tables = explained("weighted_ce")

    assert rows(tables["images"])["5"] == {"class": "5", "train": "145", "val": "37"}
    assert list(rows(tables["weighted_ce, divided by the weights of the samples"])) == ["5", "6", "7", "8", "9"]


def test_statically_it_says_who_would_be_asked_in_which_order() -> None:
    flags = CliOverrides(plugins=["weighted_ce"], sets=['hooks.make_loss=["mse", "weighted_ce"]'], without=["timm"])

    (table,) = explain_without_building(load_config(None, flags))

    asked = rows(table)
    assert asked["make_loss"]["asked"] == "mse, weighted_ce, cross_entropy, bce"
    assert asked["build_model"]["asked"] == "torchvision, digits"
    assert (asked["make_loss"]["takes"], asked["make_metrics"]["takes"]) == ("one", "all")


@pytest.mark.parametrize("arguments", [[], ["--static"]], ids=["full", "static"])
def test_it_writes_nothing_to_disk(tmp_path: Path, arguments: list[str]) -> None:
    with chdir(tmp_path):
        result = invoke("explain", "--plugin", "freeze_backbone", *arguments)

    assert (result.code, result.err) == (0, "")
    assert "make_loss" in result.out
    assert list(tmp_path.iterdir()) == []


def test_it_neither_makes_nor_touches_the_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new"

    result = invoke("explain", "--set", f"run.folder={folder}")

    assert result.code == 0
    assert not folder.exists()


def test_it_needs_no_pretrained_weights() -> None:
    result = invoke("explain", "--set", "model.weights=missing.safetensors")

    assert (result.code, result.err) == (0, "")


def test_programs_read_every_table_by_title_and_column() -> None:
    result = invoke("explain", "--plugin", "weighted_ce", "--set", "weighted_ce.divide_by=samples", "--json")

    found = json.loads(result.out)
    answers = {row["hook"]: row for row in found["who answers"]}
    options = {row["option"]: row for row in found["options"]}
    assert result.code == 0
    assert answers["make_loss"]["plugin"] == "weighted_ce"
    assert answers["make_loss"]["named by"] == "--plugin weighted_ce"
    assert answers["make_loss"]["not asked"] == "cross_entropy, bce, mse"
    assert answers["build_model"]["passed"] == "timm, torchvision"
    assert options["weighted_ce.divide_by"]["set by"] == "--set weighted_ce.divide_by=samples"
    assert options["weighted_ce.weights"]["set by"] == "default"


def test_statically_programs_read_the_same_form() -> None:
    found = json.loads(invoke("explain", "--static", "--json").out)

    assert [row["hook"] for row in found["who would be asked, in this order"]] == list(HOOK_ARGUMENTS)


# ------------------------------------------------------------------ the learning rates of the run


class Chained:
    """Schedules of torch whose next rate depends on the last, beside a warm-up."""

    @hookimpl
    def make_schedule(self, optimizer: torch.optim.Optimizer) -> Schedule:
        warmup = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=7)
        return Schedule(lr_scheduler.ExponentialLR(optimizer, 0.5), interval="epoch", warmup=warmup)


class EachStep:
    """The same without one, at each step."""

    @hookimpl
    def make_schedule(self, optimizer: torch.optim.Optimizer) -> Schedule:
        return Schedule(lr_scheduler.ExponentialLR(optimizer, 0.9), interval="step")


SCHEDULES: dict[str, tuple[str, ...]] = {
    "cosine": ("cosine.warmup=0.2",),
    "onecycle": (),
    "step": ("step.size=1",),
    "constant": ("constant.warmup=0.5",),
    "phases": (),
    "polynomial": ("polynomial.per=epoch", "polynomial.warmup=0"),
    "multistep": ("multistep.milestones=[2]", "multistep.warmup=0.1"),
    "plateau": ("plateau.patience=0", "plateau.warmup=0.3"),
    f"{__name__}:Chained": (),
    f"{__name__}:EachStep": (),
}


def assembly(schedule: str, *sets: str) -> Assembly:
    """Ten steps an epoch, three epochs, five rates."""
    flags = ("train.epochs=3", "train.log_every=1", "groups.layer_decay=0.5", *SCHEDULES[schedule], *sets)
    return prepare(
        load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=(schedule, "sgd"), sets=flags))
    ).assembly


def by_group(rates: LRPreview, groups: Any) -> list[tuple[float, ...]]:
    """Step -> the rate of each group."""
    curves = {name: curve.rates for curve in rates.curves for name in curve.groups}
    return list(zip(*(curves[group.name] for group in groups), strict=True))


def at_each_step(rates: LRPreview, groups: Any, steps: int) -> list[tuple[float, ...]]:
    """The same, where what was not looked at is as before."""
    found = dict(zip(rates.steps, by_group(rates, groups), strict=True))
    return [found[max(seen for seen in found if seen <= step)] for step in range(steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rates_are_those_that_the_run_will_have(schedule: str) -> None:
    done, planned = assembly(schedule), assembly(schedule)
    told: list[Event] = []
    fit(evolve(done.parts, observers=(told.append,)), Progress(), lambda _: None)
    real = [event.lr for event in told if isinstance(event, StepLogged)]

    rates = preview_learning_rates(planned.parts, planned.groups)

    assert len(real) == 30
    assert len(set(real[0])) > 2
    known = 10 if schedule == "plateau" else 30  # what the metric does to it nobody knows
    assert at_each_step(rates, planned.groups, 30)[:known] == real[:known]


def test_following_the_rates_changes_no_parameter() -> None:
    run = assembly("cosine")
    before = {name: tensor.clone() for name, tensor in run.parts.network.state_dict().items()}

    preview_learning_rates(run.parts, run.groups)

    assert all(torch.equal(before[name], tensor) for name, tensor in run.parts.network.state_dict().items())


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "phases"])
def test_of_a_long_run_some_steps_are_looked_at_and_have_the_same_rates(schedule: str) -> None:
    whole, long = assembly(schedule), assembly(schedule)
    every = by_group(preview_learning_rates(whole.parts, whole.groups), whole.groups)

    some = preview_learning_rates(long.parts, long.groups, most=8)

    assert some.steps == (0, 4, 8, 12, 16, 20, 24, 28, 29)
    assert by_group(some, long.groups) == [every[step] for step in some.steps]
    assert some.changes == "each step; one in 4 of 30 steps is shown"


@pytest.mark.parametrize("schedule", [f"{__name__}:EachStep", f"{__name__}:Chained", "plateau"])
def test_what_cannot_be_sampled_is_followed_as_far_as_is_allowed(schedule: str) -> None:
    whole, long = assembly(schedule), assembly(schedule)
    every = by_group(preview_learning_rates(whole.parts, whole.groups), whole.groups)

    some = preview_learning_rates(long.parts, long.groups, most=12)

    assert some.steps == tuple(range(12))
    assert by_group(some, long.groups) == every[:12]
    assert some.changes.endswith("; the first 12 of 30 steps are shown")


def test_a_rate_that_changes_with_epochs_is_known_for_any_number_of_steps() -> None:
    run = assembly("step")

    rates = preview_learning_rates(run.parts, run.groups, most=4)

    assert rates.steps == (0, 9, 10, 19, 20, 29)
    assert rates.changes == "each epoch"


def test_a_very_long_run_is_bounded() -> None:
    run = assembly("cosine", "train.epochs=100000")

    rates = preview_learning_rates(run.parts, run.groups)

    assert MAX_STEPS / 2 < len(rates.steps) <= MAX_STEPS + 1
    assert rates.steps[-1] == 999_999


def test_a_rate_that_follows_the_metric_shows_its_warm_up_and_says_so() -> None:
    run = assembly("plateau")

    (shown,) = {row[-1] for row in table(preview_learning_rates(run.parts, run.groups)).rows}

    assert shown == "after the warm-up, with the monitored metric (accuracy), which nobody knows before the run"


def test_groups_of_one_curve_are_one_row_with_first_highest_and_last() -> None:
    sets = ("adamw.lr=0.1", "cosine.warmup=0.1", "groups.backbone_lr=0.5", "train.epochs=10")

    found = rows(explained(sets=sets)["learning rates"])

    assert list(found) == ["backbone.decay, backbone.no_decay", "head.decay, head.no_decay"]
    head, backbone = (found[name] for name in ("head.decay, head.no_decay", "backbone.decay, backbone.no_decay"))
    assert float(head["first"]) == pytest.approx(0.1 / 24, rel=1e-3)  # 230 steps, of which 23 warm up
    assert (head["highest"], head["in epoch"], head["changes"]) == ("0.1", "2", "each step")
    assert [float(head[name]) / float(backbone[name]) for name in ("first", "highest", "last")] == [
        pytest.approx(2.0, rel=1e-3)
    ] * 3


def test_people_see_the_curve_and_programs_the_table_alone() -> None:
    flags = ("--set", "groups.backbone_lr=0.5")
    out, machine = invoke("explain", *flags).out, invoke("explain", *flags, "--json").out

    assert out.splitlines()[-2:] == ["a: backbone.decay, backbone.no_decay", "b: head.decay, head.no_decay"]
    assert "┌──" in out
    (line,) = machine.splitlines()
    assert [row["in epoch"] for row in json.loads(line)["learning rates"]] == ["1", "1"]


def test_statically_no_rates_are_shown_and_no_torch_is_imported() -> None:
    code = (
        "import sys; from ftcore.testing import invoke; print(invoke('explain', '--static').out); "
        "print({'torch', 'plotext', 'matplotlib'} & sys.modules.keys())"
    )

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out.splitlines()[-1] == "set()"
    assert "learning rate" not in out


def shown(name: str) -> dict[str, dict[str, dict[str, str]]]:
    """Title -> first column -> row of ``plugins show``."""
    result = invoke("plugins", "show", name, "--json")
    assert result.code == 0, result.err
    return {title: {next(iter(row.values())): row for row in table} for title, table in json.loads(result.out).items()}


def test_a_plugin_is_shown_with_its_hooks_and_options() -> None:
    found = shown("sgd")

    assert found["sgd"]["target"]["value"] == "ftcore_plugins.optimizers.torch_optimizers:Sgd"
    assert found["hooks"]["make_optimizer"]["how"] == "answers"
    assert found["hooks"]["make_optimizer"]["takes"] == "param_groups"
    assert found["options"]["momentum"] == {
        "option": "momentum",
        "type": "float",
        "default": "0.9",
        "meaning": "in [0, 1); torch's 0.0 is seldom used for networks.",
    }


def test_a_wrapper_and_an_option_over_several_lines_are_shown_in_full() -> None:
    assert shown("freeze_norm")["hooks"]["freeze"]["how"] == "goes round"
    at = shown("gradual_unfreeze")["options"]["at"]
    assert at["default"] == "{'0': 'head', '1': 'all'}"
    assert at["meaning"].endswith("What is never named never learns.")


@pytest.mark.parametrize("name", sorted(plugin.name for plugin in discover() if plugin.distribution == "ftcore"))
def test_every_option_of_a_built_in_has_a_meaning(name: str) -> None:
    assert all(row["meaning"] for row in shown(name)["options"].values())


def test_an_unknown_plugin_to_show_names_the_nearest() -> None:
    result = invoke("plugins", "show", "weighted_cee")

    assert result.code == 2
    assert "did you mean 'weighted_ce'?" in result.err
