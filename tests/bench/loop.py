"""The loop beside a hand-written one, in one process: `uv run python tests/bench/loop.py`.

Both train the same network on the same batches, which are in memory: nothing but the loops differs. Rounds are
interleaved. The hand-written loop has what anybody would write, including a schedule and a loss that is looked at
every ten steps; it checks nothing and counts nothing.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, cast

import torch
from attrs import evolve, frozen
from torch.nn import functional

from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.prepared import prepare
from ftcore.training import loop
from ftcore.training.state import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftcore.data.loader import Batch, EpochLoader
    from ftcore.training.state import TrainingParts
    from ftcore.types.data import SampleDataset

ROUNDS = 9
NETWORKS = {
    "digits/cnn, 8 px": ["--digits"],
    "torchvision/squeezenet1_1, 64 px": ["torchvision/squeezenet1_1", "64"],
}


@frozen(eq=False)
class InMemory:
    """Batches that were made before the clock started."""

    ready: tuple[Batch, ...]
    samples: SampleDataset

    def __len__(self) -> int:
        return len(self.ready)

    def epoch(self, _epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield every batch, but for the first `start`."""
        return iter(self.ready[start:])


def hand_written(parts: TrainingParts) -> None:
    """Train for one epoch as a person would write it."""
    model, optimizer, scheduler = parts.network, parts.optimization.optimizer, parts.optimization.schedule.scheduler
    model.train()
    total = 0.0
    for step, (images, targets, _) in enumerate(parts.data.train.epoch(0), start=1):
        outputs = model(images)
        loss: Any = functional.cross_entropy(outputs, targets)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            total += loss.item()


def ours(parts: TrainingParts) -> None:
    """Train for one epoch as ftcore does."""
    loop.train_epoch(parts, Progress())


def parts_for(arguments: list[str]) -> TrainingParts:
    """Assemble a run, with 30 batches of it in memory."""
    model = [] if arguments == ["--digits"] else [f"model.image_size={arguments[1]}"]
    flags = CliOverrides(
        model="digits/cnn" if not model else arguments[0],
        data="digits",
        sets=[*model, "model.weights=none", "train.epochs=1000000"],
    )
    parts = prepare(load_config(flags=flags)).assembly.parts
    batches = list(parts.data.train.epoch(0))[:30]
    in_memory = InMemory(tuple(batches), parts.data.train.samples)
    return evolve(parts, data=evolve(parts.data, train=cast("EpochLoader", in_memory)), observers=())


def main() -> None:
    """Print one line a network: steps per second of both, and the ratio with its spread over the rounds."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {ROUNDS} interleaved rounds of 30 steps, batch 32")
    for name, arguments in NETWORKS.items():
        contenders = {"hand-written": hand_written, "ftcore": ours}
        parts = {key: parts_for(arguments) for key in contenders}
        seconds: dict[str, list[float]] = {key: [] for key in contenders}
        for turn in range(ROUNDS + 1):
            for key in contenders if turn % 2 else reversed(contenders):
                begun = time.perf_counter()
                contenders[key](parts[key])
                if turn:
                    seconds[key].append(time.perf_counter() - begun)
        ratios = [mine / theirs for mine, theirs in zip(seconds["ftcore"], seconds["hand-written"], strict=True)]
        rates = {key: 30 / statistics.median(values) for key, values in seconds.items()}
        print(
            f"{name:34} hand-written {rates['hand-written']:8.1f} steps/s   ftcore {rates['ftcore']:8.1f} steps/s   "
            f"time ratio {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
