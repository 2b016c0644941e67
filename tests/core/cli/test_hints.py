from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ftcore.cli import hints, main
from ftcore.config.schema import SECTIONS
from ftcore.plugins import discover
from ftcore.plugins.discovery import load_defaults
from ftcore.testing import invoke

if TYPE_CHECKING:
    from pathlib import Path

GUESSES = {
    "train photos/": "did you mean `ftcore run`?",
    "fit": "did you mean `ftcore run`?",
    "test runs/first": "did you mean `ftcore evaluate`?",
    "validate runs/first": "did you mean `ftcore evaluate`?",
    "infer cat.jpg": "did you mean `ftcore predict`?",
    "predcit": "did you mean `ftcore predict`?",
    "lr-find": "did you mean `ftcore find lr`?",
    "run --optimizer sgd": "sgd is a plugin: type --plugin sgd",
    "run --optimizer lion": "type --plugin NAME (`ftcore plugins --kind optimizer` lists them)",
    "run --loss focal": "focal is a plugin: type --plugin focal",
    "run --scheduler step": "step is a plugin: type --plugin step",
    "run --freeze": "freeze_backbone: Trains only the new head",
    "run --mixup": "mixup: ",
    "run --amp": "bf16: ",
    "run --num-epochs 3": "did you mean --epochs (the option train.epochs)?",
    "run --learning-rate 0.1": "did you mean --lr (here the option adamw.lr)?",
    "run --plugin sgd --learning-rate 0.1": "did you mean --lr (here the option sgd.lr)?",
    "run --batch_size 8": "did you mean --batch-size",
    "run --imgsz 224": "did you mean --image-size",
    "run --gpus 1": "did you mean --device",
    "run --output-dir out": "did you mean --out (",
    "run --clip-norm 1": "did you mean --set train.clip_norm=VALUE?",
    "run --patience 3": "did you mean --set train.patience=VALUE?",
    "run --val-split 0.1": "did you mean --set data.val_fraction=VALUE?",
    "run --accumulate-grad-batches 4": "did you mean --set train.accumulate=VALUE?",
    "run --epoch 3": "did you mean --epochs?",
    "predict --tpo 3": "did you mean --top?",
    "run --set lr=0.001": "lr: did you mean --lr (here the option adamw.lr)?",
    "run --set train.lr=0.001": "train.lr: did you mean --lr (here the option adamw.lr)?",
    "run --plugin sgd --set lr=1": "lr: did you mean --lr (here the option sgd.lr)?",
    "run --set epochs=3": "epochs: did you mean --epochs (the option train.epochs)?",
    "run --set momentum=0.9 --plugin sgd": "momentum: did you mean --set sgd.momentum=VALUE?",
    "run --set weight_decay=0": "weight_decay: did you mean --set adamw.weight_decay=VALUE?",
    "run --set model.epochs=3": "model.epochs: did you mean --epochs",
    "run --set clip_norm=1": "clip_norm: did you mean --set train.clip_norm=VALUE?",
    "run --set train.epochs 15": "type --set train.epochs=15",
    "run --plugin feature_extraction": "did you mean 'linear_probe'?",
    "run --plugin label-smoothing": "did you mean 'cross_entropy'?",
    "run --plugin oversampling": "did you mean 'balanced_sampling'?",
    "run --plugin lp_ft --set train.epochs=1": "recipe lp_ft, from lp_ft.probe_epochs; --set train.epochs=1",
    "run --recipe sgd": "it is a plugin but not a recipe (recipes: bitfit, fine_tune, linear_probe, lp_ft",
    "run --plugin probe_solver --lr 0.1": "probe_solver, which implements make_optimizer, has no option 'lr'",
    "run --lr 0.1 --set adamw.lr=0.2": "adamw.lr is set twice: --lr 0.1, --set adamw.lr=0.2",
    "run --epochs 3 --set train.epochs=4": "train.epochs is set twice: --epochs 3, --set train.epochs=4",
    "run --epochs three": "train.epochs: expected an integer, got 'three' (--epochs three)",
    "run nowhere": "nowhere does not exist",
    "run --device gpu": "one_device.device = 'gpu' is not a device",
    "plugins --kind losses": "did you mean 'loss'?",
    "plugins nonsense": "no plugin has 'nonsense' in its name or description",
}


@pytest.mark.parametrize("typed", GUESSES)
def test_a_guess_of_a_newcomer_ends_in_what_to_type(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = invoke(*typed.split())

    assert result.code == 2
    assert GUESSES[typed] in result.err
    assert not any(tmp_path.iterdir()), "an error of use leaves nothing behind"


def test_other_tools_words_stand_for_commands_options_and_plugins_that_are_there() -> None:
    commands = {meant.split()[0] for meant in hints.COMMANDS.values()}
    options = {meant for meant in hints.OPTIONS.values() if "." in meant}
    plugins = {name for names in load_defaults().SYNONYMS.values() for name in names}

    assert commands - {"--version", "--help"} <= set(main.commands)
    assert options <= {f"{name}.{key}" for name, cls in SECTIONS.items() for key in cls.__annotations__}
    assert plugins <= {plugin.name for plugin in discover()}
    assert not hints.COMMANDS.keys() & main.commands.keys()
