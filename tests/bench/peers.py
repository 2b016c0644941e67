"""What each framework adds to a step: one network, the same batches, the same optimizer, one thread.

    uv run python tests/bench/peers.py

Each contender trains two networks: one Linear on 8 x 8 pixels, where nearly everything is what a framework adds, and a
small residual network on 32 x 32 pixels. Batches of 32 are in memory; after each epoch 20 of them are evaluated for
loss and accuracy. Logging, progress bars and checkpoints are off, everything else is as it comes. Contenders are
interleaved in rounds, each in a process and an environment of its own (uv makes them), which has trained once before it
is timed. ``--only NAME ...`` chooses.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib import metadata
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH, EVALUATED, ROUNDS = 32, 20, 7
NETWORKS = {"linear": (640, 2), "residual": (60, 1)}
"""Name -> steps of an epoch, epochs."""
PEERS = {
    "lightning": ["lightning"],
    "transformers": ["transformers", "accelerate"],
    "fastai": ["fastai"],
    "accelerate": ["accelerate"],
    "ignite": ["pytorch-ignite"],
    "keras": ["keras"],
}
"""Name -> what is installed; the first gives the version."""
CONTENDERS = ("by hand", "ftcore", *PEERS)


def network(name: str) -> Any:
    """Images (N, 3, S, S) -> (N, 10)."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            layers = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
            self.layers = nn.Sequential(*layers, nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

        def forward(self, images: Any) -> Any:
            return torch.relu(images + self.layers(images))

    torch.manual_seed(0)
    if name == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    stem, pool = nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(stem, Block(32), nn.MaxPool2d(2), Block(32), pool, nn.Flatten(), nn.Linear(32, 10))


class Batches:
    """Batches that were made before; a map-style data set, each item of which is a batch."""

    def __init__(self, name: str, count: int) -> None:
        import torch

        side = 8 if name == "linear" else 32
        torch.manual_seed(1)
        self.items = [(torch.randn(BATCH, 3, side, side), torch.randint(10, (BATCH,))) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def loaders(name: str) -> tuple[Any, Any]:
    """Loaders of whole batches: of the training, and of the evaluation."""
    from torch.utils.data import DataLoader

    data: list[Any] = [Batches(name, NETWORKS[name][0]), Batches(name, EVALUATED)]
    train, val = (DataLoader(batches, batch_size=None) for batches in data)
    return train, val


def by_hand(name: str) -> Callable[[], None]:
    """Write what anybody would."""
    import torch
    from torch.nn.functional import cross_entropy

    model, (train, val) = network(name), loaders(name)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def once() -> None:
        for _ in range(NETWORKS[name][1]):
            model.train()
            for images, labels in train:
                loss: Any = cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            model.eval()
            loss, right, count = 0.0, 0, 0
            with torch.no_grad():
                for images, labels in val:
                    outputs = model(images)
                    loss += cross_entropy(outputs, labels).item()
                    right += (outputs.argmax(1) == labels).sum().item()
                    count += len(labels)

    return once


def lightning(name: str) -> Callable[[], None]:
    """`Trainer.fit`."""
    import lightning as lit
    import torch
    from torch.nn.functional import cross_entropy

    class Module(lit.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network(name)

        def training_step(self, batch: Any) -> Any:
            return cross_entropy(self.network(batch[0]), batch[1])

        def validation_step(self, batch: Any) -> None:
            outputs = self.network(batch[0])
            self.log("loss", cross_entropy(outputs, batch[1]))
            self.log("accuracy", (outputs.argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-3)

    module, (train, val) = Module(), loaders(name)

    def once() -> None:
        trainer = lit.Trainer(
            max_epochs=NETWORKS[name][1],
            accelerator="cpu",
            enable_checkpointing=False,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, train, val)

    return once


def transformers(name: str) -> Callable[[], None]:
    """`Trainer.train`, whose loaders are replaced."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(name)

        def forward(self, images: Any, labels: Any) -> Any:
            logits = self.network(images)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    train, val = loaders(name)
    for loader in (train, val):
        loader.dataset.items = [{"images": images, "labels": labels} for images, labels in loader.dataset.items]

    class Given(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return train

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            del eval_dataset
            return val

    options = TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=NETWORKS[name][1],
        learning_rate=1e-3,
        use_cpu=True,
        save_strategy="no",
        eval_strategy="epoch",
        logging_strategy="no",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )

    def accuracy(found: Any) -> Any:
        return {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())}

    model = Model()
    return lambda: Given(
        model, options, train_dataset=train.dataset, eval_dataset=val.dataset, compute_metrics=accuracy
    ).train()


def fastai(name: str) -> Callable[[], None]:
    """`Learner.fit`."""
    from functools import partial

    import torch
    from fastai.callback.progress import ProgressCallback  # noqa: F401 - it gives a Learner `no_bar`
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    from fastai.optimizer import OptimWrapper
    from torch import nn

    train, val = loaders(name)
    optimizer = partial(OptimWrapper, opt=torch.optim.AdamW)
    learner = Learner(
        DataLoaders(train, val), network(name), loss_func=nn.CrossEntropyLoss(), opt_func=optimizer, metrics=accuracy
    )

    def once() -> None:
        with learner.no_bar(), learner.no_logging():
            learner.fit(NETWORKS[name][1], 1e-3)

    return once


def accelerate(name: str) -> Callable[[], None]:
    """Write the loop by hand, with what `Accelerator.prepare` gives."""
    import torch
    from accelerate import Accelerator
    from torch.nn.functional import cross_entropy

    accelerator, model = Accelerator(cpu=True), network(name)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model, optimizer, train, val = accelerator.prepare(model, optimizer, *loaders(name))

    def once() -> None:
        for _ in range(NETWORKS[name][1]):
            model.train()
            for images, labels in train:
                loss: Any = cross_entropy(model(images), labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            model.eval()
            losses, hits = [], []
            with torch.no_grad():
                for images, labels in val:
                    outputs = model(images)
                    losses.append(accelerator.gather_for_metrics(cross_entropy(outputs, labels)))
                    hits.append(accelerator.gather_for_metrics((outputs.argmax(1) == labels).float().mean()))
            assert torch.stack(losses).mean().item() > 0
            assert torch.stack(hits).mean().item() >= 0

    return once


def ignite(name: str) -> Callable[[], None]:
    """`create_supervised_trainer` and `create_supervised_evaluator`."""
    import torch
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy, Loss
    from torch import nn

    model, criterion, (train, val) = network(name), nn.CrossEntropyLoss(), loaders(name)
    trainer = create_supervised_trainer(model, torch.optim.AdamW(model.parameters(), 1e-3), criterion)
    evaluator = create_supervised_evaluator(model, metrics={"accuracy": Accuracy(), "loss": Loss(criterion)})
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: evaluator.run(val))
    return lambda: trainer.run(train, max_epochs=NETWORKS[name][1])


def keras(name: str) -> Callable[[], None]:
    """`Model.fit` on the backend torch."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as k

    model = k.Sequential([k.layers.TorchModuleWrapper(network(name))])
    model.compile(
        k.optimizers.AdamW(1e-3), k.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    train, val = loaders(name)
    return lambda: model.fit(train, epochs=NETWORKS[name][1], validation_data=val, verbose=0)


def ftcore(name: str) -> Callable[[], None]:
    """`ftcore.training.loop.fit`, with its checks and its metrics; one group and one rate, as the others have."""
    import torch
    from attrs import evolve, frozen

    from ftcore.config.load import CliOverrides, load_config
    from ftcore.data.loader import Batch
    from ftcore.runs.prepared import prepare
    from ftcore.training.loop import fit
    from ftcore.training.state import Progress

    @frozen(eq=False)
    class Ready:
        batches: Any
        samples: Any

        def __len__(self) -> int:
            return len(self.batches)

        def epoch(self, _epoch: int, start: int = 0) -> Any:
            for images, labels in self.batches.items[start:]:
                yield Batch(images, labels, INDICES)

        def names_in_flight(self) -> list[str]:
            return []

    INDICES = torch.arange(BATCH)  # noqa: N806 - one for all
    sets = (f"train.epochs={NETWORKS[name][1]}", "model.weights=none", "model.channels=3")
    bare = ("train.log_every=1000000", "groups.decay_all=true")
    side = 8 if name == "linear" else 32
    sizes = (f"model.image_size={side}", "model.mean=0.5", "model.std=0.5")
    flags = CliOverrides(f"own/{name}", "digits", plugins=(f"{__file__}:Own", "constant"), sets=(*sets, *bare, *sizes))
    train, val = (loader.dataset for loader in loaders(name))

    def once() -> None:
        parts = prepare(load_config(None, flags)).assembly.parts
        samples = parts.data.train.samples
        ready: Any = {"train": Ready(train, samples), "val": Ready(val, samples)}
        data = evolve(parts.data, **ready)
        begun.append(time.perf_counter())
        fit(evolve(parts, observers=(), data=data), Progress(), lambda _: None)

    begun: list[float] = []
    once.begun = begun  # type: ignore[attr-defined]
    return once


def own() -> Any:
    """Make the plugin that builds these networks."""
    from ftcore import hookimpl

    class Own:
        @hookimpl
        def build_model(self, name: str | None) -> Any:
            return network((name or "").partition("/")[2]) if (name or "").startswith("own/") else None

    return Own


def __getattr__(name: str) -> Any:
    if name == "Own":
        return own()
    raise AttributeError(name)


def serve(contender: str, name: str) -> None:
    """Train once, and then once for each line that comes, and say how many seconds it took."""
    out = alone()
    once = globals()[contender.replace(" ", "_")](name)
    once()
    print(json.dumps(versions(contender)), file=out, flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        once()
        over = time.perf_counter()
        print(over - getattr(once, "begun", [begun])[-1], file=out, flush=True)


def alone() -> TextIO:
    """Take one thread, and keep standard output for results alone: return it."""
    import torch

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def versions(contender: str) -> list[str]:
    """Return that of a contender, and that of torch."""
    distribution = (
        PEERS[contender][0] if contender in PEERS else "ftcore" if contender.startswith("ftcore") else "torch"
    )
    return [metadata.version(distribution), metadata.version("torch")]


def started(contender: str, task: str, script: str = __file__, also: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a contender in an environment of its own, with other packages."""
    words = [sys.executable, script]
    if contender in PEERS:
        packages = [word for package in ("torch", *PEERS[contender], *also) for word in ("--with", package)]
        words = ["uv", "run", "--no-project", "--python", "3.11", *packages, "python", script]
    return subprocess.Popen(
        [*words, "--serve", contender, task], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def asked(process: subprocess.Popen[str], words: str = "go") -> Any:
    """Let a contender train once, as the words say; return what it says."""
    assert process.stdin
    process.stdin.write(f"{words}\n")
    process.stdin.flush()
    return told(process)


def told(process: subprocess.Popen[str]) -> Any:
    """Wait for a line of a contender."""
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        sys.exit(f"{process.args!r} ended with {process.wait()}")
    return json.loads(line)


def measure(name: str, contenders: list[str], rounds: int) -> None:
    """Print a line for each contender."""
    processes = {contender: started(contender, name) for contender in contenders}
    found = {contender: told(process) for contender, process in processes.items()}
    seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender, process in processes.items():
            seconds[contender].append(asked(process))
    for process in processes.values():
        process.communicate()
    steps = NETWORKS[name][0] * NETWORKS[name][1]
    print(f"{name}: {steps} steps of {BATCH} images, {rounds} interleaved rounds")
    for contender, mine in seconds.items():
        ratios = sorted(one / base for one, base in zip(mine, seconds[contenders[0]], strict=True))
        version, torch = found[contender]
        print(
            f"{contender:<14} {version:<14} torch {torch:<14} {1000 * statistics.median(mine) / steps:7.3f} ms a "
            f"step   ratio {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    for name in NETWORKS:
        measure(name, list(arguments.only), arguments.rounds)


if __name__ == "__main__":
    main()
