"""Steps that are tried leave no files, and need a whole batch."""

from __future__ import annotations

from contextlib import chdir
from typing import TYPE_CHECKING

import pytest
from tests.core.tuning.trials import ready

from ftcore import UserError
from ftcore.testing import invoke
from ftcore.tuning.lr_finder import exponential_lrs, lr_range_test

if TYPE_CHECKING:
    from pathlib import Path


def test_a_split_smaller_than_a_batch_is_an_error() -> None:
    with pytest.raises(
        UserError,
        match=r"train.batch_size = 999 is more than the 290 images of the training split; a range test needs",
    ):
        lr_range_test(ready(sets=("train.batch_size=999",)).assembly, exponential_lrs(1e-6, 1, 10))


def test_neither_command_writes_anything_nor_minds_a_run_folder_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "taken").touch()
    sets = ("--set", f"run.folder={tmp_path}", "--set", "data.cache=disk", "--set", "data.cache_gb=1")

    with chdir(tmp_path):
        assert invoke("find", "lr", "--steps", "10", "--plugin", "ema").code == 0
        assert invoke("find", "lr", "--steps", "10", *sets).code == 0
        assert invoke("find", "batch", "--max", "4", *sets).code == 0

    theirs = {"matplotlib"}  # a list of fonts, which it makes where torchmetrics first imports it
    assert {path.name for path in tmp_path.iterdir()} - theirs == {"taken"}
