"""A private copy of a network that gives the same logits in less time.

On a CPU, torch convolves small maps of a single picture in another way than those of several, with other rounding, and
multiplies matrices of few rows in another way than those of many. In the copy such convolutions take a single picture
line by line, or twice, and linear layers of one row a picture always take four: so that a picture mostly has the same
figures, to the last bit, alone and in a batch (`Anatomy.alike` tells).

What costs memory traffic is written anew: torch copies the input of an in-place ReLU6 for its gradient, which the
output gives as well, and timm's convolutions with TensorFlow's padding copy their input into a larger one.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from timm.layers import Conv2dSame, get_same_padding
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from interp_zoo.explain.replay import hook

Run = Callable[[Tensor], Tensor]

_SMALL = 20_480  # numbers of one picture at a convolution, up to which torch does not give it to oneDNN


def folded(model: nn.Module, x: Tensor, memory_format: torch.memory_format) -> nn.Module | None:
    """A copy in eval mode whose BatchNorms are folded into the convolutions before them, frozen.

    Which convolution a BatchNorm follows is seen in a forward pass: it is the one whose output the BatchNorm takes, and
    no other module does. What functions take is not seen, so that the copy's logits have to be compared with the
    network's.

    Args:
        model: the network, of 32 or 64 bit (the weights of others would be rounded once more); it is left alone.
        x: one picture, as the network takes it.
        memory_format: of the copy's weights.

    Returns:
        The copy, or None where nothing can be folded or the network cannot be copied.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()) or x.itemsize < 4:
        return None
    try:
        twin = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception:  # whatever wrappers of networks raise
        return None
    seen = _Seen(twin, x)
    pairs = seen.pairs()
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
    for module in twin.modules():
        if type(module) in (nn.ReLU6, nn.Hardtanh) and module not in seen.changed_after:
            _run_by(module, _clip)
        if type(module) is Conv2dSame and module.dilation == (1, 1):
            _run_by(module, _same)
        if module in seen.small:
            _run_by(module, _not_alone)
        if module in seen.of_rows:
            _run_by(module, _in_fours)
    for tensor in (*twin.parameters(), *twin.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=memory_format)  # 1 x 1 kernels, too, unlike `contiguous`
    return twin


def _run_by(module: Any, how: Callable[[Any, Run, Tensor], Tensor]) -> None:
    """Lets a module run in another way, and leaves all else of it as it is: networks read their layers' weights."""
    run = module.forward
    module.forward = lambda input: how(module, run, input)  # torch's name for it


def _not_alone(convolution: Any, run: Run, x: Tensor) -> Tensor:
    """A convolution takes a single picture line by line where it sees one place at a time, else twice."""
    if len(x) > 1:
        return run(x)
    by_line = convolution.kernel_size == convolution.stride == (1, 1) and not any(convolution.padding)
    if by_line and x.shape[2] > 1:
        return run(x.transpose(0, 2)).transpose(0, 2)
    return run(torch.cat([x, x]))[:1]


def _in_fours(_linear: Any, run: Run, x: Tensor) -> Tensor:
    """A linear layer always takes four pictures, if need be of zeros."""
    n = len(x)
    rows = torch.cat([x, x.new_zeros(-n % 4, *x.shape[1:])]) if n % 4 else x
    return torch.cat([run(some) for some in rows.split(4)])[:n]


def _same(convolution: Any, _run: Run, x: Tensor) -> Tensor:
    """A convolution with TensorFlow's padding, which is one more at the right and below where it is odd.

    Then it pads as much at both sides, and the kernel has zeros at the left and above, which take what is too much.
    """
    own = convolution
    both = [get_same_padding(n, k, s, 1) for n, k, s in zip(x.shape[2:], own.kernel_size, own.stride, strict=True)]
    weight = F.pad(own.weight, (both[1] % 2, 0, both[0] % 2, 0))
    return F.conv2d(x, weight, own.bias, own.stride, [(n + 1) // 2 for n in both], 1, own.groups)


def _clip(clip: Any, _run: Run, x: Tensor) -> Tensor:
    """A ReLU6 or hard tanh keeps its output for the gradient, instead of its input."""
    y: Tensor = _Clipped.apply(x, clip.min_val, clip.max_val, clip.inplace)
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


class _Seen:
    """What one forward pass shows of a network.

    Args:
        model: the network.
        x: one picture, as it takes it.

    Attributes:
        small: convolutions of so few numbers that a picture alone is rounded otherwise; none but on a CPU.
        of_rows: linear layers that take one row a picture; none but on a CPU.
        changed_after: activations whose output is changed in place later.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.small: set[nn.Module] = set()
        self.of_rows: set[nn.Module] = set()
        self._runs: Counter[nn.Module] = Counter()
        # By the output's identity, which is held to stay its own; its version goes up when it is changed in place.
        self._made: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
        self._taken: dict[int, list[tuple[str, nn.Module, bool]]] = {}  # and whether it was as it was made
        self._clipped: list[tuple[nn.Module, Tensor, int]] = []
        on_cpu = x.device.type == "cpu"

        def before(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
            self._runs[module] += 1
            for value in (*args, *kwargs.values()):
                if id(value) in self._made:
                    as_made = value._version == self._made[id(value)][2]
                    self._taken.setdefault(id(value), []).append((name, module, as_made))

        def after(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            taken = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            if isinstance(module, nn.Conv2d):
                self._made[id(output)] = (module, output, output._version)
                if on_cpu and taken[0].numel() <= _SMALL:
                    self.small.add(module)
            elif type(module) is not nn.Linear:
                self._clipped.append((module, output, output._version))
            elif on_cpu and taken.ndim == 2 and len(taken) == 1:
                self.of_rows.add(module)

        with ExitStack() as stack, torch.no_grad():
            for name, module in model.named_modules():
                stack.enter_context(hook(module.register_forward_pre_hook(partial(before, name), with_kwargs=True)))
                if isinstance(module, nn.Conv2d) or type(module) in (nn.Linear, nn.ReLU6, nn.Hardtanh):
                    stack.enter_context(hook(module.register_forward_hook(after, with_kwargs=True)))
            model(x)
        self.changed_after = {module for module, output, version in self._clipped if output._version != version}

    def pairs(self) -> dict[str, nn.Conv2d]:
        """The BatchNorms that follow a convolution, by name, both of which are run once and nothing else between."""
        found: dict[str, nn.Conv2d] = {}
        for key, (convolution, _, _) in self._made.items():
            if key not in self._taken:
                continue
            *holders, (name, norm, as_made) = self._taken[key]  # what holds the BatchNorm may hand its input on
            if (
                isinstance(norm, nn.BatchNorm2d)
                and norm.running_mean is not None
                and as_made
                and all(name.startswith(f"{holder}.") for holder, _, _ in holders)
                and self._runs[convolution] == self._runs[norm] == 1
                and type(convolution).forward in (nn.Conv2d.forward, Conv2dSame.forward)
                and "weight" in convolution._parameters  # not made of others, as by weight norm
            ):
                found[name] = convolution
        return found


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, new)
