"""Every pair of choices trains together: a covering array over precision, optimizer, loss, execution and the rest."""

from __future__ import annotations

import random
from itertools import combinations, islice, product
from typing import TYPE_CHECKING

import pytest
import torch

from ftcore import UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.model import freezing
from ftcore.runs.prepared import prepare
from ftcore.system.seeding import seed_step
from ftcore.training.loop import accumulation_windows, train_step
from ftcore.training.state import Progress
from ftcore.training.weight_averaging import update_average

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

FACTORS = {
    "precision": ("fp32", "bf16", "fp16", "bf16_pure", "bf16_pure bf16_pure.update=master"),
    "optimizer": (
        *("sgd", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad", "adadelta", "adafactor", "asgd"),
        *(f"timm_optim timm_optim.name={name}" for name in ("lion", "lamb", "muon", "adan", "mars")),
    ),
    "loss": (
        *("cross_entropy", "cross_entropy cross_entropy.label_smoothing=0.1", "weighted_ce", "focal", "asymmetric"),
        *("bce", "logit_adjustment", "ordinal", "soft_f1", "soft_dice"),
    ),
    "execution": ("", "channels_last", "checkpointing", "compile compile.backend=eager"),
    "devices": ("one_device", "dp"),
    "schedule": ("constant", "cosine", "polynomial", "exponential", "step", "multistep", "phases", "plateau"),
    "step": ("", "sam", "supcon", "r_drop mlp_head"),
    "penalty": ("", "l1", "l2_sp"),
    "average": ("", "ema", "swa"),
    "gradient": ("", "train.clip_norm=1", "train.clip_value=0.1", "train.clip_adaptive=0.01", "train.accumulate=2"),
    "batches": ("", "mixup", "cutmix"),
    "freezing": ("", "freeze_backbone", "freeze_norm", "gradual_unfreeze"),
}
REFUSED = {
    frozenset({("step", "supcon"), ("batches", "mixup")}): "mixup makes soft targets, but make_step of .*supcon",
    frozenset({("step", "supcon"), ("batches", "cutmix")}): "cutmix makes soft targets, but make_step of .*supcon",
    frozenset({("execution", "compile compile.backend=eager"), ("devices", "dp")}): "compile does not work with dp",
}
"""What cannot go together, and what is said of it."""

SETTINGS = {
    "step": ("step.size=1",),
    "multistep": ("multistep.milestones=[1]",),
    "phases": ("phases.epochs=[1]",),
    "plateau": ("plateau.patience=0",),
    "exponential": ("exponential.gamma=0.9",),
}

Row = dict[str, str]
Pair = frozenset[tuple[str, str]]


def pairs(row: Row) -> set[Pair]:
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


def covering_array() -> Iterator[Row]:
    """Yield rows until every pair that is not refused is in one: of many random rows, that with the most new pairs."""
    draw = random.Random(0)
    missing = {
        frozenset({(a, x), (b, y)}) for a, b in combinations(FACTORS, 2) for x, y in product(FACTORS[a], FACTORS[b])
    } - REFUSED.keys()
    while missing:
        wanted = dict(min(missing, key=sorted))
        rows = [{name: wanted.get(name) or draw.choice(levels) for name, levels in FACTORS.items()} for _ in range(100)]
        rows = [{**row, **wanted} for row in rows]
        row = max((row for row in rows if not pairs(row) & REFUSED.keys()), key=lambda row: len(pairs(row) & missing))
        missing -= pairs(row)
        yield row


ROWS = list(covering_array())


def asked(row: Row) -> CliOverrides:
    words = [word for level in row.values() for word in level.split()]
    plugins = tuple(word for word in words if "=" not in word)
    sets = (*(word for word in words if "=" in word), *(s for plugin in plugins for s in SETTINGS.get(plugin, ())))
    small = ("train.epochs=3", "train.batch_size=8", "train.log_every=1")
    return CliOverrides("digits/cnn", "digits:5-6", plugins=plugins, sets=(*sets, *small))


def after_two_steps(row: Row) -> dict[str, Tensor]:
    parts = prepare(load_config(None, asked(row))).assembly.parts
    progress = Progress()
    parts.placement.model.train()
    freezing.set_frozen_eval(parts.network, parts.plan, 0)
    for window in islice(accumulation_windows(parts.data.train.epoch(0), parts.train_config.accumulate), 2):
        seed_step(parts.placement.device, progress.step)
        terms, _ = train_step(parts, window, progress)
        progress.step += 1
        assert terms["loss"].isfinite()
    update_average(parts, progress, "epoch")
    return {name: tensor.clone() for name, tensor in parts.model_at(1).state_dict().items()}


def test_the_array_has_every_pair() -> None:
    wanted = sum(len(FACTORS[a]) * len(FACTORS[b]) for a, b in combinations(FACTORS, 2))

    assert len(ROWS) >= 150
    assert len(set().union(*map(pairs, ROWS))) == wanted - len(REFUSED)


@pytest.mark.parametrize(("pair", "message"), REFUSED.items())
def test_what_cannot_go_together_is_refused_by_name(pair: Pair, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(load_config(None, asked(dict(pair))))


@pytest.mark.slow
# torch.compile looks at the features that supcon watches, and warns itself of it
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row.values()))
def test_each_combination_is_finite_and_repeatable(row: Row) -> None:
    first, again = after_two_steps(row), after_two_steps(row)

    assert all(torch.isfinite(tensor).all() for tensor in first.values())
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
