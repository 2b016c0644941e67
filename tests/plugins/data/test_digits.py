"""The digits, and the weights that ship."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import structlog
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from ftcore import Context, UserError
from ftcore.config.schema import DataConfig, RunConfig
from ftcore.data.dataset import ImageSplit
from ftcore.testing import invoke
from ftcore_plugins.data.digits import WEIGHTS, Digits
from ftcore_plugins.models.digits_cnn import make_cnn
from ftcore_plugins.tasks import Classification, Regression
from ftcore_plugins.transforms.standard import PlainTransforms

if TYPE_CHECKING:
    from ftcore import Data


KINDS = (Classification, Regression)
CTX = Context(Path(), structlog.get_logger(), make_task={kind.name: kind for kind in KINDS}.__getitem__)


def digits(source: str, config: DataConfig | None = None) -> Data:
    data = Digits().build_data(source, RunConfig(data=config or DataConfig()), CTX)
    assert data is not None
    return data


def places(data: Data) -> list[int]:
    names = [samples.name(index) for samples in (data.train, data.val) for index in range(len(samples))]
    return sorted(int(name.removeprefix("digits[").removesuffix("]")) for name in names)


@pytest.mark.parametrize(("source", "low", "high"), [("digits", 0, 9), ("digits:5-9", 5, 9), ("digits:2-3", 2, 3)])
def test_a_range_holds_all_its_digits_and_no_others(source: str, low: int, high: int) -> None:
    _, labels = load_digits(return_X_y=True)

    data = digits(source)

    assert places(data) == [place for place, digit in enumerate(labels) if low <= digit <= high]
    assert data.task.names == tuple(str(digit) for digit in range(low, high + 1))


@pytest.mark.parametrize("source", ["digit", "digits:", "digits:a-b", "digits:10-12", "digits:5-", "Digits", None])
def test_a_source_in_another_form_is_left_to_others(source: str | None) -> None:
    assert Digits().build_data(source, RunConfig(), CTX) is None


def test_a_single_digit_is_nothing_to_tell_apart() -> None:
    with pytest.raises(UserError, match="at least two classes; the data has 7"):
        digits("digits:7")


def test_pictures_and_targets_are_scikit_learns() -> None:
    images, labels = load_digits(return_X_y=True)
    data = digits("digits:5-9")

    assert isinstance(data.train, ImageSplit)
    for index in range(0, len(data.train), 50):
        image, target = data.train[index]
        place = int(data.train.name(index).removeprefix("digits[").removesuffix("]"))
        assert (image.mode, image.size) == ("L", (8, 8))
        np.testing.assert_allclose(np.asarray(image).ravel() / 255 * 16, images[place], atol=16 / 255)
        assert data.task.names[target] == str(labels[place])


def test_digits_are_targets_of_a_regression_in_their_own_unit() -> None:
    data = digits("digits:2-4", DataConfig(task="regression"))

    values = [data.train[index][1] for index in range(len(data.train))]

    assert set(values) == {2.0, 3.0, 4.0}
    assert isinstance(data.task, Regression)
    assert data.task.mean == pytest.approx((np.mean(values),))
    assert data.task.std == pytest.approx((np.std(values),))


def test_the_fingerprint_is_that_of_the_range_and_not_of_the_split() -> None:
    first, other_split = digits("digits:5-9"), digits("digits:5-9", DataConfig(split_seed=1))

    assert places(first) == places(other_split)
    assert first.fingerprint == other_split.fingerprint
    assert first.fingerprint != digits("digits:5-8").fingerprint


def test_the_recipe_of_the_weights_learns_and_gives_weights_of_their_form(tmp_path: Path) -> None:
    sets = ("--set", "train.epochs=3", "--set", f"run.folder={tmp_path / 'run'}")

    result = invoke("run", WEIGHTS.with_suffix(".toml"), *sets, "--json")

    made, shipped = load_file(tmp_path / "run" / "model" / "model.safetensors"), load_file(WEIGHTS)
    assert result.report["best"]["accuracy"] > 0.9
    assert {k: (v.shape, v.dtype) for k, v in made.items()} == {k: (v.shape, v.dtype) for k, v in shipped.items()}


def test_the_weights_that_ship_know_their_digits_as_the_network_sees_them() -> None:
    model = make_cnn(classes=5)
    model.load_state_dict(load_file(WEIGHTS))
    backbone, data = Digits().build_model("digits/cnn", "default", RunConfig()), digits("digits:0-4")

    assert backbone is not None
    transforms = PlainTransforms().make_transforms(backbone.input)
    items = [data.val[index] for index in range(len(data.val))]
    with torch.no_grad():
        images = transforms.on_device(torch.stack([transforms.evaluate(image) for image, _ in items]))
        found = model.eval()(images).argmax(dim=1)
    assert (found == torch.tensor([target for _, target in items])).float().mean() > 0.97


def test_the_default_weights_are_those_that_ship_and_none_are_others() -> None:
    shipped = load_file(WEIGHTS)

    default, none = (
        Digits().build_model("digits/cnn", "default", RunConfig()),
        Digits().build_model("digits/cnn", "none", RunConfig()),
    )

    assert default is not None
    assert none is not None
    backbone = {name for name in shipped if not name.startswith("head.")}
    assert all(torch.equal(default.module.state_dict()[name], shipped[name]) for name in backbone)
    assert not torch.equal(none.module.state_dict()["layer1.0.weight"], shipped["layer1.0.weight"])
