"""What is wrong with a plugin, found before pluggy sees it: pluggy lets most of these pass in silence."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ftcore import hooks
from ftcore.errors import did_you_mean
from ftcore.hooks import HOOK_ARGUMENTS, argument_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


IMPL_ATTRIBUTE = f"{hooks.PLUGGY_PROJECT}_impl"


@frozen
class Implementation:
    """One hook implementation of a plugin.

    Attributes:
        hook: name of the hook.
        function: the bound function.
        arguments: the subset of the spec's arguments that it takes.
        wrapper: whether it goes round the hook.
    """

    hook: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    wrapper: bool

    @property
    def where(self) -> str:
        """``file:line`` of the function."""
        code = inspect.unwrap(self.function).__code__
        return f"{code.co_filename}:{code.co_firstlineno}"


def public_functions(plugin: object) -> Iterator[tuple[str, Any]]:
    """Yield public functions of a plugin by name, without evaluating any of its properties."""
    for name in dir(plugin):
        if not name.startswith("_") and inspect.isroutine(inspect.getattr_static(plugin, name)):
            yield name, getattr(plugin, name)


def implementations(plugin: object) -> list[Implementation]:
    """Return the hook implementations of a plugin that has no `find_problems`."""
    return [
        Implementation(options.get("specname") or name, function, argument_names(function), bool(options["wrapper"]))
        for name, function in public_functions(plugin)
        if (options := getattr(function, IMPL_ATTRIBUTE, None))
    ]


def find_problems(plugin: object) -> list[str]:
    """Return everything that is wrong with a plugin, one line each."""
    found = [line for name, function in public_functions(plugin) for line in _problems_of(name, function)]
    if not is_plugin(plugin) and not found:
        inside = "".join(
            f"; its class {name} is a plugin: append :{name} to the reference" for name in _plugins_in(plugin)
        )
        found = [f"no hooks found: it has no @ftcore.hookimpl and is not a recipe{inside}"]
    return found


def _plugins_in(module: object) -> list[str]:
    """Name the classes of a module that are plugins."""
    classes = [(name, value) for name, value in inspect.getmembers_static(module, inspect.isclass)]
    return [name for name, cls in classes if cls.__module__ == getattr(module, "__name__", None) and is_plugin(cls)]


def is_plugin(target: object) -> bool:
    """Whether a class, an object or a module implements a hook, or is a recipe."""
    return any(hasattr(function, IMPL_ATTRIBUTE) or name == "recipe" for name, function in public_functions(target))


def _problems_of(name: str, function: Callable[..., Any]) -> Iterator[str]:
    options = getattr(function, IMPL_ATTRIBUTE, None)
    if options is None:
        yield from _unmarked(name, function)
        return
    hook = options.get("specname") or name
    if hook not in HOOK_ARGUMENTS:
        yield f"{hook}: no such hook {hook!r}{did_you_mean(hook, HOOK_ARGUMENTS)}"
        return
    if options.get("tryfirst") or options.get("trylast"):
        yield f"{hook}: tryfirst and trylast are ignored; the user sets the order in [hooks]"
    if options.get("hookwrapper"):
        yield f"{hook}: hookwrapper=True is pluggy's old style; use wrapper=True"
    if options["wrapper"] and not inspect.isgeneratorfunction(inspect.unwrap(function)):
        yield f"{hook}: a wrapper must yield once and return the result"
    yield from _problems_of_arguments(hook, function)


def _unmarked(name: str, function: Callable[..., Any]) -> Iterator[str]:
    if name not in HOOK_ARGUMENTS:
        return
    foreign = [key.removesuffix("_impl") for key in getattr(function, "__dict__", {}) if key.endswith("_impl")]
    if foreign:
        yield f"{name}: decorated with the hookimpl of {foreign[0]!r}, not of ftcore"
    else:
        yield f"{name}: has a hook's name but no @hookimpl, so it would never run"


def _problems_of_arguments(hook: str, function: Callable[..., Any]) -> Iterator[str]:
    takes = HOOK_ARGUMENTS[hook]
    for name, argument in inspect.signature(function).parameters.items():
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            stars = "*" if argument.kind is argument.VAR_POSITIONAL else "**"
            yield f"{hook}: {stars}{name} is never passed; name the arguments you need ({', '.join(takes)})"
        elif argument.kind is argument.KEYWORD_ONLY:
            yield f"{hook}: {name} is keyword-only, which is never passed; remove the '*'"
        elif name not in takes:
            yield f"{hook}: unknown argument {name!r}{did_you_mean(name, takes)}; allowed: {', '.join(takes)}"
        elif argument.default is not argument.empty:
            yield f"{hook}: {name} has a default; whether pluggy overrides it depends on its version, remove it"
