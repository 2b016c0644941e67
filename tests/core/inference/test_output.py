"""How predictions are printed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ftcore import Prediction
from ftcore.inference.load import load
from ftcore.inference.output import PredictionWriter
from ftcore.testing import invoke
from ftcore_plugins.tasks import Multilabel, Regression


def test_the_command_prints_path_class_and_probability(run: Path) -> None:
    pictures = [run.parent / "data" / name / "0.jpg" for name in ("blue", "green", "red")]

    result = invoke("predict", run, *pictures)

    rows = [line.split("\t") for line in result.out.splitlines()]
    assert (result.code, result.err) == (0, "")
    assert [(row[0], row[1]) for row in rows] == [(str(path), path.parent.name) for path in pictures]
    assert all(1 / 3 < float(row[2]) <= 1 for row in rows)


def test_json_has_one_object_a_picture(run: Path) -> None:
    picture = run.parent / "data" / "red" / "0.jpg"

    result = invoke("predict", run, picture, picture, "--json")

    rows = [json.loads(line) for line in result.out.splitlines()]
    assert [row["path"] for row in rows] == [str(picture), str(picture)]
    assert next(iter(rows[0]["values"])) == "red"


def test_the_most_probable_classes_alone_are_shown_when_asked_for(run: Path) -> None:
    picture = run.parent / "data" / "red" / "0.jpg"
    (found,) = load(run).predict(picture)
    best = list(found.values.items())[:2]

    text, as_json, table = (
        invoke("predict", run, picture, "--top", "2", *form) for form in ([], ["--json"], ["--csv"])
    )

    shown = [str(picture), *(word for name, value in best for word in (name, f"{value:.4f}"))]
    assert text.out == "\t".join(shown) + "\n"
    assert list(json.loads(as_json.out)["values"].items()) == best
    header, row = csv.reader(table.out.splitlines())
    assert header == ["path", "name_1", "probability_1", "name_2", "probability_2"]
    assert row == [str(picture), *(word for name, value in best for word in (name, f"{value:.6g}"))]


def test_a_table_has_a_line_a_picture_and_a_column_a_class(run: Path) -> None:
    pictures = run.parent / "data"

    said = invoke("predict", run, pictures, "--csv")

    answers = load(run).predict(sorted(pictures.rglob("*.jpg")))
    rows = list(csv.DictReader(said.out.splitlines()))
    assert {row["path"] for row in rows} == {str(answer.path) for answer in answers}
    for row in rows:
        (answer,) = [answer for answer in answers if str(answer.path) == row["path"]]
        assert row["prediction"] == next(iter(answer.values))
        assert {name: float(row[name]) for name in answer.values} == pytest.approx(answer.values, rel=1e-5)


def test_a_table_of_labels_and_one_of_numbers() -> None:
    labels, numbers = (
        Multilabel(("sun", "sea")),
        Regression(("kilos", "a, b"), mean=(1e6, 0), std=(1, 1)),
    )
    found = Prediction(Path("1, 2.jpg"), {"sea": 0.75, "sun": 0.5}, ("sea", "sun"))

    assert PredictionWriter(labels, as_csv=True).header == "path,prediction,sun,sea"
    assert PredictionWriter(labels, as_csv=True).line(found) == '"1, 2.jpg",sea;sun,0.5,0.75'
    assert PredictionWriter(numbers, as_csv=True).header == 'path,kilos,"a, b"'
    measured = Prediction(Path("1.jpg"), {"kilos": 2.5, "a, b": -1.0})
    assert PredictionWriter(numbers, as_csv=True).line(measured) == "1.jpg,2.5,-1"


def test_two_forms_at_a_time_and_the_best_of_numbers_are_refused(run: Path, tmp_path: Path) -> None:
    picture = run.parent / "data" / "red" / "0.jpg"
    sets = ("--set", "data.task=regression", "--set", "train.epochs=1", "--set", f"run.folder={tmp_path / 'run'}")
    assert invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *sets).code == 0

    both = invoke("predict", run, picture, "--json", "--csv")
    best = invoke("predict", tmp_path / "run", picture, "--top", "3")

    assert (both.code, both.err) == (2, "ftcore: --json and --csv are alternatives; choose one\n")
    assert best.err == "ftcore: --top is for classes and labels, and what a task 'regression' predicts is in no order\n"
