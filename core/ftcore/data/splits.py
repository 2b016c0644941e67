"""Which images are trained on and which are held out: by the source, by lot, by group, in folds."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from ftcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ftcore.config.schema import RunConfig

    Rows = np.ndarray[Any, np.dtype[np.int64]]


VAL_FRACTION = 0.2
"""Of the images to hold out, where nothing else is said."""

TRAIN_NAMES = ("train", "training")

VAL_NAMES = ("val", "valid", "validation", "dev", "test")
"""What a source may call its splits; for validation, the first that is there."""


def split_indices(
    count: int,
    config: RunConfig,
    *,
    classes: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    given: Sequence[str] | None = None,
) -> tuple[Rows, Rows]:
    """Return the rows 0..count-1 of training and of validation, each sorted.

    Args:
        count: number of images.
        config: ``data.val_fraction``, ``split_seed``, ``folds`` and ``fold``.
        classes: of each image; they are held out in the same proportion.
        groups: of each image; a group is never cut.
        given: name of each image's split, where the source has splits of its own.

    Raises:
        UserError: a split that cannot be made, or a setting that has nothing to act on.
    """
    if config.data.folds is None and config.data.fold is not None:
        raise UserError(f"data.fold does nothing without data.folds ({config.origin('data.fold')})")
    if given is not None:
        train, val = _split_by_name(given, config)
        _check_groups_not_split(groups, train, val, config)
        return train, val
    if classes is not None:
        _check_not_alone(classes)
    if config.data.folds is not None:
        return _kfold_split(count, config, classes, groups)
    if groups is not None:
        return _group_split(count, config, classes, groups)
    return _random_split(count, config, classes)


def _fraction(config: RunConfig) -> float:
    return config.data.val_fraction or VAL_FRACTION


def _split_by_name(given: Sequence[str], config: RunConfig) -> tuple[Rows, Rows]:
    for key in ("val_fraction", "split_seed", "folds"):
        if getattr(config.data, key) is not None:
            raise UserError(
                f"data.{key} does nothing: {config.data.source} has splits of its own ({config.origin(f'data.{key}')})"
            )
    given = [name.lower() for name in given]
    counts = Counter(given)
    train, val = (next((name for name in names if counts[name]), None) for names in (TRAIN_NAMES, VAL_NAMES))
    if train is None or val is None:
        found = ", ".join(f"{name!r} ({number})" for name, number in counts.most_common(8)) or "none"
        raise UserError(
            f"{config.data.source}: no {'training' if train is None else 'validation'} split; expected one called "
            f"{' or '.join(TRAIN_NAMES if train is None else VAL_NAMES)}, found {found}"
        )
    names = np.asarray(given)
    return np.flatnonzero(names == train), np.flatnonzero(names == val)


def _check_groups_not_split(groups: Sequence[str] | None, train: Rows, val: Rows, config: RunConfig) -> None:
    both = {groups[row] for row in train} & {groups[row] for row in val} if groups is not None else set()
    if both:
        raise UserError(f"{config.data.source}: group {min(both)!r} is in training and in validation")


def _check_not_alone(classes: Sequence[str]) -> None:
    rare = sorted(label for label, count in Counter(classes).items() if count < 2)
    if rare:
        raise UserError(f"class {rare[0]!r} has one image; it takes two to train on one and validate on the other")


def _random_split(count: int, config: RunConfig, classes: Sequence[str] | None) -> tuple[Rows, Rows]:
    from sklearn.model_selection import train_test_split

    fraction, seed = _fraction(config), config.data.split_seed or 0
    try:
        train, val = train_test_split(np.arange(count), test_size=fraction, stratify=classes, random_state=seed)
    except ValueError as error:
        raise UserError(
            f"data.val_fraction = {fraction} does not suit {count} images: {error} "
            f"({config.origin('data.val_fraction')})"
        ) from None
    return np.sort(train), np.sort(val)


def _group_split(
    count: int, config: RunConfig, classes: Sequence[str] | None, groups: Sequence[str]
) -> tuple[Rows, Rows]:
    """Hold out whole groups: about `val_fraction` of the images, classes as evenly as the groups allow."""
    _check_groups(groups, 2, config)
    fraction = _fraction(config)
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
        raise UserError(f"data.val_fraction does nothing with data.folds ({config.origin('data.val_fraction')})")
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
            f"{config.data.source}: {len(names)} groups ({', '.join(names[:5])}), and no group may be cut; "
            f"the split needs at least {needed}"
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
