"""The run folder: everything that a run leaves behind."""

from __future__ import annotations

import os
import shutil
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any

import attrs
import structlog
import tomlkit
import torch
from attrs import asdict, define, field
from safetensors.torch import save_model

from ftcore.checkpoints import atomic, checkpoint, manifest, together
from ftcore.distributed.ranks import ProcessInfo
from ftcore.errors import UserError
from ftcore.plugins.discovery import discover
from ftcore.plugins.references import resolve
from ftcore.training import resume_state
from ftcore.training.nonfinite import NONFINITE_DIR
from ftcore.training.state import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from ftcore.config.schema import RunConfig
    from ftcore.plugins.activation import Plugin
    from ftcore.plugins.host import Host
    from ftcore.training.assemble import Assembly
    from ftcore.types.data import Data
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
    """

    path: Path
    model: dict[str, Any]
    assembly: Assembly
    keep: int
    ranks: ProcessInfo = field(factory=ProcessInfo)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @cached_property
    def distributed_checkpoint(self) -> together.DistributedCheckpoint | None:
        """How the processes write what is spread over them; None if nothing is."""
        placement = self.assembly.parts.placement
        if placement.sharding is None:
            return None
        here = torch.zeros((), device=placement.device)
        return together.DistributedCheckpoint(
            placement.sharding.checkpoints, self.ranks, lambda: placement.gather(here)
        )

    def save_epoch(self, event: EpochEnded, progress: Progress) -> None:
        """Append to ``metrics.jsonl``, and save the model if this epoch is the best."""
        line = {k: v for k, v in asdict(event).items() if k not in {"best", "monitor"}}
        with atomic.wrap_write_errors(self.path):
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(atomic.to_json(line) + "\n")
                file.flush()
                os.fsync(file.fileno())  # the next checkpoint counts on it
            if event.best:
                description = {**self.model, "epoch": event.epoch, "monitor": event.monitor, "metrics": dict(event.val)}
                network = self.assembly.parts.model_at(progress.epoch - 1)
                save = self.distributed_checkpoint.stream if self.distributed_checkpoint else _save_model
                atomic.write_dir_atomic(
                    self.path / "model", lambda aside: _write_model(aside, network, description, save)
                )

    def prepare_checkpoint(self, progress: Progress, *, later: bool) -> Callable[[], Path]:
        """Return what writes a checkpoint of where the run is now, removes the old ones, and returns its path.

        Args:
            progress: of the run.
            later: whether the run may have gone on by then.

        Raises:
            UserError: a weight is not finite; the checkpoints before it stay. What is returned raises it where the
                checkpoint cannot be written.
        """
        parts = self.assembly.parts
        self._check_finite(progress)
        target = checkpoint.checkpoint_dir(self.checkpoints, progress.step)
        length = self._metrics.stat().st_size if self._metrics.exists() else 0
        state = {**resume_state.capture_state(parts, progress), "metrics_bytes": length}
        best = self._best(progress)
        networks: dict[str, Any] = {**resume_state.networks_to_save(parts, progress)}
        if self.distributed_checkpoint:
            save = self.distributed_checkpoint.saving(networks, state)
        else:
            copies = {name: checkpoint.CpuCopy(network) for name, network in networks.items()} if later else networks
            save = checkpoint.prepare_save(copies, state)

        def write() -> Path:
            with atomic.wrap_write_errors(self.checkpoints):
                save(target)
                checkpoint.prune_checkpoints(target, self.keep, best)
            return target

        return write

    def _check_finite(self, progress: Progress) -> None:
        if wrong := resume_state.nonfinite_parameters(self.assembly.parts):
            raise UserError(
                f"weights are not finite after step {progress.step}: {', '.join(wrong[:5])}; they are not saved, and "
                f"the checkpoints in {self.checkpoints} stay; a lower learning rate or train.clip_norm usually helps"
            )

    def resume(self) -> Progress:
        """Put the run back to where its newest whole checkpoint is; to its beginning if there is none."""
        atomic.recover_interrupted_writes(self.path)
        atomic.recover_interrupted_writes(self.checkpoints)
        found = checkpoint.latest_checkpoint(self.checkpoints)
        progress, length = Progress(), 0
        if found:
            progress = resume_state.restore_state(self.assembly.parts, found)
            length = checkpoint.load_state(found, later=True)["metrics_bytes"]
            with atomic.wrap_write_errors(self.checkpoints):  # the run may have died before it did so
                checkpoint.quarantine_newer(found)
                checkpoint.prune_checkpoints(found, self.keep, self._best(progress))
        self._truncate_metrics(length)
        self.ranks.broadcast("checkpoint", lambda: found.name if found else "")
        return progress

    def _best(self, progress: Progress) -> Path:
        epoch = progress.best.get("epoch", 0)
        return checkpoint.checkpoint_dir(self.checkpoints, epoch * self.assembly.parts.steps_per_epoch)

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _truncate_metrics(self, length: int) -> None:
        """Drop the lines of epochs that are trained again."""
        found = self._metrics.stat().st_size if self._metrics.exists() else 0
        if found < length:
            structlog.get_logger().warning(f"{self._metrics} has lost lines", bytes=found, expected=length)
        elif found > length:
            os.truncate(self._metrics, length)

    def remove_if_empty(self) -> None:
        """Remove the folder if there is no checkpoint and no black box, so that nothing half-written stays."""
        if not any(self.checkpoints.glob("step-*")) and not (self.path / NONFINITE_DIR).exists():
            shutil.rmtree(self.path)


class ReadOnlyRunFolder(RunFolder):
    """What a process has of a run folder that another one writes: it reads where that one has begun."""

    def save_epoch(self, event: EpochEnded, progress: Progress) -> None:
        """Leave it to the first process, but for what only this one has."""
        if event.best and self.distributed_checkpoint:
            self.distributed_checkpoint.stream(self.assembly.parts.model_at(progress.epoch - 1), self.path)

    def prepare_checkpoint(self, progress: Progress, *, later: bool) -> Callable[[], Path]:
        """Leave it to the first process, but for what only this one has."""
        del later
        parts, target = self.assembly.parts, checkpoint.checkpoint_dir(self.checkpoints, progress.step)
        if self.distributed_checkpoint is None:
            return lambda: target
        self._check_finite(progress)
        save = self.distributed_checkpoint.saving(
            resume_state.networks_to_save(parts, progress), resume_state.capture_state(parts, progress)
        )

        def write() -> Path:
            with atomic.wrap_write_errors(self.checkpoints):
                save(target)
            return target

        return write

    def resume(self) -> Progress:
        """Put the run back to where the first process has."""
        name = self.ranks.broadcast("checkpoint", str)
        found = self.checkpoints / name
        if name and not found.is_dir():
            raise UserError(
                f"{found} is not seen from here; the run folder must be on storage that all processes share"
            )
        return resume_state.restore_state(self.assembly.parts, found) if name else Progress()

    def remove_if_empty(self) -> None:
        """Leave it to the first process."""


def _save_model(network: nn.Module, file: Path) -> None:
    save_model(network, str(file))


def _write_model(
    folder: Path, network: nn.Module, description: dict[str, Any], save: Callable[[nn.Module, Path], None]
) -> None:
    save(network, folder / "model.safetensors")
    atomic.write_json(folder / "model.json", description)


def write_config_and_manifest(path: Path, host: Host, data: Data, versions: Mapping[str, Any]) -> None:
    """Write ``config.toml`` and ``manifest.json``, which comes last and makes the folder one of a run."""
    (path / "config.toml").write_text(config_toml(host.config, host.used_plugins()), encoding="utf-8")
    if data.skipped:
        atomic.write_json(path / "skipped.json", [{"split": s, "reason": reason} for s, reason in data.skipped])
    atomic.write_json(path / ".manifest.json", versions)
    (path / ".manifest.json").rename(path / "manifest.json")


def open_run_folder(ready: PreparedRun) -> RunFolder:
    """Return what writes into the folder of a run; in one process of several."""
    host, assembly = ready.host, ready.assembly
    kind = RunFolder if ready.ranks.is_main else ReadOnlyRunFolder
    model = describe_model(host, ready.data, assembly)
    return kind(ready.folder, model, assembly, host.config.run.keep, ready.ranks)


def config_toml(config: RunConfig, plugins: Sequence[Plugin]) -> str:
    """Spell the resolved configuration, each value with its origin as a comment."""
    document = tomlkit.document()
    named = [plugin for plugin in plugins if not plugin.is_default]
    document["plugins"] = [plugin.reference.canonical for plugin in named]
    available = discover()
    left_out = {resolve(named, available).name for named in config.plugins if not named.origin.startswith("recipe ")}
    without = [name for name in config.without if name not in left_out]
    if without:
        document["without"] = without
    for section in ("model", "data", "train", "run"):
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


def describe_model(host: Host, data: Data, assembly: Assembly) -> dict[str, Any]:
    """Say what `predict` needs to build the network again, and nothing else."""
    building = ("build_model", "build_head", "make_transforms")
    makers = {p.name for hook in building for p in [*host.record[hook].answered, *host.record[hook].wrapped]}
    named = [plugin for plugin in host.plugins if plugin.name in makers and not plugin.is_default]
    model, architecture = attrs.evolve(host.config.model, weights="none"), assembly.network.backbone.architecture
    return {
        "format": manifest.FORMAT,
        "ftcore": metadata.version("ftcore"),
        "model": asdict(model),
        "plugins": [plugin.reference.canonical for plugin in named],
        "options": {p.name: asdict(p.config) for p in host.plugins if p.name in makers and p.config is not None},
        "task": asdict(data.task),
        "input": asdict(assembly.network.spec),
        **({"architecture": dict(architecture)} if architecture else {}),
    }
