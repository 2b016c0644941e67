"""A model in Python: two lines."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.core.inference.training import run

import ftcore
from ftcore import DataError, UserError
from ftcore.inference.gradcam import explain_prediction
from ftcore.inference.load import load
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from pathlib import Path


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
    with pytest.raises(UserError, match=r"^a picture is a path, .*, a PIL image, or .* of uint8 with 1 to 4"):
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
    del description["input"]["crop_mode"], description["model"]["crop"]
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
    with pytest.raises(UserError, match="is no run folder with a model"):
        ftcore.load(tmp_path)


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder with a model: there is no"):
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
