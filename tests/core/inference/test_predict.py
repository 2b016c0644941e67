"""A run's model answers for pictures from the run folder alone."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_model
from sklearn.datasets import load_digits
from tests.core.inference.training import train

from ftcore import Prediction
from ftcore.config.load import CliOverrides, load_config
from ftcore.errors import DataError
from ftcore.inference.gradcam import explain_prediction
from ftcore.inference.load import load
from ftcore.inference.predict import predict
from ftcore.runs.prepared import prepare
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from pathlib import Path

FRESH = """
import json, sys
from pathlib import Path
import torch
from ftcore.inference.load import load
images = torch.linspace(-2, 2, 2 * 8 * 8).reshape(2, 1, 8, 8)
with torch.inference_mode():
    print(json.dumps(load(Path(sys.argv[1])).module(images).tolist()))
"""


def test_a_fresh_process_elsewhere_gives_the_logits_of_the_trained_network(tmp_path: Path) -> None:
    folder = train(tmp_path, plugins=["mlp_head"])
    trained = prepare(load_config(folder / "config.toml", CliOverrides(sets=[f"run.folder={tmp_path / 'x'}"])))
    load_model(trained.assembly.parts.network, next(folder.glob("checkpoints/*/model.safetensors")))
    images = torch.linspace(-2, 2, 2 * 8 * 8).reshape(2, 1, 8, 8)
    moved = shutil.move(folder, tmp_path / "moved")
    shutil.rmtree(tmp_path / "data")

    answer = subprocess.run(
        [sys.executable, "-c", FRESH, moved], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    with torch.inference_mode():
        expected = trained.assembly.parts.network.eval()(images)
    torch.testing.assert_close(torch.tensor(json.loads(answer.stdout)), expected, rtol=0, atol=1e-6)


def test_classes_come_with_probabilities_the_most_probable_first(run: Path) -> None:
    answers = list(predict(load(run), [run.parent / "data" / "green"], batch_size=4))

    assert len(answers) == 6
    for answer in answers:
        assert isinstance(answer, Prediction)
        assert set(answer.values) == {"blue", "green", "red"}
        assert sum(answer.values.values()) == pytest.approx(1, abs=1e-6)
        assert list(answer.values.values()) == sorted(answer.values.values(), reverse=True)


def test_the_model_folder_alone_is_enough(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "alone" / "model")

    result = invoke("predict", tmp_path / "alone", run.parent / "data" / "red" / "0.jpg")

    assert result.out.split("\t")[1] == "red"


@pytest.mark.parametrize("bad", ["damaged", "text", "missing"])
def test_a_picture_that_cannot_be_read_is_named_while_the_others_are_answered(
    run: Path, tmp_path: Path, bad: str
) -> None:
    good, broken = run.parent / "data" / "red" / "0.jpg", tmp_path / f"{bad}.jpg"
    if bad != "missing":
        broken.write_bytes(good.read_bytes()[:-300] if bad == "damaged" else b"no picture")

    result = invoke("predict", run, good, broken, good)

    assert [line.split("\t")[1] for line in result.out.splitlines()] == ["red", "red"]
    assert result.code == 2
    assert str(broken) in result.err
    assert result.err.endswith("\n1 of 3 could not be read\n")
    assert "Traceback" not in result.err


def test_the_bytes_of_a_file_are_a_picture(run: Path) -> None:
    picture = run.parent / "data" / "red" / "0.jpg"

    (of_bytes,), (of_file,) = load(run).predict(picture.read_bytes()), load(run).predict(picture)

    assert of_bytes.path is None
    assert of_bytes.values == of_file.values


def test_every_form_of_a_picture_gets_the_answer_of_its_file(run: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((700, 500)).save(tmp_path / "phone.jpg", exif=exif)
    Image.fromarray(np.arange(3000, dtype=np.uint16).reshape(50, 60) * 20).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([colours, colours[:, :, 0]])).save(tmp_path / "clear.png")
    model, files = load(run), sorted(tmp_path.iterdir())

    expected = [answer.values for answer in model.predict(tmp_path)]

    forms = [io.BytesIO(path.read_bytes()) for path in files], [bytearray(path.read_bytes()) for path in files]
    images = [Image.open(path) for path in files]
    for given in (files, [str(path) for path in files], *forms, images):
        assert [answer.values for answer in model.predict(given)] == expected
    for image in images:
        image.load()
    assert [answer.values for answer in model.predict(images)] == expected
    alone = [model.predict(path)[0].values for path in files]
    assert [model.predict(one)[0].values for one in (*forms[0], *images)] == alone * 2
    assert len({str(values) for values in expected}) == 3
    heat = explain_prediction(model, forms[0][2], "red")
    assert torch.equal(heat.map, explain_prediction(model, files[2], "red").map)


def test_a_frame_of_opencv_is_answered_as_the_picture_that_it_is(run: Path) -> None:
    model, picture = load(run), next((run.parent / "data" / "red").iterdir())
    colours = np.asarray(Image.open(picture))
    frame = colours[:, :, ::-1]

    expected = model.predict(picture)[0].values

    assert model.predict(colours)[0].values == expected
    assert model.predict(frame, channels="bgr")[0].values == expected
    assert model.predict(np.stack([frame] * 3), channels="bgr")[2].values == pytest.approx(expected)
    assert torch.equal(
        explain_prediction(model, frame, "red", channels="bgr").map, explain_prediction(model, picture, "red").map
    )
    assert next(iter(model.predict(frame)[0].values)) != "red"


def test_a_folder_in_python_is_its_pictures_and_a_missing_one_an_error(run: Path) -> None:
    model, folder = load(run), run.parent / "data" / "green"

    answers = model.predict(str(folder))

    assert [answer.path for answer in answers] == sorted(folder.iterdir())
    with pytest.raises(DataError, match=r"^no such image or folder: nowhere \(looked at "):
        model.predict("nowhere")


def test_a_stream_is_read_once_for_all_networks_of_an_ensemble(run: Path, tmp_path: Path) -> None:
    picture = run.parent / "data" / "red" / "0.jpg"
    assert invoke("ensemble", run, run, "--out", tmp_path / "both").code == 0

    with urllib.request.urlopen(picture.as_uri()) as stream:
        (answer,) = load(tmp_path / "both").predict(stream)

    assert answer.values == load(tmp_path / "both").predict(picture)[0].values


def test_pictures_that_go_through_together_keep_their_places_beside_one_that_cannot_be_read(
    run: Path, tmp_path: Path
) -> None:
    red, blue = (run.parent / "data" / name / "0.jpg" for name in ("red", "blue"))
    (tmp_path / "bad.jpg").write_bytes(b"no picture")

    bad, first, last = predict(load(run), [tmp_path / "bad.jpg", red, blue])

    assert isinstance(first, Prediction)
    assert isinstance(last, Prediction)
    assert [next(iter(found.values)) for found in (first, last)] == ["red", "blue"]
    assert isinstance(bad, DataError)


def test_a_regression_answers_in_the_targets_own_unit(tmp_path: Path) -> None:
    digits = load_digits()
    for digit in (5, 9):
        picture = (digits.images[digits.target == digit][0] * (255 / 16)).round().astype("uint8")
        Image.fromarray(picture).save(tmp_path / f"{digit}.png")
    sets = [f"run.folder={tmp_path / 'run'}", "data.task=regression", "train.epochs=4"]
    options = [word for text in sets for word in ("--set", text)]
    assert invoke("run", "--data", "digits", "--model", "digits/cnn", *options).code == 0

    pictures = [tmp_path / "5.png", tmp_path / "9.png"]
    values = [
        json.loads(line)["values"]["digit"]
        for line in invoke("predict", tmp_path / "run", *pictures, "--json").out.splitlines()
    ]

    assert values == [pytest.approx(5, abs=1.5), pytest.approx(9, abs=1.5)]
    plain = [line.split("\t")[1] for line in invoke("predict", tmp_path / "run", *pictures).out.splitlines()]
    assert plain == [f"digit={value:.6g}" for value in values]


HOOKS = """
from attrs import field, frozen
from torch import nn

from ftcore import Backbone, HeadSlot, InputSpec, hookimpl


@frozen
class Options:
    width: int = 3
    depth: int | None = None


class Small:
    Config = Options

    def __init__(self, config):
        self.config = config

    @hookimpl
    def build_model(self, name):
        if name == "small/net":
            layers = nn.Conv2d(3, self.config.width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 9)
            layers[3].in_features = self.config.width
            return Backbone(nn.Sequential(*layers), (HeadSlot("3", self.config.width),), InputSpec(size=(32, 32)))
"""


def test_a_network_of_a_hooks_file_is_built_again_with_its_options(tmp_path: Path) -> None:
    hooks = tmp_path / "small_network.py"
    hooks.write_text(HOOKS)
    sets = ["train.epochs=1", "small.width=7", f"run.folder={tmp_path / 'run'}"]
    options = [word for text in sets for word in ("--set", text)]
    data = image_folder(tmp_path / "data")
    assert invoke("run", "--data", data, "--model", "small/net", "--plugin", f"{hooks}:Small", *options).code == 0

    model = load(tmp_path / "run")

    assert [tuple(p.shape) for p in model.module.parameters()] == [(7, 3, 3, 3), (7,), (3, 7), (3,)]


def test_a_hooks_file_that_is_gone_is_an_error_that_names_it(tmp_path: Path) -> None:
    hooks = tmp_path / "gone_network.py"
    hooks.write_text(HOOKS)
    sets = ["--set", "train.epochs=1", "--set", f"run.folder={tmp_path / 'run'}"]
    data = image_folder(tmp_path / "data")
    assert invoke("run", "--data", data, "--model", "small/net", "--plugin", f"{hooks}:Small", *sets).code == 0
    hooks.unlink()

    result = invoke("predict", tmp_path / "run", data)

    assert result.code == 2
    assert "gone_network.py" in result.err


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_picture_and_its_mirror_image_are_averaged(tmp_path: Path, task: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 8, 8)).astype("uint8")
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        Image.fromarray(pixels[:, ::-1]).save(tmp_path / f"{number}m.png")
    sets = ["--set", f"run.folder={tmp_path / 'run'}", "--set", "train.epochs=1", "--set", f"data.task={task}"]
    assert invoke("run", "--data", "digits", "--model", "digits/cnn", *sets).code == 0
    seen = [tmp_path / f"{number}.png" for number in range(5)]
    mirrored = [tmp_path / f"{number}m.png" for number in range(5)]

    plain, mirror, both = (
        [answer.values for answer in predict(load(tmp_path / "run"), paths, tta=tta) if isinstance(answer, Prediction)]
        for paths, tta in ((seen, False), (mirrored, False), (seen, True))
    )

    for one, other, mean in zip(plain, mirror, both, strict=True):
        assert mean == pytest.approx({name: (one[name] + other[name]) / 2 for name in one}, abs=1e-6)
        assert one != pytest.approx(mean, abs=1e-6)
    lines = invoke("predict", tmp_path / "run", *seen, "--tta", "--json").out.splitlines()
    assert [json.loads(line)["values"] for line in lines] == both


def test_a_symmetric_picture_is_its_own_mirror_image(tmp_path: Path) -> None:
    half = np.random.default_rng(0).integers(0, 256, (8, 4)).astype("uint8")
    Image.fromarray(np.hstack([half, half[:, ::-1]])).save(tmp_path / "same.png")
    sets = ["--set", f"run.folder={tmp_path / 'run'}", "--set", "train.epochs=1"]
    assert invoke("run", "--data", "digits", "--model", "digits/cnn", *sets).code == 0

    plain, both = (list(predict(load(tmp_path / "run"), [tmp_path / "same.png"], tta=tta)) for tta in (False, True))

    assert isinstance(plain[0], Prediction)
    assert isinstance(both[0], Prediction)
    assert both[0].values == pytest.approx(plain[0].values, abs=1e-6)
