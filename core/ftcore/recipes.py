"""Recipes: plugins that name other plugins and set their options; what the user sets himself beats them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from .config import SECTIONS, Named
from .errors import UserError
from .parts import Recipe
from .plugins import configured, load, resolve
from .structure import structure

if TYPE_CHECKING:
    from .config import RunConfig
    from .discover import Available
    from .plugins import Reference


def expand(config: RunConfig, available: tuple[Available, ...]) -> RunConfig:
    """Let each recipe among the named plugins name others and set options, also recipes that recipes name.

    Raises:
        UserError: as `ftcore.plugins.activate`, or a recipe's answer is wrong.
    """
    waiting = list(config.plugins)
    for named in waiting:
        reference = resolve(named, available)
        if reference.name in config.without:
            continue
        recipe = _recipe(reference, config)
        known = {resolve(other, available).name for other in waiting}
        others = [Named(text, f"recipe {reference.name}", named.base) for text in recipe.plugins]
        waiting += [other for other in others if resolve(other, available).name not in known]
        config = _with(config, recipe, reference.name)
    return evolve(config, plugins=tuple(waiting))


def _recipe(reference: Reference, config: RunConfig) -> Recipe:
    """Ask a plugin for its recipe; one that has none names and sets nothing."""
    target = load(reference)
    if not callable(getattr(target, "recipe", None)):
        return Recipe()
    plugin: Any = configured(target, reference, config)[1]
    recipe = plugin.recipe()
    if not isinstance(recipe, Recipe):
        raise UserError(f"{reference.name}.recipe returned {type(recipe).__name__} {recipe!r:.80}; expected a Recipe")
    return recipe


def _with(config: RunConfig, recipe: Recipe, name: str) -> RunConfig:
    """Set what the user has not set, and remember who did."""
    for key, value in recipe.settings.items():
        section, _, option = key.rpartition(".")
        full = key if section in SECTIONS else f"plugin.{key}"
        if full in config.origins or section in config.without:
            continue
        config = evolve(config, origins={**config.origins, full: f"recipe {name}"})
        if section in SECTIONS:
            built: Any = structure({option: value}, SECTIONS[section], section, config.origins)
            given = evolve(getattr(config, section), **{option: getattr(built, option)})
            config = evolve(config, **{section: given})
        else:
            options = {**config.options.get(section, {}), option: value}
            config = evolve(config, options={**config.options, section: options})
    return config
