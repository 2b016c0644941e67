"""A linear probe on photographs, by hand and by ftcore, whole runs with their reading.

    uv run python tests/bench/precompute.py --data trashnet.csv --weights mobilenetv2_100.safetensors

The table has columns path, label and split. By hand is what anybody would write: in each epoch every photograph is
read and goes through the frozen network. Rounds are interleaved, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ftcore.config import Flags, load
from ftcore.run import prepare, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftcore.config import RunConfig


def config(settings: argparse.Namespace, folder: Path, mode: str) -> RunConfig:
    """Return what both are to do."""
    given = {
        "model.weights": settings.weights,
        "model.mean": 0.5,
        "model.std": 0.5,
        "model.image_size": 128,
        "train.epochs": settings.epochs,
        "train.threads": 1,
        "train.workers": 0,
        "train.precompute": mode,
        "table.root": settings.data.absolute().parent,
        "run.folder": folder,
    }
    sets = [f"{key}={value}" for key, value in given.items()]
    return load(None, Flags(settings.model, str(settings.data), plugins=("linear_probe",), sets=sets))


def by_hand(config: RunConfig) -> float:
    """Train as a person would write it, and return the accuracy of the last epoch."""
    parts = prepare(config).assembly.parts
    model, optimizer, scheduler = parts.network.eval(), parts.optimizer, parts.schedule.scheduler
    accuracy = 0.0
    for epoch in range(config.train.epochs):
        for images, targets, _ in parts.train.epoch(epoch):
            loss: Any = functional.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.inference_mode():
            right = [(model(images).argmax(1) == targets).float() for images, targets, _ in parts.val.epoch(0)]
        accuracy = float(torch.cat(right).mean())
    return accuracy


def by_ftcore(config: RunConfig) -> float:
    """Train with checkpoints, checks and all, and return the accuracy of the last epoch."""
    accuracy: float = run(config)["last"]["accuracy"]
    return accuracy


CONTENDERS: dict[str, tuple[Callable[[RunConfig], float], str]] = {
    "by hand": (by_hand, "never"),
    "ftcore": (by_ftcore, "auto"),
    "ftcore, train.precompute=never": (by_ftcore, "never"),
}


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", default="timm/mobilenetv2_100")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    accuracies = {}
    for _ in range(settings.rounds):
        for name, (train, mode) in CONTENDERS.items():
            with tempfile.TemporaryDirectory() as folder:
                begun = time.monotonic()
                accuracies[name] = train(config(settings, Path(folder) / "run", mode))
                seconds[name].append(time.monotonic() - begun)
    print(f"torch {torch.__version__}, one thread, {settings.epochs} epochs, {settings.rounds} interleaved rounds")
    for name, found in seconds.items():
        ratios = sorted(mine / base for mine, base in zip(found, seconds["by hand"], strict=True))
        print(
            f"{name:<32} {statistics.median(found):6.1f} s   accuracy {accuracies[name]:.3f}   "
            f"time ratio {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
