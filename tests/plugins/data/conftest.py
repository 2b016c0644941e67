"""Pictures for a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from tests.plugins.data.tables import ROWS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 0.png ... 17.png."""
    for number in range(len(ROWS)):
        Image.fromarray(np.full((4, 4), 10 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path
