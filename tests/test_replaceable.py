"""Every hook is replaced by a file of at most ten lines, and what it decides is seen in what the run did."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from textwrap import dedent
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ftcore.checkpoints import checkpoint
from ftcore.testing import Result, invoke
from ftcore_plugins.data.digits import WEIGHTS

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class RunWith(Protocol):
    def __call__(self, text: str, *arguments: str) -> Result: ...


@pytest.fixture
def run_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunWith:
    """Run one epoch with a hooks file, by default on the built-in digits; everything lands in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, *arguments: str) -> Result:
        lines = dedent(text).strip().splitlines()
        assert len(lines) <= 10
        (tmp_path / "hooks.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings = ("--set", "train.epochs=1", "--set", "run.folder=run", "--json")
        result = invoke("run", "--plugin", "./hooks.py", *settings, *arguments)
        assert result.code == 0, result.err
        return result

    return run


def saved(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "run" / "model" / "model.safetensors")


def backbone() -> dict[str, Tensor]:
    """The parameters of the pre-trained network, without its head and without running statistics."""
    return {
        name: tensor
        for name, tensor in load_file(WEIGHTS).items()
        if name.startswith("layer") and name.endswith(("weight", "bias"))
    }


def unchanged(folder: Path) -> set[str]:
    """Names of the parameters of the backbone that still are, bit for bit, what they were before training."""
    after = saved(folder)
    return {name for name, before in backbone().items() if torch.equal(after[name], before)}


def columns(confusion: Any) -> set[int]:
    """Classes that the network predicted at all."""
    return {int(column) for column in torch.tensor(confusion).sum(dim=0).nonzero()}


def test_a_bare_module_is_enough_for_build_model(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        from torch import nn
        from ftcore import hookimpl

        @hookimpl
        def build_model(name):
            if name == "mine/flat":
                return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 16), nn.Linear(16, 3))
        """,
        *("--model", "mine/flat", "--data", "digits:5-9", "--set", "model.image_size=8"),
    )

    assert result.report["hooks"]["build_model"] == "hooks"
    shapes = {name: tuple(tensor.shape) for name, tensor in saved(tmp_path).items()}
    assert shapes == {"2.weight": (16, 192), "2.bias": (16,), "3.weight": (5, 16), "3.bias": (5,)}
    Image.new("L", (8, 8), 90).save(tmp_path / "grey.png")
    assert invoke("predict", "run", "grey.png").out.startswith("grey.png\t")


def test_build_head(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        from torch import nn
        from ftcore import hookimpl

        @hookimpl
        def build_head(slot, task):
            return nn.Sequential(nn.Linear(slot.in_features, 7), nn.Tanh(), nn.Linear(7, task.outputs))
        """
    )

    assert result.report["hooks"]["build_head"] == "hooks"
    heads = {name: tuple(tensor.shape) for name, tensor in saved(tmp_path).items() if name.startswith("head")}
    assert heads == {"head.0.weight": (7, 64), "head.0.bias": (7,), "head.2.weight": (5, 7), "head.2.bias": (5,)}


def test_freeze(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        from ftcore import FreezePlan, hookimpl

        @hookimpl
        def freeze():
            return FreezePlan(frozen=frozenset({"layer1.0.weight"}))
        """
    )

    assert result.report["hooks"]["freeze"] == "hooks"
    assert unchanged(tmp_path) == {"layer1.0.weight"}


def test_make_optimizer(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        import torch
        from ftcore import hookimpl

        @hookimpl
        def make_optimizer(param_groups):
            return torch.optim.Adagrad([{"params": list(group.params.values())} for group in param_groups], lr=0.01)
        """
    )

    assert result.report["hooks"]["make_optimizer"] == "hooks"
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    sums = {name: state["sum"] for name, state in checkpoint.load_state(newest)["optimizer"]["state"].items()}
    assert set(sums) == {name for name in saved(tmp_path) if name.endswith(("weight", "bias"))}
    assert all(tensor.any() for tensor in sums.values())


def test_make_loss_by_a_bare_callable(run_with: RunWith) -> None:
    result = run_with(
        """
        from torch.nn.functional import cross_entropy
        from ftcore import hookimpl

        @hookimpl
        def make_loss():
            return lambda outputs, targets: cross_entropy(outputs, 0 * targets)
        """
    )

    assert result.report["hooks"]["make_loss"] == "hooks"
    assert columns(result.report["last"]["confusion_matrix"]) == {0}


def test_precision_context(run_with: RunWith) -> None:
    result = run_with(
        """
        import torch
        from ftcore import Precision, hookimpl

        @hookimpl
        def precision_context(placement):
            autocast = lambda: torch.autocast(placement.device.type, torch.bfloat16)
            return Precision("brain", autocast, torch.amp.GradScaler(enabled=False))
        """,
        *("--set", "one_device.device=cpu"),
    )
    others = ("run", "--set", "train.epochs=1", "--set", "one_device.device=cpu", "--json")
    built_in, single = invoke(*others, "--plugin", "bf16"), invoke(*others, "--plugin", "fp32")

    assert result.report["hooks"]["precision_context"] == "hooks"
    assert result.report["last"] == built_in.report["last"]
    assert result.report["last"]["train_loss"] != single.report["last"]["train_loss"]


def test_wrap_devices(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        import torch
        from ftcore import Placement, hookimpl

        class Muted(torch.nn.Sequential):
            def forward(self, images):
                return 0 * super().forward(images)

        @hookimpl
        def wrap_devices(model):
            return Placement(torch.device("cpu"), Muted(model), unwrap=lambda wrapped: wrapped[0])
        """
    )

    assert result.report["hooks"]["wrap_devices"] == "hooks"
    assert result.report["last"]["loss"] == pytest.approx(torch.tensor(5.0).log().item())
    assert "head.weight" in saved(tmp_path)


def test_make_task(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        from ftcore import hookimpl
        from ftcore_plugins.tasks import Classification

        class Halves(Classification):
            def decode(self, outputs):
                return super().decode(outputs) / 2

        @hookimpl
        def make_task(name):
            return Halves if name == "classification" else None
        """
    )
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    said = invoke("predict", tmp_path / "run", tmp_path / "black.png", "--json").report["values"]

    assert result.report["hooks"]["make_task"] == "hooks"
    assert sum(said.values()) == pytest.approx(0.5)


def test_build_data(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        from PIL import Image
        from ftcore import Data, hookimpl
        from ftcore_plugins.tasks import Classification
        class Shades(list):
            name = "shade {}".format

        @hookimpl
        def build_data():
            both = Shades((Image.new("L", (8, 8), 200 * target), target) for target in [0, 1] * 40)
            return Data(both, both, Classification(("black", "white"), (40, 40)), fingerprint="0" * 64)
        """
    )

    assert result.report["hooks"]["build_data"] == "hooks"
    assert saved(tmp_path)["head.weight"].shape == (2, 64)
    assert torch.tensor(result.report["last"]["confusion_matrix"]).sum(dim=1).tolist() == [40, 40]


def test_make_transforms(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        import torch
        from ftcore import Transforms, hookimpl

        def blank(image):
            return torch.zeros(1, 8, 8)

        @hookimpl
        def make_transforms():
            return Transforms(train=blank, evaluate=blank)
        """
    )

    assert result.report["hooks"]["make_transforms"] == "hooks"
    assert len(columns(result.report["last"]["confusion_matrix"])) == 1
    for shade in (0, 255):
        Image.new("L", (8, 8), shade).save(tmp_path / f"{shade}.png")
    first, second = (
        json.loads(line) for line in invoke("predict", "run", "0.png", "255.png", "--json").out.splitlines()
    )
    assert first["values"] == second["values"]


def test_param_groups(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        from ftcore import ParamGroup, hookimpl

        @hookimpl
        def param_groups(trainable, heads):
            rest = {name: p for name, p in trainable.items() if not name.startswith(heads)}
            new = {name: p for name, p in trainable.items() if name not in rest}
            return [ParamGroup("new", new), ParamGroup("rest", rest, lr_scale=0.0)]
        """
    )

    assert result.report["hooks"]["param_groups"] == "hooks"
    assert unchanged(tmp_path) == set(backbone())


def test_make_schedule(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        from torch.optim.lr_scheduler import LambdaLR
        from ftcore import Schedule, hookimpl

        @hookimpl
        def make_schedule(optimizer):
            return Schedule(LambdaLR(optimizer, lambda epoch: 0.5**epoch), interval="epoch")
        """,
        *("--set", "train.epochs=3", "--set", "adamw.lr=0.004"),
    )

    assert result.report["hooks"]["make_schedule"] == "hooks"
    rates: dict[int, set[float]] = defaultdict(set)
    for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines():
        if (event := json.loads(line))["event"] == "StepLogged":
            rates[event["epoch"]] |= set(event["lr"])
    assert rates == {1: {0.004}, 2: {0.002}, 3: {0.001}}


def test_make_regularizers(run_with: RunWith) -> None:
    result = run_with(
        """
        from ftcore import Regularizer, hookimpl

        @hookimpl
        def make_regularizers(trainable):
            return [Regularizer("seven", lambda: 7 + 0 * sum(p.sum() for p in trainable.values()))]
        """
    )

    assert result.report["hooks"]["make_regularizers"] == ["hooks"]
    assert result.report["last"]["train_seven"] == 7.0


def test_make_step(run_with: RunWith) -> None:
    result = run_with(
        """
        from ftcore import Step, hookimpl

        @hookimpl
        def make_step():
            return Step({"spread": lambda seen: seen.outputs.std() * 0 + len(seen.images)})
        """
    )

    assert result.report["hooks"]["make_step"] == "hooks"
    assert 31 < result.report["last"]["train_spread"] <= 32


def test_make_average(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        from copy import deepcopy
        from ftcore import WeightAverage, hookimpl

        @hookimpl
        def make_average(model):
            return WeightAverage("as_it_began", deepcopy(model), lambda network, count: None)
        """
    )

    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert result.report["hooks"]["make_average"] == "hooks"
    assert not saved["head.weight"].any()


def test_make_metrics(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        from torchmetrics.classification import MulticlassAccuracy
        from ftcore import hookimpl

        @hookimpl
        def make_metrics(task):
            return {"top2": MulticlassAccuracy(task.outputs, top_k=2, average="micro")}
        """,
        *("--set", "train.monitor=top2"),
    )

    assert set(result.report["hooks"]["make_metrics"]) == {"hooks", "class_metrics"}  # all answers are used
    assert result.report["monitor"] == "top2"
    val = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8"))["val"]
    assert val["accuracy"] <= val["top2"] <= 1


def test_make_observers(run_with: RunWith, tmp_path: Path) -> None:
    result = run_with(
        """
        from ftcore import hookimpl

        @hookimpl
        def make_observers(ctx):
            def observe(event):
                with (ctx.folder / "events.txt").open("a") as file:
                    print(type(event).__name__, file=file)
            return [observe]
        """,
        *("--set", "train.log_every=20"),
    )

    assert set(result.report["hooks"]["make_observers"]) == {
        "hooks",
        "progress",
        "advice",
        "report",
    }  # all answers are used
    events = (tmp_path / "run" / "events.txt").read_text(encoding="utf-8").split()
    evaluated = ["BatchEvaluated"] * events.count("BatchEvaluated")
    logged = ["StepLogged", "StepLogged"]  # the twentieth step, and the last
    assert events == ["RunStarted", *logged, *evaluated, "EpochEnded", "CheckpointSaved", "RunEnded"]
    assert evaluated


def install(site: Path, name: str, version: str, module: str, source: str) -> None:
    """Put a package with one plugin `first_class` into a folder as an installer would."""
    metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        site / module / "__init__.py": dedent(source),
        metadata / "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        metadata / "entry_points.txt": f"[ftcore.plugins]\nfirst_class = {module}:FirstClass\n",
    }
    rows = [(str((metadata / "RECORD").relative_to(site)), "", "")]
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
        rows.append((str(path.relative_to(site)), f"sha256={digest}", str(path.stat().st_size)))
    with (metadata / "RECORD").open("w", encoding="utf-8", newline="") as record:
        csv.writer(record).writerows(rows)


@pytest.mark.slow
def test_an_installed_package_is_named_by_its_entry_point_alone(tmp_path: Path) -> None:
    source = """
        from ftcore import hookimpl

        class FirstClass:
            @hookimpl
            def make_loss(self):
                from torch.nn.functional import cross_entropy
                return lambda outputs, targets: cross_entropy(outputs, 0 * targets)
        """
    install(tmp_path / "site", "acme-losses", "1.2.3", "acme_losses", source)
    command = ["run", "--plugin", "first_class", "--set", "train.epochs=1", "--set", "run.folder=run", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", "from ftcore.cli import main; main()", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert report["hooks"]["make_loss"] == "first_class"
    assert columns(report["last"]["confusion_matrix"]) == {0}
    plugins = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["plugins"]
    assert ("first_class", "acme-losses 1.2.3") in {(plugin["name"], plugin["source"]) for plugin in plugins}
