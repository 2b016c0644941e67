"""Runs side by side: what differs, and whether it matters."""

from __future__ import annotations

import json
import os
import re
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score
from tests.chromium import LOOKS, needs_chromium, started

from ftcore.reports.comparison import difference, interval
from ftcore.reports.comparison_page import render_html
from ftcore.testing import Result, image_folder, invoke
from ftcore_plugins.tasks import Classification, Multilabel, Regression

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore import Scored


def run(folder: Path, *arguments: str) -> Path:
    sets = ("train.epochs=1", "train.threads=1", f"run.folder={folder}")
    flags = [word for text in sets for word in ("--set", text)]
    result = invoke("run", "--data", "digits:5-7", "--model", "digits/cnn", *flags, *arguments)
    assert result.code == 0, result.err
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """One that learns, one that hardly does, and the first again."""
    root = tmp_path_factory.mktemp("runs")
    return run(root / "good"), run(root / "poor", "--plugin", "sgd", "--set", "sgd.lr=1e-5"), run(root / "again")


def compared(*arguments: Any) -> dict[str, Any]:
    result: Result = invoke("compare", *arguments, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_what_differs_is_named_and_nothing_else(runs: tuple[Path, Path, Path]) -> None:
    good, poor, again = runs

    assert compared(good, again)["differences"] == {}
    assert {key.split(".")[0] for key in compared(good, poor)["differences"]} == {
        "plugin sgd",
        "plugin adamw",
        "sgd",
        "adamw",
    }


def test_a_run_that_hardly_learns_is_worse_by_more_than_chance(runs: tuple[Path, Path, Path]) -> None:
    first, other = compared(*runs[:2])["runs"]

    assert first["against the first"] == {}
    found = other["against the first"]
    assert found["difference"] == pytest.approx(other["score"]["mean"] - first["score"]["mean"])
    assert found["low"] < found["difference"] < found["high"] < 0
    assert found["p"] < 0.01


def test_a_run_equals_its_repetition(runs: tuple[Path, Path, Path]) -> None:
    _, again = compared(runs[0], runs[2])["runs"]

    assert again["against the first"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_the_score_is_the_accuracy_that_the_run_has_measured(runs: tuple[Path, Path, Path]) -> None:
    for row in compared(*runs)["runs"]:
        assert row["score"]["mean"] == pytest.approx(row["metrics"]["accuracy"])
        assert row["score"]["low"] <= row["score"]["mean"] <= row["score"]["high"]


def test_people_see_two_tables(runs: tuple[Path, Path, Path]) -> None:
    result = invoke("compare", *runs[:2])

    assert "settings that differ" in result.out
    assert "on the same 109 of 542 images of digits:5-7, split val" in result.out


def test_the_page_says_the_same(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    said = invoke("compare", *runs, "--json", "--html", tmp_path / "page.html")

    values = json.loads(said.out)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    first, poor, again = values["runs"]
    for run in (first, poor, again):
        assert str(run["folder"]) in text
        assert f"{run['score']['mean']:.4f}</td>" in text
        assert f"{run['score']['low']:.4f} to {run['score']['high']:.4f}" in text
    assert f'class="number worse">{poor["against the first"]["difference"]:+.4f}<' in text
    assert f'class="number ">{again["against the first"]["difference"]:+.4f}<' in text
    assert all(f'<th scope="row">{key}</th>' in text for key in values["differences"])
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_a_page_that_exists_is_not_overwritten(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("mine")

    said = invoke("compare", *runs, "--html", tmp_path / "page.html")

    assert said.code == 2
    assert "page.html already exists and will not be overwritten; choose another file with --html" in said.err


def test_of_errors_less_is_better_and_names_are_text() -> None:
    score = {"mean": 1.0, "low": 0.5, "high": 1.5}
    found = [
        {"difference": -0.5, "low": -0.6, "high": -0.4, "p": 0.001},
        {"difference": 0.5, "low": 0.4, "high": 0.6, "p": 0.001},
        {"difference": 0.5, "low": -0.1, "high": 1.0, "p": 0.2},
    ]
    runs = [
        {"folder": f"runs/<b>{place}</b>", "metrics": {"loss": 0.5}, "score": score, "against the first": against}
        for place, against in enumerate([{}, *found])
    ]

    values = {
        "score": "absolute error",
        "higher_is_better": False,
        "images": 10,
        "measured_on": "10 of 10 images of photos",
    }
    text = render_html({**values, "runs": runs, "differences": {}})

    assert re.findall(r'class="number (\w*)">[-+]', text) == ["better", "worse", ""]
    assert "<b>" not in text
    assert "Nothing that is written down" in text


@needs_chromium
@pytest.mark.parametrize("look", LOOKS)
def test_the_page_in_a_browser_is_drawn_and_no_wider_than_the_screen(
    runs: tuple[Path, Path, Path], tmp_path: Path, look: str
) -> None:
    invoke("compare", *runs, "--html", tmp_path / "page.html")
    wrong: list[str] = []

    with started() as browser:
        shown = browser.new_context(**LOOKS[look]).new_page()  # type: ignore[arg-type]
        shown.on("console", lambda message: wrong.append(message.text))
        shown.goto((tmp_path / "page.html").as_uri())
        box = shown.locator("svg[role=img]").bounding_box()
        dots = [dot.bounding_box() for dot in shown.locator("svg .dot").all()]
        width, screen = shown.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        landmarks = [shown.get_by_role(role).count() for role in ("banner", "main")]
        if folder := os.environ.get("FTCORE_SCREENSHOTS"):
            shown.screenshot(path=f"{folder}/compare-{look}.png", full_page=True)

    assert wrong == []
    assert width <= screen
    assert landmarks == [1, 1]
    assert box
    assert len(dots) == 3
    assert all(dot and box["x"] <= dot["x"] <= box["x"] + box["width"] for dot in dots)


def test_runs_with_other_validation_images_are_refused_and_compared_on_data_for_both(
    runs: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    other = run(tmp_path / "other", "--set", "data.split_seed=3")

    refused = invoke("compare", runs[0], other)

    assert refused.code == 2
    assert (
        f"{other} was evaluated on other images than {runs[0]}; evaluate all on the same images with --data SOURCE"
        in refused.err
    )
    assert compared(runs[0], other, "--data", "digits:5-7")["images"] == 542


def test_one_run_is_refused(runs: tuple[Path, Path, Path]) -> None:
    assert "compare needs at least two runs" in invoke("compare", runs[0]).err


def test_runs_on_photographs_are_compared_too(tmp_path: Path) -> None:
    pictures = image_folder(tmp_path / "pictures", per_class=8)
    model = ("--data", str(pictures), "--model", "timm/test_resnet", "--set", "model.weights=none")
    folders = [run(tmp_path / str(seed), *model, "--set", f"train.seed={seed}") for seed in range(2)]

    assert "train.seed" in compared(*folders)["differences"]


@pytest.mark.parametrize("wins", [(3, 0), (5, 1), (9, 2)])
def test_the_test_of_classes_is_mcnemars(wins: tuple[int, int]) -> None:
    """A permutation of signs over images that differ is a binomial test of them (McNemar 1947, exact)."""
    gained, lost = wins
    one, other = np.zeros(40), np.zeros(40)
    other[:gained], one[gained : gained + lost] = 1.0, 1.0

    found = difference(one, other)

    assert found.p == pytest.approx(binomtest(gained, gained + lost).pvalue, abs=0.015)
    assert found.mean == pytest.approx((gained - lost) / 40)


def test_the_interval_is_that_of_all_resamples() -> None:
    """Of six images, all 46,656 resamples can be made."""
    scores = np.array([0.1, 0.4, 0.45, 0.7, 0.9, 1.0])
    means = [np.mean(chosen) for chosen in product(scores, repeat=6)]

    assert interval(scores) == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.02)


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "expected"),
    [
        (Classification(("a", "b")), [[1.0, 2.0], [3.0, 0.0]], [1, 1], [1.0, 0.0]),
        (Multilabel(("a", "b")), [[1.0, -2.0], [3.0, 0.5]], [[1.0, 0.0], [0.0, 1.0]], [1.0, 0.5]),
        (Regression(("a",), mean=(10.0,), std=(2.0,)), [[0.5], [-1.0]], [[0.0], [1.0]], [1.0, 4.0]),
    ],
)
def test_an_image_is_scored_by_its_task(task: Scored, outputs: Any, targets: Any, expected: list[float]) -> None:
    found = task.score(torch.tensor(outputs), torch.tensor(targets))

    assert found.tolist() == pytest.approx(expected)
    if isinstance(task, Classification):
        assert found.mean() == pytest.approx(accuracy_score(targets, torch.tensor(outputs).argmax(1)))
