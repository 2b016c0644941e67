"""Where a network saw something: Grad-CAM, beside another implementation, and on every kind of feature map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from matplotlib import colormaps
from PIL import Image

from ftcore.inference.colormap import INFERNO
from ftcore.inference.gradcam import _layout, explain_prediction, grad_cam
from ftcore.inference.load import load
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 64


def train(folder: Path, model: str, *sets: str, data: Path | None = None) -> Path:
    given = ("model.weights=none", "train.epochs=1", "train.threads=1", f"run.folder={folder / 'run'}", *sets)
    words = [word for text in given for word in ("--set", text)]
    source = data or image_folder(folder / "pictures", ("red", "blue"), per_class=4)
    said = invoke("run", "--data", source, "--model", model, *words)
    assert said.code == 0, said.err
    return folder / "run"


def spotted(folder: Path) -> Path:
    """Grey noise, in one class with a white spot in one of four corners."""
    random = np.random.default_rng(0)
    for name in ("plain", "spot"):
        (folder / name).mkdir(parents=True)
        for place in range(40):
            pixels = random.integers(60, 120, (SIZE, SIZE), dtype=np.uint8)
            if name == "spot":
                top, left = (4 if place & 1 else 44), (4 if place & 2 else 44)
                pixels[top : top + 16, left : left + 16] = 255
            Image.fromarray(pixels).convert("RGB").save(folder / name / f"{place}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("why")
    sets = ("model.image_size=64", "train.epochs=12", "adamw.lr=0.003", "train.batch_size=16")
    return train(folder, "timm/test_resnet", *sets, data=spotted(folder / "pictures"))


@pytest.mark.parametrize("place", range(4))
def test_what_decides_is_where_the_heat_is(run: Path, place: int) -> None:
    picture = run.parent / "pictures" / "spot" / f"{place}.png"
    model = load(run)
    assert next(iter(model.predict(picture)[0].values)) == "spot"

    heat = explain_prediction(model, picture, "spot")

    h, w = heat.map.shape
    top, left = np.unravel_index(int(heat.map.argmax()), (h, w))
    assert ((top + 0.5) / h < 0.5) == bool(place & 1)
    assert ((left + 0.5) / w < 0.5) == bool(place & 2)
    assert float(heat.map.max()) == 1
    assert float(heat.map.min()) >= 0


@pytest.mark.parametrize("name", ["plain", "spot"])
def test_the_heat_is_captums(run: Path, name: str) -> None:
    model, picture = load(run), run.parent / "pictures" / "spot" / "3.png"

    heat = explain_prediction(model, picture, name)

    module = model.module
    steps = model.transforms
    images = steps.on_device(steps.evaluate(Image.open(picture))[None])
    layer = LayerGradCam(module, module.get_submodule(heat.module))
    expected = layer.attribute(images, model.task.names.index(name), relu_attributions=True)[0, 0].detach()
    torch.testing.assert_close(heat.map * expected.max(), expected, rtol=1e-4, atol=1e-7)


def test_maps_are_weighed_by_the_mean_of_their_gradients() -> None:
    """Equations 1 and 2 of Selvaraju et al., by hand."""
    maps = torch.tensor([[[1.0, 2.0]], [[3.0, 1.0]]])
    gradients = torch.tensor([[[2.0, 4.0]], [[-1.0, -1.0]]])  # means 3 and -1: heat 0 and 5

    assert grad_cam(maps, gradients).tolist() == [[0.0, 1.0]]
    assert grad_cam(maps, -gradients.abs()).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("name", "module", "places"),
    [
        ("timm/test_vit", "blocks.5.norm1", (10, 10)),
        ("timm/test_resnet", "layer4", (5, 5)),
        ("timm/test_convnext", "norm_pre", (5, 5)),
        ("timm/test_mambaout", "stages", (5, 5)),
        ("torchvision/squeezenet1_1", "classifier.2", (13, 13)),
        ("torchvision/mobilenet_v3_small", "features", (7, 7)),
        pytest.param("torchvision/swin_t", "permute", (7, 7), marks=pytest.mark.slow),
    ],
)
def test_networks_of_maps_and_of_tokens_are_drawn(
    name: str, module: str, places: tuple[int, int], tmp_path: Path
) -> None:
    model = load(train(tmp_path, name))

    heat = explain_prediction(model, next((tmp_path / "pictures").rglob("*.jpg")), "red")

    assert (heat.module, tuple(heat.map.shape)) == (module, places)
    side = heat.view.shape[0]
    assert heat.side_by_side().size[0] == 2 * heat.side_by_side().size[1] >= 2 * side


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((1, 64, 7, 7), (1, 7, 7)),
        ((1, 7, 7, 64), (3, 7, 7)),
        ((1, 197, 192), (2, 14, 14)),
        ((1, 196, 192), (2, 14, 14)),
        ((1, 201, 192), (2, 14, 14)),
        ((1, 3, 197, 197), ()),
        ((1, 3, 197, 64), ()),
        ((1, 1000), ()),
        ((1, 64, 1, 1), ()),
        ((1, 1, 64), ()),
    ],
)
def test_what_has_places_is_told_by_its_shape(shape: tuple[int, ...], layout: tuple[int, ...]) -> None:
    assert _layout(torch.Size(shape), torch.Size((224, 224))) == layout


def test_a_picture_that_is_no_square_has_places_of_its_proportions() -> None:
    assert _layout(torch.Size((1, 8, 4, 6)), torch.Size((64, 96))) == (1, 4, 6)
    assert _layout(torch.Size((1, 1 + 24, 8)), torch.Size((64, 96))) == (2, 4, 6)


def test_the_command_draws_what_was_shown_and_the_heat_beside_it(run: Path, tmp_path: Path) -> None:
    pictures = run.parent / "pictures"
    chosen = [pictures / "spot" / "3.png", pictures / "plain" / "3.png"]

    said = invoke("predict", run, *chosen, "--why", tmp_path / "why")

    assert said.code == 0, said.err
    assert sorted(path.name for path in (tmp_path / "why").iterdir()) == ["3-plain.png", "3-spot.png"]
    drawn = Image.open(tmp_path / "why" / "3-spot.png")
    assert drawn.size == (512, 256)
    heat = explain_prediction(load(run), chosen[0], "spot")
    assert np.array_equal(np.asarray(drawn)[::4, :256:4], heat.view)
    assert heat.view[6:16, 6:16].mean() > 2 * heat.view.mean()


def test_pictures_of_one_name_are_drawn_beside_each_other_and_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    picture = run.parent / "pictures" / "spot" / "3.png"

    invoke("predict", run, picture, picture, "--why", tmp_path / "why")
    again = invoke("predict", run, picture, "--why", tmp_path / "why")

    assert sorted(path.name for path in (tmp_path / "why").iterdir()) == ["3-spot-2.png", "3-spot.png"]
    assert again.code == 2
    assert again.err.endswith("why is not empty and will not be overwritten; choose a new folder with --why\n")


def test_numbers_are_drawn_too(tmp_path: Path) -> None:
    sets = ("--set", "data.task=regression", "--set", "train.epochs=1", "--set", f"run.folder={tmp_path / 'run'}")
    said = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *sets)
    assert said.code == 0, said.err
    Image.new("L", (8, 8), 99).save(tmp_path / "0.png")

    drawn = invoke("predict", tmp_path / "run", tmp_path / "0.png", "--why", tmp_path / "why")

    assert drawn.code == 0, drawn.err
    assert [path.name for path in (tmp_path / "why").iterdir()] == ["0-digit.png"]


def test_an_ensemble_is_asked_network_by_network(run: Path, tmp_path: Path) -> None:
    invoke("ensemble", run, run, "--out", tmp_path / "both")

    said = invoke("predict", tmp_path / "both", run.parent / "pictures" / "spot" / "3.png", "--why", tmp_path / "why")

    assert said.code == 2
    assert "--why needs one network, but an ensemble has 2; use one of its runs" in said.err


def test_the_colours_are_those_of_matplotlib() -> None:
    theirs = colormaps["inferno"](np.arange(256, dtype=np.uint8))[:, :3]

    assert INFERNO.tolist() == (theirs * 255).astype(np.uint8).tolist()
