"""Which images are trained on and which are held out: by the source, by lot, by group, in folds."""

from __future__ import annotations

import warnings
from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from ftcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ftcore.config.schema import RunConfig

    Rows = np.ndarray[Any, np.dtype[np.int64]]


VAL_FRACTION = 0.2
"""Of the images to hold out, where nothing else is said."""

TRAIN_NAMES = ("train", "training")

VAL_NAMES = ("val", "valid", "validation", "dev")

TEST_NAMES = ("test", "testing")
"""What a source may call its splits; of several names for one, the first that is there."""


@frozen(eq=False)
class SplitRows:
    """Which rows of a source are in which split, each sorted.

    Attributes:
        train: to learn from.
        val: to measure on after each epoch.
        test: to measure on at the end.
        held_out: whether `val` was taken out of a training split of the source, which has no validation split.
    """

    train: Rows
    val: Rows
    test: Rows
    held_out: bool = False


def split_indices(
    count: int,
    config: RunConfig,
    *,
    classes: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    given: Sequence[str] | None = None,
) -> SplitRows:
    """Say in which split each of the rows 0..count-1 is.

    Without a validation split of its own, a source has images of its training split held out. With
    `RunConfig.measuring`, nothing is held out, and all rows of a source without splits are in `test`.

    Args:
        count: number of images.
        config: ``data.val_fraction``, ``split_seed``, ``folds`` and ``fold``.
        classes: of each image; they are held out in the same proportion.
        groups: of each image; a group is never cut.
        given: name of each image's split, where the source has splits of its own.

    Raises:
        UserError: a split that cannot be made, or a setting that has nothing to act on.
    """
    nothing, everything = np.arange(0), np.arange(count)
    if config.measuring:
        return SplitRows(nothing, nothing, everything) if given is None else _split_by_name(given, config)
    if config.data.folds is None and config.data.fold is not None:
        raise UserError(f"data.fold has no effect without data.folds ({config.origin('data.fold')})")
    named = SplitRows(everything, nothing, nothing) if given is None else _split_by_name(given, config)
    if len(named.val):
        _check_nothing_held_out(config)
    else:
        train, val = _hold_out(named.train, config, classes, groups)
        named = SplitRows(train, val, named.test, held_out=given is not None)
    if groups is not None:
        _check_groups_not_split(groups, named, config)
    return named


def _split_by_name(given: Sequence[str], config: RunConfig) -> SplitRows:
    names = np.char.lower(np.asarray(given, dtype=str))
    counts = Counter(names.tolist())
    known = (TRAIN_NAMES, VAL_NAMES, TEST_NAMES)
    chosen = [next((name for name in spellings if counts[name]), None) for spellings in known]
    if chosen[0] is None and not (config.measuring and any(chosen)):
        found = ", ".join(f"{name!r} ({number})" for name, number in counts.most_common(8)) or "none"
        expected = [*TRAIN_NAMES, *VAL_NAMES, *TEST_NAMES] if config.measuring else TRAIN_NAMES
        raise UserError(
            f"{config.data.source}: no {'split to evaluate' if config.measuring else 'training split'}; expected one "
            f"called {' or '.join(expected)}, found {found}"
        )
    train, val, test = (np.flatnonzero(names == name) if name else np.arange(0) for name in chosen)
    return SplitRows(train, val, test)


def _check_nothing_held_out(config: RunConfig) -> None:
    for key in ("val_fraction", "split_seed", "folds"):
        if getattr(config.data, key) is not None:
            raise UserError(
                f"data.{key} has no effect: {config.data.source} has its own validation split "
                f"({config.origin(f'data.{key}')})"
            )


def _hold_out(
    rows: Rows, config: RunConfig, classes: Sequence[str] | None, groups: Sequence[str] | None
) -> tuple[Rows, Rows]:
    """Take validation out of some rows: by lot, by group or in folds."""
    classes, groups = ([values[row] for row in rows] if values is not None else None for values in (classes, groups))
    if classes is not None:
        _check_not_alone(classes)
    if config.data.folds is not None:
        train, val = _kfold_split(len(rows), config, classes, groups)
    elif groups is not None:
        train, val = _group_split(len(rows), config, classes, groups)
    else:
        train, val = _random_split(len(rows), config, classes)
    return rows[train], rows[val]


def _check_groups_not_split(groups: Sequence[str], rows: SplitRows, config: RunConfig) -> None:
    members = {"training": rows.train, "validation": rows.val, "test": rows.test}
    for one, other in combinations(members, 2):
        both = {groups[row] for row in members[one]} & {groups[row] for row in members[other]}
        if both:
            raise UserError(f"{config.data.source}: group {min(both)!r} is in both {one} and {other}")


def fraction_held_out(config: RunConfig) -> float:
    """Return the share of the images that is held out."""
    return config.data.val_fraction or VAL_FRACTION


def _check_not_alone(classes: Sequence[str]) -> None:
    rare = sorted(label for label, count in Counter(classes).items() if count < 2)
    if rare:
        raise UserError(f"class {rare[0]!r} has one image; at least two are needed, for training and validation")


def _random_split(count: int, config: RunConfig, classes: Sequence[str] | None) -> tuple[Rows, Rows]:
    from sklearn.model_selection import train_test_split

    fraction, seed = fraction_held_out(config), config.data.split_seed or 0
    try:
        train, val = train_test_split(np.arange(count), test_size=fraction, stratify=classes, random_state=seed)
    except ValueError as error:
        raise UserError(
            f"data.val_fraction = {fraction} is not possible with {count} images: {error} "
            f"({config.origin('data.val_fraction')})"
        ) from None
    return np.sort(train), np.sort(val)


def _group_split(
    count: int, config: RunConfig, classes: Sequence[str] | None, groups: Sequence[str]
) -> tuple[Rows, Rows]:
    """Hold out whole groups: about `val_fraction` of the images, classes as evenly as the groups allow."""
    _check_groups(groups, 2, config)
    fraction = fraction_held_out(config)
    most = max(Counter(classes).values()) if classes is not None else count
    parts = min(len(set(groups)), most, max(2, round(1 / min(fraction, 1 - fraction))))
    cuts = _kfold_splits(count, config, classes, groups, parts)
    if fraction > 0.5:
        cuts = [(val, train) for train, val in cuts]
    return next((cut for cut in cuts if _is_learnable(classes, *cut)), cuts[0])


def _is_learnable(classes: Sequence[str] | None, train: Rows, val: Rows) -> bool:
    return classes is None or {classes[row] for row in val} <= {classes[row] for row in train}


def _kfold_split(
    count: int, config: RunConfig, classes: Sequence[str] | None, groups: Sequence[str] | None
) -> tuple[Rows, Rows]:
    folds, fold = config.data.folds or 0, config.data.fold or 0
    if fold >= folds:
        raise UserError(f"data.fold = {fold} must be below data.folds = {folds} ({config.origin('data.fold')})")
    if config.data.val_fraction is not None:
        raise UserError(f"data.val_fraction has no effect with data.folds ({config.origin('data.val_fraction')})")
    if groups is not None:
        _check_groups(groups, folds, config)
    fewest = min(Counter(classes).items(), key=lambda item: item[1]) if classes else ("images", count)
    if fewest[1] < folds:
        raise UserError(
            f"data.folds = {folds}, but there are {fewest[1]} of {fewest[0]!r} ({config.origin('data.folds')})"
        )
    return _kfold_splits(count, config, classes, groups, folds)[fold]


def _check_groups(groups: Sequence[str], needed: int, config: RunConfig) -> None:
    names = sorted(set(groups))
    if len(names) < needed:
        raise UserError(
            f"{config.data.source}: {len(names)} groups ({', '.join(names[:5])}), which may not be divided; the "
            f"split needs at least {needed}"
        )


def _kfold_splits(
    count: int, config: RunConfig, classes: Sequence[str] | None, groups: Sequence[str] | None, parts: int
) -> list[tuple[Rows, Rows]]:
    """Cut into parts, and hold out each in turn."""
    from sklearn import model_selection as sk

    kind = f"{'Stratified' if classes is not None else ''}{'Group' if groups is not None else ''}KFold"
    cutter = getattr(sk, kind)(parts, shuffle=True, random_state=config.data.split_seed or 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # too few groups: the counts are shown
        return list(cutter.split(np.arange(count), y=classes, groups=groups))
