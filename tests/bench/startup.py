"""Start-up of the commands that must not wait for torch: `uv run python tests/bench/startup.py`."""

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


def seconds(command: list[str], path: str = "") -> float:
    """Run a command once, with a folder of packages on its path."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | ({"PYTHONPATH": path} if path else {}))
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
    with tempfile.TemporaryDirectory() as site:
        install_crowd(Path(site))
        for _ in range(ROUNDS):
            for name, command in commands.items():
                timings[name].append(seconds(command, site if name == CROWDED else ""))
    for name, values in timings.items():
        print(f"{name:46} {statistics.median(values):.3f} s (from {min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
