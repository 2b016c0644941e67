"""``python -m ftcore``, as torchrun starts it."""

from .cli import main

main(prog_name="ftcore")
