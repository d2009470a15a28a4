"""Times of two that are taken in turns, and the table of their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import timm
import torch
from torch import Tensor, nn

SAME_MAPS = 1e-3  # the most that maps of two packages may differ to be called the same
HEADER = ("what", "ms", "against", "its ms", "ratio", "goal", "met", "maps differ by")


@dataclass(frozen=True)
class Times:
    """Seconds of several repetitions."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """What is compared with another's."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        three = (self.median, min(self.seconds), max(self.seconds))
        return "{} ({} to {})".format(*(f"{1000 * s:.{0 if s >= 0.1 else 1}f}" for s in three))


@dataclass(frozen=True)
class Row:
    """One race.

    Attributes:
        what: what we do.
        ours: our times.
        against: what we are compared with.
        base: its times.
        kind: what the ratio says: "x its time" (ours by its, small is good), "x as fast" (its by ours), or "s more".
        goal: the most, or for "x as fast" the least, that is wanted; None for rows that only inform.
        difference: the largest difference of two values of the maps, both in [0, 1]; None without a peer.
        tolerance: how much they may differ to be called the same.
        worse: in what our result is worse than the other's, so that the goal is not met however fast it is; or "".
    """

    what: str
    ours: Times
    against: str
    base: Times
    kind: Literal["x its time", "x as fast", "s more"] = "x its time"
    goal: float | None = None
    difference: float | None = None
    tolerance: float = SAME_MAPS
    worse: str = ""

    @property
    def ratio(self) -> float:
        """Ours against the base, as `kind` says."""
        if self.kind == "s more":
            return self.ours.median - self.base.median
        quotient = self.ours.median / self.base.median
        return 1 / quotient if self.kind == "x as fast" else quotient

    def cells(self) -> tuple[str, ...]:
        """The row of the table, see `HEADER`."""
        times = (self.what, str(self.ours), self.against, str(self.base), f"{self.ratio:.3g} {self.kind}")
        difference = "" if self.difference is None else f"{self.difference:.1e}"
        if self.goal is None:
            return *times, "", "", difference
        least = self.kind == "x as fast"
        met = self.ratio >= self.goal if least else self.ratio <= self.goal
        verdict = "other maps" if (self.difference or 0) > self.tolerance else "yes" if met else "no"
        verdict = f"no: worse {self.worse}" if self.worse else verdict
        return *times, f"at {'least' if least else 'most'} {self.goal:g}", verdict, difference


def to_markdown(rows: Sequence[Row], facts: Sequence[str]) -> str:
    """The page for the documentation.

    Args:
        rows: of the table.
        facts: what one must know to run it again.
    """
    lines = [HEADER, ("---",) * len(HEADER), *(row.cells() for row in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "# Speed\n\n" + "\n".join(f"- {fact}" for fact in facts) + f"\n\n{table}\n"


def race(first: Callable[[], object], second: Callable[[], object], repetitions: int) -> tuple[Times, Times]:
    """Times two functions in turns."""
    ours, base = Times([]), Times([])
    for _ in range(repetitions):
        for function, times in ((first, ours), (second, base)):
            start = time.perf_counter()
            function()
            times.seconds.append(time.perf_counter() - start)
    return ours, base


def make_model(name: str, seed: int = 0) -> nn.Module:
    """An untrained model in eval mode, none of whose weights or statistics is trivial."""
    torch.manual_seed(seed)
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and isinstance(module.running_var, Tensor):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, 0.1)
    return model
