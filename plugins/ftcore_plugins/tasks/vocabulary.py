"""Names of classes and labels: their order, those that images have, and what is written of them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import structlog

from ftcore import Table, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np

    from ftcore import SourceTargets

    Numbers = np.ndarray[Any, np.dtype[Any]]


_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def order_names(names: Iterable[str], recorded: Sequence[str] | None = None) -> tuple[str, ...]:
    """Put classes in order: by their value where all are numbers (2 before 10), else as texts.

    Args:
        names: of the classes.
        recorded: of a run that is read back, see `ftcore.SourceTargets`: if these are the same names, their order
            stays; where it wrote none, names are sorted as texts, for that is how it did.
    """
    texts = sorted(names)
    if recorded and sorted(recorded) == texts:
        return tuple(recorded)
    is_older_run = recorded is not None and not recorded
    if not is_older_run and all(map(_NUMBER.fullmatch, texts)):
        texts.sort(key=Decimal)
    return tuple(texts)


def find_names(
    given: SourceTargets, noun: str, names_of: Callable[[Any], Iterable[str]]
) -> tuple[tuple[str, ...], Mapping[str, Numbers]]:
    """Return the names that training images have, in order, and the rows that can be used with them.

    Args:
        given: what the source says.
        noun: what a name is.
        names_of: value of an image -> its names.

    Raises:
        UserError: validation has a name that training has not.
    """
    splits = {split: {n for row in rows for n in names_of(given.values[row])} for split, rows in given.rows.items()}
    if given.measuring:
        return order_names(set().union(*splits.values()), given.recorded), given.rows
    only = sorted(splits["val"] - splits["train"])
    if only:
        raise UserError(f"{noun} {only[0]!r} is in validation but not in training, so the model cannot learn it")
    names, rows = order_names(splits["train"], given.recorded), dict(given.rows)
    if unknown := splits.get("test", set()) - splits["train"]:
        structlog.get_logger().warning(
            "the test split cannot be evaluated: it has classes that are not in training",
            classes=", ".join(sorted(unknown)),
        )
        rows["test"] = rows["test"][:0]
    return names, rows


def check_learnable(name: str, needs: str, names: Sequence[str], counts: Numbers) -> None:
    """Refuse fewer than two names, and one that no training image has.

    Raises:
        UserError: so it is.
    """
    if len(names) < 2:
        raise UserError(f"{name} needs {needs}; the data has {', '.join(names) or 'none'}")
    absent = [name for name, number in zip(names, counts, strict=True) if not number]
    if absent:
        raise UserError(f"no training image of {absent[0]!r}, so the model cannot learn it")


def count_table(title: str, noun: str, names: Sequence[str], train: Numbers, val: Numbers) -> Table:
    """Show how many images have each name in each split."""
    numbers = zip(names, train.tolist(), val.tolist(), strict=True)
    return Table(title, (noun, "train", "val"), tuple((name, str(here), str(there)) for name, here, there in numbers))


def read_names(state: Mapping[str, Any], *known: str) -> tuple[str, ...]:
    """Read the names of a task that was saved, and refuse what else is there beside the keys that are known.

    Raises:
        ValueError: names are no texts, empty, or twice the same; or a key is none.
    """
    names, strange = state["names"], sorted(set(state) - {"names", "images", *known})
    if strange:
        raise ValueError(f"a task has no {', '.join(strange)}")
    if not (names and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)):
        raise ValueError(f"names must be unique strings, at least one, not {names!r:.80}")
    return tuple(names)


def read_count(state: Mapping[str, Any]) -> int:
    """Read the number of training images."""
    images = state.get("images", 0)
    if not isinstance(images, int) or images < 0:
        raise ValueError(f"images must be a number of images, not {images!r:.80}")
    return images


def read_numbers(state: Mapping[str, Any], key: str, names: Sequence[str], least: float) -> tuple[Any, ...]:
    """Read one finite number a name, or none at all.

    Raises:
        ValueError: there are others, or one is below the least.
    """
    given = state.get(key, [])
    if len(given) not in {0, len(names)} or not all(isinstance(n, int | float) and n >= least for n in given):
        raise ValueError(f"{key} are {len(names)} numbers, not {given!r:.80}")
    if any(abs(number) == float("inf") for number in given):
        raise ValueError(f"{key} are finite numbers, not {given!r:.80}")
    return tuple(given)


def top_words(values: Mapping[str, float], number: int) -> list[str]:
    """Spell the most probable names with their probabilities in turn."""
    return [text for name, value in list(values.items())[:number] for text in (name, f"{value:.4f}")]
