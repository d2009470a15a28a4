"""What is explained: which class of each picture, or any other function of the logits."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interp_zoo.explain.labels import Labels

Score = Callable[[Tensor], Tensor]
PREDICTED, LEAST_LIKELY = "predicted", "least_likely"


@dataclass(frozen=True)
class Target:
    """The targets of a batch of rows, one a row.

    Attributes:
        index: classes (N,), int64; -1 where the target is a function of the logits.
        function: a function of logits (N, classes) to scores (N,), or None where the score is the class' logit.
    """

    index: Tensor
    function: Score | None = None

    def __getitem__(self, rows: slice) -> Target:
        return replace(self, index=self.index[rows])

    def score(self, logits: Tensor) -> Tensor:
        """The scalar that is explained, (n,), from logits (n, classes): the logit before any softmax.

        A single target stands for all n rows. A network with one logit has two classes: class 1 scores the logit,
        class 0 minus the logit.
        """
        if self.function is not None:
            score = self.function(logits)
            if not isinstance(score, Tensor) or score.shape != logits.shape[:1]:
                got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
                raise ValueError(
                    f"`target` must turn logits {tuple(logits.shape)} into one score a picture, ({len(logits)},), "
                    f"but gave {got}: return for instance logits[:, 0]"
                )
            return score
        return two_sided(logits).gather(1, self._rows(logits))[:, 0]

    def probability(self, logits: Tensor) -> Tensor:
        """The target's probability, (n,): softmax, or sigmoid for one logit; NaN for functions of the logits."""
        if self.function is not None:
            return torch.full_like(logits[:, 0], torch.nan, dtype=torch.float32)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if logits.shape[1] == 1:
            return self.score(logits).sigmoid()
        return logits.softmax(1).gather(1, self._rows(logits))[:, 0]

    def margin(self, logits: Tensor) -> Tensor:
        """The score minus the best other class' score, (n,)."""
        logits = two_sided(logits)
        others = logits.scatter(1, self._rows(logits), -torch.inf)
        return self.score(logits) - others.amax(1)

    def _rows(self, logits: Tensor) -> Tensor:
        return self.index.to(logits.device).expand(len(logits))[:, None]


def two_sided(logits: Tensor) -> Tensor:
    """Logits of a binary head with one output as (n, 2): class 0 is minus the logit; others as they are."""
    return torch.cat([-logits, logits], 1) if logits.shape[1] == 1 else logits


class Request:
    """A user's `target`, checked against the number of pictures, before any logits are known.

    Args:
        target: see `interp_zoo.explain`.
        pictures: how many pictures there are.
        single: whether the user gave one picture, not a list of them: a list is then several targets for it.
        labels: the model's class names.

    Raises:
        TypeError: if the target is of no known kind.
        ValueError: if a list has another length than the pictures, an index is out of range, or a label is unknown.
    """

    def __init__(self, target: Any, *, pictures: int, single: bool, labels: Labels) -> None:
        self.labels = labels
        self.function = target if callable(target) else None
        rows: list[tuple[int, int | str]] = []  # picture, class or one of the two words
        for picture, wanted in enumerate(self._spread(target, pictures, single)):
            several = wanted if isinstance(wanted, list | tuple) else [wanted]
            if not several:
                raise ValueError(
                    f"`target` names no class for picture {picture}: give at least one, or None for the predicted one"
                )
            rows += [(picture, PREDICTED if self.function else self._class(one)) for one in several]
        self.rows = rows

    def _spread(self, target: Any, pictures: int, single: bool) -> Sequence[Any]:
        if isinstance(target, torch.Tensor) or hasattr(target, "tolist"):
            target = target.tolist()
        if not isinstance(target, list | tuple):
            return [target] * pictures
        if single:
            return [target[0] if len(target) == 1 and isinstance(target[0], list | tuple) else target]
        if len(target) != pictures:
            raise ValueError(
                f"`target` has {len(target)} entries for {pictures} picture{'s' * (pictures != 1)}: give one a picture "
                "(a list within the list for several targets of one picture)"
            )
        return target

    def _class(self, one: Any) -> int | str:
        if hasattr(one, "tolist"):
            one = one.tolist()
        if one is None:
            return PREDICTED
        if isinstance(one, str):
            return one if one in (PREDICTED, LEAST_LIKELY) else self.labels.index(one)
        if isinstance(one, bool) or not hasattr(one, "__index__"):
            raise TypeError(
                "`target` must be a class index, a label, 'predicted', 'least_likely', a list of these, or one "
                f"function of the logits for all pictures, not {type(one).__name__}"
            )
        return self._in_range(operator.index(one))

    def _in_range(self, index: int) -> int:
        if self.labels.classes and not 0 <= index < self.labels.classes:
            raise ValueError(
                f"`target` is {index}, but the model has {self.labels.classes} classes: 0 to {self.labels.classes - 1}"
            )
        return index

    def resolve(self, logits: Tensor, rows: slice) -> Target:
        """The targets of some rows, from their logits (n, classes): the two words become classes."""
        logits = two_sided(logits.detach())
        classes = logits.shape[1]
        if self.function is not None:
            return Target(torch.full((len(logits),), -1), self.function)
        words = {PREDICTED: logits.argmax(1), LEAST_LIKELY: logits.argmin(1)}
        index = [int(words[c][i]) if isinstance(c, str) else c for i, (_, c) in enumerate(self.rows[rows])]
        for c in index:
            if not 0 <= c < classes:
                raise ValueError(f"`target` is {c}, but the model has {classes} classes: 0 to {classes - 1}")
        return Target(torch.tensor(index))

    def names(self, index: Tensor) -> list[str]:
        """The text for each resolved class."""
        if self.function is not None:
            return [getattr(self.function, "__name__", type(self.function).__name__)] * len(index)
        return [self.labels.name(int(i)) for i in index]
