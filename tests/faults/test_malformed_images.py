"""Whatever is wrong with a picture file, the user reads which file it is and why; nothing crashes, hangs or passes."""

from __future__ import annotations

import itertools
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ftcore import DataError
from ftcore.data.dataset import ImageSplit, PackedStrings
from ftcore.data.decoding import check_image, read_image
from ftcore.data.files import ImageFiles
from ftcore.data.loader import TransformedDataset, epoch_order, make_batches
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from PIL.Image import Image

GENERATOR = runpy.run_path(str(Path(__file__).with_name("malformed_images.py")))
SETTINGS = list(itertools.product(("train", "val"), (0, 2)))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = GENERATOR["malformed"](tmp_path_factory.mktemp("malformed"))
    return made


def names_it(message: str, path: Path) -> bool:
    """Whether a message is of one printable line that names the file and gives a reason."""
    return message.startswith(f"cannot read image {GENERATOR['printable'](path)}: ") and message.isprintable()


def to_tensor(image: Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB").resize((32, 32)))).float()


def loaded(kinds: dict[str, Path], split: str, workers: int) -> dict[str, Any]:
    """Return what a loader of ftcore gives for each kind."""
    root = next(iter(kinds.values())).parent
    files = ImageFiles(root, PackedStrings.of([path.name for path in kinds.values()]))
    train = split == "train"
    samples = ImageSplit(files, np.arange(len(files)), np.zeros(len(files), np.int64), 32 if train else None)
    prepared = TransformedDataset(samples, to_tensor, Classification(("a", "b"), (len(files), 0)), 0 if train else None)
    places = epoch_order(0, 0, len(files)) if train else range(len(files))
    names = list(kinds)
    given = make_batches(prepared, 1, workers, torch.device("cpu")).loader
    return {names[place]: item for place, item in zip(places, given, strict=True)}


def test_there_are_at_least_240_cases(kinds: dict[str, Path]) -> None:
    assert len(kinds) * len(SETTINGS) >= 240


@pytest.mark.machine
def test_every_malformed_file_is_an_error_that_names_it_within_seconds(kinds: dict[str, Path]) -> None:
    passed, nameless, slow = [], {}, {}
    for kind, path in kinds.items():
        started = time.monotonic()
        try:
            read_image(path)
            passed.append(kind)
        except DataError as error:
            if not names_it(str(error), path):
                nameless[kind] = str(error)
        if time.monotonic() - started > 5:
            slow[kind] = time.monotonic() - started

    assert (passed, nameless, slow) == ([], {}, {})


def test_a_header_is_looked_at_without_another_error_a_hang_or_a_crash(kinds: dict[str, Path]) -> None:
    found = {}
    for kind, path in kinds.items():
        try:
            check_image(path)
        except DataError as error:
            found[kind] = names_it(str(error), path)

    assert all(found.values())
    assert {"empty", "text", "named_pipe", "device", "directory", "gone", "eps", *GENERATOR["BOMBS"]} <= set(found)


@pytest.mark.parametrize(("split", "workers"), SETTINGS)
def test_a_loader_gives_every_malformed_file_as_an_error_that_names_it(
    kinds: dict[str, Path], split: str, workers: int
) -> None:
    given = loaded(kinds, split, workers)

    wrong = {
        kind: item
        for kind, item in given.items()
        if not isinstance(item, DataError) or not names_it(str(item), kinds[kind])
    }
    assert wrong == {}
    assert set(given) == set(kinds)


@pytest.mark.parametrize("kind", ["empty", "named_pipe", "jpeg_half_zeros"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_ends_with_the_error_of_its_malformed_file(
    kinds: dict[str, Path], tmp_path: Path, kind: str, workers: int
) -> None:
    GENERATOR["photograph"]().save(tmp_path / "good.jpg")
    files = ImageFiles(tmp_path, PackedStrings.of(["good.jpg", str(kinds[kind])]))
    samples = ImageSplit(files, np.arange(2), np.zeros(2, np.int64))
    batches = make_batches(
        TransformedDataset(samples, to_tensor, Classification(("a", "b"), (2, 0))),
        1,
        workers,
        torch.device("cpu"),
    )

    epoch = batches.epoch(0)

    assert next(epoch).images.shape == (1, 32, 32, 3)
    with pytest.raises(DataError, match=kinds[kind].name):
        next(epoch)


@pytest.mark.parametrize("act", ["read_image", "check_image"])
def test_bombs_are_refused_in_less_than_half_a_gigabyte(kinds: dict[str, Path], act: str) -> None:
    code = (
        "import sys, PIL.Image, ftcore, ftcore.data.decoding as images\n"
        "PIL.Image.MAX_IMAGE_PIXELS = None\n"  # as some libraries set it
        "for path in sys.argv[1:]:\n"
        f"    try: images.{act}(path)\n"
        "    except ftcore.DataError as error: print(error)\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    bombs = [str(kinds[bomb]) for bomb in GENERATOR["BOMBS"]]

    run = subprocess.run([sys.executable, "-c", code, *bombs], capture_output=True, text=True, check=True)

    *messages, peak = run.stdout.splitlines()
    assert [message.split(": ")[0] for message in messages] == [f"cannot read image {bomb}" for bomb in bombs]
    assert run.stderr == ""
    assert int(peak) < 500_000


def test_the_limit_of_pixels_is_an_error_and_no_warning(kinds: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"12000 x 12000 pixels are more than 89478485"):
        read_image(kinds["jpeg_12000"])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("directory", "it is a directory, not a file"),
        ("named_pipe", "it is a named pipe, not a file"),
        ("socket", "it is a socket, not a file"),
        ("device", "it is a device, not a file"),
        ("dangling_link", "No such file or directory"),
        ("link_loop", "Too many levels of symbolic links"),
        ("empty", "0 bytes cannot be an image"),
        ("sparse", "68719476736 bytes cannot be an image"),
        ("text", "it is not one of JPEG, PNG, BMP, GIF, PPM, WEBP, TIFF, AVIF, or its header is corrupt"),
        ("jpeg_half_zeros", r"image file is truncated: its \d+ bytes do not contain the end of the JPEG data"),
        ("jpeg_stuffing", r"JPEG data is damaged at byte \d+"),
        ("png_pixels_checksum", r"broken PNG file \(bad header checksum in b'IDAT'\)"),
        ("float_to_255", "grey values of mode F must be 0 to 1, got 0.0 to 255.0"),
        ("float_not_a_number", "grey values of mode F must be 0 to 1, got nan to nan"),
    ],
)
def test_the_reason_is_given(kinds: dict[str, Path], kind: str, reason: str) -> None:
    with pytest.raises(DataError, match=f": {reason}$"):
        read_image(kinds[kind])


def test_the_same_seed_makes_the_same_files(kinds: dict[str, Path], tmp_path: Path) -> None:
    again = GENERATOR["malformed"](tmp_path)

    assert list(again) == list(kinds)
    assert [again[kind].read_bytes() for kind in ("random", "jpeg_stuffing", "avif_box")] == [
        kinds[kind].read_bytes() for kind in ("random", "jpeg_stuffing", "avif_box")
    ]
