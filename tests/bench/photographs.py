"""Photographs, by each framework with its usual way to read them: throughput, a linear probe, time to an accuracy.

    uv run python tests/bench/photographs.py TASK --data trashnet.csv --weights mobilenetv2_100.safetensors

The table has columns path, label and split (train, val, test). Tasks, at 128 px, in batches of 32, one thread, one
loader process:

- ``throughput``: everything learns, from random weights, on ``--images``; AdamW. ``--network resnet18`` is another one.
- ``probe``: a new head on the frozen network, AdamW, ten epochs, measured after each; beside one pass over the images.
- ``accuracy``: until ``--goal`` of the test images are right, each by a recipe of its own documentation for few
  photographs: by hand PyTorch's tutorial of transfer learning (SGD, StepLR), Lightning's example of it (three stages),
  transformers' guide to image classification, fastai's `fine_tune`, accelerate's ``cv_example.py`` (the head alone, one
  cycle). Three tries each on the validation images, `TRIES`, choose what is then timed on the test images: the first to
  reach the goal there, or else the most accurate. A schedule that ends without it, after as many epochs as that recipe
  has or ``--limit`` seconds, says so.

Contenders are interleaved in rounds, each in a process and an environment of its own (uv makes them), which has trained
on a few images before it is timed; what is timed is all from the building of the network on. ``--only NAME ...``
chooses.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers import alone, asked, started, told, versions  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE, BATCH = 128, 32
ALSO = ("torchvision", "timm", "safetensors", "datasets")
SEVERAL = (
    "by hand",
    "ftcore",
    "ftcore channels_last",
    "lightning",
    "transformers",
    "fastai",
    "accelerate",
    "ignite",
    "keras",
)
CONTENDERS = {
    "throughput": SEVERAL,
    "probe": ("by hand", "one pass", *SEVERAL[1:]),
    "accuracy": ("by hand", "ftcore", "lightning", "transformers", "fastai", "accelerate"),
}
EPOCHS = {"throughput": 1, "probe": 10, "accuracy": 25}
RECIPES = ("surgical", "lp_ft", "channels_last")
TRIES: dict[str, list[dict[str, Any]]] = {
    "ftcore": [{"recipe": recipe} for recipe in RECIPES],
    "lightning": [{"light": True}, {"light": True, "scale": 3.0}, {"light": True, "scale": 1 / 3}],
}
"""What is tried for an accuracy: ftcore's recipes at their rate; Lightning's, which augments lightly, at three."""
OTHERS: list[dict[str, Any]] = [{}, {"light": True}, {"light": True, "scale": 3.0}]
"""What is tried with the others: their recipe as it stands; only flipped pictures; the same at three times the rate."""


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Attributes:
        kind: a key of `CONTENDERS`.
        network: of timm.
        weights: a file, or "" for random ones.
        folder: with ``train`` and ``val``, in each a folder a class.
        epochs: at most.
        goal: accuracy that ends it; above 1 for none.
        workers: loader processes.
        limit: seconds after which an epoch that ends is the last.
        light: for an accuracy, augment with flips alone.
        scale: for an accuracy, times the learning rate of the recipe.
        recipe: for an accuracy, ftcore's plugin.
    """

    kind: str
    network: str
    weights: str
    folder: str
    epochs: int
    goal: float
    workers: int
    limit: float = math.inf
    light: bool = False
    scale: float = 1.0
    recipe: str = RECIPES[0]


class Over(Exception):  # noqa: N818 - no error
    """The accuracy that was wanted is reached, or the time is over."""


@dataclass
class Clock:
    """Notes the accuracy after each epoch, and ends a contender that has reached the goal."""

    goal: float
    end: float
    accuracy: float = 0.0
    epochs: int = 0

    def epoch(self, accuracy: float) -> None:
        """Note."""
        self.accuracy, self.epochs = accuracy, self.epochs + 1
        if accuracy >= self.goal or time.perf_counter() > self.end:
            raise Over("fastai wants words")


def network(task: Task) -> Any:
    """Make the network, with a new head; a probe's is frozen and in eval mode for ever."""
    import timm
    from safetensors.torch import load_file
    from torch import nn

    classes = len(list(Path(task.folder, "train").iterdir()))
    model = timm.create_model(task.network)
    if task.weights:
        model.load_state_dict(load_file(task.weights))
    model.reset_classifier(classes)
    if task.kind == "probe":
        model.requires_grad_(requires_grad=False)
        model.get_classifier().requires_grad_(requires_grad=True)
        model.train = lambda mode=True: nn.Module.train(model, mode and False)
        model.eval()
    return model


def transform(task: Task, *, training: bool) -> Any:
    """PIL image -> (3, 128, 128), as torchvision's transforms make it."""
    from torchvision import transforms as t

    plain = [t.Resize(SIDE), t.CenterCrop(SIDE)]
    augmented = [*(plain if task.light else [t.RandomResizedCrop(SIDE)]), t.RandomHorizontalFlip()]
    chosen = augmented if training and task.kind == "accuracy" else plain
    return t.Compose([*chosen, t.ToTensor(), t.Normalize([0.5] * 3, [0.5] * 3)])


def loaders(task: Task, batch: int = BATCH) -> Any:
    """Make torchvision's ImageFolder and torch's DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    made = []
    for split in ("train", "val"):
        data = ImageFolder(str(Path(task.folder, split)), transform(task, training=split == "train"))
        made.append(DataLoader(data, batch, shuffle=split == "train", num_workers=task.workers))
    return made


def learning(model: Any) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def measured(model: Any, batches: Any) -> float:
    """Return the accuracy."""
    import torch

    right = count = 0
    with torch.no_grad():
        for images, labels in batches:
            right += (model(images).argmax(1) == labels).sum().item()
            count += len(labels)
    return right / count


def looped(task: Task, clock: Clock, model: Any, optimizer: Any, scheduler: Any, per: str) -> None:
    """Train as a person would write it."""
    from torch.nn.functional import cross_entropy

    train, val = loaders(task)
    for _ in range(task.epochs):
        model.train()
        for images, labels in train:
            loss: Any = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if per == "step":
                scheduler.step()
        if per == "epoch":
            scheduler.step()
        model.eval()
        clock.epoch(measured(model, val))


def by_hand(task: Task, clock: Clock) -> None:
    """A loop; for an accuracy, with the optimizer and the schedule of PyTorch's tutorial of transfer learning."""
    import torch

    model = network(task)
    if task.kind == "accuracy":
        rate = 0.008 * task.scale  # 0.001 there, for batches of 4
        optimizer: Any = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
        looped(task, clock, model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1), "epoch")
    else:
        looped(task, clock, model, torch.optim.AdamW(learning(model), 1e-3), None, "")


def one_pass(task: Task, clock: Clock) -> None:
    """Send each image through the network once."""
    model = network(task).eval()
    for batches in loaders(task):
        clock.accuracy = measured(model, batches)


def accelerate(task: Task, clock: Clock) -> None:
    """A loop with what `prepare` gives; for an accuracy, with the settings of ``cv_example.py``."""
    import torch
    from accelerate import Accelerator
    from torch.nn.functional import cross_entropy

    accelerator = Accelerator(cpu=True)
    model = network(replace(task, kind="probe") if task.kind == "accuracy" else task)
    epochs = 3 if task.kind == "accuracy" else task.epochs
    train, val = loaders(task)
    optimizer: Any = torch.optim.AdamW(learning(model), 1e-3)
    if task.kind == "accuracy":
        rate = 3e-2 * task.scale
        optimizer = torch.optim.Adam(learning(model), rate / 25)
        cycle: Any = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs=epochs, steps_per_epoch=len(train))
    else:
        cycle = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    model, optimizer, train, val, cycle = accelerator.prepare(model, optimizer, train, val, cycle)
    for _ in range(epochs):
        model.train()
        for images, labels in train:
            loss: Any = cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            cycle.step()
            optimizer.zero_grad()
        model.eval()
        right = []
        with torch.no_grad():
            for images, labels in val:
                right.append(accelerator.gather_for_metrics((model(images).argmax(1) == labels).float()))
        clock.epoch(float(torch.cat(right).mean()))


def lightning(task: Task, clock: Clock) -> None:
    """`Trainer.fit`; for an accuracy, with the three stages and the settings of its example of transfer learning."""
    import lightning as lit
    import torch
    from torch.nn.functional import cross_entropy

    few = task.kind == "accuracy"

    class Module(lit.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network(task)
            self.right: list[Any] = []

        def training_step(self, batch: Any) -> Any:
            return cross_entropy(self.network(batch[0]), batch[1])

        def validation_step(self, batch: Any) -> None:
            self.right.append((self.network(batch[0]).argmax(1) == batch[1]).float())

        def on_validation_epoch_end(self) -> None:
            clock.epoch(float(torch.cat(self.right).mean()))
            self.right.clear()

        def configure_optimizers(self) -> Any:
            if not few:
                return torch.optim.AdamW(learning(self.network), 1e-3)
            optimizer = torch.optim.Adam(learning(self.network), 1e-3 * task.scale)
            return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [*STAGES], 0.1)]

    trainer = lit.Trainer(
        max_epochs=15 if few else task.epochs,
        callbacks=[staged()] if few else [],
        accelerator="cpu",
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Module(), *loaders(task))


STAGES = {2: slice(-5, None), 4: slice(-5)}
"""Epoch from which on -> layers before the head that learn in Lightning's example."""


def staged() -> Any:
    """Make the callback of Lightning's example that lets ever more layers learn."""
    from lightning.pytorch.callbacks import BaseFinetuning

    class Stages(BaseFinetuning):  # type: ignore[misc]
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(list(module.network.children())[:-1], train_bn=False)

        def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
            if epoch in STAGES:
                layers = list(module.network.children())[:-1][STAGES[epoch]]
                self.unfreeze_and_add_param_group(layers, optimizer, train_bn=False)

    return Stages()


def transformers(task: Task, clock: Clock) -> None:
    """`Trainer.train`, on pictures of its sister library; for an accuracy, with the settings of its guide."""
    import torch
    from datasets import load_dataset  # type: ignore[import-not-found]
    from torch.nn.functional import cross_entropy
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(task)

        def forward(self, pixel_values: Any, labels: Any) -> Any:
            logits = self.network(pixel_values)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    class Telling(TrainerCallback):  # type: ignore[misc]
        def on_evaluate(self, _args: Any, _state: Any, _control: Any, metrics: Any, **_: Any) -> None:
            clock.epoch(metrics["eval_accuracy"])

    def prepared(split: str) -> Any:
        data = load_dataset("imagefolder", data_dir=task.folder, split=split)
        change = transform(task, training=split == "train")

        def changed(rows: Any) -> Any:
            rows["pixel_values"] = [change(image.convert("RGB")) for image in rows.pop("image")]
            return rows

        return data.with_transform(changed)

    def collate(rows: Any) -> Any:
        pixels = torch.stack([row["pixel_values"] for row in rows])
        return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}

    guide = {"learning_rate": 5e-5 * task.scale, "warmup_steps": 0.1, "gradient_accumulation_steps": 4}
    options = TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=3 if task.kind == "accuracy" else task.epochs,
        per_device_train_batch_size=16 if task.kind == "accuracy" else BATCH,
        per_device_eval_batch_size=16 if task.kind == "accuracy" else BATCH,
        **(guide if task.kind == "accuracy" else {"learning_rate": 1e-3}),
        use_cpu=True,
        save_strategy="no",
        eval_strategy="epoch",
        logging_strategy="no",
        remove_unused_columns=False,
        dataloader_num_workers=task.workers,
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(
        Model(),
        options,
        data_collator=collate,
        train_dataset=prepared("train"),
        eval_dataset=prepared("validation"),
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
        callbacks=[Telling()],
    ).train()


def fastai(task: Task, clock: Clock) -> None:
    """`Learner` on `ImageDataLoaders`; for an accuracy `vision_learner` and `fine_tune`, as its first lesson has it."""
    from functools import partial

    import torch
    from fastai.callback.core import Callback
    from fastai.callback.progress import ProgressCallback  # noqa: F401 - it gives a Learner `no_bar`
    from fastai.callback.schedule import fit_one_cycle  # noqa: F401 - it gives a Learner `fine_tune`
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    from fastai.optimizer import OptimWrapper
    from fastai.vision.augment import RandomResizedCrop, Resize, aug_transforms
    from fastai.vision.data import ImageDataLoaders, Normalize
    from fastai.vision.learner import vision_learner
    from safetensors.torch import load_file
    from torch import nn

    class Telling(Callback):  # type: ignore[misc]
        order = 60  # behind the recorder, which is 50

        def after_epoch(self) -> None:
            clock.epoch(float(self.recorder.values[-1][-1]))

    few = task.kind == "accuracy"
    normal = Normalize.from_stats([0.5] * 3, [0.5] * 3, cuda=False)
    flips = aug_transforms(max_rotate=0, max_zoom=1, max_lighting=0, max_warp=0)
    data = ImageDataLoaders.from_folder(
        task.folder,
        valid="val",
        item_tfms=RandomResizedCrop(SIDE, min_scale=0.35) if few and not task.light else Resize(SIDE),
        batch_tfms=[*(flips if task.light else aug_transforms()), normal] if few else [normal],
        bs=BATCH,
        num_workers=task.workers,
        device=torch.device("cpu"),
    )
    if few:
        learner = vision_learner(data, task.network, metrics=accuracy, pretrained=False, normalize=False)
        missing, _ = learner.model[0].model.load_state_dict(load_file(task.weights), strict=False)
        assert not missing, missing
        learner.add_cb(Telling())
        with learner.no_bar(), learner.no_logging():
            learner.fine_tune(10, 2e-3 * task.scale)
        return
    optimizer = partial(OptimWrapper, opt=torch.optim.AdamW)
    model = network(task)
    learner = Learner(data, model, nn.CrossEntropyLoss(), optimizer, metrics=accuracy, cbs=Telling())
    with learner.no_bar(), learner.no_logging():
        learner.fit(task.epochs, 1e-3)


def ignite(task: Task, clock: Clock) -> None:
    """`create_supervised_trainer` and `create_supervised_evaluator`."""
    import torch
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy
    from torch import nn

    model, (train, val) = network(task), loaders(task)
    optimizer = torch.optim.AdamW(learning(model), 1e-3)
    trainer = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss())
    evaluator = create_supervised_evaluator(model, metrics={"accuracy": Accuracy()})
    ended = Events.EPOCH_COMPLETED
    trainer.add_event_handler(ended, lambda _: clock.epoch(evaluator.run(val).metrics["accuracy"]))
    trainer.run(train, max_epochs=task.epochs)


def keras(task: Task, clock: Clock) -> None:
    """`Model.fit` on the backend torch."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as k

    class Telling(k.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, _epoch: int, logs: Any = None) -> None:
            clock.epoch(logs["val_accuracy"])

    model = k.Sequential([k.layers.TorchModuleWrapper(network(task))])
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(k.optimizers.AdamW(1e-3), loss, metrics=["accuracy"])
    train, val = loaders(task)
    model.fit(train, epochs=task.epochs, validation_data=val, verbose=0, callbacks=[Telling()])


def ftcore_channels_last(task: Task, clock: Clock) -> None:
    """The same with what `ftcore find speed` finds for feature maps on a processor."""
    ftcore(task, clock, "channels_last")


def ftcore(task: Task, clock: Clock, *also: str) -> None:
    """`ftcore run`, with its checks, its checkpoints and its report."""
    from ftcore.config.load import CliOverrides, load_config
    from ftcore.runs.run import fit
    from ftcore.types.events import EpochEnded

    def told(event: object) -> None:
        if isinstance(event, EpochEnded):
            clock.epoch(event.val["accuracy"])

    with tempfile.TemporaryDirectory() as folder:
        sets = {
            "model.weights": task.weights or "none",
            "model.mean": 0.5,
            "model.std": 0.5,
            "model.image_size": SIDE,
            "train.batch_size": BATCH,
            "train.epochs": task.epochs if task.kind != "accuracy" else 10,
            "train.threads": 1,
            "train.workers": task.workers,
            "run.folder": Path(folder) / "run",
        }
        plugins = {"throughput": (), "probe": ("linear_probe",), "accuracy": (task.recipe,)}[task.kind] + also
        if task.kind != "accuracy":  # as the others have it
            plugins += ("adamw", "constant")
            sets |= {"adamw.lr": 1e-3, "adamw.weight_decay": 0.01, "groups.decay_all": "true"}
        flags = CliOverrides(
            f"timm/{task.network}",
            task.folder,
            plugins=plugins,
            sets=[f"{name}={value}" for name, value in sets.items()],
        )
        fit(load_config(None, flags), [told])


def timed(contender: Callable[[Task, Clock], None], task: Task) -> dict[str, float]:
    """Return seconds, accuracy, epochs, and the most memory that this process has had so far, in 10^6 bytes."""
    begun = time.perf_counter()
    clock = Clock(task.goal, begun + task.limit)
    with suppress(Over):
        contender(task, clock)
    seconds, most = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"seconds": seconds, "accuracy": clock.accuracy, "epochs": clock.epochs, "megabytes": most}


def serve(contender: str, task: Task) -> None:
    """Train on a few images, and then for each line that comes, with what it changes; print what came out."""
    import torch

    out, function = alone(), globals()[contender.replace(" ", "_")]
    timed(function, replace(task, folder=f"{task.folder}-few", epochs=1))
    print(json.dumps(versions(contender)), file=out, flush=True)
    for number, line in enumerate(sys.stdin):
        torch.manual_seed(number)
        print(json.dumps(timed(function, replace(task, **json.loads(line)))), file=out, flush=True)


def copied(table: Path, folder: Path, images: int, held_out: str) -> int:
    """Copy images of a table into folders, evenly over its rows; return how many there are to train on."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    count = 0
    for split, kept in (("train", "train"), (held_out, "val")):
        mine = [row for row in rows if row["split"] == split]
        chosen = mine[:: max(1, len(mine) * len(rows) // (images * len(mine)))] if images else mine
        for row in chosen:
            into = folder / kept / row["label"]
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy(table.parent / row["path"], into)
        count += len(chosen) if kept == "train" else 0
    return count


def chosen(contender: str, process: Any, goal: float) -> dict[str, Any]:
    """Try, on the validation images; return what reaches the goal first, or else is the most accurate."""
    tries = TRIES.get(contender, OTHERS)
    results = [asked(process, json.dumps(change)) for change in tries]
    for change, result in zip(tries, results, strict=True):
        seconds, accuracy, epochs = result["seconds"], result["accuracy"], result["epochs"]
        print(f"tried: {contender:<20} {change!s:<36} {accuracy:.3f} in {seconds:.0f} s, {epochs} epochs", flush=True)
    reached = [place for place, result in enumerate(results) if result["accuracy"] >= goal]
    if reached:
        return tries[min(reached, key=lambda place: results[place]["seconds"])]
    return tries[max(range(len(tries)), key=lambda place: results[place]["accuracy"])]


def main() -> None:
    """Print a line for each contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", choices=list(CONTENDERS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", default="")
    parser.add_argument("--network", default="mobilenetv2_100")
    parser.add_argument("--images", type=int, default=0, help="about so many in all splits; by default all")
    parser.add_argument("--goal", type=float, default=0.8)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for an accuracy")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.serve:
        serve(settings.serve[0], Task(**json.loads(settings.serve[1])))
        return
    with tempfile.TemporaryDirectory() as root:
        measure(settings, Path(root) / "photographs")


def measure(settings: argparse.Namespace, folder: Path) -> None:
    """Let the contenders work in turns, and print what came out."""
    kind, few, last = settings.task, folder.with_name(f"{folder.name}-few"), folder.with_name(f"{folder.name}-test")
    images = copied(settings.data, folder, settings.images, "val")
    copied(settings.data, few, 60, "val")
    weights = "" if kind == "throughput" else str(Path(settings.weights).absolute())
    goal, limit = (settings.goal, settings.limit) if kind == "accuracy" else (2.0, math.inf)
    task = Task(kind, settings.network, weights, str(folder), EPOCHS[kind], goal, settings.workers, limit)
    contenders = settings.only or CONTENDERS[kind]
    processes = {name: started(name, json.dumps(asdict(task)), __file__, ALSO) for name in contenders}
    told_versions = {name: told(process) for name, process in processes.items()}
    best: dict[str, dict[str, Any]] = {name: {} for name in contenders}
    if kind == "accuracy":
        copied(settings.data, last, settings.images, "test")
        best = {name: {**chosen(name, process, goal), "folder": str(last)} for name, process in processes.items()}
    found: dict[str, list[Any]] = {name: [] for name in contenders}
    for _ in range(settings.rounds):
        for name, process in processes.items():
            found[name].append(asked(process, json.dumps(best[name])))
    for process in processes.values():
        process.communicate()
    print(f"{kind}: {settings.network}, {images} images to train on, {settings.rounds} interleaved rounds")
    for name, results in found.items():
        seconds = [result["seconds"] for result in results]
        ratios = sorted(mine / base["seconds"] for mine, base in zip(seconds, found[contenders[0]], strict=True))
        missed = sum(result["accuracy"] < goal for result in results) if goal <= 1 else 0
        version, torch = told_versions[name]
        print(
            f"{name:<20} {version:<8} torch {torch:<12} {statistics.median(seconds):6.1f} s   "
            f"ratio {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})   "
            f"{statistics.median(result['epochs'] for result in results):g} epochs, "
            f"accuracy {statistics.median(result['accuracy'] for result in results):.3f}"
            f", {results[-1]['megabytes']:.0f} MB"
            f"{f', not reached in {missed} of {len(results)}' if missed else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
