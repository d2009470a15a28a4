"""What methods ask of their options' values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

MaskSpace = Literal["pixels", "normalised"]


def at_least_one(**numbers: int) -> None:
    """Raises ValueError, by name, for a number below 1."""
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}, but must be at least 1")


def one_of(known: Iterable[str], **words: str) -> None:
    """Raises ValueError, by name, for a word that is not known."""
    known = list(known)
    for name, value in words.items():
        if value not in known:
            raise ValueError(f'`{name}` is "{value}", but must be one of {", ".join(known)}')


def above_zero(**numbers: float) -> None:
    """Raises ValueError, by name, for a number that is not finite, or not above 0."""
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` is {value}, but must be a finite number above 0")


def usable_seed(seed: int) -> None:
    """Raises ValueError for what torch's generators do not take."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"`seed` is {seed}, but must be between 0 and 2**63 - 1")


def is_normalised(mask_space: MaskSpace) -> bool:
    """Whether masks multiply what the model takes, and not pixels in [0, 1]; ValueError for anything else."""
    if mask_space not in ("pixels", "normalised"):
        raise ValueError(f'`mask_space` is "{mask_space}", but must be "pixels" or "normalised"')
    return mask_space == "normalised"
