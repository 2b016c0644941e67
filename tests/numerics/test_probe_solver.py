"""A head that is solved for is scikit-learn's logistic regression on what it sees."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge
from tests.faults.killing import end, start
from torch import nn

from ftcore import Loss, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.inference.load import load as load_model
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.testing import image_folder, invoke
from ftcore_plugins.optimizers import lbfgs_probe
from ftcore_plugins.optimizers.lbfgs_probe import minimise_lbfgs

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from ftcore.testing import Result


def run(folder: Path, *arguments: str) -> Result:
    network = () if "--model" in arguments else ("--model", "digits/cnn")
    flags = (*network, "--plugin", "probe_solver", "--set", f"run.folder={folder}")
    given = arguments if "--data" in arguments else (*arguments, "--data", "digits:5-9")
    return invoke("run", *flags, *given, "--json")


def seen(folder: Path, split: str = "train", data: str = "digits:5-9", **kind: str) -> tuple[Any, Any]:
    """What the head sees of each image, (N, 64), and the targets."""
    sets = [f"data.task={kind['task']}"] if kind else []
    samples = getattr(
        HookCalls(activate(load_config(None, CliOverrides("digits/cnn", data, sets=sets)))).build_data(data), split
    )
    model, features = load_model(folder), []
    handle = model.module.get_submodule("head").register_forward_pre_hook(lambda _, given: features.append(given[0]))
    images = torch.stack([model.transforms.evaluate(samples[place][0]) for place in range(len(samples))])
    with torch.inference_mode():
        model.module(model.transforms.on_device(images))
    handle.remove()
    return features[0].double().numpy(), np.array([samples[place][1] for place in range(len(samples))])


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_it_is_the_logistic_regression_of_scikit_learn(strength: float, tmp_path: Path) -> None:
    sets = ("--set", f"probe_solver.C={strength}", "--set", "probe_solver.tol=5e-6")
    result = run(tmp_path / "run", *sets)
    assert result.code == 0, result.err
    assert "feature caching" in result.err

    features, targets = seen(tmp_path / "run")
    expected = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(features, targets)
    head: Any = load_model(tmp_path / "run").module.get_submodule("head")
    # all classes' scores may move together: their biases are not penalised
    bias = head.bias.detach().double().numpy()
    assert head.weight.detach().numpy() == pytest.approx(expected.coef_, abs=5e-3)
    assert bias - bias.mean() == pytest.approx(expected.intercept_ - expected.intercept_.mean(), abs=1e-2)
    others, right = seen(tmp_path / "run", "val")
    assert result.report["best"]["accuracy"] == pytest.approx(expected.score(others, right), abs=1e-6)
    chances = expected.predict_log_proba(others)[np.arange(len(right)), right]
    assert result.report["best"]["loss"] == pytest.approx(-chances.mean(), abs=1e-3)
    assert "not solved" not in result.err


def test_numbers_are_the_ridge_regression_of_scikit_learn(tmp_path: Path) -> None:
    sets = ("--set", "data.task=regression", "--set", "probe_solver.tol=5e-6", "--set", "probe_solver.C=1")
    result = run(tmp_path / "run", *sets)
    assert result.code == 0, result.err

    features, targets = seen(tmp_path / "run", task="regression")
    targets = (targets - targets.mean()) / targets.std()
    # the mean squared error is twice what scikit-learn's C stands beside
    expected = Ridge(alpha=1 / 2).fit(features, targets)
    head: Any = load_model(tmp_path / "run").module.get_submodule("head")
    assert head.weight.detach().numpy()[0] == pytest.approx(expected.coef_.reshape(-1), abs=5e-3)


def test_a_head_that_is_not_solved_for_is_told(tmp_path: Path) -> None:
    result = run(tmp_path / "run", "--set", "probe_solver.max_iter=2")

    assert result.code == 0
    assert "the head fit did not converge; increase probe_solver.max_iter or lower probe_solver.C" in result.err


def test_the_gradient_that_is_left_is_that_at_the_solution() -> None:
    torch.manual_seed(0)
    head, features, targets = nn.Linear(5, 3), torch.randn(40, 5), torch.randint(0, 3, (40,))

    def gradient() -> dict[str, torch.Tensor]:
        loss = nn.functional.cross_entropy(head(features), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach()}

    terms, steepest = minimise_lbfgs(gradient, head, 0.1, max_iter=200, tol=1e-5)

    loss = nn.functional.cross_entropy(head(features), targets)
    assert float(terms["loss"]) == float(loss.detach())
    assert float(terms["l2"]) == pytest.approx(0.05 * float(head.weight.detach().square().sum()))
    given = torch.autograd.grad(loss + 0.05 * head.weight.square().sum(), list(head.parameters()))
    for parameter, expected in zip(head.parameters(), given, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-6)
        assert float(parameter.grad.abs().max()) <= steepest <= 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", 'freeze_backbone.but=["bias"]'), "probe_solver fits the head of a frozen network, but "),
        (("--plugin", "sgd"), "make_optimizer"),
        (("--set", "train.accumulate=1", "--set", "train.batch_size=32"), "make steps of 32 images, and probe_solver"),
        (("--set", "train.clip_norm=1"), "train.clip_norm has no effect with probe_solver, which does not take"),
        (("--set", "probe_solver.C=0"), "'C' must be > 0"),
    ],
)
def test_what_it_does_not_solve_is_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = run(tmp_path / "run", *arguments)

    assert result.code == 2
    assert message in result.err


SQUEEZENET = ("--model", "torchvision/squeezenet1_1", "--set", "model.weights=none", "--set", "model.image_size=64")


def test_a_network_that_goes_on_behind_its_head_is_computed_once_up_to_it(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "pictures")
    seen = {}
    for mode in ("auto", "never"):
        sets = (*SQUEEZENET, "--set", f"train.precompute={mode}", "--set", "probe_solver.tol=1e-5")
        result = run(tmp_path / mode, *sets, "--data", str(data))
        assert result.code == 0, result.err
        assert ("the input of classifier.1 for each image, 512 x 3 x 3 numbers" in result.err) == (mode == "auto")
        seen[mode] = result.report["best"]

    assert seen["auto"]["loss"] == pytest.approx(seen["never"]["loss"], abs=1e-3)
    assert seen["auto"]["train_loss"] == pytest.approx(seen["never"]["train_loss"], abs=1e-3)


def test_it_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lbfgs_probe, "PROGRESS_S", 0.0)

    result = run(tmp_path / "run")

    losses = [
        float(loss) for loss in re.findall(r"fitting the head: \d+ passes over the images, loss ([\d.]+)", result.err)
    ]
    assert len(losses) > 5
    assert losses[-1] < losses[0]


class TakesLong:
    """A loss that takes a quarter of a second, as one over many images does."""

    @hookimpl(wrapper=True)
    def make_loss(self) -> Generator[None, Loss, Loss]:
        loss = yield

        def slowly(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            time.sleep(0.25)
            return loss.function(outputs, targets)

        return evolve(loss, function=slowly)


def test_a_signal_ends_it_between_two_passes_and_the_head_that_it_began_with_is_saved(tmp_path: Path) -> None:
    data, folder, log = image_folder(tmp_path / "pictures"), tmp_path / "run", tmp_path / "log"
    plugins = ("--plugin", "probe_solver", "--plugin", "tests.numerics.test_probe_solver:TakesLong")
    sets = ("--set", "probe_solver.tol=1e-30", "--set", f"run.folder={folder}")
    process = start("run", *SQUEEZENET, *plugins, *sets, "--data", str(data), log=log)
    try:
        while not (folder / "log.jsonl").exists():
            assert process.is_alive(), log.read_text()
            time.sleep(0.05)
        time.sleep(1.5)
        sent = time.monotonic()
        os.kill(process.pid or 0, signal.SIGTERM)
        assert end(process, 60) == 128 + signal.SIGTERM, log.read_text()
    finally:
        process.kill()

    assert time.monotonic() - sent < 10
    assert f"stopped by SIGTERM after step 0, in epoch 1; resume with: ftcore resume {folder}" in log.read_text()
    saved = load_file(folder / "checkpoints" / "step-00000000" / "model.safetensors")
    assert not saved["classifier.1.weight"].any()
