"""Which parameters share a learning rate and whether they decay."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from attrs import field, frozen, validators

from ftcore import ParamGroup, UserError, hookimpl
from ftcore.model import is_submodule_of, match_modules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from ftcore import Backbone


@frozen
class GroupsConfig:
    """Options of `groups`; the factors on the optimizer's learning rate multiply.

    Attributes:
        backbone_lr: factor for everything but the new heads, > 0.
        layer_decay: factor per block of the architecture, counted from the head down, in (0, 1].
        lr: paths or globs, as in `freeze_modules.names`, -> factor, > 0.
        decay_all: whether weight decay also applies to biases, norm layers and what the architecture exempts.
    """

    backbone_lr: float = field(default=1.0, validator=validators.gt(0.0))
    layer_decay: float = field(default=1.0, validator=[validators.gt(0.0), validators.le(1.0)])
    lr: dict[str, float] = field(
        factory=dict, validator=validators.deep_mapping(validators.instance_of(str), validators.gt(0.0))
    )
    decay_all: bool = False


class Groups:
    """Parameter groups: learning rates of head and backbone, layer-wise decay, no weight decay on norms and biases.

    Weight decay leaves out vectors (biases, scales and shifts of norm layers) and what the architecture lists. Block i
    of L gets ``layer_decay ** (L + 1 - i)``, the head and modules outside of blocks 1, as in BEiT (arXiv:2106.08254).
    """

    Config = GroupsConfig

    def __init__(self, config: GroupsConfig) -> None:
        self.config = config

    @hookimpl
    def param_groups(
        self, trainable: Mapping[str, nn.Parameter], model: nn.Module, heads: tuple[str, ...], backbone: Backbone
    ) -> list[ParamGroup]:
        """Answer always."""
        rules = _Rules(
            self.config,
            heads,
            {p: tuple(match_modules(p, model, "groups.lr")) for p in self.config.lr},
            backbone,
        )
        members: dict[tuple[str, float, bool], dict[str, nn.Parameter]] = {}
        for name, parameter in trainable.items():
            decays = self.config.decay_all or (parameter.ndim > 1 and name not in backbone.no_decay)
            label, factor = rules.group_of(name)
            members.setdefault((label, factor, decays), {})[name] = parameter
        rules.check(list(trainable))
        return [
            ParamGroup(label + ("decay" if decays else "no_decay"), params, factor, decays)
            for (label, factor, decays), params in sorted(members.items(), key=lambda item: not item[0][2])
        ]


@frozen
class _Rules:
    """The rules that the options define.

    Attributes:
        config: the options.
        heads: paths of the new heads.
        matched: pattern of `lr` -> modules and parameters that it matches.
        backbone: knows the blocks.
    """

    config: GroupsConfig
    heads: tuple[str, ...]
    matched: Mapping[str, tuple[str, ...]]
    backbone: Backbone

    def group_of(self, name: str) -> tuple[str, float]:
        """Return the beginning of the group's name, and the factor on the learning rate."""
        rules = self._rules(name)
        return "".join(f"{label}." for _, label, _ in rules), prod(factor for _, _, factor in rules)

    def check(self, learning: list[str]) -> None:
        """Refuse a rule that no learning parameter falls under."""
        used = {option for name in learning for option, _, factor in self._rules(name) if factor != 1}
        for option in ("backbone_lr", "layer_decay"):
            value = getattr(self.config, option)
            if value != 1 and option not in used:
                raise UserError(f"groups.{option} = {value} has no effect: no parameter before the head is trainable")
        for pattern, roots in self.matched.items():
            if not any(is_submodule_of(name, roots) for name in learning):
                raise UserError(f"groups.lr: {pattern!r} matches only frozen parameters")

    def _rules(self, name: str) -> list[tuple[str, str, float]]:
        """Return option, label and factor of each rule that has something to say about a parameter."""
        rules: list[tuple[str, str, float]] = []
        in_head = is_submodule_of(name, self.heads)
        if self.config.backbone_lr != 1:
            factor = 1.0 if in_head else self.config.backbone_lr
            rules.append(("backbone_lr", "head" if in_head else "backbone", factor))
        if self.config.layer_decay != 1:
            top = max(self.backbone.blocks.values(), default=-1) + 1
            layer = top if in_head else self.backbone.blocks.get(name, top)
            label = "top" if layer == top else f"layer{layer}"
            rules.append(("layer_decay", label, self.config.layer_decay ** (top - layer)))
        return rules + [
            ("lr", p, self.config.lr[p]) for p, roots in self.matched.items() if is_submodule_of(name, roots)
        ]
