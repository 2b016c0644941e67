"""Does a plugin keep its contracts? All checks in a process of their own, each with a line that says what to change.

They run the plugin on what the module of the defaults calls ``CHECK``: a network and data that every machine has.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import asdict, frozen

from ftcore.checkpoints.strict_json import to_json
from ftcore.errors import UserError, did_you_mean

from .checks import CHECKS, Check
from .plugin_under_test import (
    CheckFailedError,
    CheckRequest,
    NotApplicableError,
    PluginUnderTest,
    environment,
    format_exception,
    python_command,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


TIMEOUT_S = 900
"""Seconds that all checks may take together."""

_FATAL = re.compile(r"(Fatal Python error|Timeout \()")


@frozen
class CheckResult:
    """What came of a check.

    Attributes:
        check: its name.
        state: what the plugin is in its eyes.
        why: what was looked at, what to change, or why there is nothing to look at.
    """

    check: str
    state: Literal["ok", "failed", "not applicable"]
    why: str

    def __str__(self) -> str:
        """One line; more only where a process has died."""
        return f"{self.state:<14}  {self.check:<11}  {self.why}"


def run_checks(asked: CheckRequest, folder: Path) -> Iterator[CheckResult]:
    """Make all checks in this process, which imports the plugin and runs it.

    Raises:
        UserError: there is no such plugin.
    """
    from .two_process_check import forkserver

    with forkserver() as helper:
        yield from _findings(asked, PluginUnderTest(asked, folder, helper))


def _findings(asked: CheckRequest, subject: PluginUnderTest) -> Iterator[CheckResult]:
    failed: set[str] = set()
    for name, check in CHECKS.items():
        reasons = [f"skipped by --but {name}"] if name in asked.but else []
        reasons += [f"{need} has failed" for need in check.needs if need in failed]
        finding = CheckResult(name, "not applicable", reasons[0]) if reasons else _found(name, check, subject)
        if finding.state == "failed":
            failed.add(name)
        yield finding


def _found(name: str, check: Check, subject: PluginUnderTest) -> CheckResult:
    try:
        return CheckResult(name, "ok", check.run(subject))
    except NotApplicableError as error:
        return CheckResult(name, "not applicable", str(error))
    except (CheckFailedError, UserError) as error:
        return CheckResult(name, "failed", str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - what a plugin raises is what is looked for
        return CheckResult(name, "failed", format_exception(error))


def run_checks_in_subprocess(asked: CheckRequest) -> Iterator[CheckResult]:
    """Make all checks in a process of its own, which may die of them.

    Raises:
        UserError: there is no such plugin or check, or a setting cannot be read.
    """
    _ = PluginUnderTest(asked, Path()).given
    for name in asked.but:
        if name not in CHECKS:
            raise UserError(
                f"--but {name}: no such check{did_you_mean(name, CHECKS)}; the checks are {', '.join(CHECKS)}"
            )
    return _checked(asked)


def _checked(asked: CheckRequest) -> Iterator[CheckResult]:
    command = python_command("from ftcore.authoring.check import main; main()", to_json(asdict(asked)))
    waiting = list(CHECKS)
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=environment(), text=True) as child,
    ):
        try:
            for line in child.stdout or ():
                yield CheckResult(**json.loads(line))
                waiting.pop(0)
            child.wait()
        finally:
            child.kill()
        said.seek(0)
        yield from _report_crash(child.returncode, waiting, said.read().decode(errors="replace"))


def _report_crash(code: int, waiting: Sequence[str], said: str) -> Iterator[CheckResult]:
    """Report the check in which the process died, and those that were not made."""
    if not waiting:
        return
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        how += " (usually out of memory: choose a smaller network with --model)"
    _, *fatal = _FATAL.split(said, maxsplit=1)  # of the faulthandler, before the stack
    lines = "\n".join(("".join(fatal) or said[-800:]).splitlines()[:12])
    yield CheckResult(waiting[0], "failed", f"the process died, {how}; its last output:\n{lines}")
    for name in waiting[1:]:
        yield CheckResult(name, "not applicable", f"{waiting[0]} has failed")


def main() -> None:
    """Make the checks that the last argument asks for, and print each as a line of JSON; all else goes to stderr."""
    given: dict[str, Any] = json.loads(sys.argv[-1])
    asked: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.dump_traceback_later(TIMEOUT_S, exit=True)
    with tempfile.TemporaryDirectory(prefix="ftcore-check-") as folder:
        for finding in run_checks(CheckRequest(**asked), Path(folder)):
            out.write(to_json(asdict(finding)) + "\n")
            out.flush()
    os._exit(0)  # whatever threads a plugin has left behind
