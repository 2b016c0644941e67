"""Every installed plugin in a row, without importing any; and one of them in full."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import attrs

from ftcore.errors import UserError, did_you_mean
from ftcore.types.table import Table

from .activation import load
from .discovery import discover, file_hooks, load_defaults, source_file, static_facts, static_hooks
from .lint import implementations
from .references import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftcore.config.schema import PluginRef, RunConfig

    from .discovery import InstalledPlugin
    from .references import PluginReference


KINDS = {
    "build_data": "data",
    "make_task": "task",
    "build_model": "model",
    "build_head": "head",
    "freeze": "freezing",
    "make_transforms": "transforms",
    "batch_transforms": "transforms",
    "make_loss": "loss",
    "make_metrics": "metrics",
    "param_groups": "groups",
    "make_optimizer": "optimizer",
    "make_schedule": "schedule",
    "make_regularizers": "regularizer",
    "make_step": "step",
    "make_average": "averaging",
    "precision_context": "precision",
    "wrap_devices": "devices",
    "make_observers": "observer",
    "list_models": "model",
}
"""Hook -> what a plugin is called that has it, and no hook above it; a recipe has none."""


def kind_of(plugin: InstalledPlugin) -> str:
    """Return which kind of plugin this is, from its source; ``other`` where that cannot be read."""
    hooks = static_hooks(plugin.target) or ()
    if static_facts(plugin.target).is_recipe:
        return "recipe"
    return next((kind for hook, kind in KINDS.items() if hook in hooks), "other")


def filter_plugins(rows: list[dict[str, Any]], kind: str | None, word: str | None) -> list[dict[str, Any]]:
    """Keep the rows of one kind, and those with a word in name, summary or hooks, or that is a synonym of the name.

    Raises:
        UserError: there is no such kind, or nothing is found.
    """
    kinds = sorted({row["kind"] for row in rows})
    if kind is not None and kind not in kinds:
        raise UserError(f"--kind {kind}: no such kind{did_you_mean(kind, kinds)}; kinds: {', '.join(kinds)}")
    rows = [row for row in rows if kind in (None, row["kind"])]
    if word is None:
        return rows
    plain = word.lower().replace("-", "_")
    also = load_defaults().SYNONYMS.get(plain, ())
    found = [
        row
        for row in rows
        if row["name"] in also or word.lower() in f"{row['name']} {row['summary']} {row['hooks']} {row['kind']}".lower()
    ]
    if not found:
        raise UserError(f"no plugin has {word!r} in its name or description; `ftcore plugins` lists all")
    return found


def list_plugins(config: RunConfig) -> list[dict[str, Any]]:
    """Describe every installed plugin, and each hooks file named: name, kind, summary, source, hooks and state."""
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
                "kind": kind_of(plugin),
                "summary": static_facts(plugin.target).summary,
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
        "class": reference.target,
        "file": str(reference.file or source_file(reference.module)),
        "description": (inspect.getdoc(target) or "").partition("\n")[0],
    }
    hooks = [
        (i.hook, "wraps" if i.wrapper else "answers", ", ".join(a for a in i.arguments if a != "self"), i.where)
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
        "kind": next((kind for hook, kind in KINDS.items() if hook in (hooks or ())), "other"),
        "summary": "",
        "distribution": reference.source,
        "version": "",
        "hooks": _format_hooks(hooks),
        "active": "yes",
    }


def _format_hooks(hooks: tuple[str, ...] | None) -> str:
    return "source not found" if hooks is None else ", ".join(hooks)
