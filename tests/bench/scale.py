"""What a sample costs in small and in large data: `uv run python tests/bench/scale.py [--files 1000000]`.

1. The index of a folder, without reading headers, and the order of an epoch, beside `torch.utils.data`'s RandomSampler
   in a BatchSampler; bytes that the index keeps of each sample.
2. The metrics of a validation, beside scikit-learn's accuracy and macro F1 of the same outputs.

Each figure is the smallest of three.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from data import indexed  # type: ignore[import-not-found]
from sklearn.metrics import accuracy_score, f1_score
from torch.utils.data import BatchSampler, RandomSampler

from ftcore import RunConfig
from ftcore.data.loader import EpochSampler
from ftcore_plugins.metrics.builtin import ClassMetrics
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH, SAMPLES = 64, 100_000


def least(function: Callable[[], object]) -> float:
    """Return the seconds of the fastest of three calls."""
    found = []
    for _ in range(3):
        begun = time.perf_counter()
        function()
        found.append(time.perf_counter() - begun)
    return min(found)


def indexing(root: Path, files: int) -> None:
    """Print a line for a folder of so many files, of which each is empty, in ten classes."""
    for place in range(10):
        folder = root / f"class{place}"
        folder.mkdir(parents=True)
        for number in range(files // 10):
            os.close(os.open(folder / f"{number:06d}.jpg", os.O_CREAT))

    def again() -> object:
        return indexed(root)

    data: Any = again()
    split, paths = data.train, data.train.images.paths
    kept = sum(array.nbytes for array in (paths.text, paths.ends, split.rows, split.targets))
    sampler = EpochSampler(files, BATCH, seed=0)
    theirs = BatchSampler(RandomSampler(range(files)), BATCH, drop_last=False)
    found, mine, other = (least(call) * 1e6 / files for call in (again, lambda: list(sampler), lambda: list(theirs)))
    print(
        f"{files:>9,} images: index {found:5.2f} us, order {mine:5.2f} us (torch's sampler {other:5.2f} us), "
        f"{kept / files:.0f} bytes a sample",
        flush=True,
    )


def measuring(classes: int) -> None:
    """Print a line for so many classes."""
    torch.manual_seed(0)
    outputs, targets = torch.randn(SAMPLES, classes), torch.randint(classes, (SAMPLES,))
    task = Classification(names=tuple(map(str, range(classes))))
    metrics: Any = ClassMetrics().make_metrics(task, RunConfig())

    def ours() -> None:
        for metric in metrics.values():
            metric.reset()
        for start in range(0, SAMPLES, BATCH):
            for metric in metrics.values():
                metric.update(outputs[start : start + BATCH], targets[start : start + BATCH])
        for metric in metrics.values():
            metric.compute().tolist()

    def theirs() -> None:
        said = outputs.argmax(1).numpy()
        accuracy_score(targets.numpy(), said)
        f1_score(targets.numpy(), said, average="macro")

    per = 1e6 / SAMPLES
    print(
        f"{classes:>9,} classes: {', '.join(metrics)}: {least(ours) * per:.2f} us a sample "
        f"(scikit-learn at the end, two of them: {least(theirs) * per:.2f} us)",
        flush=True,
    )


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = 1000
    while files <= arguments.files:
        with tempfile.TemporaryDirectory() as folder:
            indexing(Path(folder), files)
        files *= 10
    for classes in (10, 100, 1000):
        measuring(classes)


if __name__ == "__main__":
    main()
