"""The pages of the reference, made of ftcore itself: hooks, commands, configuration, plugins, events and packages."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import attrs
import click

import ftcore_plugins.defaults
from ftcore import hooks
from ftcore.authoring import scaffold
from ftcore.cli import main
from ftcore.config import SECTIONS, PluginRef
from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.plugins import describe_plugin, discover, option_rows, static_hooks
from ftcore.plugins.describe import KINDS, kind_of
from ftcore.types import events

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ftcore import Table

CONTRIB = Path(__file__).parents[1]


def write(folder: Path) -> None:
    """Write all pages that have changed into a folder, and remove those that are no more."""
    folder.mkdir(exist_ok=True)
    pages = {
        "commands": command_page(),
        "configuration": config_page(),
        "events": event_page(),
        "hooks": hook_page(),
        "packages": package_page(),
        "plugins": plugin_page(),
    }
    for file in folder.glob("*.md"):
        if file.stem not in pages:
            file.unlink()
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
    yield "What they return is described under [values](../values.md); [from needs to hooks](../needs.md) finds one.\n"
    yield from rows(
        ("hook", "supplies", "results used"), ((f"[`{h}`](#{h})", KINDS[h], used(h)) for h in HOOK_ARGUMENTS)
    )
    names = list(HOOK_ARGUMENTS)
    for place, name in enumerate(names):
        before = f"after `{names[place - 1]}`" if place else "first"
        makers = ", ".join(f"`{maker}`" for maker in default_makers(name)) or "none"
        yield f"\n## {name}\n"
        yield f"```python\n{signature(name)}\n```\n"
        yield inspect.cleandoc(getattr(hooks, name).__doc__ or "")
        yield f"\nCalled {before}; results used: {used(name)}. Default plugins: {makers}.\n"
        yield f"```python\n{scaffold.render_module('acme', [name])}```"


def used(hook: str) -> str:
    """Say how many plugins' results of a hook are used."""
    return "all" if hook in hooks.COLLECT_HOOKS else "one"


def signature(name: str) -> str:
    """Spell a hook with its arguments, their types and what it returns."""
    spec = inspect.signature(getattr(hooks, name))
    arguments = [f"    {argument.name}: {argument.annotation}," for argument in spec.parameters.values()]
    return "\n".join([f"def {name}(", *arguments, f") -> {spec.return_annotation}: ..."])


def default_makers(hook: str) -> list[str]:
    """Return the plugins that implement a hook where no enabled one does."""
    found = {plugin.name: static_hooks(plugin.target) or () for plugin in discover() if plugin.distribution == "ftcore"}
    return [name for name in ftcore_plugins.defaults.PLUGINS if hook in found[name]]


def command_page() -> Iterator[str]:
    """Describe each command with its arguments and options."""
    found = list(commands(main, click.Context(main, info_name="ftcore")))
    yield "# Commands\n"
    lines = ((f"[`{name}`](#{name.replace(' ', '-')})", summary(command)) for name, command, _ in found)
    yield from rows(("command", "what it does"), lines)
    for name, command, context in found:
        usage = " ".join(command.collect_usage_pieces(context))
        yield f"\n## {name}\n\n```text\n{name} {usage}\n```\n"
        yield inspect.cleandoc(command.help or "").replace("\b", "").replace("\f", "") + "\n"
        yield from rows(
            ("option", "meaning"), filter(None, (o.get_help_record(context) for o in command.get_params(context)))
        )


def summary(command: click.Command) -> str:
    """Return the first sentence of a command's help."""
    return " ".join((command.help or "").split("\n\n")[0].split())


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Yield each command with its whole name."""
    for name, command in group.commands.items():
        below = click.Context(command, info_name=name, parent=context, terminal_width=100)
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                yield below.command_path, command, below
            yield from commands(command, below)
        else:
            yield below.command_path, command, below


def config_page() -> Iterator[str]:
    """List the keys of each section of a configuration."""
    yield "# Configuration\n"
    yield "The keys of a TOML file, and of `--set SECTION.KEY=VALUE`. `[plugin.NAME]` has the options of a"
    yield "[plugin](plugins.md); `[hooks]` gives the order where two plugins implement the same hook.\n"
    for name, cls in SECTIONS.items():
        yield f"\n## {name}\n"
        yield from rows(("key", "type", "default", "meaning"), map(coded, option_rows(cls)))


def plugin_page() -> Iterator[str]:
    """List the built-in plugins by kind with a line each, then each with its options."""
    plugins = {plugin.name: plugin for plugin in discover() if plugin.distribution == "ftcore"}
    described = {name: describe_plugin(PluginRef(name, "the documentation", Path())) for name in sorted(plugins)}
    kinds = {name: kind_of(plugin) for name, plugin in plugins.items()}
    yield "# Built-in plugins\n"
    yield "By kind, as in `ftcore plugins --kind KIND`. Those in bold are default plugins: they apply where no"
    yield "enabled plugin implements the hook."
    for kind in dict.fromkeys(["recipe", *KINDS.values(), *kinds.values()]):
        names = [name for name in described if kinds[name] == kind]
        if names:
            yield f"\n## Kind: {kind}\n"
            yield from rows(("plugin", "what it does"), ((linked(name), about(described[name][0])) for name in names))
    yield "\n## All plugins with their options"
    for name, (facts, answers, found) in described.items():
        yield f"\n### {name}\n\n{about(facts)}\n"
        yield f"Hooks: {', '.join(f'`{hook}` ({how})' for hook, how, *_ in answers.rows) or 'none, a recipe'}.\n"
        yield from rows(found.columns, map(coded, found.rows)) if found.rows else ()


def about(facts: Table) -> str:
    """Return the line that describes a plugin."""
    return str(dict(facts.rows)["description"])


def linked(name: str) -> str:
    """Link to a plugin's options."""
    link = f"[`{name}`](#{name})"
    return f"**{link}**" if name in ftcore_plugins.defaults.PLUGINS else link


def event_page() -> Iterator[str]:
    """Describe what observers receive."""
    yield "# Events\n"
    yield "An observer, made by the hook [`make_observers`](hooks.md#make_observers), is any callable that takes an"
    yield "event. It changes nothing. New kinds of events may be added: ignore what you don't know. All can be imported"
    yield "from `ftcore`."
    for cls in get_args(events.Event):
        doc = inspect.cleandoc(cls.__doc__ or "")
        yield f"\n## {cls.__name__}\n\n{doc.partition('Attributes:')[0].strip()}\n"
        meanings = dict(re.findall(r"^    (\w+): ((?:.|\n {5,})*)", doc, re.MULTILINE))
        fields = ((f"`{f.name}`", f"`{f.type}`", " ".join(meanings[f.name].split())) for f in attrs.fields(cls))
        yield from rows(("attribute", "type", "meaning"), fields)


def package_page() -> Iterator[str]:
    """Show what the packages in contrib say of themselves."""
    yield "# Packages\n"
    yield "Complete packages with plugins, in the folder `contrib` of the repository; `pip install ./contrib/NAME`"
    yield "installs one."
    for file in sorted(CONTRIB.glob("ftcore-*/README.md")):
        text = re.sub(r"^#", "##", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        yield "\n" + text.replace("](../../README.md)", "](../index.md)").rstrip()


def coded(row: Sequence[str]) -> Sequence[str]:
    """Set name, type and default of an option as code."""
    name, type_, default, meaning = row
    return f"`{name}`", f"`{type_}`", f"`{default}`", meaning


def rows(columns: Sequence[str], found: Iterable[Any]) -> Iterator[str]:
    """Write a table."""
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in found:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
