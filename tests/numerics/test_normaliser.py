"""One update over 32 images is the same update in micro-batches, and on two processes.

Run as a script, this file is one of those processes: ``python test_normaliser.py RANK FOLDER``.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

from ftcore import Placement, Step
from ftcore.config.load import CliOverrides, load_config
from ftcore.data.loader import Batch
from ftcore.model.freezing import set_frozen_eval
from ftcore.runs.prepared import prepare
from ftcore.training.loop import accumulation_windows, apply_batch_transforms, train_step
from ftcore.training.state import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ftcore import ForwardPass
    from ftcore.training.state import TrainingParts

STILL_NORMS = ("freeze_modules", 'freeze_modules.types=["BatchNorm2d"]')
"""Batch norms in eval mode, so that what an image gives does not depend on the others of its micro-batch."""

WEIGHTS = torch.tensor([10.0, 1.0, 0.5, 2.0, 1.0])
SPELT = "{5 = 10, 7 = 0.5, 8 = 2}"

CASES: dict[str, tuple[str, ...]] = {
    "cross_entropy": (),
    "weighted_ce by weights": ("weighted_ce", f"weighted_ce.weights={SPELT}"),
    "weighted_ce by samples": ("weighted_ce", f"weighted_ce.weights={SPELT}", "weighted_ce.divide_by=samples"),
    "weighted_ce, smoothed": ("weighted_ce", f"weighted_ce.weights={SPELT}", "weighted_ce.label_smoothing=0.2"),
    "bce": ("bce", f"bce.positive={SPELT}"),
    "focal": ("focal", "focal.gamma=1.5"),
    "mse": ("mse", "data.task=regression"),
    "mixed": (),
    "weighted and mixed": ("weighted_ce", f"weighted_ce.weights={SPELT}"),
    "l1": ("l1", "l1.strength=0.003"),
    "term": (),
    "l1, term, weighted and mixed": ("l1", "l1.strength=0.003", "weighted_ce", f"weighted_ce.weights={SPELT}"),
}
"""A name that says what is added, mixed or weighted -> plugins, and settings, which have an equals sign."""

CUTS = {"4 x 8": (8, 8, 8, 8), "a short last": (12, 12, 8), "unequal": (3, 20, 2, 7)}
SHARES = {"2 x 16": ((16,), (16,)), "unequal": ((21,), (11,)), "unequal, accumulated": ((9, 3), (18, 2))}
"""Micro-batches of an update on each of two processes."""


@cache
def build(*given: str) -> TrainingParts:
    """A head that is not zero, so that all has a gradient, and plain SGD, which shows its scale.

    Made once, for `updated` leaves it as it was.
    """
    given = (*STILL_NORMS, "sgd", "sgd.lr=0.1", "sgd.momentum=0", "constant", "linear.std=0.1", *given)
    plugins, sets = (tuple(word for word in given if ("=" in word) is setting) for setting in (False, True))
    return prepare(
        load_config(None, CliOverrides("digits/cnn", "digits:5-9", plugins=plugins, sets=sets))
    ).assembly.parts


def mirrored(seen: ForwardPass) -> Tensor:
    """A term with a pass of its own, as R-Drop's: how far the outputs of each image and of its mirror image are apart.

    It weighs samples, as every term does, however the loss weighs them.
    """
    return (seen.outputs - seen.forward(seen.images.flip(-1))).square().sum(dim=1).mean()


def case(name: str) -> tuple[TrainingParts, Batch]:
    """A run and a batch of 32 for it."""
    parts = build(*CASES[name])
    if "term" in name:
        parts = attrs.evolve(parts, objective=attrs.evolve(parts.objective, step=Step({"mirrored": mirrored})))
    batch = next(parts.data.train.epoch(0))
    if "mixed" in name:
        torch.manual_seed(5)
        images, targets = v2.MixUp(alpha=0.8, num_classes=5)(batch.images, batch.targets)
        batch = Batch(images, targets, batch.indices)
    return parts, batch


def cut(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    pieces = [torch.split(part, list(sizes)) for part in batch]
    return [Batch(*piece) for piece in zip(*pieces, strict=True)]


def shared(ours: list[Batch], theirs: list[Batch], rank: int) -> list[Batch]:
    """The micro-batches of one of two processes, each with the places of both."""
    pairs = list(zip(ours, theirs, strict=True))
    return [pair[rank]._replace(indices=torch.cat([piece.indices for piece in pair])) for pair in pairs]


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def updated(parts: TrainingParts, window: list[Batch]) -> dict[str, Tensor]:
    """The weights after an update, which is then taken back; and the loss and terms that it reports."""
    before = state(parts.network)
    parts.placement.model.train()
    set_frozen_eval(parts.network, parts.plan, epoch=0)
    terms, _ = train_step(parts, window, Progress())
    after = state(parts.network)
    parts.network.load_state_dict(before)
    return {**after, **{f"reported {name}": torch.as_tensor(float(term)) for name, term in terms.items()}}


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    """-(1 - p_t)^gamma log p_t (Lin et al. 2017, eq. 4), a mean over samples."""
    p = outputs.softmax(dim=1)[range(len(targets)), targets]
    return (-((1 - p) ** 1.5) * p.log()).mean()


def one_against_the_rest(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(
        outputs, functional.one_hot(targets, 5).float(), pos_weight=WEIGHTS
    )


def weighted_by_samples(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, WEIGHTS, reduction="sum") / len(targets)


def weighted_and_mixed(outputs: Tensor, targets: Tensor) -> Tensor:
    """sum_ik w_k p_ik -log q_ik / sum_ik w_k p_ik."""
    weights = targets * WEIGHTS
    return -(weights * outputs.log_softmax(dim=1)).sum() / weights.sum()


def weighted_and_smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    """Each image's smoothed loss by the weight of its class: sum_i w[y_i] L_i / sum_i w[y_i]."""
    each = functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.2)
    return (WEIGHTS[targets] * each).sum() / WEIGHTS[targets].sum()


BY_HAND: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": functional.cross_entropy,
    "weighted_ce by weights": partial(functional.cross_entropy, weight=WEIGHTS),
    "weighted_ce by samples": weighted_by_samples,
    "weighted_ce, smoothed": weighted_and_smoothed,
    "bce": one_against_the_rest,
    "focal": focal,
    "mse": functional.mse_loss,
    "mixed": functional.cross_entropy,
    "weighted and mixed": weighted_and_mixed,
    "l1": functional.cross_entropy,
    "term": functional.cross_entropy,
    "l1, term, weighted and mixed": weighted_and_mixed,
}


def by_hand(name: str) -> dict[str, Tensor]:
    """The same update in plain PyTorch."""
    parts, batch = case(name)
    model = copy.deepcopy(parts.network).eval()  # digits/cnn has no dropout, so this holds its norms and nothing else
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    outputs = model(batch.images)
    terms = {"loss": BY_HAND[name](outputs, batch.targets)}
    if "term" in name:
        terms["mirrored"] = ((outputs - model(batch.images.flip(-1))) ** 2).sum() / 32
    if "l1" in name:
        terms["l1"] = 0.003 * torch.cat([p.flatten() for p in learning]).abs().sum()
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    reported = {f"reported {name}": term.detach() for name, term in terms.items()}
    return {**model.state_dict(), **reported}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_an_update_over_32_images_is_that_of_plain_pytorch(name: str) -> None:
    parts, batch = case(name)

    found = updated(parts, [batch])

    assert_same(found, by_hand(name))
    assert float((found["layer1.0.weight"] - state(parts.network)["layer1.0.weight"]).abs().max()) > 1e-4


@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", CASES)
def test_micro_batches_add_up_to_the_update_over_all_of_their_images(name: str, sizes: tuple[int, ...]) -> None:
    parts, batch = case(name)

    assert_same(updated(parts, cut(batch, sizes)), updated(parts, [batch]))


def one_of_two(rank: int, folder: Path) -> None:
    """Take the update of every case, and save what comes out on this rank."""
    from torch import distributed

    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    for name in CASES:
        build.cache_clear()  # a network is wrapped once
        parts, batch = case(name)
        parts = attrs.evolve(parts, placement=placed(parts.network, rank))
        for label, (ours, theirs) in SHARES.items():
            pieces = cut(batch, [*ours, *theirs])
            mine = shared(pieces[: len(ours)], pieces[len(ours) :], rank)
            torch.save(updated(parts, mine), folder / f"{name}, {label}, {rank}.pt")
    distributed.destroy_process_group()


def placed(network: nn.Module, rank: int) -> Placement:
    from torch import distributed

    def reduce(amount: Any) -> Tensor:
        total = torch.as_tensor(amount, dtype=torch.float64).clone()
        distributed.all_reduce(total)
        return total

    # a second pass would write the buffers that the first one has kept for its gradient
    wrapped = nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
    return Placement(torch.device("cpu"), wrapped, lambda _: network, rank, 2, no_sync=wrapped.no_sync, reduce=reduce)


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    commands = [[sys.executable, __file__, str(rank), str(folder)] for rank in range(2)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
    return folder


@pytest.mark.parametrize("label", SHARES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_two_processes_take_the_update_over_all_of_their_images(name: str, label: str, on_two_processes: Path) -> None:
    parts, batch = case(name)
    whole = updated(parts, [batch])
    first, second = (torch.load(on_two_processes / f"{name}, {label}, {rank}.pt") for rank in range(2))

    assert_same(first, whole)
    for entry in whole:
        assert torch.equal(first[entry], second[entry]), entry


def test_the_windows_of_an_epoch_are_those_updates_to_the_shorter_last_one() -> None:
    """716 images in windows of 2 x 32: the last window has 12 and is divided by 12."""
    parts = build("train.accumulate=2")
    last = list(accumulation_windows(parts.data.train.epoch(0), 2))[-1]
    images, targets = (torch.cat([getattr(batch, part) for batch in last]) for part in ("images", "targets"))
    model = copy.deepcopy(parts.network).eval()
    loss = functional.cross_entropy(model(images), targets)
    expected = torch.autograd.grad(loss, model.get_parameter("head.weight"))[0]
    before = model.get_parameter("head.weight").detach()

    after = updated(parts, last)["head.weight"]

    assert len(targets) == 716 % 64
    torch.testing.assert_close((before - after) / 0.1, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", [(), CASES["weighted_ce by weights"], CASES["weighted_ce by samples"], CASES["bce"]])
def test_mixup_that_keeps_every_image_equals_hard_labels(loss: tuple[str, ...]) -> None:
    hard, soft = build(*loss), build(*loss)
    batch = next(hard.data.train.epoch(0))
    keep = v2.MixUp(alpha=1.0, num_classes=5)
    keep._dist = torch.distributions.Beta(torch.tensor([1e9]), torch.tensor([1e-9]))  # whose draws are 1
    soft = attrs.evolve(soft, data=attrs.evolve(soft.data, batch_transforms=[keep]))

    assert apply_batch_transforms(soft, batch).targets.shape == (32, 5)
    assert_same(updated(soft, [batch]), updated(hard, [batch]))


@pytest.mark.parametrize("divide_by", ["weights", "samples"])
@pytest.mark.parametrize("sizes", [(32,), (20, 12)])
def test_weights_of_one_are_no_weights(divide_by: str, sizes: tuple[int, ...]) -> None:
    ones = "weighted_ce.weights=[1, 1, 1, 1, 1]"
    weighted, plain = build("weighted_ce", ones, f"weighted_ce.divide_by={divide_by}"), build()
    window = cut(next(plain.data.train.epoch(0)), sizes)

    assert_same(updated(weighted, window), updated(plain, window))


if __name__ == "__main__":
    one_of_two(int(sys.argv[1]), Path(sys.argv[2]))
