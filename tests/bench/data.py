"""From files to batches, beside torchvision's ImageFolder: `uv run python tests/bench/data.py [--files 1000000]`.

1. JPEG to normalised batches of 64 at 224 px, two workers, interleaved rounds: ftcore's plain transforms, and
   ImageFolder with PIL and the v1 transforms doing the same; and how far the pixels differ.
2. The second pass with `data.cache` beside the first.
3. Indexing a folder of many tiny files beside `os.walk` with labels, and the memory of the index.

The pictures are scikit-learn's two photographs, cut and turned so that each file is another, at two sizes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
import torch
from attrs import evolve
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from ftcore import Context, InputSpec
from ftcore.config.schema import DataConfig, RunConfig
from ftcore.data.dataset import PackedStrings, make_data
from ftcore.data.decoded_cache import make_image_cache
from ftcore.data.files import ImageFiles, scan_folders
from ftcore.data.loader import TransformedDataset, make_batches
from ftcore_plugins.data.image_folder import _labelled
from ftcore_plugins.tasks import Classification
from ftcore_plugins.transforms.standard import PlainTransforms

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftcore import Data

ROUNDS, WORKERS, BATCH = 5, 2, 64
SPEC = InputSpec((224, 224), interpolation="bilinear")


def photographs(root: Path, width: int, per_class: int) -> Path:
    """Save JPEG photographs of width x 2/3 width, quality 90."""
    for label, pixels in enumerate(load_sample_images().images):
        whole, folder = Image.fromarray(pixels), root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(per_class):
            left, top = number % 16, number // 16 % 16
            cut = whole.crop((left, top, left + 620, top + 410)).rotate(180 * (number % 2))
            cut.resize((width, width * 2 // 3), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    return root


def indexed(root: Path) -> Data:
    """Index a folder as `--data` does, without reading headers."""
    config = RunConfig(data=DataConfig(source=str(root), on_corrupt="skip"))
    ctx = Context(root, structlog.get_logger(), make_task=lambda _: Classification)
    folders = [found for found in scan_folders(root) if found.path]
    labelled = _labelled(root, folders, config, ctx, has_splits=False)
    return make_data(labelled, RunConfig(data=DataConfig(source=str(root))), ctx)


def ours(data: Data, cache: str | None = None) -> Callable[[], tuple[int, float]]:
    """Return a function that passes over the training split and says how many images it took, and how long."""
    made = PlainTransforms().make_transforms(SPEC)
    config = RunConfig(data=DataConfig(cache=cache, cache_gb=1.0))  # type: ignore[arg-type]
    split: Any = data.train
    prepared = TransformedDataset(
        evolve(split, side=made.evaluate.min_decode_side),
        made.evaluate,
        data.task,
        cache=make_image_cache(config, data, "train", made.evaluate),
    )
    batches = make_batches(prepared, BATCH, WORKERS, torch.device("cpu"), on_device_transform=made.on_device)

    def measure() -> tuple[int, float]:
        started = time.perf_counter()
        count = sum(len(batch.images) for batch in batches.epoch(0))
        return count, time.perf_counter() - started

    return measure


def theirs(root: Path) -> Callable[[], tuple[int, float]]:
    """Return the same of an ImageFolder."""
    side = int(224 / SPEC.crop_fraction + 1e-6)
    steps = [transforms.Resize(side), transforms.CenterCrop(224), transforms.ToTensor()]
    steps.append(transforms.Normalize(SPEC.mean, SPEC.std))
    folder = datasets.ImageFolder(str(root), transforms.Compose(steps))
    loader: Any = DataLoader(folder, BATCH, num_workers=WORKERS, persistent_workers=True)

    def measure() -> tuple[int, float]:
        started = time.perf_counter()
        count = sum(len(images) for images, _ in loader)
        return count, time.perf_counter() - started

    return measure


def difference(root: Path) -> str:
    """Say how far ftcore's pixels are from those that are decoded in full, in grey levels of 255."""
    made, far = PlainTransforms().make_transforms(SPEC), []
    for file in sorted(root.rglob("*.jpg"))[:20]:
        files = ImageFiles(root, PackedStrings.of([file.relative_to(root).as_posix()]))
        small, full = (made.evaluate(files.read(0, side)).double() for side in (made.evaluate.min_decode_side, None))
        far.append((small - full).abs())
    all_of_them = torch.stack(far)
    return f"pixels differ by {float(all_of_them.mean()):.2f} grey levels on average, at most {int(all_of_them.max())}"


def decoding(folder: Path, width: int, per_class: int) -> None:
    """Print the first two tables for one size."""
    root = photographs(folder / str(width), width, per_class)
    data = indexed(root)
    contenders = {"ImageFolder": theirs(root), "ftcore": ours(data)}
    for measure in contenders.values():
        measure()  # workers start
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, measure in contenders.items():
            count, seconds = measure()
            rates[name].append(count / seconds)
    ratios = [mine / other for mine, other in zip(rates["ftcore"], rates["ImageFolder"], strict=True)]
    print(
        f"{width} x {width * 2 // 3}: ImageFolder {statistics.median(rates['ImageFolder']):.0f} images/s, "
        f"ftcore {statistics.median(rates['ftcore']):.0f} images/s, ratio {statistics.median(ratios):.2f} "
        f"(from {min(ratios):.2f} to {max(ratios):.2f}); {difference(root)}"
    )
    kept = ours(data, "ram")
    first, *later = (seconds for _, seconds in (kept() for _ in range(4)))
    gain = first / statistics.median(later)
    print(f"{width} x {width * 2 // 3}: with data.cache=ram, a later pass is {gain:.1f} times as fast as the first")


def indexing(root: Path, files: int) -> None:
    """Print the third table."""
    per_folder = 1000
    for place in range(files // per_folder):
        folder = root / f"class{place:04d}"
        folder.mkdir(parents=True)
        for number in range(per_folder):
            os.close(os.open(folder / f"{number:06d}.jpg", os.O_CREAT))
    walked, mine, size = [], [], 0
    for _ in range(3):
        started = time.perf_counter()
        found = [(f"{base}/{name}", base.rpartition("/")[2]) for base, _, names in os.walk(root) for name in names]
        walked.append(time.perf_counter() - started)
        del found
        started = time.perf_counter()
        data: Any = indexed(root)
        mine.append(time.perf_counter() - started)
        paths, splits = data.train.images.paths, (data.train, data.val)
        size = sum(
            array.nbytes for array in (paths.text, paths.ends, *(a for s in splits for a in (s.rows, s.targets)))
        )
    ratios = [a / b for a, b in zip(mine, walked, strict=True)]
    print(
        f"{files:,} files: os.walk and labels {min(walked):.1f} s, index {min(mine):.1f} s, ratio "
        f"{statistics.median(ratios):.2f}; {size / files:.0f} bytes a sample"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {WORKERS} workers, {ROUNDS} interleaved rounds, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        decoding(Path(temporary), 640, 256)
        decoding(Path(temporary), 1920, 128)
        indexing(Path(temporary) / "many", arguments.files)
