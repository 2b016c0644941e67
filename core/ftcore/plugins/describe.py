"""Every installed plugin in a row, without importing any; and one of them in full."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import attrs

from ftcore.types.table import Table

from .activation import load
from .discovery import discover, file_hooks, load_defaults, source_file, static_hooks
from .lint import implementations
from .references import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftcore.config.schema import PluginRef, RunConfig

    from .references import PluginReference


def list_plugins(config: RunConfig) -> list[dict[str, Any]]:
    """Return name, distribution, version, hooks and state of every installed plugin, and of each hooks file named."""
    available = discover()
    references = [resolve(named, available) for named in config.plugins]
    active = {reference.name: reference for reference in references}
    defaults = set(load_defaults().PLUGINS) - set(config.without)
    rows = []
    for plugin in available:
        chosen = plugin.name in active and active[plugin.name].target == plugin.target
        default = plugin.distribution == "ftcore" and plugin.name in defaults
        rows.append(
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "hooks": _format_hooks(static_hooks(plugin.target)),
                "active": "yes" if chosen else "default" if default else "no",
            }
        )
    return rows + [_file_row(reference) for reference in references if reference.file]


def describe_plugin(named: PluginRef) -> list[Table]:
    """Describe one plugin as tables: what it is, its hooks, its options; imports it, and no other.

    Raises:
        UserError: there is no such plugin, or it cannot be imported.
    """
    reference = resolve(named, discover())
    target = load(reference)
    facts = {
        "from": reference.source,
        "target": reference.target,
        "file": str(reference.file or source_file(reference.module)),
        "about": (inspect.getdoc(target) or "").partition("\n")[0],
    }
    hooks = [
        (i.hook, "goes round" if i.wrapper else "answers", ", ".join(a for a in i.arguments if a != "self"), i.where)
        for i in implementations(target)
    ]
    return [
        Table(reference.name, ("property", "value"), tuple(facts.items())),
        Table("hooks", ("hook", "how", "takes", "code"), tuple(hooks)),
        Table("options", ("option", "type", "default", "meaning"), tuple(option_rows(getattr(target, "Config", None)))),
    ]


def option_rows(config: Any) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each option; the meaning is read from the docstrings."""
    if config is None:
        return
    docs = [inspect.cleandoc(base.__doc__ or "") for base in reversed(config.__mro__)]
    meanings = {name: text for doc in docs for name, text in _attributes(doc).items()}
    for option in attrs.fields(attrs.resolve_types(config)):
        default: Any = option.default
        default = default.factory() if hasattr(default, "factory") else default
        spelt = "must be set" if default is attrs.NOTHING else repr(default)
        yield option.name, _type_name(option.type), spelt, meanings.get(option.name, "")


def _type_name(kind: Any) -> str:
    return kind.__name__ if type(kind) is type else str(kind).replace("typing.", "")


def _attributes(doc: str) -> dict[str, str]:
    """Read the entries of a docstring's ``Attributes:`` section, continued lines joined."""
    section = doc.partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _file_row(reference: PluginReference) -> dict[str, Any]:
    """Describe a hooks file that was named."""
    hooks = file_hooks(reference.file, reference.attribute) if reference.file else None
    return {
        "name": reference.name,
        "distribution": reference.source,
        "version": "",
        "hooks": _format_hooks(hooks),
        "active": "yes",
    }


def _format_hooks(hooks: tuple[str, ...] | None) -> str:
    return "source not found" if hooks is None else ", ".join(hooks)
