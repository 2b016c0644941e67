"""A run from its configuration to its report."""

from __future__ import annotations

import json
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from attrs import evolve, field, frozen

from . import discover, plugins
from .calls import Calls
from .config import Flags, RunConfig, defaulted, of_run
from .discover import default_module
from .errors import UserError
from .events import RunEnded, RunFailed, RunStarted, RunStopped
from .host import Host, summary
from .locking import LOCK, locked
from .ranks import Elsewhere, Ranks, is_lost, joined
from .recipes import expand
from .signals import Stopped, listening

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from PIL.Image import Image

    from .assemble import Assembly
    from .blackbox import Replay
    from .events import Observer
    from .parts import Data
    from .runfolder import RunFolder
    from .state import Parts, Progress


@frozen(eq=False)
class Ready:
    """A run whose plugins are active and whose data is indexed; nothing is on disk yet.

    Attributes:
        host: the plugins.
        folder: where the run will be.
        data: what it learns from.
        assembly: what the loop needs.
        ranks: the processes of the run.
    """

    host: Host
    folder: Path
    data: Data
    assembly: Assembly
    ranks: Ranks = field(factory=Ranks)


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
    _check_empty(folder, config)
    return folder


def _check_empty(folder: Path, config: RunConfig) -> None:
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        resume = f", or go on with it: ftcore resume {folder}" if (folder / "manifest.json").is_file() else ""
        raise UserError(
            f"run.folder {folder} exists and is not empty ({config.origin('run.folder')}); choose another{resume}"
        )


def activate(config: RunConfig, folder: Path = Path(), ranks: Ranks | None = None) -> Host:
    """Import, lint and configure the plugins of a run.

    Raises:
        UserError: what `ftcore.plugins.activate_all` raises.
    """
    from importlib import import_module

    defaults = import_module(default_module())
    available = discover.discover()
    config = expand(defaulted(config, defaults.DEMO), available)
    return Host(config, plugins.activate_all(config, available, defaults.PLUGINS), folder, ranks)


def prepare(config: RunConfig, folder: Path | None = None, ranks: Ranks | None = None) -> Ready:
    """Do everything that comes before the first step, cheap things first; write nothing.

    Args:
        config: what to do.
        folder: of a run that is resumed; by default a new one.
        ranks: the processes of the run.

    Raises:
        UserError: something that the user can mend.
    """
    folder = folder or choose_folder(config)
    host = activate(config, folder, ranks)
    calls = Calls(host)
    data = calls.build_data(host.config.data.source)  # before torch is imported
    _check_skipping(host.config, data)

    from .assemble import assemble

    return Ready(host, folder, data, assemble(host.config, calls, data), ranks or Ranks())


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
        Elsewhere: it went wrong in another process of this run, which says so.
    """
    with joined() as ranks:
        begun = Path(ranks.remembered() or "nowhere")
        if (begun / "manifest.json").is_file():
            structlog.get_logger().warning("a process failed, and all were started again", folder=str(begun))
            return _resume(begun, (), observers, ranks)
        folder = Path(ranks.told("folder", lambda: str(choose_folder(config))))
        ranks.remember(str(folder.absolute()))
        return _run(config, folder, observers, like, ranks)


def _run(
    config: RunConfig, path: Path, observers: Sequence[Observer], like: Mapping[str, Any] | None, ranks: Ranks
) -> dict[str, Any]:
    ready = prepare(config, path, ranks)

    from . import checkpoint, provenance, runfolder
    from .state import Progress

    versions = provenance.manifest(ready)
    _check_ranks(ready, versions)
    if like:
        _refuse(provenance.drift(like, versions), "this would not repeat that run; --allow-drift runs it all the same")
    folder = runfolder.opened(ready)
    if not ranks.leads:
        return _train(ready, folder, Progress(), observers)
    with checkpoint.refused(path):
        checkpoint.make_folder(path)
    with locked(path):
        _check_empty(path, config)  # again: another process may have been as quick
        with checkpoint.refused(path):
            runfolder.fill(path, ready.host, ready.data, versions)
        try:
            return _train(ready, folder, Progress(), observers)
        except BaseException:
            folder.discard()
            raise


def resume(
    run: Path, sets: Sequence[str] = (), observers: Sequence[Observer] = (), *, allow_drift: bool = False
) -> dict[str, Any]:
    """Go on with a run from its newest whole checkpoint, and return its report; of a finished run, only that.

    Args:
        run: the run folder.
        sets: changes of its config, as ``--set``; by default only of what changes no result.
        observers: see `run`.
        allow_drift: also where config, plugins, libraries or data are not what they were.

    Raises:
        UserError: something that the user can mend; the folder is as it was.
        Elsewhere: it went wrong in another process of this run, which says so.
    """
    with joined() as ranks:
        return _resume(run, sets, observers, ranks, allow_drift=allow_drift)


def _resume(
    run: Path, sets: Sequence[str], observers: Sequence[Observer], ranks: Ranks, *, allow_drift: bool = False
) -> dict[str, Any]:
    from .provenance import read_manifest

    like = read_manifest(run)
    with locked(run) if ranks.leads else nullcontext():
        config = of_run(run, Flags(sets=sets))
        ready = prepare(config, run, ranks)

        from . import freezing, provenance, runfolder

        versions = provenance.manifest(ready)
        _check_ranks(ready, versions)
        changes, machine = provenance.changes(like, versions), provenance.other_machine(like, versions)
        if not allow_drift:
            _refuse(changes, "this is not the run that was begun; --allow-drift goes on all the same")
        for what, differences in (("what the checkpoint holds stays", changes), ("bits may differ", machine)):
            if differences:
                structlog.get_logger().warning(f"resumed with changes, {what}", changes=differences)
        sealed = freezing.digests(ready.assembly.parts.frozen(0))
        folder = runfolder.opened(ready)
        return _train(ready, folder, folder.resume(), observers, sealed)


def _check_ranks(ready: Ready, versions: Mapping[str, Any]) -> None:
    """Refuse processes that would not train one network together."""
    from . import checkpoint, provenance

    ranks, placement = ready.ranks, ready.assembly.parts.placement
    if placement.lone and not ranks.started:
        raise UserError(placement.lone)
    if ranks.world_size != placement.world_size:
        who = ", ".join(plugin.name for plugin in ready.host.makers("wrap_devices"))
        raise UserError(
            f"{ranks.world_size} processes were started, and wrap_devices of {who} is for {placement.world_size}; "
            "--plugin ddp lets them share each batch"
        )
    here = checkpoint.to_json(
        {name: value for name, value in versions.items() if name not in {"machine", "git_commit"}}
    )
    first, *others = ranks.all_told("manifest", here) or [here]
    for rank, there in enumerate(others, start=1):
        changes = provenance.changes(json.loads(first), json.loads(there))
        _refuse(changes, f"rank {rank} would not train what rank 0 trains (then: rank 0, now: rank {rank})")
    ranks.told("agreed", str)


def _refuse(changes: Sequence[str], message: str) -> None:
    if changes:
        raise UserError("\n".join([message, *(f"  {line}" for line in changes)]))


def _train(
    ready: Ready,
    folder: RunFolder,
    progress: Progress,
    observers: Sequence[Observer],
    sealed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train from where a run is to its end, and return its report."""
    from .explain import learning
    from .keeping import Every, Keeper
    from .loop import fit
    from .workers import named

    parts = ready.assembly.parts
    parts = evolve(parts, observers=(*observers, *parts.observers) if ready.ranks.leads else ())
    started = RunStarted(
        folder=ready.folder,
        facts=facts(ready) | _resumed(progress),
        tables=(*ready.data.tables, *parts.loss.tables),
        epochs=parts.settings.epochs,
        steps_per_epoch=parts.steps_per_epoch,
        step=progress.step,
        epoch=progress.epoch,
        learning=learning(ready.assembly),
        groups=tuple(group.name for group in ready.assembly.groups),
        task=parts.task,
        val=ready.data.val,
    )
    begun, before = time.monotonic(), progress.seconds + progress.current.seconds
    with listening(twice=ready.ranks.world_size == 1) as flags:
        options = ready.host.config.run
        keeper = Keeper(folder, parts, progress, Every.parse(options.save_every), flags, later=options.async_save)
        keeper.saved = keeper.where() if progress.step else None
        try:
            parts.tell(started)
            with named(lambda: [*parts.train.names_in_flight(), *parts.val.names_in_flight()]):
                fit(parts, progress, lambda event: folder.save_epoch(event, progress), keeper, sealed)
            keeper.save()
            keeper.settle()
        except Stopped as stopped:
            parts.tell(RunStopped(str(stopped)))
            raise
        except BaseException as error:
            keeper.leave()
            if flags.ending and is_lost(error):  # who ends this process knows what happened to the other
                raise Elsewhere(128 + flags.ending) from None
            error = _explained(error, folder, parts, progress, ready.ranks)
            parts.tell(RunFailed(f"{type(error).__name__}: {error}"))
            raise error from None
        report = make_report(ready, progress, before + time.monotonic() - begun)
        report |= {"saves": keeper.saves, "saving_seconds": keeper.seconds}
        parts.tell(RunEnded(report))
    return report


def _explained(
    error: BaseException, folder: RunFolder, parts: Parts, progress: Progress, ranks: Ranks
) -> BaseException:
    """Say what to do about memory, or images, that are short; keep a step that was not finite for `replay`."""
    from . import blackbox, shortage
    from .gradients import NotFiniteError

    if short := shortage.explained(error, parts, progress):
        return short
    if parts.placement.spread and not is_lost(error) and _is_of_spread(error):
        first = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        return UserError(
            f"{_outside_torch(error)} computes with parameters in a way in which torch does not where they are spread "
            f"over processes; another optimizer or setting, or ddp, may do\n{first}"
        )
    if not isinstance(error, NotFiniteError) or not ranks.leads or parts.placement.spread:
        return error
    ranks.claim(2)  # before the others do, for all of them see it
    kept = blackbox.keep(folder.path, parts, progress, error)
    return UserError(f"{error}\nthe state before it is in {kept}: `ftcore replay {folder.path}` does the step again")


def _outside_torch(error: BaseException) -> str:
    """Return the last place in an error's traceback that is not torch's, as ``file, line``."""
    import torch

    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if Path(torch.__file__).parent not in Path(frame.filename).parents]
    return f"{'/'.join(Path(outside[-1].filename).parts[-3:])}, line {outside[-1].lineno},"


def _is_of_spread(error: BaseException) -> bool:
    """Whether an error comes from torch's arithmetic of tensors that are spread over processes."""
    from torch.distributed import tensor

    places = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    if not isinstance(error, RuntimeError | AssertionError):
        return False
    return "DTensor" in str(error) or any(Path(str(tensor.__file__)).parent in place.parents for place in places)


def replay(run: Path) -> Replay:
    """Do the step again for which a run was stopped because it was not finite; change nothing.

    Raises:
        UserError: there is none, or it cannot be done.
    """
    ready = prepare(of_run(run), run)

    from . import blackbox

    return blackbox.replay(ready.assembly.parts, run / blackbox.FOLDER)


def redraw(run: Path, *, why: bool = False) -> list[Path]:
    """Let the observers of a run that write a page for people write it again, from the run folder; return the pages.

    These are observers, or the objects whose methods they are, with ``redraw(folder, heat) -> Path``. `heat` is None,
    or draws where the run's model sees something: (place in the validation split, the sample's name, what it sees) ->
    a picture.

    Args:
        run: its folder.
        why: whether they are given `heat`.

    Raises:
        UserError: none does, or it cannot.
    """
    from .provenance import read_manifest

    read_manifest(run)
    host = activate(of_run(run), run)
    calls = Calls(host)
    owners = [getattr(observer, "__self__", observer) for observer in calls.make_observers()]
    heat = _heat(run, calls.build_data(host.config.data.source)) if why else None
    pages = [owner.redraw(run, heat) for owner in owners if hasattr(owner, "redraw")]
    if not pages:
        raise UserError(f"no plugin of {run} writes a report; the run was made without it")
    return pages


def _heat(run: Path, data: Data) -> Callable[[int, str, str], Image]:
    """Return what draws where the model of a run sees something in a validation sample."""
    from .predict import load
    from .why import why

    model, samples = load(run), data.val

    def heat(index: int, name: str, seen: str) -> Image:
        if not (index < len(samples) and samples.name(index) == name):
            raise UserError(f"the data of {run} has changed: {name} is not where it was in the validation split")
        return why(model, samples[index][0], seen).over()

    return heat


def make_report(ready: Ready, progress: Progress, seconds: float) -> dict[str, Any]:
    """Put a finished run into one JSON object."""
    from .loop import per_second

    return {
        "folder": str(ready.folder),
        "epochs": progress.epoch,
        "stopped_early": progress.epoch < ready.assembly.parts.settings.epochs,
        "skipped_steps": progress.skipped,
        "pieces": progress.pieces,
        "monitor": ready.assembly.parts.monitor,
        "skipped": len(ready.data.skipped),
        "frozen_tensors": len(ready.assembly.parts.frozen(progress.epoch - 1)),
        "best": progress.best,
        "last": progress.last,
        "seconds": seconds,
        "samples_per_second": per_second(progress.samples, progress.training_seconds),
        "hooks": summary(ready.host),
    }


def _resumed(progress: Progress) -> dict[str, str]:
    return {"resumed": f"after step {progress.step}, in epoch {progress.epoch + 1}"} if progress.step else {}


def facts(ready: Ready) -> dict[str, str]:
    """Say in a few lines what was decided."""
    config, parts, network = ready.host.config, ready.assembly.parts, ready.assembly.network
    named = [plugin for plugin in ready.host.plugins if not plugin.is_default]
    settings = parts.settings
    return {
        "data": f"{config.data.source}: {len(ready.data.train)} images to train on, {len(ready.data.val)} to validate"
        f"{_unchecked(ready.data, config)}",
        **_skipped(ready.data),
        "task": f"{parts.task.kind}: {', '.join(parts.task.names[:12])}{' ...' if parts.task.outputs > 12 else ''}",
        "network": f"{config.model.name}, weights {config.model.weights}, head {', '.join(network.heads)}, "
        f"input {network.spec}",
        "learning": _learning(parts),
        **_once(ready.assembly),
        "plugins": ", ".join(f"{p.name} ({p.reference.source})" for p in named) or "none named, all defaults",
        "answers": ", ".join(f"{hook}={_one(answer)}" for hook, answer in summary(ready.host).items()),
        **_beside(parts),
        "precision": f"{parts.precision.name} on {parts.placement.device}, {_threads()}{_note(parts)}",
        "batches": f"{settings.batch_size} x {min(settings.accumulate, len(parts.train))} images, "
        f"{parts.steps_per_epoch} steps an epoch, {settings.epochs} epochs, best by {parts.monitor}",
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


def _once(assembly: Assembly) -> dict[str, str]:
    """Say what is computed once, or why nothing is of a network that is frozen before its head."""
    once, why_not = assembly.parts.precomputed, assembly.not_once
    text = once.note if once else f"nothing: {why_not}" if why_not else ""
    return {"computed once": text} if text else {}


def _beside(parts: Parts) -> dict[str, str]:
    """Say what is added to the loss, and which network is evaluated, where that is not plain."""
    terms = ", ".join([*parts.step.terms, *(regularizer.name for regularizer in parts.regularizers)])
    average = parts.average
    evaluated = f"{average.name}, from the end of epoch {average.start + 1} on" if average else ""
    return {name: text for name, text in (("added", terms), ("evaluated", evaluated)) if text}


def _one(answer: str | list[str]) -> str:
    return answer if isinstance(answer, str) else "+".join(answer)


def _threads() -> str:
    import torch

    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def _note(parts: Parts) -> str:
    return f"; {parts.placement.note}" if parts.placement.note else ""
