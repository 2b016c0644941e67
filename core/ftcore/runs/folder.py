"""The run folder: everything that a run leaves behind."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from typing import TYPE_CHECKING, Any

import attrs
import structlog
import tomlkit
import torch
from attrs import asdict, define, field

from ftcore.checkpoints import atomic, checkpoint, distributed, manifest, to_json
from ftcore.config.schema import SECTIONS
from ftcore.distributed.ranks import ProcessInfo
from ftcore.errors import UserError
from ftcore.model.reference_outputs import reference_outputs
from ftcore.plugins import trust
from ftcore.plugins.discovery import discover
from ftcore.plugins.references import resolve
from ftcore.system.files import open_regular, open_text
from ftcore.training import resume_state
from ftcore.training.listeners import moment
from ftcore.training.nonfinite import NONFINITE_DIR
from ftcore.training.state import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ftcore.config.schema import RunConfig
    from ftcore.plugins.activation import Plugin
    from ftcore.plugins.host import Host
    from ftcore.plugins.references import PluginReference
    from ftcore.training.assemble import Assembly
    from ftcore.types.data import Data
    from ftcore.types.distributed import Placement
    from ftcore.types.events import EpochEnded

    from .prepared import PreparedRun


@define
class RunFolder:
    """Writes a run folder while the run goes.

    Attributes:
        path: the folder.
        model: the JSON of ``model/``, which `predict` reads.
        assembly: the run.
        keep: newest checkpoints that stay, beside the best.
        ranks: the processes of the run.
        writer: of what this process has; None where another one has all of it.
    """

    path: Path
    model: dict[str, Any]
    assembly: Assembly
    keep: int
    ranks: ProcessInfo = field(factory=ProcessInfo)
    writer: checkpoint.CheckpointWriter | None = field(factory=checkpoint.CheckpointWriter)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    def save_epoch(self, event: EpochEnded, progress: Progress) -> None:
        """Append to ``metrics.jsonl``, and save the model if this epoch is the best, or while none is."""
        with atomic.wrap_write_errors(self.path):
            if self.ranks.is_main:
                self._append_metrics({k: v for k, v in asdict(event).items() if k not in {"best", "monitor"}})
            if progress.best and not event.best:
                return
            parts = self.assembly.parts
            average = parts.average_at(progress.epoch - 1)
            measured = average.network if average else parts.placement.model
            # by all processes, which may share the network
            said = reference_outputs(measured, self.assembly.network.spec, parts.precision.autocast)
            if self.writer:
                description = {**self.model, "epoch": event.epoch, "monitor": event.monitor, "metrics": dict(event.val)}
                description |= {"reference": asdict(said)} if said else {}
                if parts.listeners:
                    description["moment"] = asdict(moment(parts, progress)) | {"epoch": progress.epoch - 1}
                network = parts.model_at(progress.epoch - 1)
                captured = checkpoint.CapturedState({"model": network}, {"model": description}, is_checkpoint=False)
                self.writer.write(captured, self.path / "model")

    def _append_metrics(self, line: dict[str, Any]) -> None:
        with open_text(self._metrics, "a") as file:
            file.write(to_json(line) + "\n")
            file.flush()
            os.fsync(file.fileno())  # the next checkpoint counts on it

    def capture(self, progress: Progress, *, copy: bool) -> checkpoint.CapturedState | None:
        """Take what this process has of where the run is now, to be written; copied if the run goes on meanwhile.

        Raises:
            UserError: a weight is not finite; the checkpoints before it stay.
        """
        if self.writer is None:
            return None
        self._check_finite(progress)
        length = self._metrics.stat().st_size if self._metrics.exists() else 0
        return resume_state.capture(self.assembly.parts, progress, copy=copy, metrics_bytes=length)

    def write(self, captured: checkpoint.CapturedState | None, target: Path) -> None:
        """Write a checkpoint of what `capture` returned, and remove the old ones.

        Raises:
            UserError: it cannot be written; the checkpoints before it stay.
        """
        if self.writer is None or captured is None:
            return
        with atomic.wrap_write_errors(self.checkpoints):
            self.writer.write(captured, target)
            if self.ranks.is_main:
                checkpoint.prune_checkpoints(target, self.keep, self._best(captured.plain["state"]["progress"]["best"]))

    def _check_finite(self, progress: Progress) -> None:
        if wrong := resume_state.nonfinite_parameters(self.assembly.parts):
            raise UserError(
                f"weights are not finite after step {progress.step}: {', '.join(wrong[:5])}; they are not saved and "
                f"the "
                f"checkpoints in {self.checkpoints} are kept; a lower learning rate or train.clip_norm usually helps"
            )

    def resume(self) -> Progress:
        """Put the run back to where its newest whole checkpoint is; to its beginning if there is none."""
        if not self.ranks.is_main:
            return self._resume_where_the_first_does()
        atomic.recover_interrupted_writes(self.path)
        atomic.recover_interrupted_writes(self.checkpoints)
        found = checkpoint.latest_checkpoint(self.checkpoints)
        progress, length = Progress(), 0
        if found:
            progress = resume_state.restore_state(self.assembly.parts, found)
            length = checkpoint.load_state(found, later=True)["metrics_bytes"]
            with atomic.wrap_write_errors(self.checkpoints):  # the run may have died before it did so
                checkpoint.quarantine_newer(found)
                checkpoint.prune_checkpoints(found, self.keep, self._best(progress.best))
        self._truncate_metrics(length)
        self.ranks.broadcast("checkpoint", lambda: found.name if found else "")
        return progress

    def _resume_where_the_first_does(self) -> Progress:
        name = self.ranks.broadcast("checkpoint", str)
        found = self.checkpoints / name
        if name and not found.is_dir():
            raise UserError(
                f"{found} does not exist on this host; the run folder must be on storage shared by all processes"
            )
        return resume_state.restore_state(self.assembly.parts, found) if name else Progress()

    def _best(self, metrics: Mapping[str, Any]) -> Path:
        """Return the checkpoint of the best epoch, whose metrics are given."""
        return checkpoint.checkpoint_dir(
            self.checkpoints, metrics.get("epoch", 0) * self.assembly.parts.steps_per_epoch
        )

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _truncate_metrics(self, length: int) -> None:
        """Drop the lines of epochs that are trained again."""
        found = self._metrics.stat().st_size if self._metrics.exists() else 0
        if found < length:
            structlog.get_logger().warning(f"{self._metrics} has lost lines", bytes=found, expected=length)
        elif found > length:
            with os.fdopen(open_regular(self._metrics, os.O_WRONLY), "wb") as file:
                file.truncate(length)

    def remove_if_empty(self) -> None:
        """Remove the folder if there is no checkpoint and no black box, so that nothing half-written stays."""
        if not any(self.checkpoints.glob("step-*")) and not (self.path / NONFINITE_DIR).exists():
            shutil.rmtree(self.path)


def write_config_and_manifest(path: Path, host: Host, data: Data, versions: Mapping[str, Any]) -> None:
    """Write ``config.toml`` and ``manifest.json``, which comes last and makes the folder one of a run."""
    with open_text(path / "config.toml", "w") as file:
        file.write(config_toml(host.config, host.used_plugins()))
    if data.skipped:
        atomic.write_json(path / "skipped.json", [{"split": s, "reason": reason} for s, reason in data.skipped])
    atomic.write_file(path / "manifest.json", lambda aside: atomic.write_json(aside, versions))
    _trust_own_code(host)


def _trust_own_code(host: Host) -> None:
    """Remember the code that the user told this run to use, as it is, so that the run can be read without naming it."""
    own = [plugin.reference for plugin in host.plugins if not plugin.reference.distribution]
    code = [(trust.code_file(one.file, one.module), trust.digest(one.file, one.module)) for one in own]
    try:
        trust.record((file, digest) for file, digest in code if file and digest)
    except UserError as error:
        structlog.get_logger().warning(f"{error}; what reads this run needs --plugin")


def open_run_folder(ready: PreparedRun) -> RunFolder:
    """Return what writes into the folder of a run; in one process of several."""
    host, assembly = ready.host, ready.assembly
    model = describe_model(host, ready.data, assembly)
    writer = _make_writer(assembly.parts.placement, ready.ranks)
    return RunFolder(ready.folder, model, assembly, host.config.run.keep, ready.ranks, writer)


def _make_writer(placement: Placement, ranks: ProcessInfo) -> checkpoint.CheckpointWriter | None:
    if placement.sharding is None:
        return checkpoint.CheckpointWriter() if ranks.is_main else None
    here = torch.zeros((), device=placement.device)
    return distributed.DistributedWriter(placement.sharding.checkpoints, ranks, lambda: placement.gather(here))


def config_toml(config: RunConfig, plugins: Sequence[Plugin]) -> str:
    """Spell the resolved configuration, each value with its origin as a comment."""
    document = tomlkit.document()
    named = [plugin for plugin in plugins if not plugin.is_default]
    document["plugins"] = [plugin.reference.canonical for plugin in named]
    available = discover()
    left_out = {resolve(named, available).name for named in config.plugins if not named.recipe}
    without = [name for name in config.without if name not in left_out]
    if without:
        document["without"] = without
    for section in SECTIONS:
        document[section] = _table(asdict(getattr(config, section)), section, config)
    if config.hooks:
        document["hooks"] = {hook: list(names) for hook, names in config.hooks.items()}
    options = tomlkit.table(is_super_table=True)
    for plugin in plugins:
        if plugin.config is not None:
            options[plugin.name] = _table(asdict(plugin.config), f"plugin.{plugin.name}", config)
    document["plugin"] = options
    return tomlkit.dumps(document)


def _table(values: dict[str, Any], place: str, config: RunConfig) -> tomlkit.items.Table:
    table = tomlkit.table()
    for key, value in values.items():
        if value is not None:
            item = tomlkit.item(list(value) if isinstance(value, tuple) else value)
            item.comment(" ".join(config.origin(f"{place}.{key}").split()))
            table.add(key, item)
    return table


def _named(reference: PluginReference) -> str:
    """Spell a plugin, an entry point of others with its distribution: a model is read without its run, too."""
    own = reference.distribution in (None, "ftcore")
    return reference.canonical if own else f"{reference.name}@{reference.distribution}"


def describe_model(host: Host, data: Data, assembly: Assembly) -> dict[str, Any]:
    """Say what `predict` needs to build the network again, and nothing else."""
    building = ("make_task", "build_model", "build_head", "make_transforms")
    makers = {p.name for hook in building for p in [*host.record[hook].answered, *host.record[hook].wrapped]}
    named = [plugin for plugin in host.plugins if plugin.name in makers and not plugin.is_default]
    wrapping = [*host.record["wrap_devices"].answered, *host.record["wrap_devices"].wrapped]
    model, architecture = attrs.evolve(host.config.model, weights="none"), assembly.network.backbone.architecture
    return {
        "format": manifest.MODEL_FORMAT,
        "ftcore": metadata.version("ftcore"),
        "model": asdict(model),
        "plugins": [_named(plugin.reference) for plugin in named],
        "options": {p.name: asdict(p.config) for p in host.plugins if p.name in makers and p.config is not None},
        "task": {"name": data.task.name, "state": data.task.state()},
        "input": asdict(assembly.network.spec),
        "wrapped_by": [p.name for p in wrapping if not p.is_default],
        **({"architecture": dict(architecture)} if architecture else {}),
    }
