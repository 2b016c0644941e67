"""Start-up of the commands that must not wait for torch: `uv run python tests/bench/startup.py`."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time

ROUNDS = 15


def seconds(command: list[str]) -> float:
    """Run a command once."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    """Print the median and the spread of each command, interleaved with bare Python and click."""
    ftcore = shutil.which("ftcore") or sys.exit("ftcore is not on the path: use `uv run`")
    commands = {
        "python -c 'import click'": [sys.executable, "-c", "import click"],
        "ftcore --help": [ftcore, "--help"],
        "ftcore plugins": [ftcore, "plugins"],
        "ftcore explain --static": [ftcore, "explain", "--static"],
    }
    timings: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            timings[name].append(seconds(command))
    for name, values in timings.items():
        print(f"{name:26} {statistics.median(values):.3f} s (from {min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
