"""Code that the files of a run name is loaded only where the user names it, or has trusted it.

What is trusted is a list of the user's own, outside of all runs: a path, and the SHA-256 of what is there. What
`ftcore run` was told to execute is added to it, and so is what `ftcore trust` shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve

from ftcore.config.schema import PluginRef
from ftcore.errors import UserError
from ftcore.system.files import open_regular, read_text

from .discovery import source_file, without_working_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_named: ContextVar[tuple[PluginRef, ...]] = ContextVar("plugins that the user names in this command", default=())


@contextmanager
def allow(plugins: Sequence[str]) -> Iterator[None]:
    """Let runs that are read meanwhile use these plugins, each in the place of the run's own of that name.

    Args:
        plugins: as in ``--plugin``: a name, an import path or a file.
    """
    here = Path.cwd()
    token = _named.set((*_named.get(), *(PluginRef(text, f"--plugin {text}", here) for text in plugins)))
    try:
        yield
    finally:
        _named.reset(token)


def users_own(named: PluginRef) -> PluginRef:
    """Return what the user names in this command in the place of what a run names; else the latter."""
    code, attribute = _split(named.text)
    for own in reversed(_named.get()):
        users, users_attribute = _split(own.text)
        if _key(users) == _key(code) and users_attribute in ("", attribute):
            joined = f"{users}:{attribute}" if attribute and not users_attribute else own.text
            return evolve(own, text=joined, recipe=named.recipe)
    return named


def _split(text: str) -> tuple[str, str]:
    """Take a file or a module, and a class in it, apart."""
    path, found, attribute = text.partition(".py:")
    if found:
        return f"{path}.py", attribute
    return (text, "") if text.endswith(".py") else (text.partition(":")[0], text.partition(":")[2])


def _key(code: str) -> str:
    """Return the name under which a file is imported, or of an entry point or a module."""
    return Path(code).stem if code.endswith(".py") else code.partition("@")[0].replace("-", "_")


def check(named: PluginRef, file: Path | None, module: str) -> None:
    """Refuse code that a run names, unless the user has trusted it as it is.

    Args:
        named: how the run names it.
        file: a hooks file, with all links resolved; None for a module.
        module: the module.

    Raises:
        UserError: it is not trusted, or was changed since.
    """
    with without_working_folder():
        place = code_file(file, module)
    record = place and str(place) in _trusted()
    if record and (str(place), digest(file, module)) in _trusted().items():
        return
    why = "has changed since it was trusted" if record else "is not trusted"
    raise UserError(
        f"plugin {named.text!r} ({named.origin}) {why}: code that a file names is loaded only if you name it in this "
        f"command, --plugin {file or module}, or trust it, ftcore trust; look at it before: it can do all that "
        "you can"
    )


def code_file(file: Path | None, module: str) -> Path | None:
    """Return the file that would be executed, with all links resolved; None for a module without a source."""
    found = file or source_file(module)
    return found.resolve() if found and found.is_file() else None


def digest(file: Path | None, module: str) -> str | None:
    """Return the SHA-256 of a hooks file, or of all Python files of the package that a module is in; or None."""
    found = file or source_file(module)
    if found is None:
        return None
    files = [found] if file else _package_files(found)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return digests[0] if len(files) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _package_files(file: Path) -> list[Path]:
    """Return the Python files of the outermost package that holds a module, or the module alone."""
    root = file.parent
    if not (root / "__init__.py").exists():
        return [file]
    while (root.parent / "__init__.py").exists():
        root = root.parent
    return sorted(root.rglob("*.py"))


def record(code: Iterable[tuple[Path, str]]) -> Path | None:
    """Add files, each with its SHA-256, to what the user trusts; return the list's path if anything was added.

    Raises:
        UserError: the list cannot be written.
    """
    new = [(str(path), digest) for path, digest in code if (str(path), digest) not in _trusted().items()]
    if not new:
        return None
    lines = "".join(json.dumps({"path": path, "sha256": digest}, allow_nan=False) + "\n" for path, digest in new)
    target = trust_file()
    if target is None:
        raise UserError("cannot write what you trust: there is no home folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = open_regular(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as opened:
            opened.write(lines.encode())
    except OSError as error:
        raise UserError(f"cannot write what you trust to {target}: {error}") from None
    return target


def trust_file() -> Path | None:
    """Return the list of what the user trusts: in the configuration folder of the platform, or of XDG_CONFIG_HOME."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    if Path(given).is_absolute():  # a relative one is ignored, says the specification; it would be any folder's
        return Path(given) / "ftcore" / "trusted.jsonl"
    folders = {"darwin": "Library/Application Support", "win32": "AppData/Roaming"}
    try:
        return Path.home() / folders.get(sys.platform, ".config") / "ftcore" / "trusted.jsonl"
    except RuntimeError:
        return None


def _trusted() -> dict[str, str]:
    """Return path -> SHA-256 of all that the user trusts; a line that cannot be read trusts nothing."""
    file = trust_file()
    try:
        if file is None or (hasattr(os, "geteuid") and file.stat().st_uid != os.geteuid()):
            return {}
        lines = [_line(line) for line in read_text(file).splitlines()]
    except (OSError, UserError):
        return {}
    return dict(filter(None, lines))


def _line(text: str) -> tuple[str, str] | None:
    try:
        found = json.loads(text)
        return str(found["path"]), str(found["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
