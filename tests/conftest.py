from __future__ import annotations

import pytest
import torch
from hypothesis import settings


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Networks as small as these are slower on two threads, and much slower where the cores are busy."""
    torch.set_num_threads(1)


settings.register_profile("ftcore", deadline=None)  # a test counts; how long it takes is the machine's business
settings.load_profile("ftcore")
