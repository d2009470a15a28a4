"""Find where to cut a network into `A = body(x)` and `logits = tail(A)`.

Nothing here knows an architecture. One probing pass shows which layers' outputs are maps on the picture's grid and at
how many of their places the classifier's input has a gradient. The cut is

1. what `forward_features` returns, if that is a map, `forward_head` makes the logits of it, and at least half of its
   places act on them: all convolutional networks, windowed transformers, and plain ones that pool their patch tokens;
2. else the last layer whose output is a map, acts on the classifier at half of its places, and is a bottleneck: nothing
   reaches the logits around it. For a class token head that is the layer before the last block in which patch tokens
   still act, since their map after it is read by nobody. NaNs in the picture tell whether anything gets around;
3. else, where no layer is a bottleneck (several resolutions read side by side), the last such layer of the outermost
   level; what goes around it is held fixed.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from interp_zoo.explain.branches import Branches, Path, map_tensors, tensors
from interp_zoo.explain.grid import GridView, find_view
from interp_zoo.explain.outputs import logits_of
from interp_zoo.explain.replay import Call, Recorder, finished_before, hook
from interp_zoo.explain.wrappers import check_inputs, check_size, networks
from interp_zoo.models.taps import is_tapped
from interp_zoo.words import nearest

WHOLE_HEAD = "forward_features"
_MIN_SUPPORT = 0.5  # of the places act on the classifier


@dataclass(frozen=True, eq=False)
class Cut:
    """Where a network is cut. Compared by identity: found anew when the network's structure changes.

    Attributes:
        name: the layer, as `model.get_submodule` takes it ("forward_features" where it is no layer's output).
        index: which call of the layer, counted from 0.
        branches: how its output is seen as a map.
        before: the modules that are over before it, answered from memory when the tail is run alone.
        batched: the tensors (layer, call, place in its output) of `before` and the layer itself whose first axis counts
            pictures, or a multiple of them.
        head: whether `forward_head` is the tail, `forward_features` the body.
        bottleneck: whether everything that reaches the logits goes through the map.
        memory_format: how pictures are laid out for the network: channels last, with which convolutions are faster,
            unless it cannot take that.
    """

    name: str
    index: int
    branches: Branches
    before: tuple[str, ...]
    batched: frozenset[tuple[str, int, Path]]
    head: bool
    bottleneck: bool
    memory_format: torch.memory_format


_FOUND: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Cut]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class _Candidate:
    call: Call
    output: Any
    branches: Branches


class CutFinder:
    """Finds the cut of a model that is in eval mode, with pictures `x` (B, channels, H, W), normalised; B should be 2.

    (With one picture, what has no batch axis, such as a position embedding (1, N, C), would pass for a map.)
    """

    def __init__(self, model: nn.Module, x: Tensor, memory_format: torch.memory_format) -> None:
        self.model = model
        self.x = x.contiguous(memory_format=memory_format)
        self.memory_format = memory_format
        self.size = (int(x.shape[2]), int(x.shape[3]))
        within = networks(model)
        says = within[0] if len(within) == 1 else model  # the network in a module of the user's
        info = getattr(says, "feature_info", None)
        infos = info if isinstance(info, list) else getattr(info, "info", [])
        self.strides = sorted({int(i["reduction"]) for i in infos if isinstance(i, dict) and i.get("reduction")})
        prefix = getattr(says, "num_prefix_tokens", None)
        self.prefix = prefix if isinstance(prefix, int) else None
        self.channels_last = getattr(says, "output_fmt", "") == "NHWC"
        self.grids: set[tuple[int, int]] = set()  # of maps that were seen: tokens are made of such

    def find(self) -> Cut:
        """The cut for explanations, see the module's text.

        Raises:
            ValueError: if no layer's output is a map that acts on the logits.
        """
        head = self._head_cut()
        if head is not None:
            return head
        recorder, logits, objective = self._record()
        candidates = self._acting(self._candidates(recorder), objective)
        del objective
        if not candidates:
            raise ValueError(
                "`model` has no layer whose output is a map of the picture that acts on its logits: "
                "name one with `layer=`, or wrap the network so that it is one"
            )
        passed: list[Call] = []  # what gets around a layer gets around all that it consists of
        for candidate in reversed(candidates):
            if any(call.holds(candidate.call) for call in passed):
                continue
            if self._is_bottleneck(candidate, logits):
                return self._cut(candidate, recorder, bottleneck=True)
            passed.append(candidate.call)
        depth = min(c.call.name.count(".") for c in candidates)
        outer = [c for c in candidates if c.call.name.count(".") <= depth + 1]
        return self._cut(outer[-1], recorder, bottleneck=False)

    def at(self, name: str) -> Cut:
        """The cut at a layer that the user named (the last call of it).

        Raises:
            ValueError: if the layer is not run, or its output is no map of the picture.
        """
        head = self._head_cut()
        if head is not None and name in (head.name, WHOLE_HEAD):
            return head
        if name == WHOLE_HEAD:
            raise ValueError(
                f'`layer` is "{name}", but forward_features of this model gives no map that its head reads'
            )
        recorder, logits, _ = self._record()
        found = [(c, o) for c, o in zip(recorder.calls, recorder.outputs, strict=True) if c.name == name]
        if not found:
            raise ValueError(f'`layer` "{name}" is not run in the forward pass of this model: name one that is')
        call, output = found[-1]
        branches = self._branches(output)
        if branches is None:
            shapes = ", ".join(str(tuple(t.shape)) for _, t in tensors(output)) or type(output).__name__
            raise ValueError(
                f'`layer` "{name}" gives no map of the picture (its output is {shapes}): name a layer whose output is '
                "(B, C, h, w), (B, h, w, C) or tokens (B, h * w, C), such as a block"
            )
        candidate = _Candidate(call, output, branches)
        return self._cut(candidate, recorder, bottleneck=self._is_bottleneck(candidate, logits))

    def _head_cut(self) -> Cut | None:
        """The cut between forward_features and forward_head, if they make up the model and the head reads the map."""
        if not (hasattr(self.model, "forward_features") and hasattr(self.model, "forward_head")):
            return None
        try:
            with ExitStack() as stack, torch.no_grad():
                recorder = Recorder(self.model, stack)
                features = self.model.forward_features(self.x)  # type: ignore[operator]
            self._see(recorder)
            view = self._view(features) if isinstance(features, Tensor) else None
            if view is None:
                return None
            with classifier_inputs(self.model) as seen, torch.enable_grad():
                # which places are read does not hang on the values, but a saturated attention lets no gradient through
                leaf = (features / features.abs().amax().clamp_min(1e-6)).detach().requires_grad_()
                small = logits_of(self.model.forward_head(leaf.clone()))  # type: ignore[operator]
                (gradient,) = torch.autograd.grad(projection(seen or [small]), leaf, allow_unused=True)
            if gradient is None or _share_of_places(view.maps(gradient)) < _MIN_SUPPORT:
                return None
            with torch.no_grad():
                logits = logits_of(self.model.forward_head(features.clone()))  # type: ignore[operator]
                want = logits_of(self.model(self.x))
        except torch.OutOfMemoryError:
            raise  # says nothing about where to cut
        except (TypeError, RuntimeError, NotImplementedError, AttributeError, ValueError):
            return None  # not made up of the two: the other way of finding a cut says what is wrong
        if logits.shape != want.shape or not torch.allclose(logits, want, rtol=1e-3, atol=1e-4):
            return None
        names = [c.name for c, o in zip(recorder.calls, recorder.outputs, strict=True) if o is features]
        name = names[-1] if names else WHOLE_HEAD  # the outermost layer that returns the features
        batched = frozenset({(name, 0, ())})
        branches = Branches((((), view),))
        return Cut(name, 0, branches, (), batched, head=True, bottleneck=True, memory_format=self.memory_format)

    def _record(self) -> tuple[Recorder, Tensor, Tensor]:
        """One forward pass with gradients: what each layer returned, the logits, and the scalar to differentiate."""
        with ExitStack() as stack, torch.enable_grad():
            recorder = Recorder(self.model, stack, alias=True)
            seen = stack.enter_context(classifier_inputs(self.model))
            logits = logits_of(self.model(self.x.clone().requires_grad_().clone()))
            self._see(recorder)
            return recorder, logits.detach(), projection(seen or [logits])

    def _see(self, recorder: Recorder) -> None:
        """Remembers the grids of all maps (B, C, h, w)."""
        found = [t.shape for o in recorder.outputs for _, t in tensors(o) if t.ndim == 4]
        views = [find_view(tuple(shape), self.size) for shape in found if shape[0] == len(self.x)]
        self.grids |= {(view.h, view.w) for view in views if view is not None and view.layout == "NCHW"}

    def _view(self, tensor: Tensor) -> GridView | None:
        pooled = tensor.ndim == 3 and tensor.shape[2] == 1  # channels (B, C, 1), not tokens of one channel
        if tensor.shape[0] != self.x.shape[0] or not tensor.is_floating_point() or pooled:
            return None
        hints: dict[str, Any] = {"strides": self.strides, "grids": self.grids, "prefix": self.prefix}
        return find_view(tuple(tensor.shape), self.size, channels_last=self.channels_last, **hints)

    def _branches(self, output: object) -> Branches | None:
        views = [(path, self._view(t)) for path, t in tensors(output) if t.ndim in (3, 4)]
        found = tuple((path, view) for path, view in views if view is not None)
        return Branches(found) if found else None

    def _candidates(self, recorder: Recorder) -> list[_Candidate]:
        found = ((c, o, self._branches(o)) for c, o in zip(recorder.calls, recorder.outputs, strict=True))
        return [_Candidate(call, output, branches) for call, output, branches in found if branches is not None]

    def _acting(self, candidates: list[_Candidate], objective: Tensor) -> list[_Candidate]:
        """The candidates, with those of their branches that act on the classifier at half of their places or more."""
        wanted = {id(t): t for c in candidates for _, t in tensors(c.output) if t.requires_grad}
        if not wanted or not objective.requires_grad:
            return []
        gradients = dict(
            zip(wanted, torch.autograd.grad(objective, list(wanted.values()), allow_unused=True), strict=True)
        )
        acting: list[_Candidate] = []
        for c in candidates:
            found = dict(tensors(c.output))
            views: list[tuple[Path, GridView]] = []
            for path, view in c.branches.views:
                gradient = gradients.get(id(found[path]))
                if gradient is not None and _share_of_places(view.maps(gradient)) >= _MIN_SUPPORT:
                    views.append((path, view))
            if views:
                acting.append(_Candidate(c.call, c.output, Branches(tuple(views))))
        return acting

    def _is_bottleneck(self, candidate: _Candidate, clean: Tensor) -> bool:
        """Whether the logits stay what they are when the picture is NaN and this layer's output is the clean one."""
        calls = count()

        def put(_module: nn.Module, _args: Any, _output: Any) -> Any:
            if next(calls) != candidate.call.index:
                return None  # an earlier call of the same module: as it comes
            return map_tensors(candidate.output, lambda _, t: t.detach().clone())

        module = self.model.get_submodule(candidate.call.name)
        with hook(module.register_forward_hook(put, prepend=True)), torch.no_grad():
            try:
                logits = logits_of(self.model(torch.full_like(self.x, torch.nan)))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, IndexError):  # a network that computes indices from its features
                return False
        return torch.allclose(logits, clean, rtol=1e-3, atol=1e-4)

    def _cut(self, c: _Candidate, recorder: Recorder, *, bottleneck: bool) -> Cut:
        tapped = [name for name, module in self.model.named_modules() if is_tapped(module)]
        before = finished_before(recorder.calls, c.call, tapped)
        batched = self._batched({*before, c.call.name}, recorder)
        where, layout = (c.call.name, c.call.index, c.branches, before, batched), self.memory_format
        return Cut(*where, head=False, bottleneck=bottleneck, memory_format=layout)

    def _batched(self, names: set[str], all_pictures: Recorder) -> frozenset[tuple[str, int, Path]]:
        """The tensors in the outputs of the named layers that are so much longer for all pictures than for one."""
        with ExitStack() as stack, torch.no_grad():
            one_picture = Recorder(self.model, stack)
            self.model(self.x[:1])
        many, one = (
            {
                (c.name, c.index, path): len(t)
                for c, o in zip(recorder.calls, recorder.outputs, strict=True)
                for path, t in tensors(o)
                if c.name in names and t.ndim
            }
            for recorder in (all_pictures, one_picture)
        )
        return frozenset(key for key, length in many.items() if length == len(self.x) * one.get(key, 0))


@contextmanager
def classifier_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what is handed to the classifier; nothing where timm's `get_classifier` names no module that is run."""
    seen: list[Tensor] = []

    def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.extend(t for _, t in tensors(args) if t.requires_grad)

    get = getattr(model, "get_classifier", None)
    found = get() if callable(get) else None
    parts = found if isinstance(found, tuple | list) else (found,)
    modules = [m for part in parts for m in (part if isinstance(part, nn.ModuleList) else (part,))]
    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, nn.Module):
                stack.enter_context(hook(module.register_forward_pre_hook(note)))
        yield seen


def projection(read: list[Tensor]) -> Tensor:
    """A scalar that depends on all of the classifier's input (an untrained classifier may itself be all zeros)."""
    generator = torch.Generator().manual_seed(0)
    parts = [(t.float() * (torch.rand(t.shape, generator=generator) + 0.5).to(t.device)).sum() for t in read]
    return torch.stack(parts).sum()


def _share_of_places(gradient: Tensor) -> float:
    """The share of the places of (B, C, h, w) at which any channel is not zero."""
    return (gradient != 0).any(1).float().mean().item()


def find_cut(model: nn.Module, shape: tuple[int, int, int], layer: str | nn.Module | None = None) -> Cut:
    """Where to cut a model in eval mode for pictures of `shape` (channels, H, W). Found once for each model and shape.

    Args:
        model: the network.
        shape: the pictures' shape.
        layer: a layer's name, the layer itself, "forward_features", or None to find the place.

    Raises:
        TypeError: if `layer` is neither a name nor a module.
        ValueError: if there is no such layer, or it gives no map; or if no place can be found.
    """
    if layer is not None:
        layer = _layer_name(model, layer)
    parameter = next(model.parameters(), torch.empty(0))
    key = (shape, layer, parameter.dtype, parameter.device, _structure(model))
    found = _FOUND.setdefault(model, {})
    if key not in found:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, *shape, generator=generator).to(parameter.device, parameter.dtype)
        check_inputs(model)
        try:
            found[key] = _find(CutFinder(model, x, torch.channels_last), layer)
        except AssertionError as error:  # timm's networks check the size so
            raise ValueError(f"`img` of {shape[1]} x {shape[2]} does not fit the model: {error}") from None
        except RuntimeError as error:
            first = next((m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)), None)
            if isinstance(first, nn.Conv3d) and not isinstance(error, torch.OutOfMemoryError):
                raise ValueError("`model` is for video or volumes, which are out of scope here: see captum") from error
            if "view" not in str(error):
                check_size(model, x)
                raise
            found[key] = _find(CutFinder(model, x, torch.contiguous_format), layer)  # it views what is not contiguous
    return found[key]


def _find(finder: CutFinder, layer: str | None) -> Cut:
    return finder.find() if layer is None else finder.at(layer)


def _structure(model: nn.Module) -> int:
    """Changes with modules (`reset_classifier`), parameters' shapes (`set_input_size`) and the pooling."""
    pool = str(getattr(model, "global_pool", ""))
    modules = tuple((name, type(module).__qualname__) for name, module in model.named_modules())
    return hash((pool, modules, tuple(p.shape for p in model.parameters())))


def _layer_name(model: nn.Module, layer: str | nn.Module) -> str:
    names: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    if isinstance(layer, nn.Module):
        for name, module in names.items():
            if module is layer:
                return name
        raise ValueError(
            f"`layer` is a {type(layer).__name__} that is no part of the model: give one of its own layers"
        )
    if not isinstance(layer, str):
        raise TypeError(f"`layer` must be a layer's name or a module, not {type(layer).__name__}")
    if layer not in names and layer != WHOLE_HEAD:
        top = ", ".join(name for name in names if "." not in name)
        raise ValueError(
            f'`layer` "{layer}" does not exist in the model{nearest(layer, list(names))}; its outermost are: {top}'
        )
    return layer
