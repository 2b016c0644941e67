"""A run from its configuration to its report."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from attrs import evolve, frozen

from ftcore.config.load import CliOverrides, load_run_config
from ftcore.distributed.ranks import PeerFailed, ProcessInfo
from ftcore.distributed.rendezvous import is_connection_error, process_session
from ftcore.errors import UserError
from ftcore.plugins.discovery import load_defaults
from ftcore.system.files import refuse_links
from ftcore.system.signals import StoppedBySignal, handle_signals
from ftcore.types.events import EpochEnded, RunEnded, RunFailed, RunStopped

from .facts import make_report, make_run_started
from .failures import explain_failure
from .lock import lock_run_folder
from .observers import GuardedObservers
from .prepared import _check_empty, choose_folder, prepare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ftcore.config.schema import RunConfig
    from ftcore.training.nonfinite import ReplayResult
    from ftcore.training.state import Progress, TrainingParts
    from ftcore.types.events import Observer

    from .folder import RunFolder
    from .prepared import PreparedRun
    from .saver import CheckpointSaver


@frozen(eq=False)
class _Session:
    """A run in its folder, before the first step or where it is gone on with.

    Attributes:
        ready: what was prepared.
        folder: where it is.
        progress: where it stands.
        frozen_digests: of what is frozen, of the run that is gone on with; None for a new one.
    """

    ready: PreparedRun
    folder: RunFolder
    progress: Progress
    frozen_digests: Mapping[str, str] | None = None

    def save_epoch(self, event: EpochEnded) -> None:
        """Write down an epoch that is over."""
        self.folder.save_epoch(event, self.progress)

    def finish(self, parts: TrainingParts, saver: CheckpointSaver) -> dict[str, Any]:
        """Save the last state, then measure the best network on the test split, if there is one, for the report."""
        from .measured_test import measure_test

        saver.save()
        saver.wait_pending()
        return {"test": measure_test(self.folder.path, parts, self.progress, self.ready.ranks, saver)}


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
        PeerFailed: it went wrong in another process of this run, which says so.
    """
    with process_session() as ranks, ExitStack() as stack:
        session = _again(ranks, stack) or _begin(config, expected_manifest, ranks, stack)

        from ftcore.training import loop

        with _supervised(session, observers) as (parts, saver, report):
            loop.fit(parts, session.progress, session.save_epoch, saver, session.frozen_digests)
            report.update(session.finish(parts, saver))
    return report


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
        PeerFailed: it went wrong in another process of this run, which says so.
    """
    with process_session() as ranks, ExitStack() as stack:
        session = _reopen(run, sets, ranks, stack, allow_drift=allow_drift)

        from ftcore.training import loop

        with _supervised(session, observers) as (parts, saver, report):
            loop.fit(parts, session.progress, session.save_epoch, saver, session.frozen_digests)
            report.update(session.finish(parts, saver))
    return report


def _again(ranks: ProcessInfo, stack: ExitStack) -> _Session | None:
    """Go on with the run that these processes began before a launcher started them again, if they did."""
    begun = Path(ranks.previous_run_folder() or "nowhere")
    if not (begun / "manifest.json").is_file():
        return None
    structlog.get_logger().warning("a process failed; all processes were restarted", folder=str(begun))
    return _reopen(begun, (), ranks, stack)


def _begin(
    config: RunConfig, expected_manifest: Mapping[str, Any] | None, ranks: ProcessInfo, stack: ExitStack
) -> _Session:
    """Make the folder of a new run; locks it until `stack` is closed, and removes it then if it failed at once."""
    path = Path(ranks.broadcast("folder", lambda: str(choose_folder(config))))
    ranks.publish_run_folder(str(path.absolute()))
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
            "configuration or environment differ from the original run; --allow-drift repeats it anyway",
        )
    folder = runs_folder.open_run_folder(ready)
    if ranks.is_main:
        with atomic.wrap_write_errors(path):
            atomic.makedirs_fsync(path)
        stack.enter_context(lock_run_folder(path))
        _check_empty(path, config)  # again: another process may have been as quick
        with atomic.wrap_write_errors(path):
            runs_folder.write_config_and_manifest(path, ready.host, ready.data, versions)
        stack.push(lambda kind, *_: folder.remove_if_empty() if kind else None)
    return _Session(ready, folder, Progress())


def _reopen(
    run: Path, sets: Sequence[str], ranks: ProcessInfo, stack: ExitStack, *, allow_drift: bool = False
) -> _Session:
    """Open the folder of a run that is gone on with; locks it until `stack` is closed."""
    from .manifest import read_manifest

    like = read_manifest(run)
    refuse_links(run)
    if ranks.is_main:
        stack.enter_context(lock_run_folder(run))
    ready = prepare(load_run_config(run, CliOverrides(sets=sets)), run, ranks)

    from ftcore.model import freezing

    from . import folder as runs_folder
    from . import manifest

    versions = manifest.manifest(ready)
    _check_ranks(ready, versions)
    changes, machine = manifest.config_changes(like, versions), manifest.machine_changes(like, versions)
    if not allow_drift:
        _raise_if_changed(
            changes, "configuration or environment differ from the original run; --allow-drift resumes anyway"
        )
    for what, differences in (("the state in the checkpoint is used", changes), ("the last bits may differ", machine)):
        if differences:
            structlog.get_logger().warning(f"resumed with changes, {what}", changes=differences)
    digests = freezing.tensor_digests(ready.assembly.parts.frozen_at(0))
    folder = runs_folder.open_run_folder(ready)
    return _Session(ready, folder, folder.resume(), digests)


@contextmanager
def _supervised(
    session: _Session, observers: Sequence[Observer]
) -> Iterator[tuple[TrainingParts, CheckpointSaver, dict[str, Any]]]:
    """Give what the loop needs, and a report that is filled at the end; tell the observers, save the last state."""
    from ftcore.data.workers import name_lost_samples

    from .saver import CheckpointSaver, SaveInterval

    ready, progress = session.ready, session.progress
    parts = ready.assembly.parts
    guarded = _guard(observers, ready)
    parts = evolve(parts, observers=(guarded,))
    begun, before = time.monotonic(), progress.seconds + progress.current.seconds
    report: dict[str, Any] = {}
    with handle_signals(second_kills=ready.ranks.world_size == 1) as flags:
        saver = CheckpointSaver(
            session.folder,
            parts,
            progress,
            SaveInterval.parse(ready.host.config.run.save_every),
            flags,
            guarded,
            background=ready.host.config.run.async_save,
        )
        saver.saved = saver.position() if progress.step else None
        ready.host.on_boundary = saver
        try:
            parts.notify(make_run_started(ready, progress))
            guarded.raise_error()
            with name_lost_samples(lambda: [*parts.data.train.names_in_flight(), *parts.data.val.names_in_flight()]):
                yield parts, saver, report
            guarded.raise_error()
        except StoppedBySignal as stopped:
            parts.notify(RunStopped(str(stopped)))
            raise
        except BaseException as error:
            saver.wait_pending_after_failure()
            if flags.ending and is_connection_error(error):  # who ends this process knows what happened to the other
                raise PeerFailed(128 + flags.ending) from None
            error = explain_failure(error, session.folder, ready, parts, progress)
            parts.notify(RunFailed(f"{type(error).__name__}: {error}"))
            raise error from None
        finally:
            parts.data.close()
        report |= make_report(ready, progress, before + time.monotonic() - begun)
        saving = {"saves": saver.saved_count, "saving_seconds": saver.seconds}
        report |= saving | {"observer_errors": guarded.failures.total()}
        parts.notify(RunEnded(report))
        guarded.raise_error()


def _guard(handed: Sequence[Observer], ready: PreparedRun) -> GuardedObservers:
    """Put the observers of the caller and those of the plugins together, in the process that tells them."""

    def origin(observe: Observer) -> str:
        if any(observe is other for other in handed):
            return f"{getattr(observe, '__qualname__', type(observe).__name__)}, which was passed to the run"
        return ready.host.origin_of("make_observers", observe)

    observers = (*handed, *ready.assembly.parts.observers) if ready.ranks.is_main else ()
    return GuardedObservers(observers, origin, stops=ready.host.config.observers.on_error == "stop")


def _check_ranks(ready: PreparedRun, versions: Mapping[str, Any]) -> None:
    """Refuse processes that would not train one network together."""
    from ftcore.checkpoints import to_json

    from . import manifest

    ranks, placement = ready.ranks, ready.assembly.parts.placement
    if placement.single_process_error and not ranks.started:
        raise UserError(placement.single_process_error)
    if ranks.world_size != placement.world_size:
        who = ", ".join(plugin.name for plugin in ready.host.contributors("wrap_devices"))
        raise UserError(
            f"{ranks.world_size} processes were started, but wrap_devices of {who} is for {placement.world_size}; "
            f"{load_defaults().ADVICE['processes']}"
        )
    here = to_json({name: value for name, value in versions.items() if name not in {"machine", "git_commit"}})
    first, *others = ranks.gather("manifest", here) or [here]
    for rank, there in enumerate(others, start=1):
        changes = manifest.config_changes(json.loads(first), json.loads(there))
        _raise_if_changed(changes, f"rank {rank} differs from rank 0 (then: rank 0, now: rank {rank})")
    ranks.broadcast("agreed", str)


def _raise_if_changed(changes: Sequence[str], message: str) -> None:
    if changes:
        raise UserError("\n".join([message, *(f"  {line}" for line in changes)]))


def replay(run: Path) -> ReplayResult:
    """Do the step again for which a run was stopped because it was not finite; change nothing.

    Raises:
        UserError: there is none, or it cannot be done.
    """
    ready = prepare(load_run_config(run), run)

    from ftcore.training import nonfinite

    return nonfinite.replay(ready.assembly.parts, run / nonfinite.NONFINITE_DIR)
