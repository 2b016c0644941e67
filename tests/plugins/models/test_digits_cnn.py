"""The network of the digits."""

from __future__ import annotations

from ftcore.testing import invoke


def test_the_network_refuses_more_than_one_channel() -> None:
    result = invoke("run", "--set", "model.channels=3")

    assert (result.code, result.err.strip()) == (2, "ftcore: digits/cnn takes 1 channel, not model.channels = 3")
