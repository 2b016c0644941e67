"""The plugins of one run, asked through pluggy, with a record of who answered.

Each implementation becomes one small adapter in pluggy, so that every hook has its own order and its own record.
For a hook that takes one answer, an innermost wrapper turns pluggy's list of results into that answer: plugins'
own wrappers, which are outside it, see the answer and not a list.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import pluggy
import structlog
from attrs import define, field

from ftcore import hooks
from ftcore.distributed.ranks import ProcessInfo
from ftcore.errors import UserError, blame_plugin, did_you_mean, is_plugin_error
from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.types.context import Context

from .tasks import find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from ftcore.config.schema import RunConfig

    from .activation import Plugin
    from .lint import Implementation


_ANSWER = "the result of"


@define
class HookRecord:
    """What happened when a hook was called; lists hold plugins in the order in which they were asked."""

    answered: list[Plugin] = field(factory=list)
    answers: list[Any] = field(factory=list)
    passed: list[Plugin] = field(factory=list)
    wrapped: list[Plugin] = field(factory=list)
    not_asked: list[Plugin] = field(factory=list)


class _HookAdapter:
    """What pluggy registers: an object whose only attribute is one hook implementation."""

    def __init__(self, hook: str, function: Callable[..., Any], *, wrapper: bool) -> None:
        setattr(self, hook, hooks.hookimpl(wrapper=wrapper)(function))


class Host:
    """Asks the activated plugins of a run.

    Attributes:
        config: handed to every hook that wants it.
        plugins: named ones in the user's order, then defaults.
        record: hook -> what happened; empty until the hook is called.
        on_boundary: what `Context.on_boundary` calls; of the run, once it goes.
    """

    def __init__(
        self, config: RunConfig, plugins: Sequence[Plugin], folder: Path, ranks: ProcessInfo | None = None
    ) -> None:
        self.config = config
        self.plugins = tuple(plugins)
        self.record: dict[str, HookRecord] = {}
        self.on_boundary: Callable[[], None] = lambda: None
        self._folder = folder
        self._ranks = ranks or ProcessInfo()
        self._manager = pluggy.PluginManager(hooks.PLUGGY_PROJECT)
        self._manager.add_hookspecs(hooks)
        self._check_hook_names()
        for hook in HOOK_ARGUMENTS:
            self._check_conflict(hook)
            self._warn(hook)
            self._register(hook)

    def implementers(self, hook: str) -> list[tuple[Plugin, Implementation]]:
        """Return the implementations of a hook that may answer it, in the order in which they are asked."""
        found = [(plugin, impl) for plugin, impl in self._implementing(hook) if not impl.wrapper]
        order = self.config.hooks.get(hook, ())
        self._check_order(hook, order, [plugin for plugin, _ in found])
        found.sort(key=lambda pair: order.index(pair[0].name) if pair[0].name in order else len(order))
        if hook in hooks.COLLECT_HOOKS:
            found.sort(key=lambda pair: not pair[0].is_default)
        return found

    def wrappers(self, hook: str) -> list[tuple[Plugin, Implementation]]:
        """Return the wrappers of a hook, innermost first."""
        return [(plugin, impl) for plugin, impl in self._implementing(hook) if impl.wrapper]

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook and return its one answer, or None; for a hook of kind *all*, the list of answers."""
        self.record[hook] = HookRecord()
        arguments |= {"config": self.config, "ctx": None}
        return getattr(self._manager.hook, hook)(**{name: arguments[name] for name in HOOK_ARGUMENTS[hook]})

    def contributors(self, hook: str) -> list[Plugin]:
        """Return the plugins that made the result of a hook, those that wrapped it last."""
        record = self.record[hook]
        return [*record.answered, *record.wrapped]

    def origin_of(self, hook: str, part: Any = None) -> str:
        """Say which plugin returned something that raises an error now.

        Args:
            hook: that returned it.
            part: what it was, where the answers of several plugins are used.
        """
        record = self.record[hook]
        gave = [p for p, answer in zip(record.answered, record.answers, strict=True) if _holds(answer, part)]
        makers = [(p, impl) for p in gave or self.contributors(hook) for impl in p.hooks if impl.hook == hook]
        return " and ".join(f"raised by what plugin {p} returned in {hook} ({i.where})" for p, i in makers)

    def used_plugins(self) -> list[Plugin]:
        """Return the plugins that answered or wrapped a hook, recipes, and what ``[hooks]`` put behind an answer."""
        names = {p.name for record in self.record.values() for p in [*record.answered, *record.wrapped]}
        names |= {name for order in self.config.hooks.values() for name in order}
        return [plugin for plugin in self.plugins if plugin.name in names or plugin.is_recipe]

    def _implementing(self, hook: str) -> list[tuple[Plugin, Implementation]]:
        return [(plugin, impl) for plugin in self.plugins for impl in plugin.hooks if impl.hook == hook]

    def _check_hook_names(self) -> None:
        for hook in self.config.hooks:
            if hook not in HOOK_ARGUMENTS:
                origin = self.config.origin(f"hooks.{hook}")
                raise UserError(f"no such hook {hook!r} in [hooks]{did_you_mean(hook, HOOK_ARGUMENTS)} ({origin})")

    def _check_order(self, hook: str, order: Sequence[str], plugins: Sequence[Plugin]) -> None:
        names = [plugin.name for plugin in plugins]
        for name in order:
            if name not in names:
                raise UserError(
                    f"[hooks] {hook} names {name!r}, which is not an enabled plugin that implements it"
                    f"{did_you_mean(name, names)}; candidates: {', '.join(names) or 'none'}"
                )

    def _check_conflict(self, hook: str) -> None:
        """Find a certain conflict before anything heavy is imported: plugins that have this hook and no other.

        If both answered it would be a conflict, and if one passed it would have been named for nothing.
        """
        order = self.config.hooks.get(hook, ())
        rivals = [
            plugin
            for plugin, _ in self.implementers(hook)
            if len(plugin.hooks) == 1 and not plugin.is_default and plugin.name not in order
        ]
        if len(rivals) > 1 and hook not in hooks.COLLECT_HOOKS:
            raise UserError(self._conflict_message(hook, rivals))

    def _conflict_message(self, hook: str, plugins: Sequence[Plugin]) -> str:
        lines = "\n".join(f"  {plugin}" for plugin in plugins)
        order = ", ".join(f'"{plugin.name}"' for plugin in plugins)
        by_recipes = {named.origin for named in self.config.plugins if named.recipe}
        from_recipe = next((plugin for plugin in plugins if plugin.origin in by_recipes), None)
        if from_recipe:
            lines += f"\ndisable the plugin enabled by {from_recipe.origin} with --without {from_recipe.name}, or"
        return (
            f"{len(plugins)} plugins implement {hook}, but only one may:\n{lines}\n"
            f"keep one, or set the order in which they are called:  [hooks] {hook} = [{order}]"
        )

    def _warn(self, hook: str) -> None:
        """Warn of what a spec says that it will lose, as pluggy would, which sees our functions, not the plugins'."""
        spec: Any = getattr(self._manager.hook, hook).spec
        of_hook, of_arguments = spec.warn_on_impl, spec.warn_on_impl_args or {}
        spec.warn_on_impl = spec.warn_on_impl_args = None
        for plugin, impl in self._implementing(hook):
            file, _, line = impl.where.rpartition(":")
            for warning in (of_hook, *(of_arguments.get(name) for name in impl.arguments)):
                if warning and not plugin.is_default:
                    text = f"{plugin.name}.{hook} ({plugin.reference.source}): {warning}"
                    warnings.warn_explicit(text, type(warning), file, int(line))

    def _register(self, hook: str) -> None:
        """Register in reverse, because pluggy asks the last one first; wrappers outwards from the rule."""
        if hook not in hooks.COLLECT_HOOKS:
            self._add(f"{_ANSWER} {hook}", hook, self._one_answer(), wrapper=True)
        for plugin, impl in self.wrappers(hook):
            self._add(f"{plugin.name}.{hook} wrapper", hook, self._wrapper(plugin, impl), wrapper=True)
        for plugin, impl in reversed(self.implementers(hook)):
            self._add(f"{plugin.name}.{hook}", hook, self._answer(plugin, impl), wrapper=False)

    def _add(self, name: str, hook: str, function: Callable[..., Any], *, wrapper: bool) -> None:
        self._manager.register(_HookAdapter(hook, function, wrapper=wrapper), name=name)

    def _one_answer(self) -> Callable[..., Any]:
        def one_answer() -> Generator[None, list[Any], Any]:
            results = yield
            return results[0] if results else None

        return one_answer

    def _answer(self, plugin: Plugin, impl: Implementation) -> Callable[..., Any]:
        """Ask a plugin and note what it did; a default is not asked once somebody has answered."""
        ordered = plugin.name in self.config.hooks.get(impl.hook, ())

        @wraps(impl.function)
        def answer(*arguments: Any) -> Any:
            record = self.record[impl.hook]
            taken = bool(record.answered) and impl.hook not in hooks.COLLECT_HOOKS
            if taken and (plugin.is_default or ordered):
                record.not_asked.append(plugin)
                return None
            with _annotate_errors(plugin, impl):
                result = impl.function(*self._with_context(plugin, impl, arguments))
            if result is None:
                record.passed.append(plugin)
            else:
                record.answered.append(plugin)
                record.answers.append(result)
            if result is not None and taken:
                raise UserError(self._conflict_message(impl.hook, record.answered))
            return result

        return answer

    def _wrapper(self, plugin: Plugin, impl: Implementation) -> Callable[..., Any]:
        @wraps(impl.function)
        def wrapper(*arguments: Any) -> Generator[None, Any, Any]:
            self.record[impl.hook].wrapped.append(plugin)
            inner = impl.function(*self._with_context(plugin, impl, arguments))
            wrong = _fault(plugin, f"wrapper {plugin.location(impl)} must yield, and it must yield once")
            with _annotate_errors(plugin, impl):
                begun = next(inner, wrong)
            if begun is wrong:
                raise wrong
            result = yield
            try:
                with _annotate_errors(plugin, impl):
                    inner.send(result)
            except StopIteration as stop:
                if stop.value is None and result is not None:
                    raise _fault(
                        plugin,
                        f"wrapper {plugin.location(impl)} returned None and would discard the result {result!r}; "
                        "end it with 'return result'",
                    ) from None
                return stop.value
            raise _fault(plugin, f"wrapper {plugin.location(impl)} yielded twice; it must yield once")

        return wrapper

    def _with_context(self, plugin: Plugin, impl: Implementation, arguments: tuple[Any, ...]) -> list[Any]:
        """Fill in `ctx`, which is the plugin's own; its log carries the names of plugin and hook."""
        log = structlog.get_logger(plugin=plugin.name, hook=impl.hook)

        def at_boundary() -> None:
            self.on_boundary()  # which is set later than most hooks are called

        context = Context(self._folder, log, self._ranks, not plugin.is_default, at_boundary, partial(find_task, self))
        named = zip(impl.arguments, arguments, strict=True)
        return [context if name == "ctx" else value for name, value in named]


def _holds(answer: Any, part: Any) -> bool:
    """Whether an answer, a sequence or a mapping of several things, has this one in it."""
    items = answer.values() if isinstance(answer, Mapping) else answer if isinstance(answer, Sequence) else ()
    return any(item is part for item in items)


@contextmanager
def _annotate_errors(plugin: Plugin, impl: Implementation) -> Generator[None, None, None]:
    """Let an error that a hook raises say whose it is; its type and its traceback stay, and none ends the process."""
    try:
        yield
    except SystemExit as error:
        raise _fault(plugin, f"{plugin.location(impl)} tried to exit the process: SystemExit: {error}") from error
    except Exception as error:
        if not (
            isinstance(error, UserError | StopIteration) or is_plugin_error(error)
        ):  # of a hook that this one asked
            blame_plugin(error, f"raised by plugin {plugin} in {impl.hook} ({impl.where})")
        raise


def _fault(plugin: Plugin, message: str) -> UserError:
    return UserError(message, faulty_plugins=[plugin.name])


def summary(host: Host) -> dict[str, Any]:
    """Return hook -> name of the plugin that answered, a list of names for hooks that take all answers."""
    names = {hook: [plugin.name for plugin in record.answered] for hook, record in host.record.items()}
    return {hook: found if hook in hooks.COLLECT_HOOKS else found[0] for hook, found in names.items() if found}
