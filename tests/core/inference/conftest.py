"""Runs that several files use, and none changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.core.inference import training

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.train(tmp_path_factory.mktemp("predict"), "adamw.lr=0.01", "train.epochs=20", "train.batch_size=5")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.run(tmp_path_factory.mktemp("digits") / "run", *training.DIGITS, "--plugin", "ema")
