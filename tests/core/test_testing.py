"""What authors of plugins test with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore.testing import Conforms

pytest_plugins = ["ftcore.testing"]

HOOKS = """
from ftcore import hookimpl

@hookimpl
def make_loss():
    {0}
"""


def test_a_command_is_its_exit_code_and_both_its_streams() -> None:
    good, bad = invoke("plugins"), invoke("plugins", "show", "adamv")

    assert (good.code, good.err) == (0, "")
    assert "adamw" in good.out
    assert (bad.code, bad.out) == (2, "")
    assert "adamw" in bad.err


def test_hooks_files_are_forgotten_and_errors_that_no_user_can_mend_come_through(tmp_path: Path) -> None:
    file, path = tmp_path / "forgotten_hooks.py", list(sys.path)

    file.write_text(HOOKS.format("raise ZeroDivisionError('of mine')"), encoding="utf-8")
    with pytest.raises(ZeroDivisionError, match="of mine"):
        invoke("explain", "--plugin", file)
    file.write_text(HOOKS.format("return None"), encoding="utf-8")
    result = invoke("explain", "--plugin", file)

    assert "of mine" not in result.err
    assert "forgotten_hooks" not in sys.modules
    assert sys.path == path


def test_a_folder_of_pictures_is_the_same_each_time_with_a_shade_a_class(tmp_path: Path) -> None:
    first, again = (image_folder(tmp_path / name, ("a", "b"), per_class=2) for name in ("first", "again"))
    files = sorted(path.relative_to(first) for path in first.rglob("*.jpg"))

    assert [str(file) for file in files] == ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"]
    assert all((first / file).read_bytes() == (again / file).read_bytes() for file in files)
    for place, name in enumerate("ab"):
        with Image.open(first / name / "0.jpg") as image:
            assert image.size == (32, 24)
            assert np.asarray(image).mean((0, 1)).argmax() == place


@pytest.mark.slow
def test_the_fixture_fails_a_test_with_the_checks_that_have_failed(conforms: Conforms, tmp_path: Path) -> None:
    file = tmp_path / "broken_hooks.py"
    file.write_text(HOOKS.format("return 3"), encoding="utf-8")

    with pytest.raises(pytest.fail.Exception, match="make_loss"):
        conforms(str(file))
