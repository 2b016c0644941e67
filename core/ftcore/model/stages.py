"""The stages and blocks of a network, from its input to its head."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

from .freezing import is_submodule_of, named_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


TRUNK_NAMES = ("features", "layers", "blocks", "stages", "transformers", "trunk_output", "encoder.layers")
"""Modules whose children are the stages, in networks that do not have them as children of their own."""


def number_by_patterns(names: Iterable[str], patterns: Sequence[str]) -> dict[str, int]:
    r"""Number names, from 0, in the order of the patterns and of the whole numbers that these capture.

    ``["conv1|bn1", r"layer(\d+)"]`` puts ``conv1.weight`` into 0 and ``layer2.0.bn1.bias`` into 2, if there is a
    ``layer1``. What no pattern matches from its beginning is left out.
    """
    keys = {name: key for name in names if (key := _key(name, patterns)) is not None}
    ranks = {key: rank for rank, key in enumerate(sorted(set(keys.values())))}
    return {name: ranks[key] for name, key in keys.items()}


def _key(name: str, patterns: Sequence[str]) -> tuple[int, ...] | None:
    for place, pattern in enumerate(patterns):
        if found := re.match(pattern, name):
            return (place, *map(int, filter(None, found.groups())))
    return None


def derive_stages(
    model: nn.Module, heads: Sequence[str], stages: Sequence[str] = ()
) -> tuple[dict[str, int], dict[str, int]]:
    """Number the tensors that lie before the head, by stage and by block, from the order and kind of the modules.

    Args:
        model: the network.
        heads: paths of its heads.
        stages: patterns, as `number_by_patterns` takes them, where the architecture is known; by default derived.
    """
    names = [name for name in named_tensors(model) if not is_submodule_of(name, heads)]
    modules = dict(model.named_modules())
    trunk = _trunk(modules)
    derived, blocks = sequential_patterns(modules[trunk], trunk, heads)
    places = (place for place, name in enumerate(names) if any(re.match(stage, name) for stage in derived))
    before = next(places, 0)
    stem = ["|".join(f"{re.escape(name)}$" for name in names[:before])] if before else []
    return number_by_patterns(names, stages or [*stem, *derived]), number_by_patterns(names, [*stem, *blocks])


def block_modules(model: nn.Module, layers: Mapping[str, int], heads: Sequence[str]) -> list[str]:
    """Return the paths of the modules that are the blocks of a network: the largest whose tensors are all of one block.

    Args:
        model: the network.
        layers: parameter or buffer name -> its block, as `Backbone.layers`.
        heads: paths of its heads, which are no blocks.
    """
    found: list[str] = []
    for path, module in model.named_modules():
        if not path or is_submodule_of(path, [*found, *heads]) or isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        tensors = [f"{path}.{name}" for name in named_tensors(module)]
        if _is_composite(module) and len({layers.get(name) for name in tensors}) == 1 and tensors[0] in layers:
            found.append(path)
    return found


def _trunk(modules: Mapping[str, nn.Module]) -> str:
    """Return the path of the module whose children are the stages, inside a wrapper that holds nothing else."""
    root = ""
    while len(children := list(modules[root].named_children())) == 1 and _is_composite(children[0][1]):
        root = f"{root}.{children[0][0]}" if root else children[0][0]
    prefix = f"{root}." if root else ""
    known = (f"{prefix}{name}" for name in TRUNK_NAMES)
    return next((name for name in known if name in modules and len(list(modules[name].children())) > 1), root)


def sequential_patterns(parent: nn.Module, path: str, heads: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return patterns for the stages and for the blocks among modules that run one after the other, the head left out.

    A stage begins behind a pooling layer and at every module that has modules of its own. A block begins at each
    module but a norm layer; in a plain Sequential of modules, each is one.
    """
    stages: list[list[str]] = []
    blocks: list[list[str]] = []
    pooled = True
    for name, child in parent.named_children():
        full = f"{path}.{name}" if path else name
        if any(is_submodule_of(head, [full]) for head in heads):
            continue
        place = re.escape(full) + r"\."
        if pooled or _is_composite(child):
            stages.append([])
        if pooled or "Norm" not in type(child).__name__ or _is_composite(child):
            blocks.append([])
        stages[-1].append(place)
        blocks[-1].append(place)
        if _is_list(child):
            blocks[-1:] = [[place + re.escape(part) + r"\."] for part, _ in child.named_children()]
        pooled = "Pool" in type(child).__name__
    return ["|".join(stage) for stage in stages], ["|".join(block) for block in blocks]


def _is_composite(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList) and any(map(_is_composite, module.children()))
