"""Say which plugin answers which hook and why, what is frozen, who shares a learning rate, and how the rates go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import asdict, evolve

from ftcore import hooks
from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.training.summary import trainable_tables
from ftcore.types.table import Table

if TYPE_CHECKING:
    from ftcore.config.schema import RunConfig
    from ftcore.plugins.activation import Plugin
    from ftcore.plugins.host import Host

    from .lr_preview import LRPreview


def explain(config: RunConfig, devices: int | None = None) -> tuple[list[Table], LRPreview]:
    """Assemble the run as `run` would, but with random weights, and describe it; nothing is written or trained.

    Args:
        config: the run.
        devices: say what a step takes of memory on one and on so many, with `ddp`; by default that is not looked at.

    Raises:
        UserError: as `ftcore.runs.prepared.prepare`.
    """
    from ftcore.runs.prepared import prepare

    from . import lr_preview

    ready = prepare(evolve(config, model=evolve(config.model, weights="none")))
    parts, groups = ready.assembly.parts, ready.assembly.groups
    tables = [
        _answers(ready.host),
        _options(ready.host),
        *ready.data.tables,
        *parts.objective.loss.tables,
        *trainable_tables(ready.assembly),
    ]
    followed = lr_preview.preview_learning_rates(parts, groups)
    tables.append(lr_preview.table(followed))
    if devices:
        from . import memory_estimate

        tables.append(memory_estimate.table(memory_estimate.measure(parts), devices))
    return tables, followed


def explain_without_building(config: RunConfig) -> list[Table]:
    """List the plugins of each hook, from names and options alone: no data, no network, no torch."""
    from ftcore.plugins.startup import activate

    host = activate(config)
    rows = [
        (hook, _kind(hook), ", ".join(p.name for p, _ in host.implementers(hook)), _names(host.wrappers(hook)))
        for hook in HOOK_ARGUMENTS
    ]
    return [Table("plugins in call order", ("hook", "uses", "plugins", "wrapped by"), tuple(rows))]


def _kind(hook: str) -> str:
    return "all results" if hook in hooks.COLLECT_HOOKS else "first result"


def _names(found: list[tuple[Plugin, Any]]) -> str:
    return ", ".join(plugin.name for plugin, _ in found)


def _answers(host: Host) -> Table:
    rows = []
    for hook, record in host.record.items():
        places = {p.name: impl.where for p, impl in host.implementers(hook)}
        others = [", ".join(p.name for p in who) for who in (record.wrapped, record.passed, record.not_asked)]
        rows += [(hook, p.name, p.reference.source, p.origin, places[p.name], *others) for p in record.answered]
    columns = ("hook", "plugin", "from", "enabled by", "code", "wrapped by", "declined", "not needed")
    return Table("plugins", columns, tuple(rows))


def _options(host: Host) -> Table:
    rows = [
        (
            f"{plugin.name}.{key}",
            str(value),
            host.config.origin(f"plugin.{plugin.name}.{key}"),
        )
        for plugin in host.used_plugins()
        if plugin.config is not None
        for key, value in asdict(plugin.config).items()
    ]
    return Table("options", ("option", "value", "set by"), tuple(rows))
