"""One, two and four processes train the same network on the same images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ftcore.config.load import CliOverrides, load_config
from ftcore.data.loader import EpochSampler, TransformedDataset, chunk, make_batches
from ftcore.distributed.rendezvous import process_session
from ftcore.model.freezing import state_digest
from ftcore.runs.prepared import prepare
from ftcore.testing import image_folder
from ftcore.training.evaluation import evaluate
from ftcore.training.loop import train_epoch
from ftcore.training.state import Progress

from .starting import call, messages, run

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ftcore.types.data import SampleDataset

STILL = ("--plugin", "freeze_norm")
"""Batch norms keep their statistics, so that what an image gives does not depend on the others of its share."""

SETTINGS = {
    "plain": STILL,
    "accumulated, clipped": (*STILL, "--set", "train.accumulate=3", "--set", "train.clip_norm=0.5"),
    "weighted": (*STILL, "--plugin", "weighted_ce", "--set", "weighted_ce.weights={5 = 10}"),
    "mixup": (*STILL, "--plugin", "mixup"),
    "cutmix, accumulated": (*STILL, "--plugin", "cutmix", "--set", "train.accumulate=2"),
    "frozen backbone": ("--plugin", "freeze_backbone"),
    "unfrozen in epoch 2": (*STILL, "--plugin", "gradual_unfreeze"),
    "ema": (*STILL, "--plugin", "ema"),
    "swa": (*STILL, "--plugin", "swa", "--set", "swa.start=1"),
    "two passes": (*STILL, "--plugin", "sam"),
    "l1": (*STILL, "--plugin", "l1"),
    "computed once": ("--plugin", "freeze_backbone", "--set", "train.views=2"),
    "computed once, then unfrozen": (*STILL, "--plugin", "gradual_unfreeze", "--set", "train.views=2"),
    "bf16 weights": (*STILL, "--plugin", "bf16_pure"),
}


def arguments(folder: Path, *options: str) -> list[str]:
    """Three epochs of 13 batches, the last of which has two images: fewer than four processes."""
    job = ("--model", "digits/cnn", "--data", "digits:5-6", "--plugin", "sgd", "--plugin", "augment")
    sets = ("train.epochs=3", "train.batch_size=24", "train.log_every=1", f"run.folder={folder}")
    return ["run", *job, *(word for setting in sets for word in ("--set", setting)), *options]


def weights(folder: Path) -> dict[str, Tensor]:
    newest = max((folder / "checkpoints").iterdir())
    return {
        f"{file.stem} {name}": tensor
        for file in newest.glob("*.safetensors")
        if file.stem in {"model", "average"}
        for name, tensor in load_file(file).items()
    }


def epochs(folder: Path) -> list[dict[str, Any]]:
    """What was measured, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("epoch", "step", "train", "val")} for line in lines]


def numbers(value: Any) -> list[float]:
    """All numbers of something that was read from JSON, in order."""
    if isinstance(value, dict | list):
        return [number for inner in (value.values() if isinstance(value, dict) else value) for number in numbers(inner)]
    return [float(value)]


@pytest.mark.slow
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_two_and_four_processes_end_with_what_one_ends_with(tmp_path: Path, options: tuple[str, ...]) -> None:
    bound = 2e-2 if "bf16_pure" in options else 1e-5
    for ranks in (1, 2, 4):
        with_ddp = ("--plugin", "ddp") if ranks > 1 else ()
        codes = run(*arguments(tmp_path / str(ranks), *options, *with_ddp), ranks=ranks, log=tmp_path / f"log-{ranks}")
        assert codes == [0] * ranks, messages(tmp_path / f"log-{ranks}", ranks)

    one, begun = (
        weights(tmp_path / "1"),
        prepare(load_config(None, CliOverrides("digits/cnn", "digits:5-6"))).assembly.parts.network,
    )
    assert float((one["model head.weight"] - begun.get_parameter("head.weight").detach()).abs().max()) > 1e-2
    for ranks in (2, 4):
        torch.testing.assert_close(weights(tmp_path / str(ranks)), one, rtol=0, atol=bound)
        found, expected = epochs(tmp_path / str(ranks)), epochs(tmp_path / "1")
        assert [line["step"] for line in found] == [line["step"] for line in expected]
        assert numbers(found) == pytest.approx(numbers(expected), abs=10 * bound)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 8), st.sampled_from([None, 3]))
def test_the_shares_of_all_processes_are_each_batch_once(samples: int, size: int, ranks: int, seed: int | None) -> None:
    alone = [[index for _, index in batch] for batch in EpochSampler(samples, size, seed, epoch=2)]
    shares = [list(EpochSampler(samples, size, seed, epoch=2, rank=rank, world_size=ranks)) for rank in range(ranks)]

    for place, batch in enumerate(alone):
        parts = [[index for _, index in shares[rank][place]] for rank in range(ranks)]
        assert [index for rank in range(min(ranks, len(batch))) for index in parts[rank]] == batch
        assert all(part == batch[:1] for part in parts[len(batch) :])
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [len(batch) for batch in alone] == [len(batch) for batch in chunk(list(range(samples)), size)]


@attrs.frozen
class First:
    """The first samples of a split."""

    samples: SampleDataset
    number: int

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]

    def name(self, index: int) -> str:
        return self.samples.name(index)


def measured(ranks: int) -> list[Any]:
    """Train an epoch with batch norms that move; measure the first 1, 2, ... images, together and alone."""
    plugins = ("ddp",) if ranks > 1 else ()
    with process_session() as here:
        config = load_config(
            None, CliOverrides("digits/cnn", "digits:5-7", plugins=plugins, sets=("train.batch_size=6",))
        )
        parts = prepare(config, ranks=here).assembly.parts
        train_epoch(parts, Progress())
        place, found = parts.placement, []
        for number in range(1, 6 * 4 + 2):
            split = parts.data.val.dataset
            few = TransformedDataset(First(split.samples, number), split.transform, split.task)
            val = make_batches(
                few,
                6,
                0,
                place.device,
                on_device_transform=parts.data.val.on_device_transform,
                rank=place.rank,
                world_size=ranks,
            )
            together = evaluate(attrs.evolve(parts, data=attrs.evolve(parts.data, val=val)))
            lone = attrs.evolve(place, rank=0, world_size=1, broadcast_buffers=lambda _: None)
            val = make_batches(few, 6, 0, place.device, on_device_transform=parts.data.val.on_device_transform)
            found.append(
                [together, evaluate(attrs.evolve(parts, data=attrs.evolve(parts.data, val=val), placement=lone))]
            )
        return [found, state_digest(parts.network)]


def test_validation_counts_every_image_once_whatever_is_left_over(tmp_path: Path) -> None:
    """For each residue of the number of images by that of a batch on two and four processes: 6 x 4 sizes."""
    for ranks in (2, 4):
        answers = call(measured, ranks, ranks=ranks, folder=tmp_path)
        found, digests = [answer[0] for answer in answers], {answer[1] for answer in answers}

        assert all(other == found[0] for other in found)
        assert len(digests) == 1, "running statistics are those of rank 0 in all"
        for number, (together, alone) in enumerate(found[0], start=1):
            assert sum(map(sum, together["confusion_matrix"])) == number
            assert together["confusion_matrix"] == alone["confusion_matrix"]
            assert together["loss"] == pytest.approx(alone["loss"], abs=1e-6)


@pytest.mark.parametrize("plugin", ["ddp", "fsdp"])
def test_the_test_split_is_measured_as_by_one_process(plugin: str, tmp_path: Path) -> None:
    for split, number in (("train", 8), ("val", 4), ("test", 5)):
        image_folder(tmp_path / "photos" / split, per_class=number)
    found = []
    for ranks in (1, 2):
        folder = tmp_path / f"run{ranks}"
        job = ("run", tmp_path / "photos", "--model", "digits/cnn", "--plugin", "sgd,freeze_norm", "--out", folder)
        more = ("--plugin", plugin, "--device", "cpu") if ranks > 1 else ()
        assert run(*job, "--epochs", "2", *more, ranks=ranks, log=folder) == [0] * ranks, messages(folder, ranks)
        found.append(json.loads((folder / "test.json").read_text())["run"])
    one, two = found
    assert two["confusion_matrix"] == one["confusion_matrix"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["intervals"] == one["intervals"]
