"""Build frozen attrs classes from TOML values and flags, strictly: nothing is coerced, nothing is dropped."""

from __future__ import annotations

import math
import tomllib
from functools import cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import attrs
from attrs import frozen

from ftcore.errors import UnknownOptionError, UserError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import cattrs


T = TypeVar("T", bound=attrs.AttrsInstance)


@frozen
class CliValue:
    """A value as it was typed on the command line: a TOML value where the option wants one, else text."""

    text: str

    def value(self) -> Any:
        """Return the TOML value that the text spells, or the text itself."""
        try:
            return tomllib.loads(f"value = {self.text}")["value"]
        except (ValueError, RecursionError):  # no TOML, or a number or a nesting that Python refuses to read
            return self.text

    def string(self) -> str:
        """Return the text, without the quotes if it is a quoted TOML string."""
        value = self.value()
        return value if isinstance(value, str) else self.text


def structure(values: Mapping[str, Any], cls: type[T], place: str, origins: Mapping[str, str]) -> T:
    """Build `cls` from `values`; every problem is reported at once.

    Args:
        values: option name -> TOML value or `CliValue`.
        cls: a frozen attrs class; its annotations and validators say what is allowed.
        place: what the keys are below, e.g. ``train`` or ``plugin.sgd``.
        origins: ``place.key`` -> where the value was set, for messages.

    Raises:
        UserError: unknown key, wrong type, or a value that a validator refuses.
    """
    known = {option.name: option for option in attrs.fields(attrs.resolve_types(cls))}
    spelt = place.removeprefix("plugin.")
    errors, built = [], {}
    unknown = [f"{spelt}.{key}" for key in values if key not in known]
    for key, value in values.items():
        origin = _origin(f"{place}.{key}", origins)
        if key not in known:
            allowed, near = ", ".join(known) or "none (it has no options)", did_you_mean(key, known)
            errors.append(f"unknown option '{spelt}.{key}'{near} ({origin}; allowed: {allowed})")
            continue
        try:
            built[key] = _structured(value, known[key])
        except (ValueError, TypeError) as error:
            errors.append(f"{spelt}.{key}: {error} ({origin})")
    missing = [o.name for o in known.values() if o.default is attrs.NOTHING and o.name not in values]
    errors += [f"{spelt}.{name} has no default and must be set ({cls.__module__}:{cls.__name__})" for name in missing]
    if errors:
        raise UnknownOptionError("\n".join(errors), unknown) if unknown else UserError("\n".join(errors))
    try:
        return cls(**built)
    except ValueError as error:  # a rule over several options
        set_at = [f"{key}: {_origin(f'{place}.{key}', origins)}" for key in built if key in str(error)]
        where = f" ({'; '.join(set_at)})" if set_at else ""
        raise UserError(f"{spelt}: {error}{where}") from None


def _origin(key: str, origins: Mapping[str, str]) -> str:
    return origins.get(key, "set in Python")


def _structured(value: Any, option: attrs.Attribute[Any]) -> Any:
    """Give one value its option's type and put it before the option's validator."""
    result: Any = _converter().structure(value, cast("type", option.type))
    if option.validator is not None:
        option.validator(None, option, result)
    return result


def as_typed(value: Any) -> str:
    """Spell a value the way the user did; of a long one, the ends."""
    text = repr(value.text if isinstance(value, CliValue) else value)
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-50:]}"


@cache
def _converter() -> cattrs.Converter:
    import cattrs

    converter = cattrs.Converter(detailed_validation=False)
    for kind, name in ((bool, "true or false"), (int, "an integer"), (float, "a finite number"), (str, "text")):
        converter.register_structure_hook(kind, _primitive(kind, name))
    converter.register_structure_hook(Path, lambda value, _: Path(_primitive(str, "a path")(value, str)))
    origins = ((Literal, _literal), (tuple, _sequence), (list, _sequence), (dict, _mapping), (Union, _union))
    for origin, convert in origins:
        converter.register_structure_hook_func(partial(_has_origin, origin), convert)
    converter.register_structure_hook_func(partial(_has_origin, UnionType), _union)
    return converter


def _has_origin(origin: Any, kind: Any) -> bool:
    return get_origin(kind) is origin


def _primitive(kind: type, name: str) -> Callable[[Any, Any], Any]:
    def convert(value: Any, _: Any) -> Any:
        plain = (value.string() if kind is str else value.value()) if isinstance(value, CliValue) else value
        if kind is float and type(plain) in {int, float} and math.isfinite(cast("float", plain)):
            return float(plain)
        if type(plain) is kind and kind is not float:
            if kind is int and not -(2**63) <= cast("int", plain) < 2**63:  # as TOML has it
                raise ValueError(f"{as_typed(value)} does not fit into 64 bits")
            return plain
        raise ValueError(f"expected {name}, got {as_typed(value)}")

    return convert


def _literal(value: Any, kind: Any) -> Any:
    allowed = get_args(kind)
    spelt = [value.string(), value.value()] if isinstance(value, CliValue) else [value]
    for plain in spelt:
        for choice in allowed:
            if type(plain) is type(choice) and plain == choice:
                return choice
    near = did_you_mean(str(spelt[0]), [choice for choice in allowed if isinstance(choice, str)])
    raise ValueError(f"{as_typed(value)} is not one of {', '.join(map(repr, allowed))}{near}")


def _sequence(value: Any, kind: Any) -> tuple[Any, ...] | list[Any]:
    plain = value.value() if isinstance(value, CliValue) else value
    if not isinstance(plain, list | tuple):
        raise ValueError(f'expected a list such as [1, 2] or ["a", "b"], got {as_typed(value)}')
    items = get_args(kind)
    if get_origin(kind) is list or items[-1] is ...:
        items = (items[0],) * len(plain)
    if len(items) != len(plain):
        raise ValueError(f"expected {len(items)} values, got {len(plain)}: {as_typed(value)}")
    built = [_converter().structure(element, item) for element, item in zip(plain, items, strict=True)]
    return built if get_origin(kind) is list else tuple(built)


def _mapping(value: Any, kind: Any) -> dict[str, Any]:
    plain = value.value() if isinstance(value, CliValue) else value
    if not isinstance(plain, dict):
        raise ValueError(f"expected a table such as {{name = 1.0}}, got {as_typed(value)}")
    item = get_args(kind)[1]
    return {key: _converter().structure(element, item) for key, element in plain.items()}


def _union(value: Any, kind: Any) -> Any:
    """Take the first member that the value fits; text comes last because a flag always fits it."""
    plain = value.value() if isinstance(value, CliValue) else value
    members = sorted(get_args(kind), key=lambda member: member is str)
    if plain is None and NoneType in members:
        return None
    reasons = []
    for member in members:
        try:
            if member is not NoneType:
                return _converter().structure(value, member)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; or ".join(dict.fromkeys(reasons)))
