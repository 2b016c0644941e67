"""A run from its configuration to its report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from . import discover, plugins
from .calls import Calls
from .config import RunConfig, defaulted
from .discover import default_module
from .errors import UserError
from .events import RunEnded, RunFailed, RunStarted
from .host import Host, summary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .assemble import Assembly
    from .events import Observer
    from .loop import Parts, Progress
    from .parts import Data


@frozen(eq=False)
class Ready:
    """A run whose plugins are active and whose data is indexed; nothing is on disk yet.

    Attributes:
        host: the plugins.
        folder: where the run will be.
        data: what it learns from.
        assembly: what the loop needs.
    """

    host: Host
    folder: Path
    data: Data
    assembly: Assembly


def choose_folder(config: RunConfig) -> Path:
    """Return the run folder's path: the one that was set, or a new one under ``runs/``; makes nothing.

    Raises:
        UserError: the folder exists and holds something.
    """
    if config.run.folder is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        names = (Path("runs") / (stamp + suffix) for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        return next(path for path in names if not path.exists())
    folder = Path(config.run.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"run.folder {folder} exists and is not empty ({config.origin('run.folder')}); choose another")
    return folder


def activate(config: RunConfig, folder: Path = Path()) -> Host:
    """Import, lint and configure the plugins of a run.

    Raises:
        UserError: what `ftcore.plugins.activate_all` raises.
    """
    from importlib import import_module

    defaults = import_module(default_module())
    config = defaulted(config, defaults.DEMO)
    return Host(config, plugins.activate_all(config, discover.discover(), defaults.PLUGINS), folder)


def prepare(config: RunConfig) -> Ready:
    """Do everything that comes before the first step, cheap things first; write nothing.

    Raises:
        UserError: something that the user can mend.
    """
    folder = choose_folder(config)
    host = activate(config, folder)
    calls = Calls(host)
    data = calls.build_data(host.config.data.source)  # before torch is imported
    _check_skipping(host.config, data)

    from .assemble import assemble

    return Ready(host, folder, data, assemble(host.config, calls, data))


def _check_skipping(config: RunConfig, data: Data) -> None:
    """Refuse ``data.on_corrupt = "skip"`` where the data was not made by `make_data`, which heeds it."""
    from .labelled import Split

    if config.data.on_corrupt == "skip" and not (isinstance(data.train, Split) and isinstance(data.val, Split)):
        raise UserError(
            f"data.on_corrupt = 'skip' needs samples of ftcore.labelled.Split, not {type(data.train).__name__} "
            f"({config.origin('data.on_corrupt')})"
        )


def run(
    config: RunConfig, observers: Sequence[Observer] = (), *, like: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Fine-tune, and return the report that ``ftcore run --json`` prints.

    Args:
        config: what to do.
        observers: told what happens, beside those of the plugins.
        like: the manifest of a run that this one is to repeat.

    Raises:
        UserError: something that the user can mend; then nothing half-written is left.
    """
    ready = prepare(config)

    from . import provenance, runfolder
    from .loop import Progress, fit
    from .workers import named

    changes = provenance.drift(like, provenance.manifest(ready.host, ready.data)) if like else []
    if changes:
        lines = "\n".join(f"  {line}" for line in changes)
        raise UserError(f"this would not repeat that run; --allow-drift runs it all the same\n{lines}")

    progress, parts = Progress(), ready.assembly.parts
    parts = evolve(parts, observers=(*observers, *parts.observers))
    folder = runfolder.create(ready.folder, ready.host, ready.data, ready.assembly)
    started = RunStarted(
        folder=ready.folder,
        facts=facts(ready),
        tables=(*ready.data.tables, *parts.loss.tables),
        epochs=parts.settings.epochs,
        steps_per_epoch=parts.steps_per_epoch,
    )
    parts.tell(started)
    begun = time.monotonic()
    try:
        with named(lambda: [*parts.train.names_in_flight(), *parts.val.names_in_flight()]):
            fit(parts, progress, lambda event: folder.save(event, progress))
    except BaseException as error:
        parts.tell(RunFailed(f"{type(error).__name__}: {error}"))
        folder.discard()
        raise
    report = make_report(ready, progress, time.monotonic() - begun)
    parts.tell(RunEnded(report))
    return report


def make_report(ready: Ready, progress: Progress, seconds: float) -> dict[str, Any]:
    """Put a finished run into one JSON object."""
    return {
        "folder": str(ready.folder),
        "epochs": progress.epoch,
        "monitor": ready.assembly.parts.monitor,
        "skipped": len(ready.data.skipped),
        "frozen_tensors": len(ready.assembly.parts.frozen(progress.epoch - 1)),
        "best": progress.best,
        "last": progress.last,
        "seconds": seconds,
        "samples_per_second": progress.samples / progress.training_seconds,
        "hooks": summary(ready.host),
    }


def facts(ready: Ready) -> Mapping[str, str]:
    """Say in a few lines what was decided."""
    config, parts, network = ready.host.config, ready.assembly.parts, ready.assembly.network
    named = [plugin for plugin in ready.host.plugins if not plugin.is_default]
    height, width = network.spec.size
    settings = parts.settings
    return {
        "data": f"{config.data.source}: {len(ready.data.train)} images to train on, {len(ready.data.val)} to validate"
        f"{_unchecked(ready.data, config)}",
        **_skipped(ready.data),
        "task": f"{parts.task.kind}: {', '.join(parts.task.names[:12])}{' ...' if parts.task.outputs > 12 else ''}",
        "network": f"{config.model.name}, weights {config.model.weights}, head {', '.join(network.heads)}, "
        f"input {network.spec.channels} x {height} x {width}",
        "learning": _learning(parts),
        "plugins": ", ".join(f"{p.name} ({p.reference.source})" for p in named) or "none named, all defaults",
        "answers": ", ".join(f"{hook}={_one(answer)}" for hook, answer in summary(ready.host).items()),
        "precision": f"{parts.precision.name} on {parts.placement.device}, {_threads()}{_note(parts)}",
        "batches": f"{settings.batch_size} x {settings.accumulate} images, {parts.steps_per_epoch} steps an epoch, "
        f"{settings.epochs} epochs, best by {parts.monitor}",
        "folder": str(ready.folder),
    }


def _unchecked(data: Data, config: RunConfig) -> str:
    """Say how to look at pictures behind their headers, where nobody has."""
    from .files import Files

    unseen = isinstance(getattr(data.train, "images", None), Files) and config.data.on_corrupt == "fail"
    return f"; headers read, `ftcore check {config.data.source}` decodes all" if unseen else ""


def _skipped(data: Data) -> dict[str, str]:
    number = len(data.skipped)
    return {"skipped": f"{number} images that cannot be read, listed in skipped.json"} if number else {}


def _learning(parts: Parts) -> str:
    numbers = [(p.numel(), p.requires_grad) for p in parts.network.parameters()]
    learns, total = sum(n for n, learning in numbers if learning), sum(n for n, _ in numbers)
    return f"{learns:,} of {total:,} parameters"


def _one(answer: str | list[str]) -> str:
    return answer if isinstance(answer, str) else "+".join(answer)


def _threads() -> str:
    import torch

    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def _note(parts: Parts) -> str:
    return f"; {parts.placement.note}" if parts.placement.note else ""
