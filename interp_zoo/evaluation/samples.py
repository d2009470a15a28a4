"""Some of the pictures: evenly spaced ones, and those that training leaves out, to choose by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np


def evenly(indices: Sequence[int], number: int | None) -> list[int]:
    """So many of the pictures, evenly spaced, or all of them."""
    some = len(indices) if number is None else min(len(indices), number)
    return [indices[i * len(indices) // some] for i in range(some)]


def hold_out(labels: Sequence[Any], share: float) -> tuple[list[int], list[int]]:
    """Splits a data set in two: the indices to train on, and those that are held out, of each class the same share.

    They are drawn, but always the same ones, so that runs of several seeds can be compared.

    Args:
        labels: the class of each picture.
        share: between 0 and 1.

    Raises:
        ValueError: if one part has no picture.
    """
    if not 0 < share < 1:
        raise ValueError(f"`hold_out` is {share}, but must be between 0 and 1, such as 0.1")
    classes: dict[Any, list[int]] = defaultdict(list)
    for index in np.random.default_rng(0).permutation(len(labels)).tolist():
        classes[labels[index]].append(index)
    # Shares are rounded over all classes together, so that small ones do not all round to nothing.
    held: list[int] = []
    seen = 0
    for label in sorted(classes):
        seen += len(classes[label])
        held += classes[label][: max(0, round(seen * share) - len(held))]
    kept = sorted(set(range(len(labels))) - set(held))
    if not held or not kept:
        raise ValueError(f"`hold_out` is {share}, which of {len(labels)} pictures leaves one part empty: give another")
    return kept, sorted(held)
