"""Run a network from a layer on, with everything before it answered from memory.

`logits = tail(A)` needs no surgery on the network: its own forward method runs, but the modules that had finished
before the layer did return what they returned in the recorded pass, and the layer returns A. What then really computes
is what comes after the layer. This holds for skip connections around the layer, too, since they see the recorded
values.

A layer's output is here what its forward method returns: all hooks of this package come before those that a layer
already has, whose work belongs to what follows (a CA-Stream takes its keys and values in such hooks).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp_zoo.explain.branches import Path, map_tensors


@dataclass(frozen=True)
class Call:
    """One call of a module during a forward pass: its name, the how-manieth call of it, when it began and ended."""

    name: str
    index: int
    begin: int
    end: int

    def holds(self, other: Call) -> bool:
        """Whether `other` happened within this call."""
        return self.begin < other.begin and other.end < self.end


class Recorder:
    """Logs the calls of all modules of one forward pass, and what each returned, through the hooks of `stack`.

    Args:
        model: the network.
        stack: where the hooks live.
        alias: whether each output is handed on as a view of its own, so that a gradient at it counts only what comes
            after this call (a layer may hand an input on untouched, as CoaT's blocks do).
    """

    def __init__(self, model: nn.Module, stack: ExitStack, *, alias: bool = False) -> None:
        self._alias = alias
        self.calls: list[Call] = []  # in the order of their ends
        self.outputs: list[Any] = []  # one for each call
        self._clock = 0
        self._open: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._count: dict[str, int] = defaultdict(int)
        for name, module in model.named_modules():
            if name:
                stack.enter_context(hook(module.register_forward_pre_hook(self._begin(name))))
                stack.enter_context(hook(module.register_forward_hook(self._end(name), prepend=True)))

    def _begin(self, name: str) -> Callable[[nn.Module, Any], None]:
        def begin(_module: nn.Module, _args: Any) -> None:
            self._open[name].append((self._count[name], self._clock))
            self._count[name] += 1
            self._clock += 1

        return begin

    def _end(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def end(_module: nn.Module, _args: Any, output: Any) -> Any:
            index, begin = self._open[name].pop()
            if self._alias:
                output = map_tensors(output, lambda _, t: t.view_as(t))
            self.calls.append(Call(name, index, begin, self._clock))
            self.outputs.append(output)
            self._clock += 1
            return output if self._alias else None

        return end


@contextmanager
def hook(handle: Any) -> Iterator[None]:
    """Removes a hook's handle at the end of the block."""
    try:
        yield
    finally:
        handle.remove()


def finished_before(calls: list[Call], cut: Call, tapped: Collection[str]) -> tuple[str, ...]:
    """The outermost modules all of whose calls ended before `cut` began: what a replay answers from memory.

    A module that holds a `tapped` one is not answered as a whole, but part by part, so that the tap is called: a
    CA-Stream's keys and values come from there.
    """
    late = {c.name for c in calls if c.end >= cut.begin}
    late |= {name[:i] for name in tapped for i, letter in enumerate(name) if letter == "."}
    early = [c for c in calls if c.name not in late]
    names: dict[str, None] = {}
    for c in early:
        if not any(o.holds(c) for o in early):
            names[c.name] = None
    return tuple(names)


class Memory:
    """What the modules before the cut returned in one recorded pass.

    Args:
        model: the network.
        names: the modules.
        copied: whether values are copied, since what follows may change them in place. Needless where nothing gets
            around the cut: then only their shapes matter.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], *, copied: bool) -> None:
        self._copied = copied
        self.modules = {name: model.get_submodule(name) for name in names}
        self.returned: dict[str, list[Any]] = {name: [] for name in names}

    def record(self, stack: ExitStack) -> None:
        """Notes what the modules return until `stack` closes."""
        for name, module in self.modules.items():

            def note(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                keep = torch.clone if self._copied else torch.detach
                self.returned[name].append(map_tensors(output, lambda _, t: keep(t)))

            stack.enter_context(hook(module.register_forward_hook(note, prepend=True)))

    def replay(
        self, stack: ExitStack, batched: Collection[tuple[str, int, Path]], *, picture: int, batch: int, copies: int
    ) -> None:
        """Lets the modules return the recorded values of one picture, `copies` times, until `stack` closes."""
        for name, module in self.modules.items():
            answers = enumerate(self.returned[name])

            def answer(
                *_args: Any, answers: Iterator[tuple[int, Any]] = answers, name: str = name, **_kwargs: Any
            ) -> Any:
                index, output = next(answers)
                places = {path for layer, call, path in batched if (layer, call) == (name, index)}
                return repeat(output, places, picture=picture, batch=batch, copies=copies)

            stack.enter_context(answering(module, answer))


def repeat(output: Any, batched: Collection[Path], *, picture: int, batch: int, copies: int) -> Any:
    """One picture's part of a batch's output, `copies` times, as a copy of its own (what follows may work in place).

    Args:
        output: tensors, tuples, lists and dicts of them.
        batched: the places of the tensors whose first axis counts pictures, or a multiple of them (TNT's inner tokens).
        picture: which one.
        batch: how many pictures the output is of.
        copies: how many are wanted.
    """

    def pick(path: Path, tensor: Tensor) -> Tensor:
        if path not in batched:
            return tensor.clone()
        own = len(tensor) // batch
        return tensor[picture * own : (picture + 1) * own].repeat(copies, *[1] * (tensor.ndim - 1))

    return map_tensors(output, pick)


@contextmanager
def answering(module: nn.Module, answer: Callable[..., Any]) -> Iterator[None]:
    """Lets `module` return what `answer` returns, without running it; the hooks on its output run as ever."""
    missing = object()
    before = module.__dict__.get("forward", missing)
    module.__dict__["forward"] = answer
    try:
        yield
    finally:
        if before is missing:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
