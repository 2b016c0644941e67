from __future__ import annotations

import json
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ftcore.config.load import CliOverrides, load_config
from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.reports.explain import explain, explain_without_building
from ftcore.testing import invoke

if TYPE_CHECKING:
    from ftcore import Table

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
    answers = rows(explained("weighted_ce")["plugins"])

    assert answers["make_loss"]["plugin"] == "weighted_ce"
    assert answers["make_loss"]["enabled by"] == "--plugin weighted_ce"
    assert answers["make_loss"]["from"].startswith("ftcore ")
    assert answers["make_loss"]["not needed"] == "cross_entropy, bce, mse"
    assert answers["build_model"]["declined"] == "timm, torchvision"
    assert answers["make_optimizer"]["enabled by"] == "default"


def test_it_shows_the_line_of_the_code_that_answered() -> None:
    place = rows(explained("weighted_ce")["plugins"])["make_loss"]["code"]

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
    learning = rows(explained("freeze_backbone")["trainable parameters"])

    assert learning["layer1"] == {
        "module": "layer1",
        "state": "frozen",
        "parameters": "352",
        "trainable": "0",
        "modules kept in eval mode": "4",
    }
    assert (learning["head"]["state"], learning["head"]["trainable"]) == ("trainable", "325")
    assert learning["pool"]["state"] == "no parameters"


def test_a_module_of_which_a_part_is_frozen_is_called_so() -> None:
    learning = rows(explained("freeze_modules", sets=('freeze_modules.types=["Conv2d"]',))["trainable parameters"])

    assert (learning["layer1"]["state"], learning["layer1"]["trainable"]) == ("partly frozen", "64")


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
    assert asked["make_loss"]["plugins"] == "mse, weighted_ce, cross_entropy, bce"
    assert asked["build_model"]["plugins"] == "torchvision, digits"
    assert (asked["make_loss"]["uses"], asked["make_metrics"]["uses"]) == ("first result", "all results")


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
    answers = {row["hook"]: row for row in found["plugins"]}
    options = {row["option"]: row for row in found["options"]}
    assert result.code == 0
    assert answers["make_loss"]["plugin"] == "weighted_ce"
    assert answers["make_loss"]["enabled by"] == "--plugin weighted_ce"
    assert answers["make_loss"]["not needed"] == "cross_entropy, bce, mse"
    assert answers["build_model"]["declined"] == "timm, torchvision"
    assert options["weighted_ce.divide_by"]["set by"] == "--set weighted_ce.divide_by=samples"
    assert options["weighted_ce.weights"]["set by"] == "default"


def test_statically_programs_read_the_same_form() -> None:
    found = json.loads(invoke("explain", "--static", "--json").out)

    assert [row["hook"] for row in found["plugins in call order"]] == list(HOOK_ARGUMENTS)


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


def test_statically_no_rates_are_shown_and_no_torch_is_imported() -> None:
    code = (
        "import sys; from ftcore.testing import invoke; print(invoke('explain', '--static').out); "
        "print({'torch', 'plotext', 'matplotlib'} & sys.modules.keys())"
    )

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out.splitlines()[-1] == "set()"
    assert "learning rate" not in out
