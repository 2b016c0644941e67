"""``python -m ftcore``, as torchrun starts it."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

with suppress(OSError):  # the folder is gone, which the command says
    if sys.path[0] in {"", str(Path.cwd())}:  # where ``-m`` puts it, and the command `ftcore` does not
        del sys.path[0]

from ftcore.cli import main  # what it imports must not come from there

main(prog_name="ftcore")
