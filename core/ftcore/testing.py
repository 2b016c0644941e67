"""For tests of plugins: run ftcore in this process, on pictures made on the spot; make every check of a plugin.

Import what you need; ``pytest_plugins = ["ftcore.testing"]`` in a test module gives its tests the fixture `conforms`.
(PYTEST_DONT_REWRITE: where a test module has imported this one before, pytest would warn that it is too late for that.)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pytest
from attrs import frozen
from click.testing import CliRunner
from PIL import Image

from ftcore.cli import main

from .authoring.check import run_checks_in_subprocess
from .authoring.plugin_under_test import CheckRequest

if TYPE_CHECKING:
    from collections.abc import Sequence


@frozen
class Result:
    """What a command did.

    Attributes:
        code: exit code; 2 for an error that a user can mend.
        out: standard output.
        err: standard error.
    """

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """The JSON object that ``ftcore run --json`` printed."""
        report: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return report


def invoke(*arguments: str | Path) -> Result:
    """Run an ftcore command, e.g. ``invoke("run", "--plugin", "focal", "--json")``.

    Hooks files that it imports are forgotten afterwards. An error that is no `UserError` comes through.
    """
    path, modules = list(sys.path), set(sys.modules)
    try:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    finally:
        added = [folder for folder in sys.path if folder not in path]
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(Path(getattr(sys.modules[name], "__file__", None) or ".").parent) in added:
                del sys.modules[name]
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def image_folder(root: Path, classes: Sequence[str] = ("blue", "green", "red"), per_class: int = 6) -> Path:
    """Fill a folder with JPEG images of 24 x 32 pixels, one shade per class with a little noise; return the folder."""
    noise = np.random.default_rng(0)
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        shade = np.zeros(3)
        shade[place % 3] = 200 - 60 * (place // 3)
        for number in range(per_class):
            pixels = shade + noise.uniform(0, 40, size=(24, 32, 3))
            Image.fromarray(pixels.astype("uint8")).save(root / name / f"{number}.jpg")
    return root


class Conforms(Protocol):
    """Makes every check of ``ftcore plugins check``, and fails the test with those that have failed."""

    def __call__(self, plugin: str, **options: Any) -> None:
        """Check a plugin, written as in ``--plugin``; `ftcore.authoring.CheckRequest` has the options."""
        ...


@pytest.fixture(scope="session")
def conforms() -> Conforms:
    """Make every check of a plugin: ``conforms("acme_focal", sets=("acme_focal.gamma=2",))``."""

    def make_all(plugin: str, **options: Any) -> None:
        failed = [
            str(finding)
            for finding in run_checks_in_subprocess(CheckRequest(plugin, **options))
            if finding.state == "failed"
        ]
        if failed:
            pytest.fail("\n".join(failed), pytrace=False)

    return make_all
