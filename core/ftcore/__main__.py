"""``python -m ftcore``, as torchrun starts it."""

from __future__ import annotations

from ftcore.cli import main

main(prog_name="ftcore")
