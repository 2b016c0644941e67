"""The run folder: everything that a run leaves behind."""

from __future__ import annotations

import shutil
from importlib import metadata
from typing import TYPE_CHECKING, Any

import attrs
import tomlkit
from attrs import asdict, define
from safetensors.torch import save_model

from . import checkpoint
from .discover import discover
from .plugins import resolve
from .provenance import manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .assemble import Assembly
    from .config import RunConfig
    from .events import EpochEnded
    from .host import Host
    from .loop import Progress
    from .parts import Data
    from .plugins import Plugin


@define
class RunFolder:
    """Writes a run folder while the run goes.

    Attributes:
        path: the folder.
        model: the JSON of ``model/``, which `predict` reads.
        assembly: the run.
    """

    path: Path
    model: dict[str, Any]
    assembly: Assembly

    def save(self, event: EpochEnded, progress: Progress) -> None:
        """Append to ``metrics.jsonl``, save a checkpoint, and the model if this epoch is the best."""
        line = {k: v for k, v in asdict(event).items() if k not in {"best", "monitor"}}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(checkpoint.to_json(line) + "\n")
        checkpoint.save(self.path / "checkpoints", self.assembly.parts, progress)
        if event.best:
            description = {**self.model, "epoch": event.epoch, "metrics": dict(event.val)}
            checkpoint.write_folder(self.path / "model", lambda aside: self._write_model(aside, description))

    def discard(self) -> None:
        """Remove the folder if no epoch was finished, so that nothing half-written stays."""
        if not any(self.path.glob("checkpoints/step-*")):
            shutil.rmtree(self.path)

    def _write_model(self, folder: Path, description: dict[str, Any]) -> None:
        save_model(self.assembly.parts.network, str(folder / "model.safetensors"))
        checkpoint.write_json(folder / "model.json", description)


def create(path: Path, host: Host, data: Data, assembly: Assembly) -> RunFolder:
    """Make the folder with ``config.toml`` and ``manifest.json``."""
    config, versions = config_toml(host.config, host.used()), manifest(host, data)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.toml").write_text(config, encoding="utf-8")
    checkpoint.write_json(path / "manifest.json", versions)
    if data.skipped:
        checkpoint.write_json(path / "skipped.json", [{"split": s, "reason": reason} for s, reason in data.skipped])
    return RunFolder(path, describe_model(host, data, assembly), assembly)


def config_toml(config: RunConfig, plugins: Sequence[Plugin]) -> str:
    """Spell the resolved configuration, each value with its origin as a comment."""
    document = tomlkit.document()
    named = [plugin for plugin in plugins if not plugin.is_default]
    document["plugins"] = [plugin.reference.written for plugin in named]
    available = discover()
    left_out = {resolve(name, available).name for name in config.plugins}
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
    model = attrs.evolve(host.config.model, weights="none")
    return {
        "format": checkpoint.FORMAT,
        "ftcore": metadata.version("ftcore"),
        "model": asdict(model),
        "plugins": [plugin.reference.written for plugin in named],
        "options": {p.name: asdict(p.config) for p in host.plugins if p.name in makers and p.config is not None},
        "task": asdict(data.task),
        "input": asdict(assembly.network.spec),
    }
