from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import structlog

from ftcore import UserError
from ftcore.config import CliOverrides, load_config
from ftcore.runs import fit

if TYPE_CHECKING:
    from pathlib import Path

TOP = """
from ftcore import BatchImageTransform, Loss, Regularizer, RunFailed, RunStopped, Schedule, Transforms, hookimpl

def broken(*arguments, **named):
    raise ZeroDivisionError("broken")

"""

RETURNED = {
    "make_loss": "def make_loss():\n    return Loss(broken)",
    "batch_transforms": """def batch_transforms():
    return [BatchImageTransform(lambda images: images), BatchImageTransform(broken)]""",
    "make_regularizers": "def make_regularizers():\n    return [Regularizer('mine', broken)]",
    "make_optimizer": """def make_optimizer(param_groups):
    from torch.optim import SGD

    class Broken(SGD):
        def step(self, closure=None):
            broken()

    return Broken([{"params": list(g.params.values())} for g in param_groups], lr=0.1)""",
    "make_schedule": """def make_schedule(optimizer):
    from torch.optim.lr_scheduler import LambdaLR

    return Schedule(LambdaLR(optimizer, lambda step: broken() if step else 1.0), interval="step")""",
    "make_metrics": """def make_metrics(task):
    from torchmetrics.classification import MulticlassAccuracy

    class Broken(MulticlassAccuracy):
        def update(self, *arguments):
            broken()

    return {"mine": Broken(task.outputs)}""",
    "make_transforms": "def make_transforms():\n    return Transforms(train=broken, evaluate=broken)",
}


@pytest.fixture(autouse=True)
def _hooks_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a hooks file of its own, of one name."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_hooks", raising=False)


def trained(folder: Path, text: str, *sets: str) -> None:
    (folder / "acme_hooks.py").write_text(f"{TOP}@hookimpl\n{text}\n", encoding="utf-8")
    sets = ("train.epochs=1", f"run.folder={folder / 'run'}", *sets)
    fit(load_config(None, CliOverrides(plugins=(str(folder / "acme_hooks.py"),), sets=sets)))


@pytest.mark.parametrize("hook", RETURNED)
def test_an_error_of_what_a_hook_returned_names_the_plugin_and_the_hook(tmp_path: Path, hook: str) -> None:
    with pytest.raises(ZeroDivisionError, match="broken") as caught:
        trained(tmp_path, RETURNED[hook], "train.workers=0")

    (note,) = caught.value.__notes__
    assert note.startswith(f"raised by what plugin acme_hooks ({tmp_path}")
    assert f" returned in {hook} (" in note
    assert "acme_hooks.py:" in note


def test_an_error_of_a_transform_in_a_loader_process_names_the_plugin_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match=r"raised by what plugin acme_hooks .* returned in make_trans"):
        trained(tmp_path, RETURNED["make_transforms"], "train.workers=1")


def test_an_error_of_the_network_is_blamed_on_nobody_who_gave_something_else(tmp_path: Path) -> None:
    network = "def build_head(task):\n    from torch import nn\n    return nn.Linear(63, task.outputs)"

    with pytest.raises((RuntimeError, UserError)) as caught:
        trained(tmp_path, network)

    assert "raised by" not in str(getattr(caught.value, "__notes__", ""))


OBSERVER = """def make_observers():
    def observe(event):
        if isinstance(event, (RunFailed, RunStopped)):
            raise KeyError("the server is gone")

    return [observe]

@hookimpl
def make_loss():
    return lambda outputs, targets: outputs.sum() * float("nan")
"""


def test_an_observer_that_fails_when_it_is_told_of_a_failure_does_not_hide_it(tmp_path: Path) -> None:
    with (
        structlog.testing.capture_logs() as logged,
        pytest.raises(UserError, match=r"replay the step with: ftcore replay"),
    ):
        trained(tmp_path, OBSERVER)

    (warning,) = [event for event in logged if "an observer failed" in event["event"]]
    assert warning["log_level"] == "warning"
    assert "KeyError: 'the server is gone'; raised by what plugin acme_hooks" in warning["event"]
