"""What one run has computed of each image is there for the next, and is never that of another image or network."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attrs import evolve
from PIL import Image
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from torch import nn

from ftcore import hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.data.loader import TransformedDataset
from ftcore.runs.prepared import prepare
from ftcore.system.user_cache import seal
from ftcore.testing import image_folder, invoke
from ftcore.training.loop import fit
from ftcore.training.state import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

HERE = __name__
FEW = ("train.epochs=2", "train.batch_size=5", "data.cache=disk", "data.cache_gb=0.01")


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures, and a cache that nobody else has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return image_folder(tmp_path / "photos")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Places of the samples that are read, in either split."""
    read: list[int] = []
    original = TransformedDataset.__getitem__

    def counted(self: TransformedDataset, place: tuple[int, int]) -> Any:
        read.append(place[1])
        return original(self, place)

    monkeypatch.setattr(TransformedDataset, "__getitem__", counted)
    return read


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "ftcore" / "features").glob("*"))


def trained(tmp_path: Path, *sets: str, plugins: tuple[str, ...] = (), model: str = "digits/cnn") -> dict[str, Tensor]:
    """Train, and return all weights."""
    names = ("linear_probe", *plugins)
    settings = (*FEW, f"run.folder={tmp_path / 'run'}", *sets)
    parts = prepare(
        load_config(None, CliOverrides(model, str(tmp_path / "photos"), plugins=names, sets=settings))
    ).assembly.parts
    fit(evolve(parts, observers=()), Progress(), lambda _: None)
    return {name: value.clone() for name, value in parts.network.state_dict().items()}


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_run_reads_a_batch_of_each_split_and_ends_in_the_same_bits(
    tmp_path: Path, reads: list[int], workers: int
) -> None:
    first = trained(tmp_path)
    assert len(files(tmp_path)) == 2
    reads.clear()

    later = trained(tmp_path, f"train.workers={workers}")

    assert len(reads) == (0 if workers else 5 + 4)  # of 14 and 4; those of loader processes are not counted here
    assert same(first, later)


def test_another_head_loss_or_rate_learns_from_the_same_features(tmp_path: Path, reads: list[int]) -> None:
    trained(tmp_path)
    reads.clear()

    for plugins, sets in ((("mlp_head",), ()), (("focal",), ()), ((), ("adamw.lr=0.1", "train.seed=3"))):
        trained(tmp_path, *sets, plugins=plugins)

    assert len(reads) == 3 * (5 + 4)
    assert len(files(tmp_path)) == 2


def test_each_view_of_an_augmented_image_is_kept(tmp_path: Path, reads: list[int]) -> None:
    views = ("train.views=2",)
    first = trained(tmp_path, *views, plugins=("augment",))
    assert len(files(tmp_path)) == 3
    reads.clear()

    assert same(first, trained(tmp_path, *views, plugins=("augment",)))
    assert len(reads) == 2 * 5 + 4
    trained(tmp_path, *views, "train.seed=1", plugins=("augment",))
    assert len(files(tmp_path)) == 5


@pytest.mark.parametrize("change", ["picture", "transform", "weights", "batch size"])
def test_what_they_depend_on_is_in_the_name_of_the_file(tmp_path: Path, photos: Path, change: str) -> None:
    trained(tmp_path)
    before = files(tmp_path)
    sets = {"transform": ("model.mean=0.45",), "batch size": ("train.batch_size=6",)}.get(change, ())
    model = "digits/cnn"
    if change == "picture":
        for file in photos.glob("*/*"):
            size = file.stat().st_size
            Image.new("RGB", (32, 24), "yellow").save(file, "JPEG")
            file.write_bytes(file.read_bytes().ljust(size, b"\0"))  # as many bytes, so the fingerprint is the same
    if change == "weights":
        sets = ("model.weights=none",)

    trained(tmp_path, *sets, model=model)

    assert len(files(tmp_path)) == 2 * len(before)


class Builds:
    """Builds a network whose code is another than that of the run before, which nothing tells."""

    factor = 1.0

    @hookimpl
    def build_model(self, name: str | None) -> nn.Module | None:
        return Scaled() if name == "own/scaled" else None


class Scaled(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(192, 16), nn.Linear(16, 10))

    def forward(self, images: Tensor) -> Tensor:
        flat, first, head = self.children()
        outputs: Tensor = head(first(flat(images)) * Builds.factor)
        return outputs


def test_features_that_another_version_of_a_plugins_library_gave_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    wrapper = "from ftcore import hookimpl\n@hookimpl(wrapper=True)\ndef make_loss():\n    return (yield)\n"
    (site / "acme_features.py").write_text(wrapper)
    kept = []

    for version in ("1", "2", "2"):
        install(site, "acme", "1", requires="acme-base", plugin="acme_features")
        install(site, "acme-base", version)
        trained(tmp_path, plugins=("acme_features",))
        kept.append((len(files(tmp_path)), len(list((tmp_path / "cache" / "ftcore" / "pixels").iterdir()))))

    assert kept == [(2, 2), (4, 4), (4, 4)]


def install(site: Path, name: str, version: str, requires: str = "", plugin: str = "") -> None:
    """Write what pip leaves of a package, in the place of another version."""
    for old in site.glob(f"{name.replace('-', '_')}-*.dist-info"):
        shutil.rmtree(old)
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*lines, *([f"Requires-Dist: {requires}"] if requires else [])]))
    if plugin:
        (info / "entry_points.txt").write_text(f"[ftcore.plugins]\n{plugin} = {plugin}\n")


def test_features_of_other_code_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ("model.weights=none", "model.image_size=8", "model.channels=3", "model.mean=0.5", "model.std=0.5")
    own: Any = {"plugins": (f"{HERE}:Builds",), "model": "own/scaled"}
    trained(tmp_path, *sets, **own)
    monkeypatch.setattr(Builds, "factor", 3.0)

    with capture_logs() as logs:
        found = trained(tmp_path, *sets, **own)

    assert [line["event"] for line in logs if line["log_level"] == "warning"] == 2 * [
        "cached features of an earlier run differ; computing them again"
    ]
    assert same(found, trained(tmp_path, *sets, "data.cache=ram", **own))
    assert same(found, trained(tmp_path, *sets, **own))


@pytest.mark.parametrize("damage", ["cut", "other bits", "another's seal", "no seal"])
def test_a_damaged_file_is_computed_anew(tmp_path: Path, damage: str) -> None:
    first = trained(tmp_path)
    for file in files(tmp_path):
        content, tensors = file.read_bytes(), load_file(file)
        if damage == "cut":
            file.write_bytes(content[:-1])
        elif damage == "other bits":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif damage == "another's seal":
            tensors["features"][-1] += 1
            save_file(tensors, file, {"seal": seal(file.name.encode(), key=bytes(32)).hex()})
        else:
            save_file(tensors, file)

    assert same(first, trained(tmp_path))


def test_without_a_cache_or_where_it_is_too_small_nothing_is_written(tmp_path: Path) -> None:
    trained(tmp_path, "data.cache=ram")
    trained(tmp_path, "data.cache_gb=0.000001")

    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "cache" / "ftcore").mkdir(parents=True)
    (tmp_path / "cache" / "ftcore" / "features").write_text("no folder")

    with capture_logs() as logs:
        trained(tmp_path)

    assert any(line["event"].startswith("this cache is not used") for line in logs)


def test_a_run_says_where_they_are_kept(tmp_path: Path, photos: Path) -> None:
    words = [word for text in (*FEW, f"run.folder={tmp_path / 'run'}") for word in ("--set", text)]
    result = invoke("run", "--data", photos, "--model", "digits/cnn", "--plugin", "linear_probe", *words)

    assert result.code == 0
    said = " ".join(result.err.split())
    assert f"0.0 MB; cached for later runs in {tmp_path}/cache/ftcore/features" in said.replace("in /", "in /")
