from __future__ import annotations

import subprocess
import sys

import torch

from ftcore import Transforms, TwoStageTransform
from ftcore.types.data import to_two_stage
from ftcore_plugins.tasks import Multilabel


def test_a_transform_in_two_steps_takes_both() -> None:
    transform = TwoStageTransform(lambda image: image + 1, lambda image: torch.tensor(10 * image))

    assert transform(4) == torch.tensor(50)


def test_any_callable_is_a_transform_whose_first_step_does_nothing() -> None:
    made = Transforms(train=torch.tensor, evaluate=TwoStageTransform(abs, torch.tensor, min_decode_side=8))

    assert made.train.resize("image") == "image"
    assert made.train([1, 2]).tolist() == [1, 2]
    assert made.train.min_decode_side is None
    assert to_two_stage(made.evaluate) is made.evaluate


def test_a_batch_is_left_as_it_is_on_the_device_unless_said_otherwise() -> None:
    images = torch.zeros(2, 3, 4, 4)

    assert Transforms(train=torch.tensor, evaluate=torch.tensor).on_device(images) is images


def test_a_network_gives_a_number_for_each_name() -> None:
    assert Multilabel(("red", "big", "old")).outputs == 3


def test_types_are_imported_without_torch() -> None:
    code = "import sys, ftcore.types.data, ftcore.types.training, ftcore.types.events; print('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
