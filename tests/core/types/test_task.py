"""A kind of problem that ftcore does not know, in a hooks file that uses public names alone, from data to HTTP."""

from __future__ import annotations

import csv
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tests.core.inference.serving import serving

import ftcore
from ftcore import Averaged, Counted, Invertible, Matched, Parsed, Scored, Softened, require
from ftcore.authoring.task_check import UNKNOWN
from ftcore.testing import invoke

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftcore.testing import Result

HOOKS = '''
"""How many there are of something: Poisson regression, whose outputs are logarithms of rates."""

import numpy as np
import torch
from attrs import frozen
from torchmetrics import MeanAbsoluteError

from ftcore import Fitted, Loss, Parsed, Task, UserError, hookimpl


@frozen
class Count(Task, Parsed):
    name = "count"
    noun = ("count", "counts")
    output_name = "rates"
    names: tuple[str, ...]
    images: int = 0
    rate: float = 1.0

    @classmethod
    def fit(cls, given):
        targets = np.asarray(given.values, dtype=np.int64)
        train = targets[given.rows["train"]]
        if not given.measuring and not train.any():
            raise UserError("there is nothing to count")
        task = cls(given.names, len(train), float(train.mean()) if len(train) else 1.0)
        return Fitted(task, targets, given.rows)

    @classmethod
    def parse(cls, cells):
        if not cells[0].isdigit():
            raise ValueError("a count must be an integer >= 0")
        return [int(cells[0])]

    @classmethod
    def read(cls, state):
        if not state["rate"] > 0:
            raise ValueError("a rate is > 0")
        return cls(tuple(state["names"]), state["images"], state["rate"])

    def state(self):
        return {"names": list(self.names), "images": self.images, "rate": self.rate}

    def check(self, target):
        if isinstance(target, int) and target >= 0:
            return target
        raise ValueError("a count must be an integer from 0")

    def collate(self, targets):
        return torch.tensor(targets, dtype=torch.float32)[:, None]

    def decode(self, outputs):
        return outputs.exp() * self.rate

    def measured(self, outputs, targets):
        return self.decode(outputs), targets


@hookimpl
def make_task(name):
    return Count if name == "count" else None


@hookimpl
def make_loss(task):
    if not isinstance(task, Count):
        return None
    return Loss(lambda outputs, targets: (outputs.exp() * task.rate - targets * outputs).mean())


@hookimpl
def make_metrics(task):
    return {"mae": MeanAbsoluteError()} if isinstance(task, Count) else None
'''

DATA = ("--data", "digits:1-9", "--model", "digits/cnn", "--set", "data.task=count", "--set", "train.threads=1")


def train(folder: Path, *more: str) -> Result:
    settings = ("--set", "train.epochs=3", "--set", f"run.folder={folder / 'run'}")
    return invoke("run", *DATA, "--plugin", folder / "count_hooks.py", *settings, *more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("count")
    (folder / "count_hooks.py").write_text(HOOKS, encoding="utf-8")
    result = train(folder)
    assert result.code == 0, result.err
    assert "warning" not in result.err.lower()
    images, digits = load_digits(return_X_y=True)
    (folder / "pictures").mkdir()
    for place in range(100, 112):
        pixels = (images[place].reshape(8, 8) * (255 / 16)).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{place}-{digits[place]}.png")
    return folder / "run"


def pictures(run: Path) -> list[Path]:
    return sorted((run.parent / "pictures").iterdir())


def rates(run: Path) -> list[float]:
    """What the network says, computed by hand from its outputs."""
    model = ftcore.load(run)
    described = json.loads((run / "model" / "model.json").read_text())["task"]
    images = torch.stack([model.transforms.evaluate(Image.open(file)) for file in pictures(run)])
    with torch.inference_mode():
        outputs = model.module(model.transforms.on_device(images))[:, 0]
    return [described["state"]["rate"] * math.exp(output) for output in outputs.tolist()]


def test_it_learns_and_is_measured_as_its_run_was(run: Path) -> None:
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["val"]
    best = max(json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines())
    report = invoke("evaluate", run, "--json").report["metrics"]

    assert best == 3
    assert report == pytest.approx(last)
    assert report["mae"] < 1.5  # 2.2 if the mean were said of each digit from 1 to 9


def test_its_state_is_in_the_model_and_read_again(run: Path) -> None:
    description = json.loads((run / "model" / "model.json").read_text())

    task = ftcore.load(run).task
    assert (description["format"], description["task"]["name"]) == (2, "count")
    assert task.state() == description["task"]["state"]
    assert description["plugins"][0].endswith("count_hooks.py")


def test_predict_says_it_as_text_as_csv_and_as_json(run: Path) -> None:
    expected = rates(run)

    text, table, data = (invoke("predict", run, *pictures(run), *how).out for how in ((), ("--csv",), ("--json",)))

    names = [str(file) for file in pictures(run)]
    assert text.splitlines() == [f"{n}\tdigit={rate:.6g}" for n, rate in zip(names, expected, strict=True)]
    assert list(csv.reader(table.splitlines())) == [
        ["path", "digit"], *([n, f"{rate:.6g}"] for n, rate in zip(names, expected, strict=True)),
    ]  # fmt: skip
    lines = [json.loads(line) for line in data.splitlines()]
    assert [line["path"] for line in lines] == names
    assert [line["values"]["digit"] for line in lines] == pytest.approx(expected, rel=1e-5)


def test_load_and_serve_and_exported_files_say_the_same(run: Path, tmp_path: Path) -> None:
    expected, model = rates(run), ftcore.load(run)
    images = torch.stack([model.transforms.evaluate(Image.open(file)) for file in pictures(run)]).numpy()

    found = [one.values["digit"] for one in model.predict(pictures(run))]
    written = invoke("export", run, "--format", "onnx", "--out", tmp_path / "count.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "count.onnx"), providers=["CPUExecutionProvider"])
    (of_file,) = session.run(None, {"images": images})
    with serving(run) as server:
        answers = [server.predict(file.read_bytes()) for file in pictures(run)[:3]]

    assert written.code == 0, written.err
    assert [output.name for output in session.get_outputs()] == ["rates"]
    assert found == pytest.approx(expected, rel=1e-5)
    assert of_file[:, 0] == pytest.approx(expected, rel=1e-4)
    assert [status for status, _ in answers] == [200] * 3
    assert [answer["values"]["digit"] for _, answer in answers] == pytest.approx(expected[:3], rel=1e-5)


def test_a_report_is_drawn_without_what_it_does_not_know(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")

    assert "mae" in page
    assert "count: digit" in page
    assert "Confusion" not in page


def test_check_spells_its_targets(run: Path) -> None:
    result = invoke("check", "digits:1-9", "--plugin", run.parent / "count_hooks.py", "--set", "data.task=count")

    assert result.code == 0, result.err


def refusals(run: Path) -> dict[str, tuple[Sequence[Any], str]]:
    hooks, other = run.parent / "count_hooks.py", run.parent / "out"
    new = ("run", *DATA, "--plugin", hooks, "--set", f"run.folder={other}")
    return {
        "compare": (("compare", run, run), "compare needs a score of each image, and a task 'count' has none"),
        "ensemble": (("ensemble", run, run, "--out", other), "an ensemble needs a mean of several outputs, and a task"),
        "tta": (("predict", run, *pictures(run), "--tta"), "tta, as an ensemble, needs a mean of several outputs"),
        "top": (
            ("predict", run, *pictures(run), "--top", "2"),
            "--top is for classes and labels, and what a task 'count'",
        ),
        "mixup": ((*new, "--plugin", "mixup"), "mixup needs targets that can be mixed, and a task 'count' has none"),
        "balance": ((*new, "--plugin", "balanced_sampling"), "balanced_sampling needs class"),
        "r_drop": ((*new, "--plugin", "r_drop"), "r_drop compares probabilities, but a count task has none"),
        "focal": ((*new, "--plugin", "focal"), "plugin focal (ftcore"),
        "name": (
            (*new, "--set", "data.task=regressio"),
            "for a task 'regressio' (--set data.task=regressio); did you mean 'regression'",
        ),
    }


@pytest.mark.parametrize("case", ["compare", "ensemble", "tta", "top", "mixup", "balance", "r_drop", "focal", "name"])
def test_what_it_lacks_is_said(run: Path, case: str) -> None:
    arguments, message = refusals(run)[case]

    result = invoke(*arguments)

    assert result.code == 2
    assert message in result.err


def test_a_cell_that_is_none_is_refused_with_its_row(run: Path, tmp_path: Path) -> None:
    for place in range(8):
        Image.new("L", (8, 8), place).save(tmp_path / f"{place}.png")
    rows = "\n".join(f"{place}.png,{place if place < 7 else 'many'}" for place in range(8))
    (tmp_path / "table.csv").write_text(f"path,cells\n{rows}\n", encoding="utf-8")

    result = invoke(
        "run", "--data", tmp_path / "table.csv", "--model", "digits/cnn", "--plugin", run.parent / "count_hooks.py",
        "--set", "data.task=count", "--set", f"run.folder={tmp_path / 'run'}",
    )  # fmt: skip

    assert result.code == 2
    assert "table.csv:9: a count must be an integer >= 0, got 'many'" in result.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "tally", "state": {}}, "no plugin supplies make_task for a task 'tally'"),
        ({"name": "count", "state": {"names": ["n"], "images": 3, "rate": -1}}, "a rate is > 0"),
        ({"name": "count", "state": {"names": ["n"]}}, "KeyError: 'rate'"),
        ({"name": "count", "state": []}, "no task 'count' can be read of it"),
        ({"kind": "count"}, "no task 'count' can be read of it"),
        ([], "cannot read"),
    ],
)
def test_a_description_of_something_else_is_refused(run: Path, tmp_path: Path, change: Any, message: str) -> None:
    description = json.loads((run / "model" / "model.json").read_text())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(json.dumps(description | {"task": change}), encoding="utf-8")

    with pytest.raises(ftcore.UserError, match=r"model\.json|make_task") as caught:
        ftcore.load(tmp_path)

    assert message in str(caught.value)


@pytest.mark.parametrize("ability", [Averaged, Counted, Invertible, Matched, Parsed, Scored, Softened])
def test_each_ability_says_what_it_is_where_a_task_has_it_not(ability: Any) -> None:
    message = f"^acme needs {ability.gives}, and a task 'unknown' has none .ftcore.{ability.__name__}.$"

    with pytest.raises(ftcore.UserError, match=message):
        require(UNKNOWN(), ability, "acme")
