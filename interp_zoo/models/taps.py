"""Outputs of some layers of a network, kept while it runs, and how they are laid out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """How a layer's output is laid out: maps (B, C, h, w) or (B, h, w, C), or tokens (B, prefix + p, C)."""

    kind: Literal["NCHW", "NHWC", "NLC"]
    prefix: int = 0

    @classmethod
    def of(cls, output: Tensor, *, prefix: int, channels_last: bool) -> Layout:
        """The layout of an output (of 3 or 4 axes) for a square picture: told by its shape, else by the network's."""
        if output.ndim == 3:
            return cls("NLC", prefix)
        _, a, b, c = output.shape
        if (a == b) != (b == c):
            channels_last = a == b
        return cls("NHWC" if channels_last else "NCHW")

    def places(self, output: Tensor) -> Tensor:
        """The output's places (B, p, C), row by row."""
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
        for index, name in enumerate(names):
            try:
                module = network.get_submodule(name)
            except AttributeError:
                raise ValueError(f'`taps` names "{name}", which is no layer of the backbone') from None
            for part in _ends(module):
                self._handles.append(part.register_forward_hook(_Tap(self, index)))

    def open(self) -> None:
        """Starts keeping, for the forward pass that follows."""
        self._kept[_thread()] = [None] * len(self.names)

    def keep(self, index: int, output: Any) -> None:
        """Keeps the output of the layer at that index; the last one, if the layer is called more than once."""
        kept = self._kept.get(_thread())
        if kept is not None:
            kept[index] = output

    def take(self) -> list[Any]:
        """What was kept since `open`, in the layers' order; None for a layer that was not run. Keeping ends."""
        return self._kept.pop(_thread())

    def drop(self) -> None:
        """Lets go of what was kept since `open`, after a forward pass that failed."""
        self._kept.pop(_thread(), None)

    def remove(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Tap:
    """The forward hook of one layer."""

    def __init__(self, taps: Taps, index: int) -> None:
        self.taps = taps
        self.index = index

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.taps.keep(self.index, output)


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
