"""The classes under every metric: a figure a picture, kept; their mean, and how sure it is."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from interp_zoo.metrics.statistics import interval


class PictureMetric(Metric):
    """Keeps a figure for every picture. `compute` gives their mean; over many processes each picture counts once.

    A metric's `update` hands the figures of a batch to `add`. Figures that are NaN (a target without a probability, a
    picture without boxes) are kept, and do not count in the mean.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, *, options: object = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Each metric has names of its own for its states, options included: torchmetrics' collections take metrics
        # whose states have the same names, and happen to hold the same after the first batch, for one and the same.
        self._own = f"{type(self).__name__}_{crc32(repr(options).encode()):08x}"
        self._add_list("values")

    @property
    def values(self) -> list[Tensor]:
        """The figures so far, a tensor a batch (one in all while processes are synchronised)."""
        return self._list("values")

    def add(self, figures: Tensor) -> None:
        """Keeps the figures of a batch, (N,)."""
        self._keep(self.values, figures)

    def compute(self) -> Tensor:
        """The mean over pictures, a scalar; NaN if there is none."""
        return self._figures().nanmean()

    def per_picture(self) -> Tensor:
        """The figures, (N,), in the order of `update`; those of many processes one process after the other."""
        with self.sync_context(should_sync=not self._is_synced):
            return self._figures()

    def interval(self, confidence: float = 0.95, *, resamples: int = 2000, seed: int = 0) -> Tensor:
        """The bootstrap interval of the mean, (2,): low and high; see `statistics.interval`."""
        return interval(self.per_picture(), confidence=confidence, resamples=resamples, seed=seed)

    def _figures(self) -> Tensor:
        """What `per_picture` gives, from the states as they are now, of one process or of all."""
        return self._kept(self.values)

    def _add_list(self, kind: str) -> None:
        self.add_state(f"{kind}_{self._own}", default=[], dist_reduce_fx="cat")

    def _list(self, kind: str) -> list[Tensor]:
        state: list[Tensor] | Tensor = getattr(self, f"{kind}_{self._own}")
        return [state] if isinstance(state, Tensor) else state

    def _keep(self, state: list[Tensor], new: Tensor) -> None:
        # Flat, of one type: a process that saw no picture takes part in the gathering with an empty tensor.
        state.append(new.detach().flatten().to(self.device, self.dtype))

    def _kept(self, state: list[Tensor]) -> Tensor:
        return dim_zero_cat(state) if state else torch.zeros(0, device=self.device, dtype=self.dtype)


class CurveMetric(PictureMetric):
    """Keeps a curve for every picture, too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_list("curves")

    @property
    def curves(self) -> list[Tensor]:
        """The curves so far, flat, as `values`."""
        return self._list("curves")

    def add_curves(self, figures: Tensor, curves: Tensor) -> None:
        """Keeps the figures of a batch, (N,), and their curves, (N, points).

        Raises:
            ValueError: if curves before had another number of points: pictures of other sizes, or another step.
        """
        before = self._all_curves().shape[1] if len(self._kept(self.values)) else curves.shape[1]
        if curves.shape[1] != before:
            raise ValueError(
                f"`curves` have {curves.shape[1]} points, but those before have {before}: give pictures of one size"
            )
        self.add(figures)
        self._keep(self.curves, curves)

    def per_picture_curves(self) -> Tensor:
        """The curves, (N, points), in the order of `per_picture`."""
        with self.sync_context(should_sync=not self._is_synced):
            return self._all_curves()

    def curve(self) -> Tensor:
        """The mean curve, (points,)."""
        return self.per_picture_curves().nanmean(0)

    def _all_curves(self) -> Tensor:
        return self._kept(self.curves).view(max(1, len(self._kept(self.values))), -1)
