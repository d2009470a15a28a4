"""Average drop, increase and gain, over the functions of `functional.recognition`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from interp_zoo.metrics.functional.recognition import (
    Protocol,
    average_drop,
    average_gain,
    average_increase,
    check_protocol,
)
from interp_zoo.metrics.picture import PictureMetric


class AverageDrop(PictureMetric):
    """The share of the target's probability that is lost under the mask, in percent; low is good.

    `update(before, after)` takes probabilities (N,); see `functional.average_drop`, also for `protocol`.
    """

    higher_is_better = False

    def __init__(self, protocol: Protocol = "papers", **kwargs: Any) -> None:
        check_protocol(protocol)
        super().__init__(options=protocol, **kwargs)
        self.protocol = protocol

    def update(self, before: Tensor, after: Tensor) -> None:
        """Adds pictures, by their target's probability before and after masking, (N,) each."""
        self.add(average_drop(before, after, protocol=self.protocol))


class AverageIncrease(PictureMetric):
    """How many of the pictures have a higher probability under the mask, in percent; high is good.

    `update(before, after)` takes probabilities (N,); see `functional.average_increase`, also for `protocol`.
    """

    higher_is_better = True

    def __init__(self, protocol: Protocol = "papers", **kwargs: Any) -> None:
        check_protocol(protocol)
        super().__init__(options=protocol, **kwargs)
        self.protocol = protocol

    def update(self, before: Tensor, after: Tensor) -> None:
        """Adds pictures, by their target's probability before and after masking, (N,) each."""
        self.add(average_increase(before, after, protocol=self.protocol))


class AverageGain(PictureMetric):
    """The share of the missing probability that is gained under the mask, in percent; high is good.

    `update(before, after)` takes probabilities (N,); see `functional.average_gain`.
    """

    higher_is_better = True

    def update(self, before: Tensor, after: Tensor) -> None:
        """Adds pictures, by their target's probability before and after masking, (N,) each."""
        self.add(average_gain(before, after))
