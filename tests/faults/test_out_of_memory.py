"""Memory that does not suffice stops a run with what to change, or it goes on in pieces, to the same weights."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from structlog.testing import capture_logs
from timm.layers import convert_sync_batchnorm

from ftcore import UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.data.loader import Batch
from ftcore.runs.run import fit, resume
from ftcore.system.signals import StoppedBySignal
from ftcore.training.oom import split_micro_batches

from .killing import result
from .test_resume import stopping

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from torch import Tensor, nn

HERE = f"{__name__}:Small"
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."


@attrs.frozen
class SmallConfig:
    """Options of `Small`.

    Attributes:
        images: that fit at a time.
        where: they have to: in `forward`, `backward`, `validation` or `update`.
        every: the number of forward passes with more, one of which fails.
    """

    images: int = 1000
    where: str = "forward"
    every: int = 1


class Small:
    """A device on which few images fit."""

    Config = SmallConfig

    def __init__(self, config: SmallConfig) -> None:
        self.config = config

    @hookimpl(wrapper=True)
    def build_model(self) -> Generator[None, Any, Any]:
        """Let the network fail."""
        backbone = yield
        most, where, every, large = self.config.images, self.config.where, self.config.every, count(1)

        def check(tensor: Tensor) -> None:
            if len(tensor) > most and next(large) % every == 0:
                raise torch.OutOfMemoryError(MESSAGE)

        def forward(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if output.is_meta:
                return
            if where == ("forward" if module.training else "validation"):
                check(output)
            if where == "backward" and output.requires_grad:
                output.register_hook(check)  # type: ignore[no-untyped-call]

        backbone.module.register_forward_hook(forward)
        return backbone

    @hookimpl(wrapper=True)
    def make_optimizer(self) -> Generator[None, Any, torch.optim.Optimizer]:
        """Let the update fail."""
        optimizer: torch.optim.Optimizer = yield

        def fail(*_arguments: Any) -> None:
            raise torch.OutOfMemoryError(MESSAGE)

        if self.config.where == "update":
            optimizer.register_step_pre_hook(fail)
        return optimizer


def config(folder: Path, *sets: str, plugins: tuple[str, ...] = ()) -> Any:
    settings = ("train.epochs=2", "train.batch_size=48", "train.log_every=1", f"run.folder={folder}", *sets)
    named = ("freeze_norm", "mlp_head", HERE, *plugins)
    return load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=named, sets=settings))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(max((folder / "checkpoints").iterdir()) / "model.safetensors")


@pytest.mark.parametrize(("where", "every"), [("forward", 1), ("forward", 2), ("forward", 3), ("backward", 1)])
@pytest.mark.parametrize("plugins", [(), ("mixup",), ("sam",), ("weighted_ce",)], ids=str)
def test_pieces_give_the_gradient_of_the_whole(
    tmp_path: Path, where: str, every: int, plugins: tuple[str, ...]
) -> None:
    sets = ("mlp_head.dropout=0", "train.accumulate=2", "sgd.lr=0.05")
    fit(config(tmp_path / "whole", *sets, plugins=("sgd", *plugins)))

    small = ("small.images=13", f"small.where={where}", f"small.every={every}", "train.on_oom=halve")
    report = fit(config(tmp_path / "pieces", *sets, *small, plugins=("sgd", *plugins)))

    assert report["pieces"] in {2, 4}  # of 24 or 12 images
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "pieces")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_each_halving_is_said_and_written_down(tmp_path: Path) -> None:
    with capture_logs() as logs:
        fit(config(tmp_path / "run", "small.images=13", "train.on_oom=halve"))

    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert json.loads((newest / "state.json").read_text())["progress"]["micro_batch_splits"] == 4
    said = [log for log in logs if log["event"].startswith("out of memory in step 1: each micro-batch")]
    assert ["into 2 pieces" in log["event"] for log in said] == [True, False]
    assert ["into 4 pieces" in log["event"] for log in said] == [False, True]
    assert {(log["log_level"], log["reason"]) for log in said} == {("warning", MESSAGE)}


def test_a_run_in_pieces_that_was_stopped_ends_in_the_same_bits(tmp_path: Path) -> None:
    sets = ("small.images=13", "train.on_oom=halve")
    fit(config(tmp_path / "whole", *sets, plugins=("mixup",)))

    with pytest.raises(StoppedBySignal):
        fit(config(tmp_path / "run", *sets, plugins=("mixup",)), [stopping(3)])
    resume(tmp_path / "run")

    assert result(tmp_path / "run") | {"checkpoints": 0} == result(tmp_path / "whole") | {"checkpoints": 0}


def test_batch_norm_counts_a_step_that_was_tried_again_once(tmp_path: Path) -> None:
    sets = ("train.epochs=1", "train.batch_size=96", "small.where=backward", "train.on_oom=halve")
    counts = []
    for images in (96, 48):
        folder = tmp_path / str(images)
        settings = (*sets, f"small.images={images}", f"run.folder={folder}")
        fit(load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=(HERE,), sets=settings)))
        counts.append(next(int(tensor) for name, tensor in weights(folder).items() if "num_batches" in name))

    assert counts[1] - counts[0] == 3  # three batches in two pieces each, and the last of two images in one


@pytest.mark.parametrize(
    ("where", "doing"),
    [
        ("forward", "in step 1"),
        ("backward", "in step 1"),
        ("update", "in step 1"),
        ("validation", "in validation"),
    ],
)
def test_without_that_a_run_stops_and_says_what_to_change(tmp_path: Path, where: str, doing: str) -> None:
    with pytest.raises(UserError) as caught:
        fit(config(tmp_path / "run", "small.images=1", f"small.where={where}"))

    same = (
        'train.batch_size=24 with train.accumulate=2 (the same steps), train.on_oom="halve" (does that automatically)'
    )
    ways = "train.eval_batch_size=24" if where == "validation" else same
    assert str(caught.value) == (
        f"out of memory {doing} (epoch 1), with 48 images per micro-batch: {MESSAGE}\n"
        f"{ways}, bf16, checkpointing (where not in use) or a smaller model.image_size help; "
        "`ftcore find batch` measures what fits"
    )


@pytest.mark.parametrize("where", ["forward", "update", "validation"])
def test_what_cannot_be_halved_stops_a_run_too(tmp_path: Path, where: str) -> None:
    with pytest.raises(UserError, match=r"^out of memory .*, with 48 images per micro-batch.*: CUDA out of memory"):
        fit(config(tmp_path / "run", "small.images=1", f"small.where={where}", "train.on_oom=halve"))


def test_what_was_saved_before_can_be_gone_on_with_in_smaller_pieces(tmp_path: Path) -> None:
    fit(config(tmp_path / "whole"))
    with pytest.raises(UserError, match="out of memory in step 3 "):
        fit(config(tmp_path / "run", "run.save_every=1 step", plugins=(f"{__name__}:Later",)))

    report = resume(tmp_path / "run", ("train.on_oom=halve",))

    assert report["pieces"] == 2
    for name, tensor in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], tensor, rtol=0, atol=1e-5, msg=name)


class Later:
    """Other programs take half of the memory in the third step."""

    @hookimpl(wrapper=True)
    def build_model(self) -> Generator[None, Any, Any]:
        """Let the network fail."""
        backbone = yield
        steps: list[int] = []

        def forward(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            steps.extend([1] * (module.training and not inputs[0].is_meta))
            if module.training and len(steps) > 2 and len(inputs[0]) > 24 and not inputs[0].is_meta:
                raise torch.OutOfMemoryError(MESSAGE)

        backbone.module.register_forward_pre_hook(forward)
        return backbone


class Synchronised:
    """Batch norm over all processes."""

    @hookimpl(wrapper=True)
    def wrap_devices(self) -> Generator[None, Any, Any]:
        """Put it in the place of each."""
        placement = yield
        return attrs.evolve(placement, model=convert_sync_batchnorm(placement.model))


def test_batch_norm_over_processes_may_not_be_halved(tmp_path: Path) -> None:
    message = r"^train.on_oom = 'halve' does not work with batch norm over processes \(--set train.on_oom"
    with pytest.raises(UserError, match=message):
        fit(config(tmp_path / "run", "train.on_oom=halve", plugins=(f"{__name__}:Synchronised",)))


@pytest.mark.parametrize(
    ("images", "pieces", "sizes"),
    [(48, 1, [48]), (48, 4, [12] * 4), (7, 2, [4, 3]), (7, 4, [3, 2, 2]), (3, 8, [3]), (1, 2, [1])],
)
def test_no_piece_has_a_single_image(images: int, pieces: int, sizes: list[int]) -> None:
    batch = Batch(torch.arange(images).float(), torch.arange(images), torch.arange(images))

    found = split_micro_batches([batch, batch], pieces)

    assert [len(piece.targets) for piece in found] == 2 * sizes
    assert torch.equal(torch.cat([piece.images for piece in found]), torch.cat([batch.images, batch.images]))
