from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attrs import fields
from ftcore import BatchImageTransform, InputSpec
from ftcore.testing import Result, image_folder, invoke
from safetensors.torch import load_file

from ftcore_kornia import Kornia, KorniaConfig

if TYPE_CHECKING:
    from pathlib import Path

SPEC = InputSpec((16, 16), 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
NOTHING = dict.fromkeys((option.name for option in fields(KorniaConfig)), 0.0) | {"zoom": 1.0}


def transform(spec: InputSpec = SPEC, **options: Any) -> Any:
    (found,) = Kornia(KorniaConfig(**{**NOTHING, **options})).batch_transforms(spec)
    assert isinstance(found, BatchImageTransform)
    return found.function


def pixels(count: int = 8) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(count, 3, 16, 16)


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (SPEC.mean, SPEC.std))
    return (images - mean) / std


def run(folder: Path, *arguments: str) -> Result:
    sets = ("train.epochs=2", "train.batch_size=48", "train.log_every=1", f"run.folder={folder}")
    flags = [word for text in sets for word in ("--set", text)]
    return invoke("run", "--plugin", "kornia", "--model", "digits/cnn", "--data", "digits:5-6", *flags, *arguments)


def test_mirrored_images_are_mirror_images() -> None:
    images = normalised(pixels())

    torch.testing.assert_close(transform(mirror=1.0)(images), images.flip(-1))
    torch.testing.assert_close(transform(upside_down=1.0)(images), images.flip(-2))


@pytest.mark.parametrize(
    "options",
    [
        {"degrees": 30.0, "translate": 0.2, "zoom": 1.3},
        {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2},
        {"blur": 1.0},
        {"erase": 1.0},
    ],
    ids=str,
)
def test_images_change_and_stay_images(options: dict[str, float]) -> None:
    images = normalised(pixels())

    changed = transform(**options)(images)

    black, white = normalised(torch.zeros(1, 3, 1, 1)), normalised(torch.ones(1, 3, 1, 1))
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert not torch.allclose(changed, images)
    assert ((changed >= black - 1e-5) & (changed <= white + 1e-5)).all()


def test_the_same_is_drawn_from_the_same_seed() -> None:
    images, change = normalised(pixels()), transform(degrees=30.0, brightness=0.3, mirror=0.5)
    drawn = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        drawn.append(change(images))

    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_a_run_learns_with_any_loss_and_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    result = run(
        tmp_path / "run", "--plugin", "logit_adjustment", "--set", "run.save_every=1 step", "--set", "run.keep=99"
    )
    *_, before, last = sorted((tmp_path / "run" / "checkpoints").iterdir())
    expected = load_file(last / "model.safetensors")
    for folder in (before, last):
        shutil.rmtree(folder)

    gone_on = invoke("resume", tmp_path / "run")

    assert (result.code, gone_on.code) == (0, 0), result.err + gone_on.err
    found = load_file(last / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_photographs_are_learnt(tmp_path: Path) -> None:
    pictures = image_folder(tmp_path / "pictures", per_class=8)
    model = ("--model", "timm/test_resnet", "--set", "model.weights=none", "--set", "model.image_size=32")

    result = run(tmp_path / "run", "--data", str(pictures), *model, "--set", "kornia.hue=0.02", "--json")

    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("kornia.mirror=1.5",), "kornia.mirror"),
        (("kornia.zoom=0.5",), "kornia.zoom"),
        (("kornia.hue=0.1",), "kornia.saturation and kornia.hue change colours, and images have 1 channels"),
        (
            ("kornia.mirror=0", "kornia.degrees=0", "kornia.brightness=0", "kornia.contrast=0"),
            "kornia: all of its changes are left out",
        ),
    ],
)
def test_what_cannot_be_is_refused(sets: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = run(tmp_path / "run", *(word for text in sets for word in ("--set", text)))

    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "run").exists()


def test_it_is_listed_where_it_is_installed() -> None:
    rows = json.loads(invoke("plugins", "--json").out)

    (row,) = [row for row in rows if row["name"] == "kornia"]
    assert (row["distribution"], row["hooks"]) == ("ftcore-kornia", "batch_transforms")
