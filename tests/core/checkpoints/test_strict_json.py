"""What ftcore writes and prints as JSON is what any reader of JSON reads; there is one way to spell it."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any, NoReturn

import pytest
import structlog

import ftcore
import ftcore_plugins
from ftcore.checkpoints import to_json
from ftcore.runs import RunLog

CONTRIB = Path(__file__).parents[3] / "contrib"
SOURCES = sorted(
    [file for package in (ftcore, ftcore_plugins) for file in Path(str(package.__file__)).parent.rglob("*.py")]
    + list(CONTRIB.glob("*/src/**/*.py"))
)

SPELLS_ITSELF = {
    "distributed/rank_logging.py": "from one process of a run to another, which writes it with the others' lines",
    "inference/export.py": "names, and what the config has found to be finite",
    "ftcore_webdataset/index.py": "a label as the user's own JSON spells it",
}
"""End of a path -> why what it spells by `json.dumps` alone need not be strict."""


def refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        ({"a": [1.5, math.inf, (-math.inf, 2)]}, {"a": [1.5, None, [None, 2]]}),
        ({"a": {"b": None, "c": True, "d": "NaN"}}, {"a": {"b": None, "c": True, "d": "NaN"}}),
    ],
)
def test_a_number_that_is_not_finite_becomes_null(value: Any, expected: Any) -> None:
    assert json.loads(to_json(value), parse_constant=refuse) == expected


def test_what_is_no_plain_data_is_an_error_unless_it_is_said_what_it_is() -> None:
    with pytest.raises(TypeError):
        to_json({"folder": Path("runs")})

    assert to_json({"folder": Path("runs")}, default=str) == '{"folder": "runs"}'


def test_the_log_of_a_run_is_strict(tmp_path: Path) -> None:
    before = structlog.get_config()
    log = RunLog(tmp_path / "log.jsonl")
    try:
        structlog.get_logger().info("EpochEnded", val={"loss": math.nan, "of each": [1.0, math.inf]}, folder=tmp_path)
    finally:
        structlog.configure(**before)

    assert log.path is not None
    (line,) = log.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line, parse_constant=refuse)["val"] == {"loss": None, "of each": [1.0, None]}


def spellings(file: Path) -> list[ast.Call]:
    """Calls of ``json.dump`` and ``json.dumps`` in a file that may spell a NaN."""
    return [
        node
        for node in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func) in {"json.dump", "json.dumps"}
        and not any(word.arg == "allow_nan" and ast.unparse(word.value) == "False" for word in node.keywords)
    ]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: "/".join(file.parts[-3:]))
def test_nobody_spells_a_nan(file: Path) -> None:
    allowed = any(file.as_posix().endswith(end) for end in SPELLS_ITSELF)

    assert bool(spellings(file)) == allowed
