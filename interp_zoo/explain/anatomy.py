"""A classifier said as `A = body(x)`, `logits = tail(A)`, with A a map (B, C, h, w) on the picture's grid.

All that a method knows of a model is an `Anatomy`: maps and their gradients, logits of masked pictures, and the tail
alone. Gradients stop at A: it is detached and made a leaf, so that nothing before it is in the graph, no parameter
gets a gradient, and frozen weights, no_grad, inference_mode and in-place activations do no harm.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from interp_zoo import memory
from interp_zoo.explain.cutting import Cut, find_cut
from interp_zoo.explain.folding import folded
from interp_zoo.explain.outputs import logits_of
from interp_zoo.explain.replay import Memory, answering, hook, repeat
from interp_zoo.explain.targets import Target
from interp_zoo.models.rectifiers import Rectifiers
from interp_zoo.models.taps import is_tapped

Tick = Callable[[int], None]

_AFFINE: weakref.WeakKeyDictionary[Cut, bool] = weakref.WeakKeyDictionary()
_ALIKE: weakref.WeakKeyDictionary[Cut, dict[Any, bool]] = weakref.WeakKeyDictionary()


@dataclass
class Passes:
    """How often pictures went through the network, forward and backward, or through its tail alone."""

    forward: int = 0
    backward: int = 0
    tail: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forward + other.forward, self.backward + other.backward, self.tail + other.tail)


@dataclass
class Split:
    """One recorded forward pass.

    Attributes:
        maps: A, (B, C, h, w), a leaf that requires a gradient; float32 where the model is of half precision.
        logits: (B, classes), a function of `maps`.
        output: the cut layer's whole output.
        memory: what came before it.
        watched: the first input of each watched module that was run, detached, in the order of `Anatomy.watch`.
    """

    maps: Tensor
    logits: Tensor
    output: Any
    memory: Memory | None = None
    watched: list[Tensor] = field(default_factory=list)


@dataclass
class Anatomy:
    """A model that is cut at a layer. It must be in eval mode for as long as this is used (see `untouched`).

    Attributes:
        model: the network.
        cut: where it is cut.
        mean: what the model subtracts from pixels in [0, 1], (channels,).
        std: what it then divides by, (channels,).
        batch_size: the most pictures that are in the network at once.
        amp: the type for autocast, or None for the model's own.
        passes: counts passes since it was last replaced.
        tick: called with the number of pictures after each expanded batch, for progress bars.
        watch: modules whose inputs are kept with each `split`.
    """

    model: nn.Module
    cut: Cut
    mean: Tensor
    std: Tensor
    batch_size: int
    amp: torch.dtype | None = None
    passes: Passes = field(default_factory=Passes)
    tick: Tick | None = None
    watch: Sequence[nn.Module] = ()
    _split: tuple[Tensor, Split] | None = None
    _swift: nn.Module | None = None
    _hastened: bool = False
    _heap: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.mean.device

    def normalise(self, pixels: Tensor) -> Tensor:
        """What the model takes, from pixels (B, channels, H, W) in [0, 1]."""
        x = (pixels - self.mean[:, None, None].to(pixels.dtype)) / self.std[:, None, None].to(pixels.dtype)
        return self._laid_out(x)

    def logits(self, pixels: Tensor, *, normalised: bool = False) -> Tensor:
        """Logits (B, classes) of pixels (B, channels, H, W) in [0, 1], or of what the model takes with `normalised`.

        Differentiable with respect to `pixels` where gradients are on. No more than `batch_size` pictures at once.
        """
        self.passes.forward += len(pixels)
        x = self._laid_out(pixels) if normalised else self.normalise(pixels)
        model = self.model if self._swift is None else self._swift
        with self._autocast():
            return _full(logits_of(model(x)))

    def hasten(self, pixels: Tensor) -> None:
        """Lets `logits` run on a copy of the network that takes less time, if there is one with the same logits.

        For methods that run many passes: making the copy takes two of one picture, under autocast three. Logits are
        compared in the model's own precision: autocast rounds more than folding does. Models of 16 bit have no copy.
        """
        if self._hastened:
            return
        self._hastened, amp, self.amp = True, self.amp, None
        if self.device.type == "cpu":
            self._heap = memory.steady()
        try:
            with torch.no_grad():
                want = self.logits(pixels[:1]) if amp else self.split(pixels).logits[:1].detach()
                self._swift = self._copied(pixels[:1], want)
        finally:
            self.amp = amp

    def _copied(self, pixels: Tensor, want: Tensor) -> nn.Module | None:
        """The copy that takes less time, if there is one with these logits (1, classes) of a picture."""
        try:
            twin = folded(self.model, self.normalise(pixels), self.cut.memory_format)
            if twin is None:
                return None
            self.passes.forward += 2  # one in which `folded` looks at the network
            got = _full(logits_of(twin(self.normalise(pixels))))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever networks do that a copy with other layers does not stand
            return None
        right = (got - want).abs().amax() <= 1e-4 * want.abs().amax()  # which NaN is not
        return twin if right else None

    def alike(self, pixels: Tensor, target: Target) -> bool:
        """Whether each picture has the same logits and gradients, to the last bit, alone and beside the others.

        Where it has not, what is optimised in many steps ends elsewhere in another batch. Tried once for each cut and
        number of pictures, on the first and the last of them.
        """
        n = len(pixels)
        tried = _ALIKE.setdefault(self.cut, {})
        key = (n, self.amp, self._swift is None, torch.get_num_threads(), pixels.shape[2:])
        if n > 1 and key not in tried:
            before = replace(self.passes)
            beside = self._logits_and_gradients(pixels, target)
            agree = all(
                torch.equal(one, many[i : i + 1])
                for i in (0, n - 1)
                for one, many in zip(
                    self._logits_and_gradients(pixels[i : i + 1], target[i : i + 1]), beside, strict=True
                )
            )
            self.passes = before  # a property of the model, not of these pictures
            if not all(bool(part.isfinite().all() and part.any()) for part in beside):
                return agree  # not kept: it may be by chance
            tried[key] = agree
        return n == 1 or tried[key]

    def together(self, rows: Sequence[int], pixels: Tensor, target: Target) -> list[list[int]]:
        """Some rows of pictures in groups that may go through the network in one pass: those that are `alike`."""
        most = memory.at_once(self.batch_size, self.device, (pixels.shape[2], pixels.shape[3]), memory.BACKWARD_PIXELS)
        groups: list[list[int]] = []
        for start in range(0, len(rows), most):
            some = list(rows[start : start + most])
            groups += [some] if self.alike(pixels[some], target[some]) else [[i] for i in some]
        return groups

    def at(self, layer: str, pixels: Tensor) -> Anatomy:
        """The same model, cut at another layer for pictures like these; passes are counted here, too.

        Raises:
            ValueError: if there is no such layer, or it gives no map.
        """
        channels, height, width = pixels.shape[1:]
        return replace(self, cut=find_cut(self.model, (channels, height, width), layer), watch=(), _split=None)

    def split(self, pixels: Tensor) -> Split:
        """One forward pass of pixels (B, channels, H, W), cut at A. The last one is kept: asking again is free."""
        if self._split is not None and self._split[0] is pixels:
            return self._split[1]
        self.forget()
        self.passes.forward += len(pixels)
        x = self.normalise(pixels.detach())
        with _inputs_of(self.watch) as watched:
            split = self._split_head(x) if self.cut.head else self._split_layer(x)
        split.watched = [watched[module] for module in self.watch if module in watched]
        self._split = (pixels, split)
        return split

    def forget(self) -> None:
        """Drops the kept pass."""
        self._split = None

    def maps_and_gradients(self, pixels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """A and the gradient of the target's score with respect to it, (B, C, h, w) each, detached, from one pass."""
        split = self.split(pixels)
        self.passes.backward += len(pixels)
        with torch.enable_grad():
            score = target.score(split.logits).sum()
        (gradient,) = torch.autograd.grad(score, split.maps, retain_graph=True, allow_unused=True)
        return split.maps.detach(), torch.zeros_like(split.maps) if gradient is None else gradient

    def input_gradients(self, x: Tensor, target: Target, rectifiers: Rectifiers | None = None) -> Tensor:
        """The gradient of the target's score with respect to what the model takes, x, both (n, channels, H, W).

        A target of one row stands for all n. No more than `batch_size` pictures at once. With `rectifiers`, the
        gradient is the guided one, and they have heard the pass.
        """
        leaf = _leaf(x)
        with torch.enable_grad():
            with rectifiers or nullcontext():
                logits = self.logits(leaf.clone(), normalised=True)  # a leaf must not meet an in-place activation
            score = target.score(logits).sum()
        self.passes.backward += len(x)
        with rectifiers.guiding() if rectifiers else nullcontext():
            (gradient,) = torch.autograd.grad(score, leaf, allow_unused=True)
        return torch.zeros_like(leaf) if gradient is None else gradient

    def curvature(self, pixels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """The gradient G of the target's score at A and H A, its derivative along A: (B, C, h, w) each, detached.

        H is the score's second derivative at A. The tail is run once more, picture by picture, without fused attention,
        which cannot be differentiated twice.
        """
        maps = self.split(pixels).maps.detach()
        found: list[tuple[Tensor, Tensor]] = []
        for i in range(len(maps)):
            leaf = maps[i : i + 1].clone().requires_grad_()
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                score = target[i : i + 1].score(self.tail(pixels, i, leaf)).sum()
                first = torch.autograd.grad(score, leaf, create_graph=True, allow_unused=True)[0]
                g = torch.zeros_like(leaf) if first is None else first
                along = (g * leaf.detach()).sum()
                second = torch.autograd.grad(along, leaf, allow_unused=True)[0] if along.requires_grad else None
            self.passes.backward += 1 + (second is not None)
            found.append((g.detach(), torch.zeros_like(leaf) if second is None else second))
        return torch.cat([g for g, _ in found]), torch.cat([h for _, h in found])

    def tail(self, pixels: Tensor, picture: int, maps: Tensor) -> Tensor:
        """Logits (n, classes) of other maps (n, C, h, w) in place of one picture's, all else of that picture the same.

        Only what comes after A is run. No more than `batch_size` maps at once.
        """
        split = self.split(pixels)
        self.passes.tail += len(maps)
        batch, copies = len(split.maps), len(maps)
        batched = self.cut.batched
        places = {path for layer, call, path in batched if (layer, call) == (self.cut.name, self.cut.index)}
        output = repeat(split.output, places, picture=picture, batch=batch, copies=copies)
        with self._autocast(), ExitStack() as stack:
            new = self.cut.branches.write(output, maps)
            if self.cut.head:
                return _full(logits_of(self.model.forward_head(new)))  # type: ignore[operator]
            if split.memory is not None:
                split.memory.replay(stack, batched, picture=picture, batch=batch, copies=copies)
            self._answer_at_cut(stack, new)
            x = self.normalise(pixels[picture : picture + 1].detach()).expand(copies, -1, -1, -1)
            return _full(logits_of(self.model(x)))

    def chunks(self, total: int) -> Iterator[slice]:
        """Slices of at most `batch_size` that cover 0 to `total`, with progress."""
        for start in range(0, total, self.batch_size):
            stop = min(start + self.batch_size, total)
            yield slice(start, stop)
            if self.tick is not None:
                self.tick(stop - start)

    def tail_is_affine(self, pixels: Tensor) -> bool:
        """Whether the tail is affine in A, as average pooling and a linear classifier are (tried once for each cut)."""
        if self.cut not in _AFFINE:
            full, before = self.in_full(), self.passes.tail
            maps = full.split(pixels).maps.detach()[:1]
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(maps.shape, generator=generator).to(maps) * (maps.std() + 1e-3)
            with torch.no_grad():
                both, one, other, none = (
                    full.tail(pixels, 0, m) for m in (maps + noise, maps, noise, torch.zeros_like(maps))
                )
            self.passes.tail = before  # a property of the model, not of this picture
            size = torch.stack([one - none, other - none]).abs().amax().item()
            if size == 0 or not math.isfinite(size):  # not kept: a classifier of zeros may learn
                return size == 0
            _AFFINE[self.cut] = (both - one - other + none).abs().amax().item() <= 1e-4 * size
        return _AFFINE[self.cut]

    def in_full(self) -> Anatomy:
        """The same in 32 bit, for differences of logits that 16 round away. Its passes count elsewhere."""
        short = model_dtype(self.model).itemsize <= 2
        if self.amp is None and not short:
            return self
        model = copy.deepcopy(self.model).float() if short else self.model
        return replace(self, model=model, amp=None, passes=Passes(), watch=(), _split=None, _swift=None)

    def _logits_and_gradients(self, pixels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        leaf = pixels.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = self.logits(leaf)
            score = target.score(logits).sum()
        return logits.detach(), torch.autograd.grad(score, leaf, allow_unused=True, materialize_grads=True)[0]

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.to(model_dtype(self.model)).contiguous(memory_format=self.cut.memory_format)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.amp is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp)

    def _split_head(self, x: Tensor) -> Split:
        with self._autocast():
            with torch.no_grad():
                output = self.model.forward_features(x)  # type: ignore[operator]
            with torch.enable_grad():
                maps = _leaf(self.cut.branches.read(output))
                logits = self.model.forward_head(self.cut.branches.write(output, maps))  # type: ignore[operator]
        return Split(maps, _full(logits_of(logits)), output)

    def _split_layer(self, x: Tensor) -> Split:
        memory = Memory(self.model, self.cut.before, copied=not self.cut.bottleneck)
        found: list[tuple[Tensor, Any]] = []
        calls = count()

        def cut(_module: nn.Module, _args: Any, output: Any) -> Any:
            if next(calls) != self.cut.index:
                return None
            maps = _leaf(self.cut.branches.read(output))
            found.append((maps, output))
            torch.set_grad_enabled(True)  # until the no_grad around this pass ends
            return self.cut.branches.write(output, maps)

        with self._autocast(), ExitStack() as stack:
            memory.record(stack)
            layer = self.model.get_submodule(self.cut.name)
            stack.enter_context(hook(layer.register_forward_hook(cut, prepend=True)))
            with torch.no_grad():
                logits = logits_of(self.model(x))
        maps, output = found[0]
        return Split(maps, _full(logits), output, memory)

    def _answer_at_cut(self, stack: ExitStack, new: Any) -> None:
        """Lets the cut layer return `new` at the call where the network is cut; other calls of it run as they are."""
        module = self.model.get_submodule(self.cut.name)
        run, calls = module.forward, count()
        if any(is_tapped(part) for part in module.modules() if part is not module):  # then it is run
            at = lambda *_: new if next(calls) == self.cut.index else None  # noqa: E731
            stack.enter_context(hook(module.register_forward_hook(at, prepend=True)))
            return
        stack.enter_context(
            answering(module, lambda *args, **kwargs: new if next(calls) == self.cut.index else run(*args, **kwargs))
        )


def model_dtype(model: nn.Module) -> torch.dtype:
    """The type of a model's parameters; float32 if it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@contextmanager
def _inputs_of(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collects the first input of each of the modules."""
    found: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        found[module] = _full(args[0].detach())

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(hook(module.register_forward_pre_hook(note)))
        yield found


def _leaf(maps: Tensor) -> Tensor:
    return _full(maps.detach()).clone().requires_grad_()


def _full(tensor: Tensor) -> Tensor:
    """Half precision as float32: what follows adds up many small numbers."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
