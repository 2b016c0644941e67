"""A run from its configuration to its report."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from attrs import evolve

from ftcore.config.load import CliOverrides, load_run_config
from ftcore.distributed.ranks import PeerFailed, ProcessInfo
from ftcore.distributed.rendezvous import is_connection_error, process_session
from ftcore.errors import UserError
from ftcore.system.signals import StoppedBySignal, handle_signals
from ftcore.types.events import RunEnded, RunFailed, RunStopped

from .facts import make_report, make_run_started
from .failures import explain_failure
from .lock import lock_run_folder
from .prepared import _check_empty, choose_folder, prepare

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ftcore.config.schema import RunConfig
    from ftcore.training.nonfinite import ReplayResult
    from ftcore.training.state import Progress
    from ftcore.types.events import Observer

    from .folder import RunFolder
    from .prepared import PreparedRun


def fit(
    config: RunConfig, observers: Sequence[Observer] = (), *, expected_manifest: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Fine-tune, and return the report that ``ftcore run --json`` prints.

    Args:
        config: what to do.
        observers: told what happens, beside those of the plugins.
        expected_manifest: the manifest of a run that this one is to repeat.

    Raises:
        UserError: something that the user can mend; then nothing half-written is left.
        Elsewhere: it went wrong in another process of this run, which says so.
    """
    with process_session() as ranks:
        begun = Path(ranks.previous_run_folder() or "nowhere")
        if (begun / "manifest.json").is_file():
            structlog.get_logger().warning("a process failed, and all were started again", folder=str(begun))
            return _resume(begun, (), observers, ranks)
        folder = Path(ranks.broadcast("folder", lambda: str(choose_folder(config))))
        ranks.publish_run_folder(str(folder.absolute()))
        return _start(config, folder, observers, expected_manifest, ranks)


def _start(
    config: RunConfig,
    path: Path,
    observers: Sequence[Observer],
    expected_manifest: Mapping[str, Any] | None,
    ranks: ProcessInfo,
) -> dict[str, Any]:
    ready = prepare(config, path, ranks)

    from ftcore.checkpoints import atomic
    from ftcore.training.state import Progress

    from . import folder as runs_folder
    from . import manifest

    versions = manifest.manifest(ready)
    _check_ranks(ready, versions)
    if expected_manifest:
        _raise_if_changed(
            manifest.version_changes(expected_manifest, versions),
            "this would not repeat that run; --allow-drift runs it all the same",
        )
    folder = runs_folder.open_run_folder(ready)
    if not ranks.is_main:
        return _train(ready, folder, Progress(), observers)
    with atomic.wrap_write_errors(path):
        atomic.makedirs_fsync(path)
    with lock_run_folder(path):
        _check_empty(path, config)  # again: another process may have been as quick
        with atomic.wrap_write_errors(path):
            runs_folder.write_config_and_manifest(path, ready.host, ready.data, versions)
        try:
            return _train(ready, folder, Progress(), observers)
        except BaseException:
            folder.remove_if_empty()
            raise


def resume(
    run: Path, sets: Sequence[str] = (), observers: Sequence[Observer] = (), *, allow_drift: bool = False
) -> dict[str, Any]:
    """Go on with a run from its newest whole checkpoint, and return its report; of a finished run, only that.

    Args:
        run: the run folder.
        sets: changes of its config, as ``--set``; by default only of what changes no result.
        observers: see `fit`.
        allow_drift: also where config, plugins, libraries or data are not what they were.

    Raises:
        UserError: something that the user can mend; the folder is as it was.
        Elsewhere: it went wrong in another process of this run, which says so.
    """
    with process_session() as ranks:
        return _resume(run, sets, observers, ranks, allow_drift=allow_drift)


def _resume(
    run: Path, sets: Sequence[str], observers: Sequence[Observer], ranks: ProcessInfo, *, allow_drift: bool = False
) -> dict[str, Any]:
    from .manifest import read_manifest

    like = read_manifest(run)
    with lock_run_folder(run) if ranks.is_main else nullcontext():
        config = load_run_config(run, CliOverrides(sets=sets))
        ready = prepare(config, run, ranks)

        from ftcore.model import freezing

        from . import folder as runs_folder
        from . import manifest

        versions = manifest.manifest(ready)
        _check_ranks(ready, versions)
        changes, machine = manifest.config_changes(like, versions), manifest.machine_changes(like, versions)
        if not allow_drift:
            _raise_if_changed(changes, "this is not the run that was begun; --allow-drift goes on all the same")
        for what, differences in (("what the checkpoint holds stays", changes), ("bits may differ", machine)):
            if differences:
                structlog.get_logger().warning(f"resumed with changes, {what}", changes=differences)
        sealed = freezing.tensor_digests(ready.assembly.parts.frozen_at(0))
        folder = runs_folder.open_run_folder(ready)
        return _train(ready, folder, folder.resume(), observers, sealed)


def _check_ranks(ready: PreparedRun, versions: Mapping[str, Any]) -> None:
    """Refuse processes that would not train one network together."""
    from ftcore.checkpoints import atomic

    from . import manifest

    ranks, placement = ready.ranks, ready.assembly.parts.placement
    if placement.single_process_error and not ranks.started:
        raise UserError(placement.single_process_error)
    if ranks.world_size != placement.world_size:
        who = ", ".join(plugin.name for plugin in ready.host.contributors("wrap_devices"))
        raise UserError(
            f"{ranks.world_size} processes were started, and wrap_devices of {who} is for {placement.world_size}; "
            "--plugin ddp lets them share each batch"
        )
    here = atomic.to_json({name: value for name, value in versions.items() if name not in {"machine", "git_commit"}})
    first, *others = ranks.gather("manifest", here) or [here]
    for rank, there in enumerate(others, start=1):
        changes = manifest.config_changes(json.loads(first), json.loads(there))
        _raise_if_changed(changes, f"rank {rank} would not train what rank 0 trains (then: rank 0, now: rank {rank})")
    ranks.broadcast("agreed", str)


def _raise_if_changed(changes: Sequence[str], message: str) -> None:
    if changes:
        raise UserError("\n".join([message, *(f"  {line}" for line in changes)]))


def _train(
    ready: PreparedRun,
    folder: RunFolder,
    progress: Progress,
    observers: Sequence[Observer],
    sealed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train from where a run is to its end, and return its report."""
    from ftcore.data.workers import name_lost_samples
    from ftcore.training.loop import fit

    from .saver import CheckpointSaver, SaveInterval

    parts = ready.assembly.parts
    parts = evolve(parts, observers=(*observers, *parts.observers) if ready.ranks.is_main else ())
    started = make_run_started(ready, progress)
    begun, before = time.monotonic(), progress.seconds + progress.current.seconds
    with handle_signals(second_kills=ready.ranks.world_size == 1) as flags:
        options = ready.host.config.run
        keeper = CheckpointSaver(
            folder, parts, progress, SaveInterval.parse(options.save_every), flags, background=options.async_save
        )
        keeper.saved = keeper.position() if progress.step else None
        try:
            parts.notify(started)
            with name_lost_samples(lambda: [*parts.train.names_in_flight(), *parts.val.names_in_flight()]):
                fit(parts, progress, lambda event: folder.save_epoch(event, progress), keeper, sealed)
            keeper.save()
            keeper.wait_pending()
        except StoppedBySignal as stopped:
            parts.notify(RunStopped(str(stopped)))
            raise
        except BaseException as error:
            keeper.wait_pending_after_failure()
            if flags.ending and is_connection_error(error):  # who ends this process knows what happened to the other
                raise PeerFailed(128 + flags.ending) from None
            error = explain_failure(error, folder, parts, progress, ready.ranks)
            parts.notify(RunFailed(f"{type(error).__name__}: {error}"))
            raise error from None
        report = make_report(ready, progress, before + time.monotonic() - begun)
        report |= {"saves": keeper.saved_count, "saving_seconds": keeper.seconds}
        parts.notify(RunEnded(report))
    return report


def replay(run: Path) -> ReplayResult:
    """Do the step again for which a run was stopped because it was not finite; change nothing.

    Raises:
        UserError: there is none, or it cannot be done.
    """
    ready = prepare(load_run_config(run), run)

    from ftcore.training import nonfinite

    return nonfinite.replay(ready.assembly.parts, run / nonfinite.NONFINITE_DIR)
