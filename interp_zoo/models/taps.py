"""Outputs of some layers of a network, kept while it runs, and how they are laid out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp_zoo.words import nearest


@dataclass(frozen=True)
class Layout:
    """How a layer's output is laid out: maps (B, C, h, w) or (B, h, w, C), or tokens (B, prefix + p, C)."""

    kind: Literal["NCHW", "NHWC", "NLC"]
    prefix: int = 0

    @classmethod
    def of(cls, output: Tensor, *, channels: int | None, prefix: int, channels_last: bool) -> Layout:
        """The layout of an output (of 3 or 4 axes): told by its channels where they are known, else `channels_last`."""
        if output.ndim == 3:
            return cls("NLC", prefix)
        if (output.shape[1] == channels) != (output.shape[3] == channels):
            channels_last = output.shape[3] == channels
        return cls("NHWC" if channels_last else "NCHW")

    def places(self, output: Tensor) -> Tensor:
        """The output's places (B, p, C), row by row."""
        if torch.is_grad_enabled() and output.requires_grad:
            output = _ContiguousGradient.apply(output)
        if self.kind == "NLC":
            return output[:, self.prefix :]
        return output.flatten(1, 2) if self.kind == "NHWC" else output.flatten(2).transpose(1, 2)

    def grid(self, output: Tensor) -> tuple[int, ...]:
        """The height and width of a map; the number of places of tokens."""
        if self.kind == "NLC":
            return (output.shape[1] - self.prefix,)
        return tuple(output.shape[1:3] if self.kind == "NHWC" else output.shape[2:])

    def single(self, vector: Tensor) -> Tensor:
        """A vector (B, C) as an output of one place; as tokens that are all alike, whichever of them is read."""
        if self.kind == "NLC":
            return vector[:, None].expand(-1, self.prefix + 1, -1)
        return vector[:, None, None] if self.kind == "NHWC" else vector[:, :, None, None]


class _ContiguousGradient(torch.autograd.Function):
    """The identity, whose gradient is laid out as its input is.

    On a CPU, torch's BatchNorm in eval mode takes the gradient of a single picture wrongly if it is transposed.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


class Taps:
    """Keeps what named layers return, from the moment that `open` is called until `take` hands it over.

    The hooks are objects, not closures, so that a network with taps can be copied and pickled. What they keep is sorted
    by thread: servers run one network in several, and so does `nn.DataParallel`, whose copies share their hooks.

    Args:
        network: the network.
        names: the layers, as `network.get_submodule` takes them.

    Raises:
        ValueError: if there is no such layer.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._kept: dict[int, list[Any]] = {}
        self._handles = []
        there = dict(network.named_modules())
        for name in names:
            if name not in there:
                raise ValueError(
                    f'`taps` names "{name}", which is no layer of the backbone{nearest(name, list(there))}'
                )
        for index, name in enumerate(names):
            for part in _ends(there[name]):
                self._handles.append(part.register_forward_hook(Tap(self, index)))

    def open(self) -> None:
        """Starts keeping, for the forward pass that follows."""
        self._kept[_thread()] = [None] * len(self.names)

    def keep(self, index: int, output: Any) -> None:
        """Keeps the output of the layer at that index; the last one, if the layer is called more than once."""
        kept = self._kept.get(_thread())
        if kept is None and torch.compiler.is_compiling() and len(self._kept) == 1:  # a compiled part of the network
            (kept,) = self._kept.values()
        if kept is not None:
            kept[index] = output

    def take(self) -> list[Any]:
        """What was kept since `open`, in the layers' order; None for a layer that was not run. Keeping ends."""
        return self._kept.pop(_thread())

    def drop(self) -> None:
        """Lets go of what was kept since `open`, after a forward pass that failed."""
        self._kept.pop(_thread(), None)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but what a pass that is under way has kept."""
        return self.__dict__ | {"_kept": {}}

    def remove(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class Tap:
    """The forward hook of one layer, on whose call the network itself depends."""

    def __init__(self, taps: Taps, index: int) -> None:
        self.taps = taps
        self.index = index

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Keeps the output."""
        self.taps.keep(self.index, output)


def is_tapped(module: nn.Module) -> bool:
    """Whether a module has a tap."""
    return any(isinstance(hook, Tap) for hook in module._forward_hooks.values())


def _thread() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()  # which torch.compile cannot trace


def _ends(module: nn.Module) -> list[nn.Module]:
    """A layer and, where it is a sequence, the part that gives its output.

    Gradient checkpointing runs the parts of a sequence one by one, and never calls the sequence itself.
    """
    ends = [module]
    while isinstance(ends[-1], nn.Sequential) and len(ends[-1]):
        ends.append(ends[-1][-1])
    return ends
