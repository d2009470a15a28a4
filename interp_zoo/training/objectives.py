"""What is minimised: cross-entropy, and what is added to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from interp_zoo.models import CAStream
from interp_zoo.training.gradients import Penalty

Criterion = Callable[[Tensor, Tensor], Tensor]


class Objective(Protocol):
    """Gives the losses of one batch."""

    @property
    def extra(self) -> str:
        """What is added to the cross-entropy, or ""."""

    def __call__(
        self, network: Callable[..., Any], x: Any, target: Tensor, *, step: int, scale: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What is minimised; the cross-entropy in it; and the `extra` in it, before its weight.

        Args:
            network: what is trained.
            x: a batch of what it takes.
            target: classes (B,), or their shares (B, classes).
            step: of the optimiser, from 0.
            scale: by which the loss is multiplied in float16.
        """


def cross_entropy(*, mixed: bool, smoothing: float) -> Criterion:
    """timm's: of shares where pictures are mixed (smoothed by the mixing), else of classes."""
    if mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Plain:
    """Cross-entropy alone."""

    criterion: Criterion
    extra: str = ""

    def __call__(
        self, network: Callable[..., Any], x: Any, target: Tensor, *, step: int, scale: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `Objective`."""
        loss = self.criterion(network(x), target)
        return loss, loss, None


@dataclass(frozen=True)
class InterpretableGradients:
    """Cross-entropy and the penalty on the input gradient; without it in the steps that it spares."""

    criterion: Criterion
    penalty: Penalty
    extra: str = "penalty"

    def __call__(
        self, network: Callable[..., Any], x: Any, target: Tensor, *, step: int, scale: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `Objective`."""
        weight = self.penalty.weight_at(step)
        if not weight:
            loss = self.criterion(network(x), target)
            return loss, loss, None
        loss, penalty = self.penalty.losses(network, x, target, self.criterion, scale=scale)
        return loss + weight * penalty, loss, penalty


@dataclass(frozen=True)
class Distillation:
    """Cross-entropy, and how far a CA-Stream's predictions are from its backbone's.

    (1 - share) L_C + share T^2 KL(softmax(backbone / T) || softmax(stream / T)), after Hinton, Vinyals and Dean, 2015,
    arXiv 1503.02531. `network` is a `StreamTraining`.

    Args:
        criterion: L_C.
        share: of the backbone's word, in [0, 1].
        temperature: T.
    """

    criterion: Criterion
    share: float
    temperature: float = 1.0
    extra: str = "distillation"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"`distill` is {self.share}, but must be in (0, 1]")
        if not self.temperature > 0:
            raise ValueError(f"`distill_temperature` is {self.temperature}, but must be above 0")

    def __call__(
        self, network: Callable[..., Any], x: Any, target: Tensor, *, step: int, scale: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `Objective`."""
        logits, teacher = network(x, teach=True)
        loss = self.criterion(logits, target)
        ours, its = (F.log_softmax(z.float() / self.temperature, dim=1) for z in (logits, teacher))
        distance = self.temperature**2 * F.kl_div(ours, its, log_target=True, reduction="batchmean")
        return (1 - self.share) * loss + self.share * distance, loss, distance


class StreamTraining(nn.Module):
    """A CA-Stream on a frozen backbone, as it is trained: from pictures, or from maps that were kept."""

    def __init__(self, model: CAStream) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor | Sequence[Tensor], teach: bool = False) -> Any:
        """Logits (B, classes); with `teach` the backbone's own, too, from the same pass.

        Args:
            x: pictures (B, channels, H, W), or what `CAStream.maps` returned for them.
            teach: whether the backbone's logits are wanted.
        """
        with torch.no_grad():
            maps = self.model.maps(x) if isinstance(x, Tensor) else x
            teacher = self.model.backbone.forward_head(maps[-1]) if teach else None
        logits = self.model.forward_maps(maps)
        return (logits, teacher) if teach else logits
