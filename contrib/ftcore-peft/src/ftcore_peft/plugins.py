"""The plugins: which adapter, where, and that nothing else of the pre-trained network learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen, validators
from ftcore import Backbone, UserError, did_you_mean, hookimpl

if TYPE_CHECKING:
    from collections.abc import Generator

    from ftcore import FreezePlan, RunConfig
    from torch import nn

CHOSEN_HERE = frozenset({"target_modules", "exclude_modules", "modules_to_save"})
"""Settings of PEFT that follow from the network: the head learns as a whole, and is saved with the rest."""


@frozen
class LoraOptions:
    """Options of `lora`.

    Attributes:
        r: rank of the update, > 0.
        alpha: the update counts ``alpha / r`` times, > 0; None: `r`, so once. PEFT's ``lora_alpha``.
        dropout: of what goes into the update in training, in [0, 1). PEFT's ``lora_dropout``.
        target_modules: layers (Linear or Conv2d) that are adapted: the last segments of their names, globs per segment:
            ``qkv``, ``attn.*``, ``blocks.1?.mlp.fc1``, ``*`` for all. None: attention and MLP as timm names them.
        use_dora: learn the length of each row of the weight apart from its direction (DoRA, arXiv:2402.09353).
        use_rslora: let the update count ``alpha / sqrt(r)`` times (rsLoRA, arXiv:2312.03732).
    """

    r: int = field(default=8, validator=validators.gt(0))
    alpha: float | None = field(default=None, validator=validators.optional(validators.gt(0.0)))
    dropout: float = field(default=0.0, validator=[validators.ge(0.0), validators.lt(1.0)])
    target_modules: tuple[str, ...] | None = None
    use_dora: bool = False
    use_rslora: bool = False


class Lora:
    """Trains a low-rank update of each chosen layer, and the new head (Hu et al. 2021, arXiv:2106.09685).

    A layer W x becomes W x + alpha/r B A x, with A (r, in) random and B (out, r) zero at first, so that the run begins
    with the pre-trained network. Nothing else moves, not even running statistics.
    """

    Config = LoraOptions

    def __init__(self, config: LoraOptions) -> None:
        self.config = config

    @hookimpl(wrapper=True)
    def build_model(self, config: RunConfig) -> Generator[None, Backbone | nn.Module, Backbone]:
        """Put the adapters into the network that another plugin builds."""
        network = yield
        from .adapters import adapted

        options = self.config
        settings = {
            "r": options.r,
            "lora_alpha": options.r if options.alpha is None else options.alpha,
            "lora_dropout": options.dropout,
            "use_dora": options.use_dora,
            "use_rslora": options.use_rslora,
        }
        return adapted(network, config.model.head, "lora", settings, options.target_modules)

    @hookimpl
    def freeze(self, model: nn.Module, heads: tuple[str, ...], backbone: Backbone) -> FreezePlan:
        """Freeze all but adapters and heads."""
        from .adapters import check_called, only_adapters

        check_called(model, backbone.input, "lora")
        return only_adapters(model, heads)


@frozen
class PeftOptions:
    """Options of `peft`.

    Attributes:
        method: ``"ia3"`` (arXiv:2205.05638) scales what goes out of a layer; ``"loha"``, ``"lokr"`` add a Hadamard or
            Kronecker product, ``"hira"`` a low-rank one times the weight; ``"oft"``, ``"hra"`` rotate the weight.
        target_modules: as of `lora`.
        options: settings of PEFT's class for the method, by its names, e.g. ``{r = 4, alpha = 8}`` of its LoHaConfig.
            ``feedforward_modules`` of IA3 is written like `target_modules`.
    """

    method: Literal["ia3", "loha", "lokr", "hira", "oft", "hra"]
    target_modules: tuple[str, ...] | None = None
    options: dict[str, Any] = field(factory=dict)


class Peft:
    """Trains adapters other than LoRA, and the new head; everything else is frozen."""

    Config = PeftOptions

    def __init__(self, config: PeftOptions) -> None:
        self.config = config

    @hookimpl(wrapper=True)
    def build_model(self, config: RunConfig) -> Generator[None, Backbone | nn.Module, Backbone]:
        """Put the adapters into the network that another plugin builds."""
        network = yield
        from .adapters import adapted

        settings = checked(self.config.method, self.config.options)
        return adapted(network, config.model.head, self.config.method, settings, self.config.target_modules, "peft")

    @hookimpl
    def freeze(self, model: nn.Module, heads: tuple[str, ...], backbone: Backbone) -> FreezePlan:
        """Freeze all but adapters and heads."""
        from .adapters import check_called, only_adapters

        check_called(model, backbone.input, "peft")
        return only_adapters(model, heads)


def checked(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a method with what it cannot do without.

    Raises:
        UserError: PEFT's class for the method has no such setting, or one of another type; it checks neither.
    """
    from dataclasses import fields

    from peft import PeftConfig

    from .adapters import config_class

    general = {item.name for item in fields(PeftConfig)}
    known = {f.name: f.default for f in fields(config_class(method)) if f.name not in CHOSEN_HERE | general}
    for name, value in options.items():
        if name not in known:
            raise UserError(
                f"peft.options: {method} has no setting {name!r}{did_you_mean(name, known)}; {', '.join(sorted(known))}"
            )
        default = known[name]
        if type(default) in {bool, int, float, str} and not _is_like(value, default):
            raise UserError(f"peft.options: {name} of {method} is like {default!r}, not {value!r}")
    needed: dict[str, Any] = {"feedforward_modules": []} if method == "ia3" else {}
    return needed | options


def _is_like(value: object, default: object) -> bool:
    """Whether a value has the type of the default; numbers go for each other, true and false do not."""
    kinds = (int, float) if type(default) in {int, float} else (type(default),)
    return type(value) in kinds
