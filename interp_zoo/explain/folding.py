"""A private copy of a network that gives the same logits in less time.

On a CPU, torch convolves small maps of a single picture in another way than those of several, with other rounding, and
multiplies a single row in another way than several. In the copy such convolutions take a single picture twice, and
linear layers take pictures one by one: so that a picture mostly has the same figures, to the last bit, alone and in a
batch (`Anatomy.alike` tells).
"""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
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
        if module in small:
            _replace(twin, name, _InPairs(module))
        elif type(module) is nn.Linear:
            _replace(twin, name, _OneByOne(module))
    return twin.to(memory_format=memory_format)


class _InPairs(nn.Module):
    """A convolution that takes a single picture twice."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolution(torch.cat([x, x]) if len(x) == 1 else x)
        return y[:1] if len(x) == 1 else y


class _OneByOne(nn.Module):
    """A linear layer that takes pictures one by one."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.linear(row) for row in x.split(1)])


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
