"""Start-up: of the commands that must not wait for torch, and of a run until its first step is done.

    uv run python tests/bench/startup.py

The run's network is ResNet-18 without weights, its data eighteen pictures; beside it, what nobody can leave out: the
imports, the building of the network, and a step.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 15
CROWD, PLUGINS = 300, 50
"""Distributions that are installed beside the others for one of the rows, and how many of them have a plugin."""

CROWDED = f"ftcore plugins, {CROWD} more packages, {PLUGINS} plugins"

BARE = """
import timm, torch, torchvision
model = timm.create_model("resnet18", num_classes=3)
torch.nn.functional.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.randint(3, (8,))).backward()
"""
ENDS = """
import os
from ftcore import StepLogged, hookimpl

@hookimpl
def make_observers():
    return [lambda event: os._exit(0) if isinstance(event, StepLogged) else None]
"""
"""Plugin that ends a run behind its first step."""

FIRST = "ftcore run, to the end of its first step"


def first_step(ftcore: str, folder: Path) -> list[str]:
    """Return the command of a run that ends there; its folder is taken away each time."""
    from ftcore.testing import image_folder

    image_folder(folder / "pictures")
    (folder / "ends.py").write_text(ENDS, encoding="utf-8")
    sets = ("model.weights=none", "model.image_size=64", "train.batch_size=8", "train.log_every=1")
    words = [word for text in (*sets, f"run.folder={folder / 'run'}") for word in ("--set", text)]
    plugin = str(folder / "ends.py")
    return [ftcore, "run", "--model", "timm/resnet18", "--data", str(folder / "pictures"), "--plugin", plugin, *words]


def seconds(command: list[str], path: str = "") -> float:
    """Run a command once, with a folder of packages on its path."""
    environment = os.environ | ({"PYTHONPATH": path} if path else {})
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Python compiles what it imports once, unless it is told not to
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - begun


def install_crowd(site: Path) -> None:
    """Write distributions, every one with entry points; the plugins of some end the process that imports them."""
    for number in range(CROWD):
        info = site / f"crowd_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: crowd-{number}\nVersion: 1.0\n", encoding="utf-8")
        group = "ftcore.plugins" if number < PLUGINS else "console_scripts"
        points = f"[{group}]\ncrowd_{number} = crowd_{number}:Plugin\n"
        (info / "entry_points.txt").write_text(points, encoding="utf-8")
        (site / f"crowd_{number}.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")


def main() -> None:
    """Print the median and the spread of each command, interleaved with bare Python and click."""
    ftcore = shutil.which("ftcore") or sys.exit("ftcore is not on the path: use `uv run`")
    commands = {
        "python -c 'import click'": [sys.executable, "-c", "import click"],
        "ftcore --help": [ftcore, "--help"],
        "ftcore plugins": [ftcore, "plugins"],
        CROWDED: [ftcore, "plugins"],
        "ftcore explain --static": [ftcore, "explain", "--static"],
    }
    timings: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as site, tempfile.TemporaryDirectory() as folder:
        install_crowd(Path(site))
        commands["import torch, torchvision, timm; build; step"] = [sys.executable, "-c", BARE]
        commands[FIRST] = first_step(ftcore, Path(folder))
        timings |= {name: [] for name in list(commands)[-2:]}
        for _ in range(1 + ROUNDS):
            for name, command in commands.items():
                shutil.rmtree(Path(folder) / "run", ignore_errors=True)
                timings[name].append(seconds(command, site if name == CROWDED else ""))
    for name, (_first, *values) in timings.items():
        print(f"{name:46} {statistics.median(values):.3f} s (from {min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
