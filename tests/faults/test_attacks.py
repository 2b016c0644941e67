"""Each kind of attack that was tried is held by tests that are there, or said to be open; and how many there are."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_attack_is_held_by_tests_that_exist_or_says_what_is_open() -> None:
    attacks = tomllib.loads((Path(__file__).parent / "attacks.toml").read_text(encoding="utf-8"))["attack"]
    named = {test for attack in attacks for test in attack.get("held", ())}
    tests = {
        f"{file}::{node.name}"
        for file in {test.partition("::")[0] for test in named}
        for node in ast.parse((ROOT / file).read_bytes()).body
        if isinstance(node, ast.FunctionDef)
    }

    whole = [attack for attack in attacks if "open" not in attack]
    print(f"{len(attacks)} kinds of attack: {len(whole)} held by tests, {len(attacks) - len(whole)} open")  # noqa: T201
    for attack in attacks:
        if "open" in attack:
            print(f"  open: {attack['kind']}: {attack['tried']}: {attack['open']}")  # noqa: T201
    assert named - tests == set()
    assert all(set(attack) <= {"kind", "tried", "held", "open"} for attack in attacks)
    assert [attack["tried"] for attack in attacks if not attack.get("held") and not attack.get("open")] == []
