"""Parameters that a loss, a term or a penalty holds beside the network: no optimizer has them, so they never learn."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftcore.plugins.calls import HookCalls

    from .state import TrainingParts

MAX_DEPTH = 6
"""How far is looked into what a function holds: its closure, what it is bound to, and what that holds."""


def check_all_registered(calls: HookCalls, parts: TrainingParts) -> None:
    """Refuse parameters that want a gradient and are not the network's own, before anything is trained.

    Raises:
        UserError: a loss, a term of a step or a regularizer holds some; it names the plugin and the way out.
    """
    objective = parts.objective
    held: list[tuple[str, str, Any]] = [("make_loss", "the loss", objective.loss.function)]
    held += [("make_step", f"the term {name!r}", term) for name, term in objective.step.terms.items()]
    held += [("make_regularizers", f"the penalty {r.name!r}", r.penalty) for r in objective.regularizers]
    modules = {id(module) for root in (parts.network, parts.placement.model) for module in root.modules()}
    known = {id(p) for root in (parts.network, parts.placement.model) for p in root.parameters()}
    for hook, what, function in held:
        found = unregistered(function, modules | known)
        if found:
            numbers = sum(parameter.numel() for parameter in found.values())
            raise calls.make_error(
                hook,
                f": {what} has parameters that would not be trained, because the optimizer only gets those of the "
                f"network: "
                f"{', '.join(list(found)[:5])} ({numbers:,} numbers); let build_head of the plugin return a head that "
                "registers them and uses them in its forward pass, so that they are trained and saved, or share "
                "that head's parameter; what is not to learn is requires_grad_(False)",
            )


def unregistered(function: Any, known: set[int]) -> dict[str, nn.Parameter]:
    """Return the parameters that something holds, that want a gradient, and whose `id`, or module's, is not known."""
    return {
        name: parameter
        for name, parameter in _held(function, "", known, set(), MAX_DEPTH)
        if parameter.requires_grad and id(parameter) not in known
    }


def _held(value: Any, name: str, known: set[int], seen: set[int], depth: int) -> Iterator[tuple[str, nn.Parameter]]:
    if id(value) in seen or id(value) in known or not depth:
        return
    seen.add(id(value))
    if isinstance(value, nn.Parameter):
        yield name, value
    elif isinstance(value, nn.Module):
        yield from ((f"{name}.{inner}".lstrip("."), parameter) for inner, parameter in value.named_parameters())
    else:
        for inner, item in _inside(value):
            yield from _held(item, inner if not name else f"{name}.{inner}", known, seen, depth - 1)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of what something that is no module holds."""
    match value:
        case MethodType() | BuiltinMethodType():
            yield from (("", value.__self__), ("", getattr(value, "__func__", None)))
        case partial():
            yield from [("", value.func), *((str(place), item) for place, item in enumerate(value.args))]
            yield from value.keywords.items()
        case FunctionType():
            names = value.__code__.co_freevars
            cells = [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
            yield from zip(names, cells, strict=False)
            yield from ((name, value.__globals__[name]) for name in value.__code__.co_names if _is_own(value, name))
        case Mapping():
            yield from ((str(key), item) for key, item in value.items())
        case list() | tuple() | set():
            yield from ((str(place), item) for place, item in enumerate(value))
        case _ if type(value).__module__.partition(".")[0] not in {"builtins", "torch", "numpy"}:
            yield from getattr(value, "__dict__", {}).items()


def _is_full(cell: Any) -> bool:
    try:
        return bool(cell.cell_contents is not None)
    except ValueError:
        return False


def _is_own(function: FunctionType, name: str) -> bool:
    """Whether a name of a function is a module or a parameter that its file holds."""
    return isinstance(function.__globals__.get(name), nn.Module | nn.Parameter)
