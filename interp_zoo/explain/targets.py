"""What is explained: which class of each picture, or any other function of the logits."""

from __future__ import annotations

import math
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
class Contrast:
    """A class, or a list of classes, told from those that look alike; see `contrast`."""

    target: Any = None
    k: int = 3
    gamma: float = 1.0


def contrast(target: Any = None, *, k: int = 3, gamma: float = 1.0) -> Contrast:
    """A target: what tells a class from the k classes nearest to it (Finer-CAM, Zhang et al., CVPR 2025).

    The score is y_c - gamma * mean(y_d), with d the k classes whose logits are nearest to the logit of class c on the
    whole picture; masked pictures are scored by the same classes. Goes with every method:
    `explain(model, img, "gradcam", target=contrast("tabby"))`. Labels and probabilities of the result are those of c.

    Args:
        target: c: as `target` in `explain`, but no function; None for the predicted class.
        k: how many classes c is told from.
        gamma: how much they count; 0 leaves the logit of c alone.

    Raises:
        TypeError: if `k` is no integer, or `gamma` no number.
        ValueError: if `k` is below 1 or `gamma` below 0 or not finite. Whether the model has k classes more than c is
            seen when it is explained.
    """
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f"`k` of contrast must be an integer, not {type(k).__name__}")
    if isinstance(gamma, bool) or not isinstance(gamma, int | float):
        raise TypeError(f"`gamma` of contrast must be a number, not {type(gamma).__name__}")
    if operator.index(k) < 1:
        raise ValueError(f"`k` of contrast is {k}, but at least 1 class must be compared with")
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"`gamma` of contrast is {gamma}, but must be finite and at least 0")
    return Contrast(target, operator.index(k), float(gamma))


@dataclass(frozen=True)
class Target:
    """The targets of a batch of rows, one a row.

    Attributes:
        index: classes (N,), int64; -1 where the target is a function of the logits.
        function: a function of logits (N, classes) to scores (N,), or None where the score is the class' logit.
        minus: what the classes that it is told from count, (N, classes), or None where there are none.
        multi_label: whether classes have probabilities of their own, each the sigmoid of its logit.
    """

    index: Tensor
    function: Score | None = None
    minus: Tensor | None = None
    multi_label: bool = False

    def __getitem__(self, rows: slice | Sequence[int]) -> Target:
        return replace(self, index=self.index[rows], minus=None if self.minus is None else self.minus[rows])

    def repeat(self, n: int) -> Target:
        """As many rows, each as this one's."""
        minus = None if self.minus is None else self.minus.expand(n, -1)
        return replace(self, index=self.index.expand(n), minus=minus)

    @property
    def plain(self) -> Target:
        """The class alone, told from no other."""
        return replace(self, minus=None)

    def score(self, logits: Tensor) -> Tensor:
        """The scalar that is explained, (n,), from logits (n, classes): the logit before any softmax.

        A single target stands for all n rows. A network with one logit has two classes: class 1 scores the logit,
        class 0 minus the logit. What a class is told from is taken off.
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
        return self._pick(two_sided(logits))

    def probability(self, logits: Tensor) -> Tensor:
        """The target's probability, (n,): softmax, or sigmoid for one logit and for `multi_label`; NaN for functions of
        the logits.

        What a class is told from is taken off: `plain.probability` is the class' own.
        """
        if self.function is not None:
            return torch.full_like(logits[:, 0], torch.nan, dtype=torch.float32)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if logits.shape[1] == 1:
            return self.score(logits).sigmoid()
        return self._pick(logits.sigmoid() if self.multi_label else logits.softmax(1))

    def margin(self, logits: Tensor) -> Tensor:
        """The score minus the best other class' score, (n,)."""
        logits = two_sided(logits)
        others = logits.scatter(1, self._rows(logits), -torch.inf)
        return self.score(logits) - others.amax(1)

    def _pick(self, values: Tensor) -> Tensor:
        """The target's value among values (n, classes), less those of the classes that it is told from."""
        own = values.gather(1, self._rows(values))[:, 0]
        return own if self.minus is None else own - (self.minus.to(values) * values).sum(1)

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
        multi_label: whether classes have probabilities of their own.

    Raises:
        TypeError: if the target is of no known kind.
        ValueError: if a list has another length than the pictures, an index is out of range, or a label is unknown.
    """

    def __init__(self, target: Any, *, pictures: int, single: bool, labels: Labels, multi_label: bool = False) -> None:
        self.labels, self.multi_label = labels, multi_label
        self.function = target if callable(target) else None
        rows: list[tuple[int, int | str | Contrast]] = []  # picture, class or one of the two words, or a contrast of it
        for picture, wanted in enumerate(map(_one_by_one, self._spread(_one_by_one(target), pictures, single))):
            several = wanted if isinstance(wanted, list | tuple) else [wanted]
            if not several:
                raise ValueError(
                    f"`target` names no class for picture {picture}: give at least one, or None for the predicted one"
                )
            rows += [(picture, PREDICTED if self.function else self._asked(one)) for one in several]
        self.rows = rows

    @property
    def pictures(self) -> list[int]:
        """The picture of each row."""
        return [picture for picture, _ in self.rows]

    @property
    def predicts(self) -> bool:
        """Whether a class is wanted that the model itself tells."""
        classes = (what.target if isinstance(what, Contrast) else what for _, what in self.rows)
        return self.function is None and any(isinstance(c, str) for c in classes)

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

    def _asked(self, one: Any) -> int | str | Contrast:
        return replace(one, target=self._class(one.target)) if isinstance(one, Contrast) else self._class(one)

    def _class(self, one: Any) -> int | str:
        if hasattr(one, "tolist"):
            one = one.tolist()
        if one is None:
            return PREDICTED
        if isinstance(one, str):
            return one if one in (PREDICTED, LEAST_LIKELY) else self.labels.index(one)
        if callable(one):
            raise TypeError("`target` holds a function: give one function of the logits by itself, for all pictures")
        if isinstance(one, bool) or not hasattr(one, "__index__"):
            raise TypeError(
                "`target` must be a class index, a label, 'predicted', 'least_likely', a contrast, a list of these, or "
                f"one function of the logits for all pictures, not {type(one).__name__}"
            )
        return self._in_range(operator.index(one))

    def _in_range(self, index: int) -> int:
        if self.labels.classes and not 0 <= index < self.labels.classes:
            raise ValueError(
                f"`target` is {index}, but the model has {self.labels.classes} classes: 0 to {self.labels.classes - 1}"
            )
        return index

    def resolve(self, logits: Tensor, rows: Sequence[int]) -> Target:
        """The targets of some rows, from their logits (n, classes): the two words become classes."""
        single = logits.shape[1] == 1
        logits = two_sided(logits.detach())
        classes = logits.shape[1]
        self.labels.check(classes)
        if self.function is not None:
            return Target(torch.full((len(logits),), -1), self.function)
        asked = [self.rows[row][1] for row in rows]
        words = {PREDICTED: logits.argmax(1), LEAST_LIKELY: logits.argmin(1)}
        chosen: list[int | str] = [a.target if isinstance(a, Contrast) else a for a in asked]
        index = [int(words[c][i]) if isinstance(c, str) else c for i, c in enumerate(chosen)]
        for c in index:
            if not 0 <= c < classes:
                raise ValueError(f"`target` is {c}, but the model has {classes} classes: 0 to {classes - 1}")
        contrasts = [a if isinstance(a, Contrast) else None for a in asked]
        if not any(contrasts):
            return Target(torch.tensor(index), multi_label=self.multi_label)
        if single:
            raise ValueError(
                "`target` is a contrast, but the model has one logit, which is told from none: leave it out"
            )
        return Target(torch.tensor(index), minus=_compared(contrasts, index, logits), multi_label=self.multi_label)

    def names(self, index: Tensor) -> list[str]:
        """The text for each resolved class."""
        if self.function is not None:
            return [getattr(self.function, "__name__", type(self.function).__name__)] * len(index)
        return [self.labels.name(int(i)) for i in index]


def _one_by_one(target: Any) -> Any:
    """A contrast of a list as a list of contrasts; anything else as it is."""
    if not isinstance(target, Contrast):
        return target
    inner = target.target.tolist() if hasattr(target.target, "tolist") else target.target
    if not isinstance(inner, list | tuple):
        return target
    return [_one_by_one(replace(target, target=one)) for one in inner]


def _compared(contrasts: Sequence[Contrast | None], index: Sequence[int], logits: Tensor) -> Tensor:
    """What each class counts, (n, classes): gamma / k for the k nearest to the row's own in logits (n, classes)."""
    minus = torch.zeros_like(logits)
    for row, (asked, c) in enumerate(zip(contrasts, index, strict=True)):
        if asked is None:
            continue
        if asked.k >= logits.shape[1]:
            raise ValueError(
                f"`k` of contrast is {asked.k}, but the model has {logits.shape[1]} classes: at most "
                f"{logits.shape[1] - 1} are left to compare with"
            )
        distance = (logits[row] - logits[row, c]).abs()
        distance[c] = torch.inf
        minus[row, distance.sort(stable=True).indices[: asked.k]] = asked.gamma / asked.k
    return minus
