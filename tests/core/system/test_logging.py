from __future__ import annotations

from ftcore.system.logging import format_event


def test_an_event_is_its_sentence_with_what_was_said_beside_it() -> None:
    event = {"event": "halved", "level": "warning", "timestamp": "2020", "pieces": 2, "plugin": "acme"}

    assert format_event(event) == "halved (pieces=2, plugin=acme)"


def test_an_event_with_nothing_beside_it_is_its_sentence() -> None:
    assert format_event({"event": "halved", "level": "info"}) == "halved"
