"""A disk that is full, small, read-only or no place for a folder costs no checkpoint, and is said before it matters."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcore.testing import image_folder, invoke

from .disks import ROOMY, may_mount, on_disk

pytestmark = pytest.mark.skipif(not may_mount(), reason="mounting a disk needs root")
SIZES = [round(10 + 290 * place / 39) for place in range(40)]
"""Per cent of a checkpoint."""


def command(folder: Path) -> list[str]:
    sets = ("train.epochs=2", "train.batch_size=96", "run.keep=1", f"run.folder={folder}")
    words = ["run", "--data", "digits:5-6", "--model", "digits/cnn", "--plugin", "ema"]
    return [*words, *(word for text in sets for word in ("--set", text))]


@pytest.mark.slow
def test_a_run_on_a_disk_of_any_size_ends_or_says_so_and_can_be_gone_on_with(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert invoke(*command(whole)).code == 0
    newest = max((whole / "checkpoints").iterdir())
    size = sum(file.stat().st_size for file in newest.iterdir())
    (kept,) = on_disk(ROOMY, tmp_path / "roomy", [command(tmp_path / "roomy" / "run")], tmp_path / "report")
    ended = 0
    for per_cent in SIZES:
        at = tmp_path / str(per_cent)
        commands = [command(at / "run"), ["resume", str(at / "run")], command(at / "run")]
        first, resumed, anew = on_disk(per_cent * size // 100, at, commands, tmp_path / "report")

        assert first["code"] in {0, 2}
        ended += first["code"] == 0
        assert first["code"] == 0 or "bytes are free on its disk" in first["err"], first["err"]
        assert "Traceback" not in first["err"]
        if resumed["code"]:  # nothing was left to go on with, so the run can be started again
            assert "is not a run folder" in resumed["err"]
            assert anew["code"] == 0, anew["err"]
        assert anew["result"] == kept["result"]

    print(f"{len(SIZES)} of {len(SIZES)} disks from 10 % to 300 % of a checkpoint: {ended} runs ended, none was lost")  # noqa: T201
    assert 0 < ended < len(SIZES)


def test_a_read_only_disk_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    at = tmp_path / "disk"

    (found,) = on_disk(ROOMY, at, [command(at / "run")], tmp_path / "report", read_only=True)

    assert found["code"] == 2
    assert "Read-only file system" in found["err"]
    assert "epoch" not in found["err"].replace("epochs", "")


@pytest.mark.parametrize("size", [1_000_000, 100_000_000])
def test_shared_memory_that_does_not_suffice_is_said_and_not_waited_for(tmp_path: Path, size: int) -> None:
    pictures, folder = image_folder(tmp_path / "pictures", per_class=40), tmp_path / "run"
    sets = ("model.weights=none", "model.image_size=128", "train.workers=2", "train.batch_size=64", "train.epochs=1")
    words = ["run", "--data", str(pictures), "--model", "timm/test_resnet", "--set", f"run.folder={folder}"]
    command = [*words, *(word for text in sets for word in ("--set", text))]

    (found,) = on_disk(size, Path("/dev/shm"), [command], tmp_path / "report")

    assert found["code"] == (2 if size < 64 * 3 * 128 * 128 else 0), found["err"]
    assert folder.exists() == (found["code"] == 0)
    if found["code"]:
        assert "not enough shared memory for a batch of " in found["err"]
        assert "docker run --shm-size=1g" in found["err"]


@pytest.mark.parametrize("size", [4_000, 100_000])
def test_a_disk_that_is_too_full_for_a_cache_costs_a_warning_and_no_run(tmp_path: Path, size: int) -> None:
    """In the first the index has no room, in the second most pictures, which a mapped file would die of (SIGBUS)."""
    pictures, folder = image_folder(tmp_path / "pictures", per_class=12), tmp_path / "run"
    sets = ("model.image_size=96", "train.epochs=1", "data.cache=disk", "data.cache_gb=0.1", f"run.folder={folder}")
    words = ["run", "--data", str(pictures), "--model", "digits/cnn", *(w for text in sets for w in ("--set", text))]

    (found,) = on_disk(
        size, tmp_path / "disk", [words], tmp_path / "report", environment={"XDG_CACHE_HOME": str(tmp_path / "disk")}
    )

    assert found["code"] == 0, found["err"]
    assert "this cache is not used" in found["err"]
    assert "No space left on device" in found["err"]
    assert "Traceback" not in found["err"]


@pytest.mark.parametrize("place", ["a file", "a file above", "a link to nothing"])
def test_a_place_for_no_folder_is_refused_before_anything_is_trained(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at-all")
    folder = {"a file": "file", "a file above": "file/run", "a link to nothing": "link"}[place]

    found = invoke(*command(tmp_path / folder))

    assert found.code == 2
    assert str(tmp_path / folder) in found.err
    assert "epoch" not in found.err.replace("epochs", "")
