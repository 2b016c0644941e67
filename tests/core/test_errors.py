from __future__ import annotations

import pytest

from ftcore.errors import close_matches, did_you_mean, format_names, suggestions

KNOWN = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50", "vit_small")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("resnet5", "; did you mean 'resnet50'?"),
        ("vit_smal", "; did you mean 'vit_small'?"),
        ("convnext", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_asked_about_where_one_is_near(word: str, hint: str) -> None:
    assert did_you_mean(word, KNOWN) == hint


def test_at_most_five_names_are_suggested_the_nearest_first() -> None:
    found = close_matches("resnet15", KNOWN)

    assert found[0] == "resnet152"
    assert len(found) == 5
    assert "vit_small" not in found
    assert suggestions("vit", KNOWN, prefix="timm/") == "timm/vit_small"


def test_where_no_name_is_near_that_is_said() -> None:
    assert suggestions("convnext_tiny", ("vit_b_16",)) == "none"
    assert suggestions("anything", ()) == "none"


def test_names_are_sorted_and_none_of_them_is_said() -> None:
    assert format_names(iter(["sgd", "adamw", "lion"])) == "adamw, lion, sgd"
    assert format_names(()) == "none"
