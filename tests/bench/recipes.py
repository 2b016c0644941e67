"""Test accuracy of each recipe on a table of pictures, several seeds: mean, spread, seconds.

    uv run python tests/bench/recipes.py --data trashnet.csv --weights mobilenetv2_100.safetensors --seeds 3

The table has columns path, label and split (train, val, test). Each recipe is a file in ``tests/bench/recipes``. The
best epoch is chosen on the validation rows, and measured once on the test rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parent / "recipes"


def ftcore(*arguments: object) -> dict[str, Any]:
    """Run a command in a process of its own, and return the JSON object that it prints."""
    command = [str(Path(sys.executable).with_name("ftcore")), *map(str, arguments), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def tested(table: Path, folder: Path) -> Path:
    """Write a table whose validation rows are the test rows of another."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = {"train": "train", "test": "val"}
    with (folder / "tested.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "split"])
        writer.writeheader()
        for row in rows:
            if row["split"] in kept:
                writer.writerow({"path": row["path"], "label": row["label"], "split": kept[row["split"]]})
    return folder / "tested.csv"


def measure(recipe: Path, seed: int, settings: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Train once; return test accuracy and seconds."""
    run = folder / f"{recipe.stem}-{seed}"
    given = {
        "model.weights": settings.weights,
        "model.mean": settings.mean,
        "model.std": settings.std,
        "train.seed": seed,
        "train.threads": settings.threads,
        "table.root": settings.data.absolute().parent,
        "data.cache": "ram",
        "run.folder": run,
    }
    sets = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    report = ftcore("run", recipe, "--data", settings.data, *sets)
    accuracy = ftcore("evaluate", run, "--data", tested(settings.data, folder))["metrics"]["accuracy"]
    print(f"{recipe.stem}, seed {seed}: {accuracy:.4f}, {report['seconds']:.0f} s", file=sys.stderr, flush=True)
    return accuracy, report["seconds"]


def main() -> None:
    """Print one line a recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--mean", type=float, default=0.5)
    parser.add_argument("--std", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["linear_probe", "lp_ft", "fine_tune", "plain"])
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in settings.only:
            recipe = RECIPES / f"{name}.toml"
            found = [measure(recipe, seed, settings, Path(folder)) for seed in range(settings.seeds)]
            accuracies, seconds = zip(*found, strict=True)
            spread = f"{min(accuracies):.3f} to {max(accuracies):.3f}"
            print(
                f"{name:<14} test accuracy {statistics.mean(accuracies):.3f} ({spread}, {settings.seeds} seeds)   "
                f"{statistics.mean(seconds):.0f} s a run",
                flush=True,
            )


if __name__ == "__main__":
    main()
