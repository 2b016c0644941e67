"""What is said of a run when it starts and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftcore.plugins.host import summary
from ftcore.types.events import RunStarted
from ftcore.types.model import TokenSpec

if TYPE_CHECKING:
    from ftcore.config.schema import RunConfig
    from ftcore.plugins.host import Host
    from ftcore.training.assemble import Assembly
    from ftcore.training.state import Progress, TrainingParts
    from ftcore.types.data import Data

    from .prepared import PreparedRun


def make_report(ready: PreparedRun, progress: Progress, seconds: float) -> dict[str, Any]:
    """Put a finished run into one JSON object."""
    from ftcore.training.loop import per_second

    return {
        "folder": str(ready.folder),
        "epochs": progress.epoch,
        "stopped_early": progress.epoch < ready.assembly.parts.train_config.epochs,
        "updates": progress.updates,
        "skipped_steps": progress.skipped + progress.overflows,
        "pieces": progress.micro_batch_splits,
        "monitor": ready.assembly.parts.evaluation.monitor,
        "images": {"train": len(ready.data.train), "val": len(ready.data.val), "test": len(ready.data.test or ())},
        "skipped": len(ready.data.skipped),
        "frozen_tensors": len(ready.assembly.parts.frozen_at(progress.epoch - 1)),
        "best": progress.best,
        "last": progress.last,
        "seconds": seconds,
        "samples_per_second": per_second(progress.samples, progress.training_seconds),
        "hooks": summary(ready.host),
    }


def make_run_started(ready: PreparedRun, progress: Progress) -> RunStarted:
    """Put what a run begins with into what observers are told."""
    from ftcore.training.summary import trainable_tables

    assembly, parts = ready.assembly, ready.assembly.parts
    trainable, total = _parameter_counts(parts)
    transforms = assembly.network.transforms
    return RunStarted(
        folder=ready.folder,
        summary=run_summary(ready) | _resumed(progress),
        tables=(*ready.data.tables, *parts.objective.loss.tables),
        epochs=parts.train_config.epochs,
        steps_per_epoch=parts.steps_per_epoch,
        step=progress.step,
        epoch=progress.epoch,
        trainable_tables=trainable_tables(assembly),
        groups=tuple(group.name for group in assembly.groups),
        trainable_parameters=trainable,
        total_parameters=total,
        heads=assembly.network.heads,
        releases={epoch + 1: tuple(sorted(names)) for epoch, names in sorted(parts.plan.unfreeze_at.items())},
        task=parts.data.task,
        val=ready.data.val,
        augmented=transforms.train != transforms.evaluate or bool(parts.data.batch_transforms),
        rebalanced=parts.objective.loss.favours_rare or ready.data.weights is not None,
        chance_level=parts.objective.loss.chance_level,
        reads_text=isinstance(assembly.network.spec, TokenSpec),
    )


def _resumed(progress: Progress) -> dict[str, str]:
    return {"resumed": f"after step {progress.step}, in epoch {progress.epoch + 1}"} if progress.step else {}


def run_summary(ready: PreparedRun) -> dict[str, str]:
    """Say in a few lines what was decided."""
    config, parts, network = ready.host.config, ready.assembly.parts, ready.assembly.network
    named = [plugin for plugin in ready.host.plugins if not plugin.is_default]
    settings, task = parts.train_config, parts.data.task
    return {
        "data": f"{config.data.source}: {len(ready.data.train)} training and {len(ready.data.val)} validation images"
        f"{_kept(ready.data)}"
        f"{_unchecked(ready.data, config)}",
        **_skipped(ready.data),
        "task": task.describe(),
        "network": f"{config.model.name}, weights {config.model.weights}, head {', '.join(network.heads)}, "
        f"input {network.spec.preprocessing}",
        "trainable parameters": "{:,} / {:,}".format(*_parameter_counts(parts)),
        **_precompute_fact(ready.assembly),
        "plugins": ", ".join(f"{p.name} ({p.reference.source})" for p in named) or "none enabled, only defaults",
        "hooks": ", ".join(f"{hook}={_join(answer)}" for hook, answer in summary(ready.host).items()),
        **_wrappers(ready.host),
        **_added_terms_fact(parts),
        "precision": f"{parts.precision.name} on {parts.placement.device}, {_threads()}{_placement_note(parts)}",
        "training": f"batch size {settings.batch_size}, gradient accumulation "
        f"{min(settings.accumulate, len(parts.data.train))}, {parts.steps_per_epoch} steps per epoch, "
        f"{settings.epochs} epochs",
        "monitor": f"validation {parts.evaluation.monitor} ({'max' if parts.higher_is_better else 'min'})",
        "run folder": str(ready.folder),
    }


def _kept(data: Data) -> str:
    """Say how many samples neither teach nor choose."""
    return f", {len(data.test)} test images" if data.test is not None else ""


def _unchecked(data: Data, config: RunConfig) -> str:
    """Say how to look at pictures behind their headers, where nobody has."""
    from ftcore.data.files import ImageFiles

    unseen = isinstance(getattr(data.train, "images", None), ImageFiles) and config.data.on_corrupt == "fail"
    return f"; only headers were checked, `ftcore check {config.data.source}` decodes all images" if unseen else ""


def _skipped(data: Data) -> dict[str, str]:
    number = len(data.skipped)
    return {"skipped": f"{number} images that cannot be read, listed in skipped.json"} if number else {}


def _parameter_counts(parts: TrainingParts) -> tuple[int, int]:
    """Count the numbers that learn, and all."""
    numbers = [(p.numel(), p.requires_grad) for p in parts.network.parameters()]
    return sum(n for n, learns in numbers if learns), sum(n for n, _ in numbers)


def _precompute_fact(assembly: Assembly) -> dict[str, str]:
    """Say which features are cached, or why none are of a network that is frozen before its head."""
    once, why_not = assembly.parts.frozen_features, assembly.precompute_reason
    text = once.note if once else f"off: {why_not}" if why_not else ""
    return {"feature caching": text} if text else {}


def _added_terms_fact(parts: TrainingParts) -> dict[str, str]:
    """Say what is added to the loss, and which network is evaluated, where that is not plain."""
    terms = ", ".join(
        [*parts.objective.step.terms, *(regularizer.name for regularizer in parts.objective.regularizers)]
    )
    average = parts.optimization.average
    evaluated = f"{average.name}, from the end of epoch {average.start + 1} on" if average else ""
    return {name: text for name, text in (("added to the loss", terms), ("evaluated", evaluated)) if text}


def _wrappers(host: Host) -> dict[str, str]:
    """Name the plugins that wrap a hook."""
    found = {hook: "+".join(plugin.name for plugin in record.wrapped) for hook, record in host.record.items()}
    text = ", ".join(f"{hook} by {names}" for hook, names in found.items() if names)
    return {"wrapped": text} if text else {}


def _join(answer: str | list[str]) -> str:
    return answer if isinstance(answer, str) else "+".join(answer)


def _threads() -> str:
    import torch

    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def _placement_note(parts: TrainingParts) -> str:
    return f"; {parts.placement.note}" if parts.placement.note else ""
