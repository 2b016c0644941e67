"""A step that is not finite is kept, and can be done again."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ftcore import Loss, Precision, hookimpl
from ftcore.testing import Result, invoke

if TYPE_CHECKING:
    from pathlib import Path

HERE = __name__


class Late:
    """A loss that is not finite in its seventh step."""

    def __init__(self) -> None:
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps - 1}  # before the step that fails, whose loss is counted already

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]

    @hookimpl
    def make_loss(self) -> Any:
        def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            value = torch.nn.functional.cross_entropy(outputs, targets)
            return value * torch.nan if self.steps == 7 else value

        return Loss(loss, soft_targets=True)


class LargeScale:
    """float16 whose loss is scaled beyond what float32 holds."""

    @hookimpl
    def precision_context(self) -> Precision:
        scaler = torch.amp.GradScaler("cpu", init_scale=2e38)
        return Precision("fp16", partial(torch.autocast, "cpu", dtype=torch.float16), scaler)


class Explodes:
    """A network whose second layer overflows for what the first learns."""

    @hookimpl(wrapper=True)
    def build_model(self) -> Any:
        backbone = yield

        def overflow(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return torch.exp(output * 1e3)

        backbone.module.get_submodule("layer1").register_forward_hook(overflow)
        return backbone


def fail(folder: Path, *plugins: str) -> Result:
    words = [word for plugin in plugins for word in ("--plugin", plugin)]
    found = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *words, "--set", f"run.folder={folder}")
    assert found.code == 2
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_step_is_done_again_to_the_same_bits(tmp_path: Path, precision: str) -> None:
    failed = fail(tmp_path / "run", f"{HERE}:Late", precision, "mixup", "ema")
    kept = {file.name for file in (tmp_path / "run" / "nonfinite").iterdir()}

    found = invoke("replay", tmp_path / "run", "--json")

    assert f"replay the step with: ftcore replay {tmp_path / 'run'}" in failed.err
    assert kept == {"model.safetensors", "average.safetensors", "state.safetensors", "state.json", "manifest.json"}
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert (report["step"], report["epoch"], report["reproduced"]) == (7, 1, True)
    assert len(report["samples"]) == 32
    assert report["module"] == ""
    assert report["bad_weights"] == report["bad_samples"] == []
    assert "head.bias" in report["gradients"]


def test_how_the_scale_of_the_loss_has_changed_is_told(tmp_path: Path) -> None:
    fail(tmp_path / "run", f"{HERE}:Late", f"{HERE}:LargeScale")

    found = invoke("replay", tmp_path / "run")

    (line,) = [line for line in found.out.splitlines() if line.startswith("loss scale")]
    assert line.split(None, 2)[2].startswith("1e+38 from step 2, 5e+37 from step 3, ")


def test_the_first_module_whose_output_is_not_finite_is_named(tmp_path: Path) -> None:
    fail(tmp_path / "run", f"{HERE}:Explodes")

    found = invoke("replay", tmp_path / "run")

    assert found.code == 0, found.err
    (line,) = [line for line in found.out.splitlines() if "first module" in line]
    assert line.split()[-1] == "layer2.0" or "layer1" in line, line
    assert "the same" in found.out
    assert "NOT" not in found.out


def test_a_run_that_had_no_such_step_has_nothing_to_replay(tmp_path: Path) -> None:
    sets = ["--set", f"run.folder={tmp_path / 'run'}", "--set", "train.epochs=1"]
    assert invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *sets).code == 0

    found = invoke("replay", tmp_path / "run")

    assert found.code == 2
    assert f"{tmp_path / 'run'} has no nonfinite/: the run had no step with NaN or Inf" in found.err


def test_a_damaged_black_box_is_refused(tmp_path: Path) -> None:
    fail(tmp_path / "run", f"{HERE}:Late")
    (tmp_path / "run" / "nonfinite" / "model.safetensors").write_bytes(b"")

    found = invoke("replay", tmp_path / "run")

    assert found.code == 2
    assert "nonfinite is damaged: model.safetensors does not match its checksum" in found.err
