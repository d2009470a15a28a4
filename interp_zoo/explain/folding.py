"""A private copy of a network that gives the same logits in less time.

On a CPU, torch convolves small maps of a single picture in another way than those of several, with other rounding, and
multiplies matrices of few rows in another way than those of many. In the copy such convolutions take a single picture
line by line, or twice, and linear layers always take four pictures: so that a picture mostly has the same figures, to
the last bit, alone and in a batch (`Anatomy.alike` tells).

What costs memory traffic is written anew: torch copies the input of an in-place ReLU6 for its gradient, which the
output gives as well, and timm's convolutions with TensorFlow's padding copy their input into a larger one.
"""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from timm.layers import Conv2dSame, get_same_padding
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from interp_zoo.explain.replay import hook

_SMALL = 20_480  # numbers of one picture at a convolution, up to which torch does not give it to oneDNN


def folded(model: nn.Module, x: Tensor, memory_format: torch.memory_format) -> nn.Module | None:
    """A copy in eval mode whose BatchNorms are folded into the convolutions before them, frozen.

    Which convolution a BatchNorm follows is seen in a forward pass: it is the one whose output the BatchNorm takes.
    Whether nothing else takes it is not seen, so that the copy's logits have to be compared with the network's.

    Args:
        model: the network; it is left alone.
        x: one picture or more, as the network takes them.
        memory_format: of the copy's weights.

    Returns:
        The copy, or None where nothing can be folded or the network cannot be copied.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return None
    try:
        twin = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception:  # whatever wrappers of networks raise
        return None
    pairs, small = _pairs(twin, x)
    if not pairs:
        return None
    for name, convolution in pairs.items():
        norm: Any = twin.get_submodule(name)
        weight, bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        convolution.weight, convolution.bias = weight.requires_grad_(False), bias.requires_grad_(False)
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        _replace(twin, name, nn.Sequential(*rest))  # timm's BatchNorms carry their activation
    for name, module in list(twin.named_modules()):
        new = _faster(module)
        if module in small:
            new = _NotAlone(new or module)
        if new is not None:
            _replace(twin, name, new)
    return twin.to(memory_format=memory_format)


def _faster(module: nn.Module) -> nn.Module | None:
    """A module with the same results that is faster, or kinder to batches, if there is one."""
    if type(module) is nn.Linear:
        return _InFours(module)
    if type(module) in (nn.ReLU6, nn.Hardtanh):
        return _Clip(module)
    if type(module) is Conv2dSame and module.dilation == (1, 1):
        return _Same(module)
    return None


class _NotAlone(nn.Module):
    """A convolution that takes a single picture line by line where it sees one place at a time, else twice."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        own: Any = convolution
        self.by_line = (
            isinstance(convolution, nn.Conv2d) and own.kernel_size == own.stride == (1, 1) and not any(own.padding)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        if len(x) > 1:
            y = self.convolution(x)
        elif self.by_line and x.shape[2] > 1:
            y = self.convolution(x.transpose(0, 2)).transpose(0, 2)
        else:
            y = self.convolution(torch.cat([x, x]))[:1]
        return y


class _InFours(nn.Module):
    """A linear layer that always takes four pictures, if need be of zeros."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        rows = torch.cat([x, x.new_zeros(-n % 4, *x.shape[1:])]) if n % 4 else x
        return torch.cat([self.linear(some) for some in rows.split(4)])[:n]


class _Clip(nn.Module):
    """A ReLU6 or hard tanh that keeps its output for the gradient, instead of its input."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.low, self.high, self.inplace = clip.min_val, clip.max_val, clip.inplace

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Clipped.apply(x, self.low, self.high, self.inplace)
        return y


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, low: float, high: float, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        y = x.clamp_(low, high) if inplace else x.clamp(low, high)
        ctx.save_for_backward(y)
        ctx.ends = (low, high)  # type: ignore[attr-defined]
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, y, *ctx.ends), None, None, None


class _Same(nn.Module):
    """A convolution with TensorFlow's padding, which is one more at the right and below where it is odd.

    Then it pads as much at both sides, and the kernel has zeros at the left and above, which take what is too much.
    """

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self.convolution
        both = [get_same_padding(n, k, s, 1) for n, k, s in zip(x.shape[2:], own.kernel_size, own.stride, strict=True)]
        weight = F.pad(own.weight, (both[1] % 2, 0, both[0] % 2, 0))
        padding = [(n + 1) // 2 for n in both]
        return F.conv2d(x, weight, own.bias, own.stride, padding, 1, own.groups)


def _pairs(model: nn.Module, x: Tensor) -> tuple[dict[str, nn.Conv2d], set[nn.Module]]:
    """The BatchNorms that follow a convolution, by name, both of which are run once; convolutions of small maps."""
    came: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by the output's identity, which is held so that it stays its own
    pairs: dict[str, nn.Conv2d] = {}
    runs: Counter[nn.Module] = Counter()
    small: set[nn.Module] = set()

    def after(module: Any, args: Any, output: Any) -> None:
        runs[module] += 1
        came[id(output)] = (module, output)
        if args[0][0].numel() <= _SMALL:
            small.add(module)

    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                stack.enter_context(hook(module.register_forward_hook(after)))
            elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:

                def before(norm: Any, args: Any, name: str = name) -> None:
                    runs[norm] += 1
                    if id(args[0]) in came:
                        pairs[name] = came[id(args[0])][0]

                stack.enter_context(hook(module.register_forward_pre_hook(before)))
        model(x)
    once = Counter(pairs.values())
    return {
        name: conv for name, conv in pairs.items() if runs[conv] == once[conv] == runs[model.get_submodule(name)] == 1
    }, small


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, new)
