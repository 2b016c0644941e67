"""Tables in their formats: TSV, Parquet."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from tests.plugins.data.tables import LABEL, ROWS, index, meaning, splits, write

from ftcore import UserError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_tsv_is_cut_at_tabs(pictures: Path) -> None:
    assert meaning(index(write(pictures / "t.tsv", cut="\t"), LABEL)) == {row[0]: row[1] for row in ROWS}


def test_the_suffix_may_be_in_upper_case(pictures: Path) -> None:
    assert len(index(write(pictures / "T.CSV"), LABEL).train) == 12


def test_parquet_means_what_the_csv_of_the_same_rows_means(pictures: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    rows = [(row[0], f"00{n % 3}", n, n / 2, row[3]) for n, row in enumerate(ROWS)]
    header = ("path", "code", "count", "age", "split")
    columns = {name: list(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True)}
    below = pictures / "split=train"
    below.mkdir()
    parquet.write_table(pyarrow.table(columns), below / "t.parquet")
    write(pictures / "t.csv", [tuple(map(str, row)) for row in rows], header)

    for sets in (
        ("table.target=code", "data.task=classification"),
        ("table.target=count", "data.task=regression"),
        ('table.target=["age", "count"]',),
    ):
        one = index(pictures / "t.csv", *sets)
        other = index(below / "t.parquet", *sets, f"table.root={pictures}")
        assert (one.fingerprint, one.task, splits(one)) == (other.fingerprint, other.task, splits(other))


def test_a_parquet_file_is_refused_with_its_row(pictures: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    file = pictures / "t.parquet"
    for columns, sets, message in (
        ({"path": ["0.png", "gone.png"], "label": ["a", "b"]}, (), r"t\.parquet, row 1: path 'gone\.png': No such"),
        ({"path": ["0.png", None], "label": ["a", "b"]}, (), r"t\.parquet, row 1: path '': is empty"),
        ({"path": ["0.png", "1.png"], "label": ["a", None]}, (), r"t\.parquet, row 1: label is missing"),
        ({"path": ["0.png"], "age": [float("nan")]}, ("data.task=regression",), "row 0: age must be a finite number"),
        ({"path": [], "label": []}, (), r"t\.parquet has no rows"),
        ({"path": ["0.png"], "label": ["a"]}, ("table.separator=;",), r"table\.separator = ';' has no effect"),
    ):
        parquet.write_table(pyarrow.table(columns), file)
        with pytest.raises(UserError, match=message):
            index(file, *sets)
    parquet.write_table(pyarrow.table([["0.png"], ["a"], ["b"]], names=["path", "label", "label"]), file)
    with pytest.raises(UserError, match=r"t\.parquet: two columns are named 'label'"):
        index(file)


def test_parquet_without_pyarrow_says_what_to_install(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    (pictures / "t.parquet").write_bytes(b"PAR1")

    with pytest.raises(UserError, match=r"t\.parquet: Parquet needs pyarrow: pip install 'ftcore\[parquet\]'"):
        index(pictures / "t.parquet")
