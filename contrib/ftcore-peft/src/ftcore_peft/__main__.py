"""``python -m ftcore_peft merge RUN --out FOLDER``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ftcore import UserError

from .merging import merge


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit code: 2 for an error that a user can mend."""
    parser = argparse.ArgumentParser(prog="python -m ftcore_peft", description="Adapters of PEFT in ftcore's runs.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("merge", help="write a run with its adapters merged into the weights")
    command.add_argument("run", type=Path, help="folder of a run with adapters")
    command.add_argument("--out", type=Path, required=True, help="folder to write")
    asked = parser.parse_args(arguments)
    try:
        print(merge(asked.run, asked.out))  # noqa: T201 (what a program reads)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
