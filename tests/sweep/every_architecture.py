"""Swap the head of every architecture of timm and torchvision, freeze its backbone, and look at what came out.

    uv run python tests/sweep/every_architecture.py [PATTERN] [--workers N] [--first-loss MAX_PARAMS]

Everything happens on the meta device, so it needs no weights and no memory: about a second for each of 1,451 names. For
each name, through the built-in plugins and in the order of a run: the network is built, each of its heads is replaced
by `linear` and then by `mlp_head`, it gives (2, classes) in train mode (with as many further outputs as its provider
declares) and in eval mode; `freeze_backbone` leaves the heads' parameters alone to learn, and no norm layer outside
them in train mode; the stages and blocks name real tensors; the parameter groups of `groups.layer_decay` are a
partition of what learns. The core checks most of that itself, and in every run.

With `--first-loss 30M` real networks of random weights, up to that size, see two normalised random images in train mode
instead, and their first loss is compared with ln(classes).
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor

import torch
from attrs import evolve, frozen

from ftcore import UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.model import freezing
from ftcore.model.build import Network, build_network
from ftcore.model.catalog import count_parameters, filter_models, parse_count, rows_from_cache
from ftcore.model.heads import check_outputs, replace_heads
from ftcore.model.shape_inference import as_tuple, build_on_meta, output_shapes
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore_plugins.tasks import Classification

CLASSES = 7
TASK = Classification(tuple(f"class {number}" for number in range(CLASSES)), (1,) * CLASSES)
NO_CLASSIFIER = "no classifier of its own: pooling and a linear layer serve it"


@frozen
class Found:
    """What happened to one architecture.

    Attributes:
        name: with its provider.
        head: what went wrong with the heads, empty if nothing did.
        frozen: what went wrong when the backbone was frozen, empty if nothing did.
        norms: whether it has norm layers with running statistics.
        note: something that is worth a line, empty if nothing is.
    """

    name: str
    head: str = ""
    frozen: str = ""
    norms: bool = False
    note: str = ""


def _calls(name: str, *plugins: str, sets: tuple[str, ...] = ()) -> HookCalls:
    sets = ("model.weights=none", *sets)
    return HookCalls(activate(load_config(None, CliOverrides(model=name, plugins=plugins, sets=sets))))


def look(name: str) -> Found:
    """Try one architecture."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            calls = _calls(name, "freeze_backbone")
            network = build_on_meta(lambda: build_network(calls.host.config, calls, TASK))
            if not _runs_without_memory(network):
                build_network(calls.host.config, calls, TASK)  # with real tensors, so that its checks can run it
            _swap_again(name, network)
        except Exception:  # noqa: BLE001 - whatever it is, it is reported with the name
            return Found(name, head=traceback.format_exc(limit=-2))
        try:
            norms = _freeze(calls, network)
            _groups(name, network)
        except Exception:  # noqa: BLE001 - as above
            return Found(name, frozen=traceback.format_exc(limit=-2))
    pooled = type(network.module).__name__ == "Pooled"
    return Found(name, norms=norms, note=NO_CLASSIFIER if pooled else "")


def _runs_without_memory(network: Network) -> bool:
    try:
        return bool(output_shapes(network.module, network.spec, training=False))
    except UserError:
        return False


def _swap_again(name: str, network: Network) -> None:
    """Put multi-layer heads where the linear ones are, and undo that."""
    calls = _calls(name, "mlp_head")
    linear = {slot.path: network.module.get_submodule(slot.path) for slot in network.backbone.heads}
    backbone = network.backbone
    module = build_on_meta(lambda: replace_heads(backbone, lambda slot: calls.build_head(slot, backbone, TASK)))
    check_outputs(evolve(backbone, module=module), CLASSES, "")
    for path, head in linear.items():
        module.set_submodule(path, head)


def _freeze(calls: HookCalls, network: Network) -> bool:
    """Freeze the backbone as a run does, and check what learns and what is in train mode."""
    model, heads = network.module, network.heads
    plan = calls.freeze(model, heads, network.backbone, TASK)
    freezing.apply_requires_grad(model, plan, epoch=0)
    model.train()
    freezing.set_frozen_eval(model, plan, epoch=0)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {n for n, _ in model.named_parameters() if freezing.is_submodule_of(n, heads)}, learning
    outside = {n: m for n, m in model.named_modules() if not freezing.is_submodule_of(n, heads)}
    statistics = {n for n, _ in model.named_buffers() if n.endswith(("running_mean", "running_var"))}
    moving = {n for n in statistics if outside[n.rpartition(".")[0]].training}
    assert not moving, moving
    sealed = freezing.frozen_tensors(model, plan, epoch=0)
    saved = freezing.named_tensors(model).keys() & model.state_dict().keys()
    missing = {n for n in saved if not freezing.is_submodule_of(n, heads)} - set(sealed)
    assert not missing, f"under no contract: {missing}"
    return bool(statistics)


def _groups(name: str, network: Network) -> None:
    """Number the blocks, and give each its rate."""
    model, heads, backbone = network.module, network.heads, network.backbone
    tensors = set(freezing.named_tensors(model))
    for numbers in (backbone.stages, backbone.blocks):
        before = {n: i for n, i in numbers.items() if not freezing.is_submodule_of(n, heads)}
        assert set(before) <= tensors, set(before) - tensors
        assert len(set(before.values())) > 1, "fewer than two stages or blocks"
        assert set(before.values()) == set(range(max(before.values()) + 1)), "numbers are left out"
    calls = _calls(name, sets=("groups.layer_decay=0.5",))
    groups = calls.param_groups(dict(model.named_parameters()), model, heads, backbone)  # checks the partition itself
    scales = {name: group.lr_scale for group in groups for name in group.params}
    assert {s for n, s in scales.items() if freezing.is_submodule_of(n, heads)} == {1.0}
    assert min(scales.values()) < 1


def first_loss(name: str) -> tuple[str, float]:
    """Return the loss of a network with random weights on random images, over what guessing would give."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calls = _calls(name)
        network = build_network(calls.host.config, calls, TASK)
        images = torch.randn(2, network.spec.channels, *network.spec.size)
        with torch.no_grad():
            outputs = as_tuple(network.module.train()(images))[0]
    loss = torch.nn.functional.cross_entropy(outputs, torch.tensor([0, CLASSES - 1]))
    return name, float(loss) / math.log(CLASSES)


def first_losses(pattern: str, limit: str, workers: int | None) -> int:
    """Print how many first losses are within 20 % of guessing, and name the others."""
    rows = count_parameters(rows_from_cache(filter_models(_calls("timm/resnet18").list_models(), pattern)), list)
    wanted = [row.info.name for row in rows if (row.parameters or 0) <= parse_count(limit)]
    with _pool(workers) as pool:
        ratios = dict(pool.map(first_loss, wanted, chunksize=4))
    off = {name: ratio for name, ratio in ratios.items() if not abs(ratio - 1) <= 0.2}
    print(
        f"first loss within 20 % of ln({CLASSES}): {len(ratios) - len(off)} of {len(ratios)} up to {limit} parameters"
    )
    print("\n".join(f"{name}: {ratio:.3g} times" for name, ratio in off.items()))
    return bool(off)


def _pool(workers: int | None) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers or os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))


def sweep(pattern: str = "*", workers: int | None = None, every: int = 1, first: int = 0) -> list[Found]:
    """Try all architectures that match, or one of every so many from the first on, in several processes."""
    known = _calls("timm/resnet18").list_models()
    wanted = [info.name for info in filter_models(known, pattern)]
    with _pool(workers) as pool:
        return list(pool.map(look, wanted[first::every], chunksize=8))


def summary(found: list[Found]) -> list[str]:
    """Say how many of each provider passed, and name what did not and what is special."""
    of = {provider: [f for f in found if f.name.startswith(f"{provider}/")] for provider in ("timm", "torchvision")}

    def counted(kind: str) -> str:
        passed = {p: sum(not f.head and not getattr(f, kind) for f in some) for p, some in of.items()}
        return ", ".join(f"{passed[p]} of {len(some)} {p}" for p, some in of.items())

    lines = [f"head: {counted('head')}; frozen: {counted('frozen')}"]
    lines += [f"with running statistics: {', '.join(f'{sum(f.norms for f in s)} {p}' for p, s in of.items())}"]
    lines += [f"{f.name}: {f.note}" for f in found if f.note]
    return lines + [f"{f.name}: {f.head or f.frozen}" for f in found if f.head or f.frozen]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--first-loss", metavar="MAX_PARAMS")
    options, started = parser.parse_args(), time.monotonic()
    if options.first_loss:
        return first_losses(options.pattern, options.first_loss, options.workers)
    found = sweep(options.pattern, options.workers)
    print("\n".join(summary(found)))
    print(f"{time.monotonic() - started:.0f} s")
    return any(f.head or f.frozen for f in found)


if __name__ == "__main__":
    raise SystemExit(main())
