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

from . import checkpoint, snapshot
from .blackbox import FOLDER
from .discover import discover
from .errors import UserError
from .plugins import resolve
from .ranks import Ranks
from .state import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from .assemble import Assembly
    from .config import RunConfig
    from .events import EpochEnded
    from .host import Host
    from .parts import Data
    from .plugins import Plugin
    from .run import Ready


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
    ranks: Ranks = field(factory=Ranks)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @cached_property
    def together(self) -> checkpoint.Together | None:
        """How the processes write what is spread over them; None if nothing is."""
        placement = self.assembly.parts.placement
        if placement.spread is None:
            return None
        here = torch.zeros((), device=placement.device)
        return checkpoint.Together(placement.spread.checkpoints, self.ranks, lambda: placement.gather(here))

    def save_epoch(self, event: EpochEnded, progress: Progress) -> None:
        """Append to ``metrics.jsonl``, and save the model if this epoch is the best."""
        line = {k: v for k, v in asdict(event).items() if k not in {"best", "monitor"}}
        with checkpoint.refused(self.path):
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(checkpoint.to_json(line) + "\n")
                file.flush()
                os.fsync(file.fileno())  # the next checkpoint counts on it
            if event.best:
                description = {**self.model, "epoch": event.epoch, "monitor": event.monitor, "metrics": dict(event.val)}
                network = self.assembly.parts.evaluated(progress.epoch - 1)
                save = self.together.stream if self.together else _save_model
                checkpoint.write_folder(
                    self.path / "model", lambda aside: _write_model(aside, network, description, save)
                )

    def saving(self, progress: Progress, *, later: bool) -> Callable[[], Path]:
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
        target = checkpoint.step_folder(self.checkpoints, progress.step)
        length = self._metrics.stat().st_size if self._metrics.exists() else 0
        state = {**snapshot.take(parts, progress), "metrics_bytes": length}
        best = self._best(progress)
        networks: dict[str, Any] = {**snapshot.networks(parts, progress)}
        if self.together:
            save = self.together.saving(networks, state)
        else:
            copies = {name: checkpoint.Copied(network) for name, network in networks.items()} if later else networks
            save = checkpoint.saving(copies, state)

        def write() -> Path:
            with checkpoint.refused(self.checkpoints):
                save(target)
                checkpoint.rotate(target, self.keep, best)
            return target

        return write

    def _check_finite(self, progress: Progress) -> None:
        if wrong := snapshot.not_finite(self.assembly.parts):
            raise UserError(
                f"weights are not finite after step {progress.step}: {', '.join(wrong[:5])}; they are not saved, and "
                f"the checkpoints in {self.checkpoints} stay; a lower learning rate or train.clip_norm usually helps"
            )

    def resume(self) -> Progress:
        """Put the run back to where its newest whole checkpoint is; to its beginning if there is none."""
        checkpoint.tidy(self.path)
        checkpoint.tidy(self.checkpoints)
        found = checkpoint.newest(self.checkpoints)
        progress, length = Progress(), 0
        if found:
            progress = snapshot.put_back(self.assembly.parts, found)
            length = checkpoint.read(found, later=True)["metrics_bytes"]
            with checkpoint.refused(self.checkpoints):  # the run may have died before it did so
                checkpoint.set_aside(found)
                checkpoint.rotate(found, self.keep, self._best(progress))
        self._cut_metrics(length)
        self.ranks.told("checkpoint", lambda: found.name if found else "")
        return progress

    def _best(self, progress: Progress) -> Path:
        epoch = progress.best.get("epoch", 0)
        return checkpoint.step_folder(self.checkpoints, epoch * self.assembly.parts.steps_per_epoch)

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _cut_metrics(self, length: int) -> None:
        """Drop the lines of epochs that are trained again."""
        found = self._metrics.stat().st_size if self._metrics.exists() else 0
        if found < length:
            structlog.get_logger().warning(f"{self._metrics} has lost lines", bytes=found, expected=length)
        elif found > length:
            os.truncate(self._metrics, length)

    def discard(self) -> None:
        """Remove the folder if there is no checkpoint and no black box, so that nothing half-written stays."""
        if not any(self.checkpoints.glob("step-*")) and not (self.path / FOLDER).exists():
            shutil.rmtree(self.path)


class Onlooker(RunFolder):
    """What a process has of a run folder that another one writes: it reads where that one has begun."""

    def save_epoch(self, event: EpochEnded, progress: Progress) -> None:
        """Leave it to the first process, but for what only this one has."""
        if event.best and self.together:
            self.together.stream(self.assembly.parts.evaluated(progress.epoch - 1), self.path)

    def saving(self, progress: Progress, *, later: bool) -> Callable[[], Path]:
        """Leave it to the first process, but for what only this one has."""
        del later
        parts, target = self.assembly.parts, checkpoint.step_folder(self.checkpoints, progress.step)
        if self.together is None:
            return lambda: target
        self._check_finite(progress)
        save = self.together.saving(snapshot.networks(parts, progress), snapshot.take(parts, progress))

        def write() -> Path:
            with checkpoint.refused(self.checkpoints):
                save(target)
            return target

        return write

    def resume(self) -> Progress:
        """Put the run back to where the first process has."""
        name = self.ranks.told("checkpoint", str)
        found = self.checkpoints / name
        if name and not found.is_dir():
            raise UserError(
                f"{found} is not seen from here; the run folder must be on storage that all processes share"
            )
        return snapshot.put_back(self.assembly.parts, found) if name else Progress()

    def discard(self) -> None:
        """Leave it to the first process."""


def _save_model(network: nn.Module, file: Path) -> None:
    save_model(network, str(file))


def _write_model(
    folder: Path, network: nn.Module, description: dict[str, Any], save: Callable[[nn.Module, Path], None]
) -> None:
    save(network, folder / "model.safetensors")
    checkpoint.write_json(folder / "model.json", description)


def fill(path: Path, host: Host, data: Data, versions: Mapping[str, Any]) -> None:
    """Write ``config.toml`` and ``manifest.json``, which comes last and makes the folder one of a run."""
    (path / "config.toml").write_text(config_toml(host.config, host.used()), encoding="utf-8")
    if data.skipped:
        checkpoint.write_json(path / "skipped.json", [{"split": s, "reason": reason} for s, reason in data.skipped])
    checkpoint.write_json(path / ".manifest.json", versions)
    (path / ".manifest.json").rename(path / "manifest.json")


def opened(ready: Ready) -> RunFolder:
    """Return what writes into the folder of a run; in one process of several."""
    host, assembly = ready.host, ready.assembly
    kind = RunFolder if ready.ranks.leads else Onlooker
    model = describe_model(host, ready.data, assembly)
    return kind(ready.folder, model, assembly, host.config.run.keep, ready.ranks)


def config_toml(config: RunConfig, plugins: Sequence[Plugin]) -> str:
    """Spell the resolved configuration, each value with its origin as a comment."""
    document = tomlkit.document()
    named = [plugin for plugin in plugins if not plugin.is_default]
    document["plugins"] = [plugin.reference.written for plugin in named]
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
        "format": checkpoint.FORMAT,
        "ftcore": metadata.version("ftcore"),
        "model": asdict(model),
        "plugins": [plugin.reference.written for plugin in named],
        "options": {p.name: asdict(p.config) for p in host.plugins if p.name in makers and p.config is not None},
        "task": asdict(data.task),
        "input": asdict(assembly.network.spec),
        **({"architecture": dict(architecture)} if architecture else {}),
    }
