"""The documentation is built without a warning, and what it tells the reader to do works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .core.test_layers import LAYERS
from .test_readme import check_names

DOCS = Path(__file__).parents[1] / "contrib" / "docs"
BLOCK = re.compile(r"```(?:\{code-block\} python\n:caption: (\S+)\n\n|(sh)\n)(.*?)```", re.DOTALL)
PAGES = ("tutorial.md", "coming-from.md", "losses.md", "advice.md", "architecture.md", "compatibility.md")


def called(command: list[str], folder: Path, **variables: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tutorial_works_as_written(tmp_path: Path) -> None:
    """Packages are installed beside the environment, not into it."""
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    site, blocks = tmp_path / "site", BLOCK.findall(text)
    install = f"uv pip install -q --python {sys.executable} --no-deps --target {site} "
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for file, _, code in blocks:
        if file:
            (tmp_path / file).write_text(code, encoding="utf-8")
        else:
            script = f"set -e\n{code.replace('pip install -e ', install)}"
            called(["bash", "-c", script], tmp_path, PATH=path, PYTHONPATH=str(site))

    assert len(blocks) == text.count("```sh") + text.count(":caption:")
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {"first", "second", "third"}


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning_and_hold_every_hook(tmp_path: Path) -> None:
    from ftcore.hooks import HOOK_ARGUMENTS

    called([sys.executable, "-m", "sphinx", "-W", "-q", "-E", str(DOCS), str(tmp_path / "site")], tmp_path)

    hooks = (tmp_path / "site" / "reference" / "hooks.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(\w+)<", hooks) == list(HOOK_ARGUMENTS)
    plugins = (tmp_path / "site" / "reference" / "plugins.html").read_text(encoding="utf-8")
    assert "label_smoothing" in plugins


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_plugins_of_the_pages_exist(page: str) -> None:
    check_names((DOCS / page).read_text(encoding="utf-8"), but={"hf", "lora", "acme_penalty"})


@pytest.mark.parametrize(
    "page", [DOCS / "architecture.md", DOCS.parents[1] / "CONTRIBUTING.md"], ids=lambda page: page.stem
)
def test_the_ladder_of_packages_is_the_one_that_holds(page: Path) -> None:
    (ladder,) = re.findall(r"```\n(testing .*?)```", page.read_text(encoding="utf-8"), re.DOTALL)

    assert [re.split(r" {2,}", line)[0].split(" | ") for line in ladder.splitlines()] == [
        sorted(packages) for packages in reversed(LAYERS[:-1])
    ]
