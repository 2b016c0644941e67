"""Random generators, seeded by what they are for."""

from __future__ import annotations

import random
from hashlib import blake2b

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Return 63 bits that depend on all parts and nothing else: BLAKE2b, stable across versions and machines."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(number: int) -> None:
    """Seed the global generators that transforms and layers draw from; about 7 us."""
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - transforms of other libraries draw from numpy's global state


def seed_step(device: torch.device, number: int) -> None:
    """Seed what dropout draws from in the coming step, so that a step depends on nothing before it."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)
