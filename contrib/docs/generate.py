"""The pages of the reference, made of ftcore itself: hooks, commands, configuration and built-in plugins."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import ftcore_plugins.defaults
from ftcore import hooks
from ftcore.authoring import scaffold
from ftcore.cli import main
from ftcore.config import SECTIONS, PluginRef
from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.plugins import describe_plugin, discover, option_rows, static_hooks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def write(folder: Path) -> None:
    """Write all pages that have changed into a folder."""
    folder.mkdir(exist_ok=True)
    pages = {"hooks": hook_page(), "commands": command_page(), "configuration": config_page(), "plugins": plugin_page()}
    for name, lines in pages.items():
        text, file = "\n".join(lines) + "\n", folder / f"{name}.md"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def hook_page() -> Iterator[str]:
    """Describe each hook, with an example that the tests of ftcore execute."""
    major, minor = hooks.HOOK_API
    yield "# Hooks"
    yield inspect.cleandoc(hooks.__doc__ or "").partition("\n")[2]
    yield f"\nThis is version {major}.{minor} of the hooks; [what may change, and when](../compatibility.md)."
    names = list(HOOK_ARGUMENTS)
    for place, name in enumerate(names):
        before = f"after `{names[place - 1]}`" if place else "first"
        used = "all answers are used" if name in hooks.COLLECT_HOOKS else "one answer is used"
        makers = ", ".join(f"`{maker}`" for maker in default_makers(name)) or "nobody"
        yield f"\n## {name}\n"
        yield f"```python\n{signature(name)}\n```\n"
        yield inspect.cleandoc(getattr(hooks, name).__doc__ or "")
        yield f"\nCalled {before}; {used}. By default answered by {makers}.\n"
        yield f"```python\n{scaffold.render_module('acme', [name])}```"


def signature(name: str) -> str:
    """Spell a hook with its arguments, their types and what it returns."""
    spec = inspect.signature(getattr(hooks, name))
    arguments = [f"    {argument.name}: {argument.annotation}," for argument in spec.parameters.values()]
    return "\n".join([f"def {name}(", *arguments, f") -> {spec.return_annotation}: ..."])


def default_makers(hook: str) -> list[str]:
    """Return the plugins that answer a hook where no named one does."""
    found = {plugin.name: static_hooks(plugin.target) or () for plugin in discover() if plugin.distribution == "ftcore"}
    return [name for name in ftcore_plugins.defaults.PLUGINS if hook in found[name]]


def command_page() -> Iterator[str]:
    """Show the help of each command."""
    yield "# Commands"
    for name, command, context in commands(main, click.Context(main, info_name="ftcore")):
        yield f"\n## {name}\n\n```text\n{command.get_help(context)}\n```"


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Yield each command with its whole name."""
    for name, command in group.commands.items():
        below = click.Context(command, info_name=name, parent=context, terminal_width=100)
        if isinstance(command, click.Group):
            yield from commands(command, below)
        else:
            yield below.command_path, command, below


def config_page() -> Iterator[str]:
    """List the keys of each section of a configuration."""
    yield "# Configuration\n"
    yield "The keys of a file such as `run.toml`, and of `--set SECTION.KEY=VALUE`.\n"
    for name, cls in SECTIONS.items():
        yield f"\n## {name}\n"
        yield from rows(("key", "type", "default", "meaning"), option_rows(cls))


def plugin_page() -> Iterator[str]:
    """List the built-in plugins with their options."""
    yield "# Built-in plugins\n"
    for plugin in sorted(discover(), key=lambda plugin: plugin.name):
        if plugin.distribution == "ftcore":
            facts, answers, found = describe_plugin(PluginRef(plugin.name, "the documentation", Path()))
            yield f"\n## {plugin.name}\n\n{dict(facts.rows)['about']}\n"
            yield f"Hooks: {', '.join(f'`{hook}` ({how})' for hook, how, *_ in answers.rows) or 'none, a recipe'}.\n"
            yield from rows(found.columns, found.rows) if found.rows else ()


def rows(columns: Sequence[str], found: Any) -> Iterator[str]:
    """Write a table."""
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in found:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
