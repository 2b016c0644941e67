"""Two processes beside two of a hand-written script.

    uv run torchrun --standalone --nproc-per-node 2 tests/bench/ddp.py

Both train the same network on the same shares of the same batches, which are in memory, with gloo between the processes
and one thread in each. ftcore's side has all that a run has: it adds up loss and divisor, looks at the gradient, and
agrees after each step whether the run is to be saved.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, cast

import torch
from attrs import evolve
from torch import distributed
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ftcore.config.load import CliOverrides, load_config
from ftcore.distributed.rendezvous import process_session
from ftcore.runs.observers import GuardedObservers
from ftcore.runs.prepared import prepare
from ftcore.runs.saver import CheckpointSaver, SaveInterval
from ftcore.system.signals import SignalFlags
from ftcore.training import loop
from ftcore.training.state import Progress

from loop import InMemory  # type: ignore[import-not-found]  # isort: skip - the script beside this one

if TYPE_CHECKING:
    from ftcore import ProcessInfo
    from ftcore.data.loader import EpochLoader
    from ftcore.training.state import TrainingParts

ROUNDS, STEPS = 15, 20
NETWORKS = {
    "digits/cnn, 8 px": ("digits/cnn", ()),
    "timm/test_resnet, 96 px": ("timm/test_resnet", ("model.image_size=96",)),
    "torchvision/squeezenet1_1, 64 px": ("torchvision/squeezenet1_1", ("model.image_size=64",)),
}


def parts_for(name: str, sets: tuple[str, ...], ranks: ProcessInfo) -> TrainingParts:
    """Assemble a run, with this process's share of some batches in memory."""
    sets = (*sets, "model.weights=none", "train.epochs=1000000", "train.batch_size=32", "ddp.device=cpu")
    parts = prepare(
        load_config(flags=CliOverrides(name, "digits", plugins=("ddp",), sets=sets)), ranks=ranks
    ).assembly.parts
    batches = tuple(list(parts.data.train.epoch(0))[:STEPS])
    return evolve(
        parts,
        data=evolve(parts.data, train=cast("EpochLoader", InMemory(batches, parts.data.train.samples))),
        observers=(),
    )


def hand_written(parts: TrainingParts, model: DistributedDataParallel) -> None:
    """Train for some steps as a person would write it."""
    model.train()  # type: ignore[no-untyped-call]
    total = 0.0
    for step, (images, targets, _) in enumerate(parts.data.train.epoch(0), start=1):
        outputs = model(images)
        loss: Any = functional.cross_entropy(outputs, targets)
        loss.backward()
        parts.optimization.optimizer.step()
        cast("Any", parts.optimization.schedule.scheduler).step()
        parts.optimization.optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            total += loss.item()


def ours(parts: TrainingParts) -> None:
    """Train for some steps as ftcore does."""
    progress = Progress()
    loop.train_epoch(
        parts,
        progress,
        CheckpointSaver(
            cast("Any", None), parts, progress, SaveInterval(10**6, "epoch"), SignalFlags(), GuardedObservers((), str)
        ),
    )


def compare(name: str, sets: tuple[str, ...], ranks: ProcessInfo) -> str:
    """Time both in turn, and say how they compare."""
    mine, theirs = (parts_for(name, sets, ranks) for _ in range(2))
    model = DistributedDataParallel(theirs.network, gradient_as_bucket_view=True)
    seconds: dict[str, list[float]] = {"hand-written": [], "ftcore": []}
    for turn in range(ROUNDS + 1):
        for key in seconds if turn % 2 else reversed(seconds):
            distributed.barrier()
            begun = time.perf_counter()
            if key == "ftcore":
                ours(mine)
            else:
                hand_written(theirs, model)
            distributed.barrier()
            if turn:
                seconds[key].append(time.perf_counter() - begun)
    ratios = [a / b for a, b in zip(seconds["ftcore"], seconds["hand-written"], strict=True)]
    rates = {key: STEPS / statistics.median(values) for key, values in seconds.items()}
    return (
        f"hand-written {rates['hand-written']:7.1f} steps/s   ftcore {rates['ftcore']:7.1f} steps/s   "
        f"time ratio {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})"
    )


def main() -> None:
    """Print one line a network: steps per second of both, and the ratio with its spread over the rounds."""
    torch.set_num_threads(1)
    with process_session() as ranks:
        if ranks.is_main:
            rounds = f"{ROUNDS} interleaved rounds of {STEPS} steps"
            print(f"torch {torch.__version__}, two processes of one thread, {rounds}, batch 32 = 2 x 16")
        for title, (name, sets) in NETWORKS.items():
            line = compare(name, sets, ranks)
            if ranks.is_main:
                print(f"{title:34} {line}", flush=True)


if __name__ == "__main__":
    main()
