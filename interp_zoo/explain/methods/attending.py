"""The attention matrices of plain vision transformers, for the methods that read them.

No list of architectures: an attention module is one that has an `attn_drop`, through which its matrices go, and its
block is the outermost module that holds no other. A transformer is plain if its blocks are a chain, and if each matrix
is (B, heads, N, N) over the same N tokens: those of the grid, and the prefix before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp_zoo.explain.anatomy import Anatomy, Split
from interp_zoo.explain.branches import Branches
from interp_zoo.explain.cutting import Cut, find_cut
from interp_zoo.explain.grid import GridView
from interp_zoo.explain.methods.registry import UnsuitableModel, Watch
from interp_zoo.explain.replay import hook

# How matrices are recorded: as values, in the graph of the whole pass, or each in a graph of its own block.
Graph = Literal["none", "whole", "block"]


def unsuitable(method: str, why: str) -> UnsuitableModel:
    """The error that says so."""
    return UnsuitableModel(
        f'`method` "{method}" reads the attention of plain vision transformers (vit, deit), and this model {why}: '
        'use "gradcam" or "opticam"'
    )


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The attention modules by name, in the model's order."""
    return {name: m for name, m in model.named_modules() if isinstance(getattr(m, "attn_drop", None), nn.Module)}


def needs_attention(method: str) -> Watch:
    """For `register(watch=...)`: nothing to watch in the first pass, but an error where there is no attention."""

    def watch(model: nn.Module) -> tuple[nn.Module, ...]:
        if not attentions(model):
            raise unsuitable(method, "has no attention matrices")
        return ()

    return watch


@contextmanager
def unfused(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Lets attention modules compute their matrices, which fused attention does not, for the block."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            if "fused_attn" in vars(module):
                before.append((module, vars(module)["fused_attn"]))
                module.__dict__["fused_attn"] = False
        yield
    finally:
        for module, flag in before:
            module.__dict__["fused_attn"] = flag


class Attending:
    """One pass of a plain vision transformer with its attention matrices.

    Args:
        method: whose name is in errors.
        anatomy: the model.
        pixels: the pictures (B, channels, H, W).

    Attributes:
        after: the model, cut after the last block, with all N tokens, prefix included, as places: A is (B, C, N, 1).
        matrices: what `record` found, (B, heads, N, N) a block.
        tokens: the outputs (B, N, C) of all blocks but the last, each in the graph of its own matrix ("block" only).

    Raises:
        UnsuitableModel: if the model is no plain vision transformer.
    """

    def __init__(self, method: str, anatomy: Anatomy, pixels: Tensor) -> None:
        self.method = method
        self.modules = attentions(anatomy.model)
        self.blocks = [_block(name, self.modules) for name in self.modules]
        self.view = self._view(anatomy)
        cut = self._cut(anatomy.model, (pixels.shape[1], pixels.shape[2], pixels.shape[3]))
        all_of_it = Branches((((), GridView("NLC", self.count, 1)),))
        self.after = replace(anatomy, cut=replace(cut, branches=all_of_it), watch=(), _split=None)
        self.matrices: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self._last: Any = None

    @property
    def count(self) -> int:
        """How many tokens there are."""
        return self.view.prefix + self.view.h * self.view.w

    def split(self, pixels: Tensor, graph: Graph = "none") -> Split:
        """The pass of `after`, its matrices recorded."""
        with self.record(graph):
            split = self.after.split(pixels)
        self.check(len(pixels))
        return split

    @contextmanager
    def record(self, graph: Graph) -> Iterator[None]:
        """Records the matrices of a pass in the block, with attention unfused, and sees that the blocks are a chain."""
        blocks = [self.after.model.get_submodule(name) for name in self.blocks]
        with unfused(self.modules.values()), ExitStack() as stack:
            for module, block in zip(self.modules.values(), blocks, strict=True):
                drop: Any = module.attn_drop
                stack.enter_context(hook(drop.register_forward_pre_hook(self._matrix(graph))))
                enter, leave = self._enter(graph, first=block is blocks[0]), self._leave(graph)
                stack.enter_context(hook(block.register_forward_pre_hook(enter, prepend=True)))
                stack.enter_context(hook(block.register_forward_hook(leave)))  # after the user's hooks: see the chain
            yield

    def check(self, batch: int) -> None:
        """Raises UnsuitableModel if a matrix is missing, or is of other tokens than those on the grid."""
        if len(self.matrices) != len(self.modules):
            share = f"{len(self.matrices)} of {len(self.modules)}"
            raise unsuitable(self.method, f"hands out {share} attention matrices")
        for matrix in self.matrices:
            if matrix.ndim != 4 or (len(matrix), *matrix.shape[2:]) != (batch, self.count, self.count):
                want = f"({batch}, heads, {self.count}, {self.count})"
                why = f"attends in windows or in stages (a matrix is {tuple(matrix.shape)}, not {want})"
                raise unsuitable(self.method, why)

    def on_grid(self, relevance: Tensor) -> Tensor:
        """Relevance of tokens (B, N) as maps (B, h, w), without the prefix."""
        return self.view.maps(relevance[:, :, None])[:, 0]

    def _view(self, anatomy: Anatomy) -> GridView:
        views = [view for _, view in anatomy.cut.branches.views]
        if len(views) != 1 or views[0].layout != "NLC":
            why = "has no tokens (B, N, C)"
            if [view.layout for view in views] == ["NHWC"]:
                why = "has its tokens on a grid (B, H, W, C), as for attention in windows, and not in a row (B, N, C),"
            raise unsuitable(self.method, f'{why} at its last map ("{anatomy.cut.name}")')
        return views[0]

    def _cut(self, model: nn.Module, shape: tuple[int, int, int]) -> Cut:
        """The cut after the last block."""
        last = self.blocks[-1]
        try:
            cut = find_cut(model, shape, last)
        except ValueError:  # what it returns is no map
            raise unsuitable(
                self.method, f'has other tokens than the picture\'s after its last block ("{last}")'
            ) from None
        if [path for path, view in cut.branches.views if view.layout == "NLC"] != [()]:
            raise unsuitable(self.method, f'returns no tokens (B, N, C) from its last block ("{last}")')
        return cut

    def _matrix(self, graph: Graph) -> Any:
        def note(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
            matrix = args[0]
            if graph == "block" or (graph == "whole" and not matrix.requires_grad):
                matrix = matrix.detach().requires_grad_()
            if graph == "block":
                torch.set_grad_enabled(True)  # until the block, or the no_grad around this pass, ends
            self.matrices.append(matrix)
            return (matrix, *args[1:])

        return note

    def _enter(self, graph: Graph, *, first: bool) -> Any:
        def see(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not args or not (first or args[0] is self._last):
                raise unsuitable(self.method, "has blocks that are no chain, each reading the one before it")
            return (args[0].detach(), *args[1:]) if graph == "block" else None

        return see

    def _leave(self, graph: Graph) -> Any:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            self._last = output
            if graph == "block" and len(self.matrices) < len(self.modules):
                torch.set_grad_enabled(False)
                self.tokens.append(output)

        return note


def _block(attention: str, attentions: Iterable[str]) -> str:
    """The outermost module that holds this attention and no other."""
    others = [f"{name}." for name in attentions if name != attention]
    parts = attention.split(".")
    paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return next(path for path in paths if not any(name.startswith(f"{path}.") for name in others))
