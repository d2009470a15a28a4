"""Insertion and deletion, over the functions of `functional.causal`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from interp_zoo.metrics.functional.causal import Classifier, area, deletion_curve, insertion_curve
from interp_zoo.metrics.functional.fills import FILLS, Fill
from interp_zoo.metrics.picture import CurveMetric


class _Causal(CurveMetric):
    _curve_of: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        mean: Tensor,
        *,
        fill: Fill,
        step: int | None = None,
        blur_kernel: int = 11,
        blur_sigma: float = 5.0,
        seed: int = 0,
        batch_size: int = 64,
        **kwargs: Any,
    ) -> None:
        if fill not in FILLS:
            raise ValueError(f'`fill` is "{fill}", but must be one of {", ".join(FILLS)}')
        own = {"fill": fill, "step": step, "blur_kernel": blur_kernel, "blur_sigma": blur_sigma, "seed": seed}
        super().__init__(options=(own, mean.tolist()), **kwargs)
        self.options = own | {"mean": mean, "batch_size": batch_size}

    def update(self, classify: Classifier, pixels: Tensor, saliency: Tensor, target: Tensor) -> None:
        """Adds pictures (N, channels, H, W) in [0, 1] with their maps (N, H, W) and classes (N,)."""
        curves = type(self)._curve_of(classify, pixels, saliency, target, **self.options)
        self.add_curves(area(curves), curves)


class Insertion(_Causal):
    """The area under the insertion curve, in percent; high is good. The mean curve is `curve()`.

    Arguments as for `functional.insertion_curve`: `mean` is the mean colour that the model subtracts, (channels,).
    """

    higher_is_better = True
    _curve_of = staticmethod(insertion_curve)

    def __init__(self, mean: Tensor, *, fill: Fill = "blur", **options: Any) -> None:
        super().__init__(mean, fill=fill, **options)


class Deletion(_Causal):
    """The area under the deletion curve, in percent; low is good. The mean curve is `curve()`.

    Arguments as for `functional.deletion_curve`: `mean` is the mean colour that the model subtracts, (channels,).
    """

    higher_is_better = False
    _curve_of = staticmethod(deletion_curve)

    def __init__(self, mean: Tensor, *, fill: Fill = "mean", **options: Any) -> None:
        super().__init__(mean, fill=fill, **options)
