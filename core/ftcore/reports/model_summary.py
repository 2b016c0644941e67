"""The anatomy of a network, without weights and without memory: modules, shapes, the head, what is frozen."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen

from ftcore.model import freezing
from ftcore.model.build import build_network
from ftcore.model.shape_inference import as_tuple, build_on_meta
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.discovery import load_defaults
from ftcore.plugins.startup import activate
from ftcore.training.summary import groups_table
from ftcore.types.model import TokenSpec
from ftcore.types.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from ftcore.config.schema import RunConfig
    from ftcore.model.build import Network
    from ftcore.types.model import FreezePlan, InputSpec
    from ftcore.types.training import ParamGroup


def summarize_model(config: RunConfig, classes: int, depth: int) -> list[Table]:
    """Describe the network that a run would train, with its new head, as tables: facts, modules, groups.

    Args:
        config: model, plugins and their options.
        classes: outputs of the new head.
        depth: levels of modules that are shown.

    Raises:
        UserError: as for a run.
    """
    config = evolve(config, model=evolve(config.model, weights="none"))
    calls = HookCalls(activate(config))
    names = [f"class {number}" for number in range(classes)]
    task = calls.make_task(load_defaults().TASK).read({"names": names, "counts": [1] * classes})
    network = build_on_meta(lambda: build_network(calls.host.config, calls, task))
    model = network.module.to("meta")
    plan = calls.freeze(model, network.heads, network.backbone, task)
    freezing.check_plan(partial(calls.make_error, "freeze"), plan, model, network.heads)
    freezing.apply_requires_grad(model, plan, epoch=0)
    groups = calls.param_groups(freezing.ever_trainable_parameters(model, plan), model, network.heads, network.backbone)
    optimizer = calls.make_optimizer(groups)
    anatomy = _ModuleTable(network, plan, {name: group for group in groups for name in group.params}, _outputs(network))
    return [_facts(network, calls.host.config), anatomy.table(depth), groups_table(optimizer, groups)]


def _facts(network: Network, config: RunConfig) -> Table:
    spec, stages = network.spec, network.backbone.stages
    total = sum(p.numel() for p in network.module.parameters())
    learning = sum(p.numel() for p in network.module.parameters() if p.requires_grad)
    heads = ", ".join(f"{slot.path} ({slot.in_features} features)" for slot in network.backbone.heads)
    rows = (
        ("input", f"{spec.preprocessing}{_normalised(spec)}"),
        ("parameters", f"{total:,}, of which {learning:,} are trainable in the first epoch"),
        ("head", heads),
        ("stages", f"{max(stages.values(), default=0)} after the stem"),
    )
    return Table(str(config.model.name), ("property", "value"), rows)


def _normalised(spec: InputSpec) -> str:
    return "" if isinstance(spec, TokenSpec) else f", mean {spec.mean}, std {spec.std}"


def _outputs(network: Network) -> Mapping[str, str]:
    """Run two images through the network on the meta device, and note the shape of each module's first output."""
    shapes: dict[str, str] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            found = [o for o in as_tuple(outputs) if isinstance(o, torch.Tensor)]
            shapes.setdefault(name, " and ".join(" x ".join(map(str, ("N", *o.shape[1:]))) for o in found))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in network.module.named_modules()]
    try:
        with torch.no_grad():
            network.module.eval()(network.spec.zeros(2, "meta"))
    except Exception:  # noqa: BLE001 - a network that does not run without memory is shown without shapes
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return shapes


@frozen(eq=False)
class _ModuleTable:
    """What there is to say about each module.

    Attributes:
        network: on the meta device.
        plan: what is frozen.
        groups: parameter name -> its group.
        outputs: module name -> shape of its output.
    """

    network: Network
    plan: FreezePlan
    groups: Mapping[str, ParamGroup]
    outputs: Mapping[str, str]

    def table(self, depth: int) -> Table:
        """One row for each module down to `depth`, and for each parameter that belongs to a module above that."""
        columns = ("module", "kind", "output", "parameters", "state", "group")
        return Table("modules", columns, tuple(self._rows("", self.network.module, depth)))

    def _rows(self, path: str, module: nn.Module, depth: int) -> Iterator[tuple[str, ...]]:
        yield self._row(path, type(module).__name__, self.outputs.get(path, ""))
        if not depth or path in self.network.heads:
            return
        prefix = f"{path}." if path else ""
        if any(True for _ in module.children()):
            for name, _ in module.named_parameters(recurse=False):
                yield self._row(prefix + name, "Parameter", "")
        for name, child in module.named_children():
            yield from self._rows(prefix + name, child, depth - 1)

    def _row(self, path: str, kind: str, output: str) -> tuple[str, ...]:
        inside = {n: p for n, p in self.network.module.named_parameters() if freezing.is_submodule_of(n, [path])}
        groups = list(dict.fromkeys(self.groups[name].name for name in inside if name in self.groups))
        head = "  <- head" if path in self.network.heads else ""
        indent = "  " * (path.count(".") + 1) if path else ""
        name = f"{indent}{path}{head}" if path else "(the network)"
        shown = ", ".join(groups[:2]) + (f" and {len(groups) - 2} more" if len(groups) > 2 else "")
        return name, kind, output, f"{sum(p.numel() for p in inside.values()):,}", self._state(path, inside), shown

    def _state(self, path: str, inside: Mapping[str, nn.Parameter]) -> str:
        starts = {self._first_trainable_epoch(name) for name in inside}
        held = freezing.stays_in_eval(self.plan, path, freezing.unfrozen_names(self.plan, 0))
        if not starts:
            return "eval" if held else ""
        words = [
            "frozen" if start is None else "trainable" if not start else f"trainable after {start} epochs"
            for start in sorted(starts, key=lambda start: (start is None, start))
        ]
        return ", ".join(words) + (", eval" if held else "")

    def _first_trainable_epoch(self, name: str) -> int | None:
        """Return the epoch (from 0) in which a parameter starts to learn, None for never."""
        epochs = (0, *sorted(self.plan.unfreeze_at))
        return next(
            (e for e in epochs if freezing.is_trainable(self.plan, name, freezing.unfrozen_names(self.plan, e))), None
        )
