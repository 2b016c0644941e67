"""Tables of what learns in a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftcore.model import freezing
from ftcore.types.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

    from ftcore.types.training import ParamGroup

    from .assemble import Assembly
    from .state import TrainingParts


def trainable_tables(assembly: Assembly) -> tuple[Table, ...]:
    """Say what learns, what will later, and at which rate."""
    parts = assembly.parts
    later = tuple((str(epoch + 1), ", ".join(sorted(names))) for epoch, names in sorted(parts.plan.unfreeze_at.items()))
    released = (Table("unfrozen later", ("from epoch", "names"), later),) if later else ()
    return _child_table(parts), *released, groups_table(parts.optimization.optimizer, assembly.groups)


def _child_table(parts: TrainingParts) -> Table:
    """One row for each child of the network, with what learns in it."""
    rows = []
    for name, child in parts.network.named_children():
        numbers = [(p.numel(), p.requires_grad) for p in child.parameters()]
        total, learns = sum(n for n, _ in numbers), sum(n for n, learning in numbers if learning)
        released = freezing.unfrozen_names(parts.plan, 0)
        inside = [f"{name}.{path}" if path else name for path, _ in child.named_modules()]
        held = sum(freezing.stays_in_eval(parts.plan, path, released) for path in inside)
        state = "trainable" if learns == total else "frozen" if not learns else "partly frozen"
        rows.append((name, state if total else "no parameters", f"{total:,}", f"{learns:,}", str(held)))
    columns = ("module", "state", "parameters", "trainable", "modules kept in eval mode")
    return Table("trainable parameters", columns, tuple(rows))


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
