"""What may have been meant by a word that no command, flag or option has: other tools' words among them."""

from __future__ import annotations

from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from ftcore.config.schema import FLAGS, HOOK_FLAGS, SECTIONS, PluginRef, RunConfig
from ftcore.errors import UserError, close_matches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import click

COMMANDS = {
    "train": "run",
    "fit": "run",
    "finetune": "run",
    "fine-tune": "run",
    "start": "run",
    "cv": "folds",
    "cross-validate": "folds",
    "kfold": "folds",
    "test": "evaluate",
    "validate": "evaluate",
    "val": "evaluate",
    "eval": "evaluate",
    "score": "evaluate",
    "infer": "predict",
    "inference": "predict",
    "classify": "predict",
    "convert": "export",
    "onnx": "export",
    "deploy": "serve",
    "server": "serve",
    "tune": "find",
    "lr_find": "find lr",
    "lr-find": "find lr",
    "lrfind": "find lr",
    "list": "runs",
    "ls": "runs",
    "history": "runs",
    "continue": "resume",
    "restart": "resume",
    "diff": "compare",
    "networks": "models",
    "summary": "inspect",
    "dataset": "check",
    "data": "check",
    "plot": "report",
    "html": "report",
    "average": "soup",
    "recipes": "plugins --kind recipe",
    "losses": "plugins --kind loss",
    "optimizers": "plugins --kind optimizer",
    "version": "--version",
    "help": "--help",
}
"""Words of other tools -> the command of ftcore."""

OPTIONS = {
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "num_train_epochs": "epochs",
    "learning_rate": "lr",
    "base_lr": "lr",
    "lr0": "lr",
    "bs": "batch_size",
    "batch": "batch_size",
    "train_batch_size": "batch_size",
    "img_size": "image_size",
    "imgsz": "image_size",
    "input_size": "image_size",
    "resolution": "image_size",
    "size": "image_size",
    "pretrained": "weights",
    "checkpoint": "weights",
    "ckpt": "weights",
    "random_seed": "seed",
    "num_workers": "workers",
    "n_workers": "workers",
    "gpu": "device",
    "gpus": "device",
    "cuda": "device",
    "accelerator": "device",
    "output": "out",
    "output_dir": "out",
    "out_dir": "out",
    "save_dir": "out",
    "project": "out",
    "logdir": "out",
    "dataset": "data",
    "data_dir": "data",
    "train_dir": "data",
    "arch": "model",
    "architecture": "model",
    "backbone": "model",
    "network": "model",
    "patience": "train.patience",
    "early_stopping": "train.patience",
    "grad_clip": "train.clip_norm",
    "gradient_clip_val": "train.clip_norm",
    "max_grad_norm": "train.clip_norm",
    "clip_grad": "train.clip_norm",
    "accumulate_grad_batches": "train.accumulate",
    "gradient_accumulation_steps": "train.accumulate",
    "grad_accum": "train.accumulate",
    "val_split": "data.val_fraction",
    "valid_pct": "data.val_fraction",
    "validation_split": "data.val_fraction",
    "folds": "data.folds",
    "metric": "train.monitor",
}
"""Words of other tools -> a flag, or an option of the core."""


def for_command(word: str, known: Iterable[str]) -> str:
    """Return which command may have been meant, as the end of a message; or ``""``."""
    meant = COMMANDS.get(word.lower()) or next(iter(close_matches(word, known)), None)
    return f"; did you mean `ftcore {meant}`?" if meant else ""


def for_flag(flag: str, command: click.Command, arguments: Sequence[str]) -> str:
    """Return what may have been meant by a flag that a command has not, as the end of a message; or ``""``.

    Args:
        flag: e.g. ``--optimizer``.
        command: the command that has it not.
        arguments: all that was typed behind `ftcore`.
    """
    flags = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
    if "--set" not in flags:
        return _nearest_flag(flag, flags)
    word = flag.lstrip("-").replace("-", "_")
    plugins = [value for name, value in pairwise(arguments) if name == "--plugin"]
    if typed := _typed(word, plugins):
        return f"; did you mean {typed}?"
    if near := get_close_matches(flag, flags, n=1, cutoff=0.85):
        return f"; did you mean {near[0]}?"
    value = next((value for name, value in pairwise(arguments) if name == flag), "")
    return _plugin(word, value) or _nearest_flag(flag, flags)


def _nearest_flag(flag: str, flags: Sequence[str]) -> str:
    near = close_matches(flag, flags)[:1]
    return f"; did you mean {near[0]}?" if near else ""


def for_options(names: Iterable[str], plugins: Sequence[str]) -> Iterator[str]:
    """Yield a line for each option that nothing has and that can be had by another name.

    Args:
        names: e.g. ``epochs``, ``train.lr`` or ``--set``'s key without a section.
        plugins: names that ``--plugin`` had, to name the option of the right one.
    """
    for name in names:
        word = name.rpartition(".")[2].replace("-", "_")
        typed = _typed(word, plugins) or _of_optimizer(word, plugins)
        if typed:
            yield f"{name}: did you mean {typed}?"


def _typed(word: str, plugins: Sequence[str]) -> str:
    """Return what to type for a word of a flag or of an option of the core; or ``""``."""
    meant = OPTIONS.get(word, word)
    if meant in HOOK_FLAGS:
        option = _option_of(HOOK_FLAGS[meant], meant, plugins)
        return f"--{meant}" + (f" (here the option {option})" if option else "")
    if meant in FLAGS:
        return f"--{meant.replace('_', '-')} (the option {FLAGS[meant]})"
    sections = [name for name, cls in SECTIONS.items() if word in {field.name for field in attrs.fields(cls)}]
    full = meant if "." in meant else f"{sections[0]}.{word}" if sections else ""
    return f"--set {full}=VALUE" if full else ""


def _of_optimizer(word: str, plugins: Sequence[str]) -> str:
    option = _option_of("make_optimizer", word, plugins)
    return f"--set {option}=VALUE" if option else ""


def _option_of(hook: str, word: str, plugins: Sequence[str]) -> str:
    """Return ``plugin.option`` for the plugin that would answer a hook, if it has that option; or ``""``."""
    from ftcore.plugins.activation import load
    from ftcore.plugins.discovery import discover, load_defaults
    from ftcore.plugins.hook_options import answering_plugin, option_names
    from ftcore.plugins.recipes import expand_recipes

    try:
        available = discover()
        config = RunConfig(plugins=tuple(PluginRef(name, "", Path.cwd()) for name in plugins))
        plugin = answering_plugin(hook, expand_recipes(config, available), available, load_defaults().PLUGINS)
        return f"{plugin.name}.{word}" if word in option_names(load(plugin)) else ""
    except UserError:  # what is wrong with the plugins is another message
        return ""


def _plugin(word: str, value: str) -> str:
    """Return which plugin a flag may have meant, as other tools name an optimizer by `--optimizer sgd`; or ``""``."""
    from ftcore.plugins.describe import KINDS
    from ftcore.plugins.discovery import discover, nearest_plugins

    available = discover()
    if value.replace("-", "_") in {plugin.name for plugin in available}:
        return f"; {value} is a plugin: type --plugin {value}"
    kinds = {kind for kind in KINDS.values() if kind.startswith(word.rstrip("s")[:6])} if len(word) > 3 else set()
    if kinds:
        return f"; it is a plugin: type --plugin NAME (`ftcore plugins --kind {min(kinds)}` lists them)"
    near = nearest_plugins(word, available)
    return f"{near}\na plugin is named by --plugin NAME" if near else ""
