"""Targets of samples that are none are refused with who gave them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ftcore.data.targets import TargetError, checked_target
from ftcore_plugins.tasks import Classification, Multilabel, Regression

if TYPE_CHECKING:
    from ftcore import Task

CLASSES = Classification(("even", "odd"), (5, 5))
LABELS = Multilabel(("red", "big", "old"))
AGE, SIZES = Regression(("age",)), Regression(("width", "height"))


@pytest.mark.parametrize(
    ("target", "task", "plain"),
    [
        (1, CLASSES, 1),
        (True, CLASSES, 1),
        (np.int64(1), CLASSES, 1),
        (np.array(0), CLASSES, 0),
        (torch.tensor(1), CLASSES, 1),
        ((1, 0, 1), LABELS, (1, 0, 1)),
        ([True, False, 1.0], LABELS, (1, 0, 1)),
        (np.array([0, 1, 1], dtype=np.uint8), LABELS, (0, 1, 1)),
        (torch.tensor([0.0, 1.0, 0.0]), LABELS, (0, 1, 0)),
        (3.5, AGE, 3.5),
        (3, AGE, 3),
        ((3.5,), AGE, 3.5),
        (np.float32(0.5), AGE, 0.5),
        (torch.tensor([1.5, 2.5]), SIZES, (1.5, 2.5)),
    ],
)
def test_what_means_the_same_is_taken(target: Any, task: Task, plain: Any) -> None:
    assert checked_target(target, task, "acme", "3") == plain


@pytest.mark.parametrize(
    ("target", "task", "message"),
    [
        (0.5, CLASSES, r"0\.5, a float; a class must be an integer from 0 to 1"),
        (1.0, CLASSES, r"1\.0, a float; a class must be"),
        (torch.tensor(0.5), CLASSES, r"tensor\(0\.5.*, a Tensor; a class must be"),
        (np.float64(1), CLASSES, r"a float64; a class must be"),
        (2, CLASSES, r"2, a int; a class must be an integer from 0 to 1"),
        (-1, CLASSES, "-1, a int; a class must be"),
        ((1, 0.5), CLASSES, r"\(1, 0\.5\), a tuple; a class must be"),
        ("odd", CLASSES, "'odd', a str; a class must be"),
        (None, CLASSES, "None, a NoneType; a class must be"),
        ((1, 0), LABELS, r"\(1, 0\), a tuple; labels must be 3 numbers, each 0 or 1"),
        ((1, 0, 0.3), LABELS, "labels must be 3 numbers"),
        (2, LABELS, "labels must be 3 numbers"),
        (math.nan, AGE, "nan, a float; a target must be 1 finite number$"),
        (("old",), AGE, "a target must be 1 finite number$"),
        ((1.0, math.inf), SIZES, "a target must be 2 finite numbers$"),
        (1.0, SIZES, "a target must be 2 finite numbers$"),
    ],
)
def test_a_target_that_is_none_of_the_tasks_is_refused_with_who_gave_it_and_where(
    target: Any, task: Task, message: str
) -> None:
    with pytest.raises(TargetError, match=rf"^acme: the target of sample 3 is .*{message}"):
        checked_target(target, task, "acme", "3")
