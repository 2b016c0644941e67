"""Recipes: plugins that name other plugins and set their options; what the user sets himself beats them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from ftcore.config.schema import SECTIONS
from ftcore.config.structure import structure
from ftcore.errors import UserError, format_names
from ftcore.types.training import Recipe

from .activation import instantiate, load
from .discovery import discover, static_facts
from .references import resolve

if TYPE_CHECKING:
    from ftcore.config.schema import PluginRef, RunConfig

    from .discovery import InstalledPlugin
    from .references import PluginReference


def expand_recipes(config: RunConfig, available: tuple[InstalledPlugin, ...]) -> RunConfig:
    """Let each recipe among the named plugins name others and set options, also recipes that recipes name.

    Raises:
        UserError: as `ftcore.plugins.activation.activate`, or a recipe's answer is wrong.
    """
    waiting = list(config.plugins)
    for named in waiting:
        reference = resolve(named, available)
        if reference.name in config.without:
            continue
        recipe = _recipe(reference, config)
        known = {resolve(other, available).name for other in waiting}
        others = [
            evolve(named, text=text, origin=f"recipe {reference.name}", recipe=reference.name, distribution=None)
            for text in recipe.plugins
        ]
        waiting += [other for other in others if resolve(other, available).name not in known]
        config = _apply_recipe(config, recipe, reference.name)
    return evolve(config, plugins=tuple(waiting))


def check_recipe(named: PluginRef) -> None:
    """Refuse a plugin that is no recipe.

    Raises:
        UserError: with the names of those that are installed.
    """
    available = discover()
    if not callable(getattr(load(resolve(named, available)), "recipe", None)):
        recipes = format_names(plugin.name for plugin in available if static_facts(plugin.target).is_recipe)
        raise UserError(
            f"--recipe {named.text}: it is a plugin but not a recipe (recipes: {recipes}); type --plugin {named.text}"
        )


def _recipe(reference: PluginReference, config: RunConfig) -> Recipe:
    """Ask a plugin for its recipe; one that has none names and sets nothing."""
    target = load(reference)
    if not callable(getattr(target, "recipe", None)):
        return Recipe()
    plugin: Any = instantiate(target, reference, config)[1]
    recipe = plugin.recipe()
    if not isinstance(recipe, Recipe):
        raise UserError(f"{reference.name}.recipe returned {type(recipe).__name__} {recipe!r:.80}; expected a Recipe")
    return recipe


def _apply_recipe(config: RunConfig, recipe: Recipe, name: str) -> RunConfig:
    """Set what the user has not set, and remember who did."""
    for key, value in recipe.settings.items():
        section, _, option = key.rpartition(".")
        full = key if section in SECTIONS else f"plugin.{key}"
        if full in config.origins or section in config.without:
            continue
        derived = f", from {name}.{recipe.derived[key]}" if key in recipe.derived else ""
        config = evolve(config, origins={**config.origins, full: f"recipe {name}{derived}"})
        if section in SECTIONS:
            built: Any = structure({option: value}, SECTIONS[section], section, config.origins)
            given = evolve(getattr(config, section), **{option: getattr(built, option)})
            config = evolve(config, **{section: given})
        else:
            options = {**config.options.get(section, {}), option: value}
            config = evolve(config, options={**config.options, section: options})
    return config
