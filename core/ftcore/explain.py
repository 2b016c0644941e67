"""Say which plugin answers which hook and why, what is frozen, who shares a learning rate, and how the rates go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import asdict, evolve

from . import freezing, hooks
from .lint import SPECS
from .parts import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

    from .assemble import Assembly
    from .config import RunConfig
    from .host import Host
    from .parts import ParamGroup
    from .plugins import Plugin
    from .rates import Rates
    from .state import Parts


def explain(config: RunConfig, devices: int | None = None) -> tuple[list[Table], Rates]:
    """Assemble the run as `run` would, but with random weights, and describe it; nothing is written or trained.

    Args:
        config: the run.
        devices: say what a step takes of memory on one and on so many, with `ddp`; by default that is not looked at.

    Raises:
        UserError: as `ftcore.run.prepare`.
    """
    from . import rates
    from .run import prepare

    ready = prepare(evolve(config, model=evolve(config.model, weights="none")))
    parts, groups = ready.assembly.parts, ready.assembly.groups
    tables = [
        _answers(ready.host),
        _options(ready.host),
        *ready.data.tables,
        *parts.loss.tables,
        *learning(ready.assembly),
    ]
    followed = rates.follow(parts, groups)
    tables.append(rates.table(followed))
    if devices:
        from . import footprint

        tables.append(footprint.table(footprint.measure(parts), devices))
    return tables, followed


def as_json(tables: Sequence[Table]) -> dict[str, list[dict[str, str]]]:
    """Spell tables for programs: title -> rows, each by column."""
    return {table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in tables}


def explain_statically(config: RunConfig) -> list[Table]:
    """Describe who would be asked, from names and options alone: no data, no network, no torch."""
    from .run import activate

    host = activate(config)
    rows = [
        (hook, _kind(hook), ", ".join(p.name for p, _ in host.answering(hook)), _names(host.wrapping(hook)))
        for hook in SPECS
    ]
    return [Table("who would be asked, in this order", ("hook", "takes", "asked", "wrapped by"), tuple(rows))]


def _kind(hook: str) -> str:
    return "all" if hook in hooks.ALL else "one"


def _names(found: list[tuple[Plugin, Any]]) -> str:
    return ", ".join(plugin.name for plugin, _ in found)


def _answers(host: Host) -> Table:
    rows = []
    for hook, record in host.record.items():
        places = {p.name: impl.where for p, impl in host.answering(hook)}
        others = [", ".join(p.name for p in who) for who in (record.wrapped, record.passed, record.not_asked)]
        rows += [(hook, p.name, p.reference.source, p.origin, places[p.name], *others) for p in record.answered]
    columns = ("hook", "plugin", "from", "named by", "code", "wrapped by", "passed", "not asked")
    return Table("who answers", columns, tuple(rows))


def _options(host: Host) -> Table:
    rows = [
        (
            f"{plugin.name}.{key}",
            str(value),
            host.config.origin(f"plugin.{plugin.name}.{key}"),
        )
        for plugin in host.used()
        if plugin.config is not None
        for key, value in asdict(plugin.config).items()
    ]
    return Table("options", ("option", "value", "set by"), tuple(rows))


def learning(assembly: Assembly) -> tuple[Table, ...]:
    """Say what learns, what will later, and at which rate."""
    parts = assembly.parts
    later = tuple((str(epoch + 1), ", ".join(sorted(names))) for epoch, names in sorted(parts.plan.unfreeze_at.items()))
    released = (Table("what is released later", ("from epoch", "names"), later),) if later else ()
    return _children(parts), *released, groups_table(parts.optimizer, assembly.groups)


def _children(parts: Parts) -> Table:
    """One row for each child of the network, with what learns in it."""
    rows = []
    for name, child in parts.network.named_children():
        numbers = [(p.numel(), p.requires_grad) for p in child.parameters()]
        total, learns = sum(n for n, _ in numbers), sum(n for n, learning in numbers if learning)
        released = freezing.thawed(parts.plan, 0)
        inside = [f"{name}.{path}" if path else name for path, _ in child.named_modules()]
        held = sum(freezing.is_held(parts.plan, path, released) for path in inside)
        state = "learns" if learns == total else "frozen" if not learns else "partly frozen"
        rows.append((name, state if total else "no parameters", f"{total:,}", f"{learns:,}", str(held)))
    columns = ("module", "state", "parameters", "learning", "modules held in eval")
    return Table("what learns", columns, tuple(rows))


def groups_table(optimizer: Optimizer, groups: Sequence[ParamGroup]) -> Table:
    """One row for each parameter group, with the rates that its optimizer gives it."""
    rows = [
        (
            group.name,
            str(len(group.params)),
            f"{sum(p.numel() for p in group.params.values()):,}",
            f"{settings.get('initial_lr', settings['lr']):g}",
            f"{settings.get('weight_decay', 0):g}",
            ", ".join(list(group.params)[:3]) + (" ..." if len(group.params) > 3 else ""),
        )
        for group, settings in zip(groups, optimizer.param_groups, strict=True)
    ]
    columns = ("group", "tensors", "parameters", "lr", "weight decay", "names")
    return Table(f"parameter groups of {type(optimizer).__name__}", columns, tuple(rows))
