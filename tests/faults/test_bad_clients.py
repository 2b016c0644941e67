"""A server under clients that mean harm: those that do not are all answered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.core.inference.serving import numbers, png, serving, trained
from tests.faults.bad_clients import attacked, load

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_two_hundred_clients_see_no_error_beside_sixty_that_mean_harm(tmp_path: Path) -> None:
    with serving(trained(tmp_path / "run")) as server, attacked(server.port, 60):
        times, ends = asyncio.run(load(server.port, png(7), 200, 20))
        counted = numbers(server)

    print(f"{ends['200']} of {len(times)} requests of 200 clients were answered beside 60 that mean harm")  # noqa: T201
    assert set(ends) == {"200"}
    assert len(times) >= 400
    for status in (400, 422):  # 499 needs a client that leaves while its image is decoded, which none may have done
        assert counted[f'ftcore_requests_total{{status="{status}"}}'] > 0
