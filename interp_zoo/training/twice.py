"""Convolutions and batch norms whose gradient is itself differentiated, with torch's own kernels of a first gradient.

What torch does where a gradient is differentiated is right, but slow: the weight's part of a convolution becomes as
many convolutions as there are groups, and that of a batch norm some thirty passes over the maps. Here both are what
they come to. The second gradient of a convolution is a convolution, and the first gradient of another. The gradient of
a batch norm is a symmetric linear map of what comes in, so that its own gradient is the same map once more, and beside
it a sum of three maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_convolution_backward = torch.ops.aten.convolution_backward.default
_normalise = torch.ops.aten.native_batch_norm.default
_normalise_backward = torch.ops.aten.native_batch_norm_backward.default


class TwiceDifferentiated(TorchFunctionMode):
    """Convolutions and batch norms that are run in here are those of this module: the same, but for rounding.

    Of four-dimensional input, batch norms in training and with weight and bias, convolutions that do not pad by name:
    others are left to torch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at_weights = True

    @contextmanager
    def sparing_weights(self) -> Iterator[None]:
        """Backward passes in here do not compute the gradients at a convolution's weight, which are nothing then."""
        self.at_weights = False
        try:
            yield
        finally:
            self.at_weights = True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs a function of torch's, or one of this module's in its place."""
        kwargs = kwargs or {}
        if func is F.conv2d:
            return _conv2d(self, *args, **kwargs)
        return (_batch_norm if func is F.batch_norm else func)(*args, **kwargs)


def _conv2d(
    mode: TwiceDifferentiated,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    if input.ndim != 4 or isinstance(padding, str):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    x, weight, bias = _cast(input), _cast(weight), bias if bias is None else _cast(bias)
    how = (*([n, n] if isinstance(n, int) else [*n] for n in (stride, padding, dilation)), groups)
    y: Tensor = _Convolution.apply(x, weight, how, mode)
    return y if bias is None else y + bias[:, None, None]


def _cast(x: Tensor) -> Tensor:
    """As autocast does, where it is on: float64 stays."""
    on = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(x.device.type)) if on else x


def _gradients(g: Tensor, x: Tensor, weight: Tensor, how: tuple[Any, ...], wanted: Sequence[bool]) -> Any:
    """Of a convolution at x and at its weight."""
    stride, padding, dilation, groups = how
    return _convolution_backward(
        g, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [*wanted, False]
    )[:2]


class _Convolution(torch.autograd.Function):
    """x * weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, how: tuple[Any, ...], mode: TwiceDifferentiated) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.mode = how, mode
        return F.conv2d(x, weight, None, *how)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        at_x = at_weight = None
        if ctx.needs_input_grad[0]:
            at_x = _InputGradient.apply(g, x.detach(), weight, ctx.how)
        if ctx.needs_input_grad[1] and ctx.mode.at_weights:
            at_weight = _gradients(g, x, weight, ctx.how, (False, True))[1]
        return at_x, at_weight, None, None


class _InputGradient(torch.autograd.Function):
    """A convolution's gradient at its input x, which is linear in g and in the weight: of x the shape counts alone."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.how = how
        found: Tensor = _gradients(g, x, weight, how, (True, False))[0]
        return found

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        g, weight = ctx.saved_tensors
        at_g = F.conv2d(v, weight, None, *ctx.how) if ctx.needs_input_grad[0] else None
        at_weight = _gradients(g, v, weight, ctx.how, (False, True))[1] if ctx.needs_input_grad[2] else None
        return at_g, None, at_weight, None


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or weight is None or bias is None or input.ndim != 4 or input.numel() == input.shape[1]:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    y: Tensor = _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)
    return y


class _BatchNorm(torch.autograd.Function):
    """weight (x - mean) / sqrt(var + eps) + bias, with mean and variance of the batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *how: Any) -> Tensor:
        mean, var, momentum, eps = how
        y: Tensor
        y, *moments = _normalise(x, weight, bias, mean, var, True, momentum, eps)
        ctx.save_for_backward(x, weight, *moments)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return (*_NormGradient.apply(g, *ctx.saved_tensors), *[None] * 4)


class _NormGradient(torch.autograd.Function):
    """A batch norm's gradients at its input, weight and bias, to be differentiated once.

    With z = (x - mean) scale, averages < > over a channel's n places, and the projection P(g) = g - <g> - z <g z>, they
    are weight scale P(g), n <g z> and n <g>.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> Any:
        found = _normalise_backward(g, x, weight, None, None, mean, scale, True, 0.0, [True] * 3)
        ctx.save_for_backward(g, x, weight, mean, scale, *found[1:])
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, *at_parameters: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight, mean, scale, gz, g_sum = ctx.saved_tensors
        v = torch.zeros_like(g) if v is None else v
        v_weight, v_bias = (torch.zeros_like(weight) if part is None else part for part in at_parameters)
        n = x.numel() // x.shape[1]
        at_g, vz, v_sum = _normalise_backward(v, x, weight, None, None, mean, scale, True, 0.0, [True] * 3)
        vz, v_sum, gz, g_sum = vz / n, v_sum / n, gz / n, g_sum / n
        dtype = x.dtype
        if dtype == torch.float16:  # whose range is too small for the products
            v, g, x = v.float(), g.float(), x.float()
        vg = (v * g).mean((0, 2, 3), dtype=mean.dtype) - v_sum * g_sum - vz * gz  # <v P(g)>
        # The coefficients of v, of g, of z, and what is left, in the derivative of n weight scale <v P(g)>, in which
        # scale and z depend on x, and of n v_weight <g z>.
        steep = -weight * scale**2
        in_v, in_g = steep * gz, steep * vz + scale * v_weight
        in_z = steep * (vg - 2 * vz * gz) - scale * v_weight * gz
        rest = -in_v * v_sum - in_g * g_sum
        z = (x - _along(mean, x)).mul_(_along(scale, x))  # x alone is large beside it where the mean is
        at_x = _along(in_v, v).mul(v).addcmul_(_along(in_g, g), g).addcmul_(_along(in_z, z), z).add_(_along(rest, x))
        if any(part is not None for part in at_parameters):
            at_g = at_g + (_along(v_weight, z) * z + _along(v_bias, z)).to(dtype)
        return at_g, at_x.to(dtype), scale * vg * n, None, None


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """A number a channel, (C,), beside maps (B, C, H, W)."""
    return channels.to(x.dtype)[:, None, None]
