"""A model in Python: two lines."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from attrs import evolve
from PIL import Image
from tests.core.inference.training import run
from torch import nn
from torch.nn.utils import parametrize

import ftcore
from ftcore import DataError, UserError, hookimpl
from ftcore.inference.gradcam import explain_prediction
from ftcore.inference.load import load
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from ftcore import Placement


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    image_folder(folder / "pictures", per_class=4)
    model = ("--model", "timm/test_resnet", "--set", "model.weights=none", "--set", "model.image_size=24")
    run(folder / "run", "--data", str(folder / "pictures"), *model)
    return folder


def values(answers: Any) -> list[dict[str, float]]:
    return [answer.values for answer in answers]


def test_a_picture_is_the_same_however_it_comes(photographs: Path) -> None:
    model, path = ftcore.load(photographs / "run"), photographs / "pictures" / "blue" / "0.jpg"
    image = Image.open(path).convert("RGB")
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)

    (expected,) = values(model.predict(path))

    assert list(expected.values()) == sorted(expected.values(), reverse=True)
    for picture in (str(path), image, array, tensor, [path], array[None], tensor[None], [image]):
        assert values(model.predict(picture)) == [expected]
    assert [answer.path for answer in model.predict([path, image])] == [path, None]


def test_it_says_what_the_command_says(photographs: Path) -> None:
    files = sorted((photographs / "pictures").rglob("*.jpg"))
    told = invoke("predict", photographs / "run", *files).out.splitlines()

    answers = ftcore.load(str(photographs / "run")).predict(files, batch_size=5)

    assert [
        f"{answer.path}\t{name}\t{p:.4f}" for answer in answers for name, p in list(answer.values.items())[:1]
    ] == told


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4), np.float32), np.zeros((4, 4, 5), np.uint8), torch.zeros(5, 4, 3, dtype=torch.uint8), 3],
    ids=["floats", "five channels", "channels last", "a number"],
)
def test_what_is_no_picture_is_refused_with_what_is_one(photographs: Path, picture: Any) -> None:
    with pytest.raises(UserError, match=r"^an image must be a path, .*, a PIL image, or .* of uint8 with 1 to 4"):
        ftcore.load(photographs / "run").predict([picture])


def test_a_file_that_cannot_be_read_is_named(photographs: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jpg"):
        ftcore.load(photographs / "run").predict("nowhere.jpg")


def test_texts_are_told_from_files_of_text(tmp_path: Path) -> None:
    run(tmp_path / "run", "--plugin", "tests.core.types.test_model:Texts", "--data", "letters", "--model", "own/bag")
    (tmp_path / "one.txt").write_text("cdea")
    model = ftcore.load(tmp_path / "run")

    assert values(model.predict("cdea")) == values(model.predict(tmp_path / "one.txt"))
    assert len(model.predict(["cdea", "defb", tmp_path / "one.txt"])) == 3


@pytest.mark.parametrize(("size", "mode"), [((24, 24), "center"), ((24, 32), "squash")])
def test_a_run_of_before_there_was_a_crop_mode_sees_what_it_saw(
    photographs: Path, tmp_path: Path, size: tuple[int, int], mode: str
) -> None:
    shutil.copytree(photographs / "run" / "model", tmp_path / "model", symlinks=True)
    file = next(tmp_path.rglob("model.json"))
    description = json.loads(file.read_text())
    del description["input"]["crop_mode"], description["model"]["crop"], description["reference"]
    file.write_text(json.dumps({**description, "input": {**description["input"], "size": size}}))

    assert ftcore.load(tmp_path).single.network.spec.crop_mode == mode


def test_what_was_chosen_of_the_crop_and_the_size_is_seen_by_whoever_reads_the_folder(
    photographs: Path, tmp_path: Path
) -> None:
    sets = ("model.weights=none", "model.image_size=[32, 48]", "model.crop=pad", "model.mean=0.5")
    words = [word for text in sets for word in ("--set", text)]
    folder = run(tmp_path / "run", "--data", str(photographs / "pictures"), "--model", "timm/test_resnet", *words)

    model = ftcore.load(folder)

    white = Image.new("RGB", (480, 160), "white")
    shown = explain_prediction(model, white, model.task.names[0]).view
    assert shown.shape == (32, 48, 3)
    assert (shown[8:24] == 255).all()
    assert (shown[:8] == 128).all()
    assert (shown[24:] == 128).all()
    measured = invoke("evaluate", folder, "--json")
    assert json.loads(measured.out)["metrics"]["accuracy"] == pytest.approx(
        json.loads((folder / "model" / "model.json").read_text())["metrics"]["accuracy"]
    )


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder with a model"):
        ftcore.load(tmp_path)


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder with a model: it has no"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot read .*model.json"), ("[]", "cannot read .*model.json"), ('{"format": 99}', "has format 99")],
)
def test_a_description_that_cannot_be_used_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(content)

    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_damaged_weights_are_an_error(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")

    with pytest.raises(UserError, match=r"cannot load .*model\.safetensors into the network"):
        load(tmp_path)


class Rescales:
    """Hooks a factor into the network, which nothing that is saved knows."""

    @hookimpl(wrapper=True)
    def wrap_devices(self, model: nn.Module) -> Generator[None, Placement, Placement]:
        model.register_forward_hook(lambda _, __, outputs: outputs * 0.98)
        return (yield)


class Reparametrises:
    """Gives the weights of the head other names."""

    @hookimpl(wrapper=True)
    def wrap_devices(self, model: nn.Module) -> Generator[None, Placement, Placement]:
        parametrize.register_parametrization(model.get_submodule("head"), "weight", nn.Tanh(), unsafe=True)
        return (yield)


class Outside:
    """Puts the network into one that says the opposite."""

    @hookimpl(wrapper=True)
    def wrap_devices(self, model: nn.Module) -> Generator[None, Placement, Placement]:
        placement = yield
        wrapped = nn.Sequential(placement.model, Negative())
        return evolve(placement, model=wrapped, unwrap=lambda _: model)


class Negative(nn.Module):
    """The negative of what comes in."""

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        return -outputs


@pytest.mark.parametrize("kind", ["Rescales", "Reparametrises", "Outside"])
def test_a_network_that_a_wrapper_changed_is_refused_by_name_where_the_wrapper_is_not(
    kind: str, tmp_path: Path
) -> None:
    image_folder(tmp_path / "pictures", per_class=4)
    sets = ("--set", f"run.folder={tmp_path / 'run'}", "--set", "train.epochs=1")
    plugin = ("--plugin", f"tests.core.inference.test_load:{kind}")
    told = invoke("run", "--model", "digits/cnn", "--data", tmp_path / "pictures", *sets, *plugin)
    assert told.code == 0, told.err

    picture = tmp_path / "pictures" / "blue" / "0.jpg"
    exports = [("export", "--format", form, "--out", tmp_path / "model") for form in ("torch", "safetensors")]
    for command, *arguments in [("predict", picture), *exports]:
        result = invoke(command, tmp_path / "run", *arguments)
        assert result.code == 2
        assert f"wrap_devices of {kind.lower()} " in result.err
    assert "ftcore: warning: predict, serve and export will reject this run: " in told.err
    with pytest.raises(UserError, match=f"wrap_devices of {kind.lower()} "):
        load(tmp_path / "run")


@pytest.mark.parametrize("kind", ["Rescales", "Outside"])
def test_evaluate_measures_what_the_run_did_wrapped_as_it_was(kind: str, tmp_path: Path) -> None:
    image_folder(tmp_path / "pictures", per_class=4)
    folder = run(
        tmp_path / "run",
        *("--data", str(tmp_path / "pictures"), "--model", "digits/cnn"),
        *("--plugin", f"tests.core.inference.test_load:{kind}", "--json"),
    )
    told = json.loads((folder / "model" / "model.json").read_text())["metrics"]

    measured = json.loads(invoke("evaluate", folder, "--json").out)["metrics"]

    assert measured["loss"] == pytest.approx(told["loss"], rel=1e-5)


@pytest.mark.parametrize("plugin", ["channels_last", "checkpointing", "bf16_pure", "dp", "ema"])
def test_a_wrapper_that_changes_how_and_not_what_is_computed_is_let_through(plugin: str, tmp_path: Path) -> None:
    image_folder(tmp_path / "pictures", per_class=4)
    given = ("--data", str(tmp_path / "pictures"), "--model", "digits/cnn", "--plugin", plugin)
    folder = run(tmp_path / "run", *given)

    assert "reference" in json.loads((folder / "model" / "model.json").read_text())
    assert load(folder).members
    assert invoke("evaluate", folder).code == 0


def test_a_network_that_is_built_otherwise_than_in_its_run_is_refused(photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs / "run", tmp_path / "run")
    file = (tmp_path / "run" / "model").resolve() / "model.json"
    described = json.loads(file.read_text())
    described["reference"]["values"][0][0] += 1.0
    file.write_text(json.dumps(described))

    with pytest.raises(UserError, match=r"does not answer as the one that the run measured: .* a library or plugin"):
        load(tmp_path / "run")


def test_a_network_that_asks_for_the_version_of_its_format_is_loaded(tmp_path: Path) -> None:
    image_folder(tmp_path / "pictures", per_class=4)
    model = ("--model", "torchvision/mnasnet0_5", "--set", "model.weights=none", "--set", "model.image_size=32")
    folder = run(tmp_path / "run", "--data", str(tmp_path / "pictures"), *model)

    assert load(folder).members
