from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Networks as small as these are slower on two threads, and much slower where the cores are busy."""
    torch.set_num_threads(1)
