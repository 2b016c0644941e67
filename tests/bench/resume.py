"""How many resumed runs end in the same bits as the run that was not interrupted: ftcore and its peers, one job.

    uv run python tests/bench/resume.py

The job: a small CNN with batch norm and dropout, AdamW, shuffled batches, 3 epochs of 8 steps on scikit-learn's digits,
on one thread of the processor. It is resumed from the checkpoints after steps 3, 5, 8, 11, 16 and 21 (8 and 16 end an
epoch), with and without random augmentation, with no and with two loader processes: 24 points. Each resumes as its own
documentation says, in a new process (forked from one that has imported everything and computed nothing), with its
default settings and the same seed, to the end of the third epoch. Before that, the uninterrupted run is done twice, and
has to end in the same bits.

Peers are installed by uv into environments of their own; ``--only NAME ...`` chooses.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS = (3, 5, 8, 11, 16, 21)
EPOCHS, STEPS, BATCH, SEED = 3, 8, 32, 7
PEERS = {
    "lightning": ("lightning", ["lightning", "scikit-learn"]),
    "transformers": ("transformers", ["transformers", "accelerate", "scikit-learn", "torch"]),
    "composer": ("mosaicml", ["mosaicml", "scikit-learn", "setuptools<81"]),
}
"""Name -> distribution whose version is shown, and what is installed."""


IMPORTED = {
    "ftcore": (
        "sklearn.datasets",
        "ftcore.training.assemble",
        "ftcore.training.loop",
        "ftcore.runs.run",
        "ftcore.runs.folder",
    ),
    "lightning": ("sklearn.datasets", "lightning.pytorch.callbacks"),
    "transformers": ("sklearn.datasets", "transformers.trainer"),
    "composer": ("sklearn.datasets", "composer.models", "composer.utils"),
}


def network() -> Any:
    """Images (N, 1, 8, 8) -> (N, 10)."""
    from torch import nn

    layers = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)
    return nn.Sequential(*layers, nn.Linear(1024, 10))


class Digits:
    """The first 256 digits; with augmentation, each is shifted and noisy, by torch's global generator."""

    def __init__(self, *, augmented: bool) -> None:
        import torch
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.images = torch.tensor(digits.images[: BATCH * STEPS] / 16, dtype=torch.float32)[:, None]
        self.labels, self.augmented = digits.target[: BATCH * STEPS], augmented

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        import torch

        image = self.images[index]
        if self.augmented:
            shift = int(torch.randint(-1, 2, ()))
            image = torch.roll(image, shift, -1) + 0.1 * torch.randn(image.shape)
        return image, int(self.labels[index])


def loader(*, augmented: bool, workers: int) -> Any:
    """Make shuffled batches."""
    from torch.utils.data import DataLoader

    return DataLoader(Digits(augmented=augmented), BATCH, shuffle=True, num_workers=workers)  # type: ignore[arg-type]


def digest(tensors: Any) -> str:
    """Return one hash of all parameters and buffers."""
    parts = [f"{name}".encode() + tensor.detach().cpu().numpy().tobytes() for name, tensor in sorted(tensors.items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def lightning(folder: Path, step: int, *, augmented: bool, workers: int) -> str:
    """`Trainer.fit(ckpt_path=...)` of a checkpoint of `ModelCheckpoint`."""
    import lightning as lit
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lit.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any) -> Any:
            return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-3)

    lit.seed_everything(SEED, workers=True)
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    module = Module()
    trainer = lit.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[saving] if not step else [],
        enable_checkpointing=not step,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = loader(augmented=augmented, workers=workers)
    trainer.fit(module, batches, ckpt_path=str(folder / f"step={step}.ckpt") if step else None, **_trusted(trainer.fit))
    assert trainer.global_step == EPOCHS * STEPS
    return digest(module.state_dict())


def _trusted(fit: Callable[..., Any]) -> dict[str, Any]:
    """Let Lightning read its own checkpoint whatever is in it, where it asks."""
    import inspect

    return {"weights_only": False} if "weights_only" in inspect.signature(fit).parameters else {}


def transformers(folder: Path, step: int, *, augmented: bool, workers: int) -> str:
    """`Trainer.train(resume_from_checkpoint=...)`."""
    import torch
    from transformers import Trainer, TrainingArguments, set_seed

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, images: Any, labels: Any) -> Any:
            logits = self.network(images)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    def collate(items: Any) -> Any:
        images, labels = zip(*items, strict=True)
        return {"images": torch.stack(images), "labels": torch.tensor(labels)}

    set_seed(SEED)
    model = Model()
    options = TrainingArguments(
        str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        seed=SEED,
        use_cpu=True,
        save_strategy="no" if step else "steps",
        save_steps=1,
        dataloader_num_workers=workers,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model, options, train_dataset=Digits(augmented=augmented), data_collator=collate)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}") if step else None)
    assert trainer.state.global_step == EPOCHS * STEPS
    return digest(model.state_dict())


def composer(folder: Path, step: int, *, augmented: bool, workers: int) -> str:
    """`Trainer(load_path=...)`."""
    import torch
    from composer import Trainer
    from composer.models import ComposerModel
    from composer.utils import reproducibility

    class Model(ComposerModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, batch: Any) -> Any:
            return self.network(batch[0])

        def loss(self, outputs: Any, batch: Any) -> Any:
            return torch.nn.functional.cross_entropy(outputs, batch[1])

    reproducibility.seed_all(SEED)
    model = Model()
    trainer = Trainer(
        model=model,
        train_dataloader=loader(augmented=augmented, workers=workers),
        optimizers=torch.optim.AdamW(model.parameters(), 1e-3),
        max_duration=f"{EPOCHS}ep",
        seed=SEED,
        device="cpu",
        progress_bar=False,
        **(
            {"load_path": str(folder / f"step-{step}.pt")}
            if step
            else {"save_folder": str(folder), "save_filename": "step-{batch}.pt", "save_interval": "1ba"}
        ),
    )
    trainer.fit()
    assert trainer.state.timestamp.batch.value == EPOCHS * STEPS
    return digest(model.state_dict())


def ftcore(folder: Path, step: int, *, augmented: bool, workers: int) -> str:
    """``ftcore resume`` of a run that SIGTERM has stopped; its network has batch norm, and dropout in its head."""
    import os
    import signal

    from safetensors.torch import load_file

    from ftcore import StepLogged
    from ftcore.config.load import CliOverrides, load_config
    from ftcore.runs.run import fit, resume
    from ftcore.system.signals import StoppedBySignal

    folder = folder / f"{step}-{os.getpid()}"
    options = (f"train.epochs={EPOCHS}", "train.batch_size=37", f"train.seed={SEED}", "train.log_every=1")
    sets = (*options, f"train.workers={workers}", "mlp_head.dropout=0.3", f"run.folder={folder}")
    plugins = ("mlp_head", *(["augment"] if augmented else []))

    steps: list[int] = []

    def observe(event: Any) -> None:
        if isinstance(event, StepLogged):
            steps.append(event.step)
            if len(steps) == step:
                os.kill(os.getpid(), signal.SIGTERM)

    try:
        fit(load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=plugins, sets=sets)), [observe])
        assert len(steps) == EPOCHS * STEPS, len(steps)
    except StoppedBySignal:
        resume(folder)
    return digest(load_file(max((folder / "checkpoints").iterdir()) / "model.safetensors"))


def _in_process(name: str, arguments: tuple[Any, ...], answers: Any) -> None:
    import torch

    torch.set_num_threads(1)
    folder, step, augmented, workers = arguments
    answers.put(globals()[name](folder, step, augmented=augmented, workers=workers))


def fresh(name: str, *arguments: Any) -> str:
    """Run a contender in a new process, and return the digest of its weights."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_in_process, args=(name, arguments, answers))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{name} {arguments} ended with {process.exitcode}")
    text: str = answers.get()
    return text


def measure(name: str) -> dict[str, Any]:
    """Count the points at which a contender goes on to the same bits."""
    for module in IMPORTED[name]:
        importlib.import_module(module)
    lost: dict[str, list[int]] = {}
    for augmented, workers in product((False, True), (0, 2)):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            whole = fresh(name, Path(one), 0, augmented, workers)
            assert fresh(name, Path(other), 0, augmented, workers) == whole, "two whole runs differ"
            found = [step for step in POINTS if fresh(name, Path(one), step, augmented, workers) != whole]
        lost[f"{workers} workers{', augmented' if augmented else ''}"] = found
    version = metadata.version(PEERS[name][0] if name in PEERS else name)
    return {"name": name, "version": version, "torch": metadata.version("torch"), "lost": lost}


def elsewhere(name: str) -> dict[str, Any]:
    """Let a peer measure itself in an environment of its own."""
    packages = [word for package in PEERS[name][1] for word in ("--with", package)]
    words = ["uv", "run", "--no-project", "--python", "3.11", *packages, "python", __file__, "--in-place", name]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["ftcore", *PEERS])
    parser.add_argument("--in-place", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_place:
        print(json.dumps(measure(arguments.in_place)))
        return
    for name in arguments.only:
        found = elsewhere(name) if name in PEERS else measure(name)
        same = 4 * len(POINTS) - sum(map(len, found["lost"].values()))
        shown = "; ".join(f"{', '.join(map(str, steps))} with {what}" for what, steps in found["lost"].items() if steps)
        others = f", other bits after steps {shown}" if shown else ""
        print(f"{name} {found['version']} (torch {found['torch']}): {same} of 24{others}", flush=True)


if __name__ == "__main__":
    main()
