"""`explain` and `Explainer`: from a model and pictures to maps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp_zoo.explain import masking
from interp_zoo.explain.anatomy import Anatomy, Passes
from interp_zoo.explain.cutting import find_cut
from interp_zoo.explain.explanation import Cost, Explanation
from interp_zoo.explain.inputs import Picture, Preprocess, is_many, load
from interp_zoo.explain.labels import Labels
from interp_zoo.explain.methods import get_method
from interp_zoo.explain.progress import progress_bar
from interp_zoo.explain.rounds import in_rounds, stack
from interp_zoo.explain.targets import Request, Target
from interp_zoo.explain.wrappers import admitted, warn_of_probabilities
from interp_zoo.memory import FORWARD_PIXELS, at_once
from interp_zoo.models.loading import create, place
from interp_zoo.told import warn
from interp_zoo.untouched import untouched

Amp = Literal["bf16", "fp16"]
_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_BATCH_SIZE = 16


class Loaded:
    """Pictures as a model takes them, with a warning for each that cannot be read; arguments as in `explain`.

    Attributes:
        preprocess: the model's own input.
        pictures: one for each that was given, None for what cannot be read.
        skipped: what cannot be read, and why.
        single: whether one picture was given, not several.
    """

    def __init__(self, img: Any, model: nn.Module, data_config: Mapping[str, Any] | None = None) -> None:
        self.preprocess = Preprocess(model, data_config)
        self.pictures, self.skipped = load(img, self.preprocess)
        self.single = not is_many(img)
        for name, why in self.skipped.items():
            warn(f'`img` "{name}" cannot be read and is skipped: {why}')


class Explainer:
    """Explains one model by one method, for many batches: `explainer(x, target=...)`. Arguments as in `explain`.

    The model may change between calls (training goes on, another mode): each call takes it as it is then.

    Attributes:
        model: the network that is explained, out of its wrapper if it came in one.
        method: the method's name.
    """

    def __init__(
        self,
        model: nn.Module | str,
        method: str = "opticam",
        *,
        layer: str | nn.Module | None = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        amp: Amp | None = None,
        progress: bool | None = None,
        multi_label: bool = False,
        data_config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._method = get_method(method)
        self._method.check(options)
        self.method = self._method.name
        if layer is not None and not self._method.takes_layer:
            why = "has layers of its own" if self._method.watch else "looks at no layer"
            raise ValueError(f'`layer` does not go with method "{self.method}", which {why}: leave it out')
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise ValueError(f"`batch_size` is {batch_size}, but must be an integer of at least 1")
        if amp is not None and amp not in _AMP:
            raise ValueError(f'`amp` is "{amp}", but must be None, "bf16" or "fp16"')
        self.model = place(create(model), device) if isinstance(model, str) else admitted(model, device)
        self._layer, self._amp, self._progress, self._options = layer, amp, progress, options
        self._multi_label, self._data_config = multi_label, data_config
        self._batch_size = batch_size or DEFAULT_BATCH_SIZE

    def __call__(self, img: Any, target: Any = None) -> Explanation:
        """Explains pictures; see `explain` for `img`, `target`, the result and the errors."""
        return self.explain_loaded(Loaded(img, self.model, self._data_config), target)

    def explain_loaded(self, loaded: Loaded, target: Any = None) -> Explanation:
        """Explains pictures that were loaded for this model, as `compare` does once for all methods."""
        preprocess, skipped = loaded.preprocess, loaded.skipped
        request, kept = self._request(target, loaded.pictures, single=loaded.single)
        rows = [kept[i] for i, _ in request.rows]
        parts: dict[str, list[Tensor]] = {k: [] for k in ("saliency", "raw", "target", "before", "after")}
        order: list[int] = []
        passes, seconds = Passes(), 0.0
        with self._anatomy(preprocess, rows) as anatomy:

            def run(pixels: Tensor, some: list[int]) -> tuple[tuple[Tensor, ...], Passes, float]:
                start = time.perf_counter()
                raw, saliency, before, which = self._maps(anatomy, pixels, request, some)
                took, cost, anatomy.passes = time.perf_counter() - start, anatomy.passes, Passes()
                with torch.no_grad():
                    after = which.plain.probability(anatomy.logits(masking.apply(pixels, saliency.to(pixels.dtype))))
                return (saliency, raw, which.index, before, after), cost, took

            for done, (values, cost, took) in in_rounds(run, request.pictures, kept, anatomy):
                order += done
                passes += cost
                seconds += took
                for name, value in zip(parts, values, strict=True):
                    parts[name].append(value.detach().cpu())
            layer = "picture" if self._method.at_picture else anatomy.cut.name
        back = torch.tensor(order).argsort()
        found = {name: torch.cat(values)[back] for name, values in parts.items()}
        given = [i for i, p in enumerate(loaded.pictures) if p is not None]
        n = len(rows)
        return Explanation(
            saliency=found["saliency"].float(),
            raw=found["raw"].float(),
            target=found["target"],
            label=request.names(found["target"]),
            probability=found["before"].float(),
            masked_probability=found["after"].float(),
            picture=torch.tensor([given[i] for i, _ in request.rows]),
            name=[p.name for p in rows],
            method=self.method,
            layer=layer,
            cost=Cost(passes.forward / n, passes.backward / n, passes.tail / n, seconds / n),
            skipped=skipped,
            _pictures=tuple(rows),
            _preprocess=preprocess,
        )

    def maps(self, x: Any, target: Any = None) -> Tensor:
        """The maps alone, (N, H, W) in [0, 1] on the model's device: one forward pass less than a full explanation."""
        preprocess, kept = self._load(x)
        request, _ = self._request(target, kept, single=not is_many(x))
        rows = [kept[i] for i, _ in request.rows]
        with self._anatomy(preprocess, rows) as anatomy:

            def run(pixels: Tensor, some: list[int]) -> Tensor:
                return self._maps(anatomy, pixels, request, some)[1]

            found = list(in_rounds(run, request.pictures, kept, anatomy))
        back = torch.tensor([row for some, _ in found for row in some]).argsort()
        return torch.cat([maps for _, maps in found])[back]

    def features(self, x: Any) -> Tensor:
        """A, the explained layer's output on the picture's grid, (B, C, h, w), for pictures as in `explain`."""
        preprocess, kept = self._load(x)
        with self._anatomy(preprocess, kept) as anatomy:

            def run(pixels: Tensor, _rows: list[int]) -> Tensor:
                return anatomy.split(pixels).maps.detach()

            return torch.cat([maps for _, maps in in_rounds(run, range(len(kept)), kept, anatomy)])

    @contextmanager
    def anatomy(self, x: Any) -> Iterator[tuple[Anatomy, Tensor]]:
        """The cut model, restored after the block, and the pictures' pixels (B, channels, H, W) in [0, 1].

        For research: what methods are written with, see `interp_zoo.explain.anatomy`.
        """
        preprocess, kept = self._load(x)
        with self._anatomy(preprocess, kept) as anatomy:
            yield anatomy, stack(kept, anatomy)

    def _load(self, x: Any) -> tuple[Preprocess, list[Picture]]:
        """Pictures that must all be readable."""
        preprocess = Preprocess(self.model, self._data_config)
        pictures, skipped = load(x, preprocess)
        if skipped:
            raise ValueError(f"`x` holds what cannot be read: {', '.join(skipped)}")
        return preprocess, [p for p in pictures if p is not None]

    def _request(
        self, target: Any, pictures: Sequence[Picture | None], *, single: bool
    ) -> tuple[Request, list[Picture]]:
        """The targets of the pictures that could be read, and these pictures."""
        request = Request(
            target,
            pictures=len(pictures),
            single=single,
            labels=Labels(self.model),
            multi_label=self._multi_label,
        )
        if request.predicts and getattr(self.model, "num_classes", None) == 0:
            raise ValueError(
                "`model` has no classifier (num_classes=0), so it predicts no class: give a function of its output, or "
                "the index of one, as `target`, or the model with its classes"
            )
        read = {old: new for new, old in enumerate(i for i, p in enumerate(pictures) if p is not None)}
        request.rows = [(read[i], what) for i, what in request.rows if i in read]
        return request, [p for p in pictures if p is not None]

    @contextmanager
    def _anatomy(self, preprocess: Preprocess, rows: list[Picture]) -> Iterator[Anatomy]:
        """The model, cut for pictures like these, and restored afterwards."""
        shapes = {tuple(p.pixels.shape) for p in rows}
        if len(shapes) > 1:
            raise ValueError(f"`img` holds tensors of different shapes {sorted(shapes)}: explain them one by one")
        channels, height, width = next(iter(shapes))
        with torch.inference_mode(False), untouched(self.model):
            cut = find_cut(self.model, (channels, height, width), self._layer)
            with progress_bar(self._progress, f"{self.method}, {len(rows)} map{'s' * (len(rows) != 1)}") as tick:
                anatomy = Anatomy(
                    self.model,
                    cut,
                    preprocess.mean,
                    preprocess.std,
                    at_once(self._batch_size, preprocess.mean.device, (height, width), FORWARD_PIXELS),
                    amp=_AMP[self._amp] if self._amp else None,
                    tick=tick,
                    watch=self._method.watch(self.model) if self._method.watch else (),
                )
                fits = anatomy.batch_size
                yield anatomy
                if anatomy.batch_size < fits:  # memory ran out: the next call needs no telling
                    self._batch_size = anatomy.batch_size

    def _maps(
        self, anatomy: Anatomy, pixels: Tensor, request: Request, rows: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, Target]:
        """Raw maps, maps, probabilities and targets of some rows; `anatomy.passes` holds what it took."""
        anatomy.passes = Passes()
        split = anatomy.split(pixels)
        target = request.resolve(split.logits, rows)
        raw = self._method.function(anatomy, pixels, target, **self._options).detach()
        if target.function is None:  # logits that are not finite explain nothing, whatever the method makes of them
            raw = raw.masked_fill(~split.logits.detach().isfinite().all(1)[:, None, None], torch.nan)
            warn_of_probabilities(split.logits, multi_label=self._multi_label)
        saliency = finish(raw, (pixels.shape[2], pixels.shape[3]), rows)
        with torch.no_grad():
            before = target.plain.probability(split.logits.detach())
        return raw, saliency, before, target


def explain(
    model: nn.Module | str,
    img: Any,
    method: str = "opticam",
    *,
    target: Any = None,
    layer: str | nn.Module | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    amp: Amp | None = None,
    progress: bool | None = None,
    multi_label: bool = False,
    data_config: Mapping[str, Any] | None = None,
    **options: Any,
) -> Explanation:
    """Explains why a timm model sees in pictures what it sees: a map of what counts for a class.

    The model is left exactly as it was: training mode, hooks, gradients, buffers. Nothing needs to be named: the place
    where the network is cut into `A = body(x)` and `logits = tail(A)` is found.

    Args:
        model: a timm model, or a name for `timm.create_model(name, pretrained=True)`. Any other classifier that maps
            (B, channels, H, W) to logits (B, classes) will do too.
        img: a picture or several: path, http(s) URL, PIL image, numpy array (H, W, 3) (uint8, or float in [0, 1]),
            uint8 tensor (3, H, W), a folder, or a list of these, of any sizes. They get the model's own resizing and
            crop. A float tensor (C, H, W) or (B, C, H, W) is what the model takes, already normalised, and is left as
            it is.
        method: see `list_methods`.
        target: what is explained. None or "predicted": the predicted class; "least_likely"; a class index; a label's
            text ("tabby"); `contrast` of one of these, for what tells it from the classes that look alike; a function
            of logits (n, classes) to scores (n,). For several pictures, one for all, or a list with one a picture; a
            list within it (for a single picture: a list) asks for several maps of that picture. A network with one
            logit has the classes 0 and 1.
        layer: cut there instead: a layer's name, a module, or "forward_features".
        batch_size: the most pictures, masked copies included, that are in the network at once (16). On a CPU, no more
            than 8 of 224 x 224 or as many pixels of other sizes go together: more would take longer each.
        device: where a model given by name is put (default: the CPU). A model instance stays where it is.
        amp: "bf16" or "fp16" for autocast; None for the model's own precision.
        progress: whether to show a progress bar; None: where standard error is a terminal.
        multi_label: whether each class has its own sigmoid, so that probabilities are those, not a softmax'.
        data_config: what the model says wrongly or not at all about its input, in timm's words: any of `input_size`,
            `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`. Models of other libraries do not say it all.
        **options: the method's own, see `interp-zoo methods` or the method's docstring.

    Returns:
        An `Explanation`: N maps, (N, H, W) in [0, 1], with labels, probabilities, and what they cost. Of several
        pictures, those that cannot be read are skipped with a warning, and listed in `skipped`.

    Raises:
        TypeError: for an argument of a wrong kind, or an option that the method does not have.
        ValueError: for an unknown model, method, layer or label, a class out of range, lists of different lengths, no
            or no readable picture, NaN pixels, or a model whose output is not logits.
        FileNotFoundError: if the only picture does not exist.
    """
    explainer = Explainer(
        model,
        method,
        layer=layer,
        batch_size=batch_size,
        device=device,
        amp=amp,
        progress=progress,
        multi_label=multi_label,
        data_config=data_config,
        **options,
    )
    return explainer(img, target)


def finish(raw: Tensor, size: tuple[int, int], rows: Sequence[int]) -> Tensor:
    """What every method's map goes through: rectify, upsample to (H, W), scale to [0, 1]. Constant maps become zeros.

    Args:
        raw: maps (B, h, w).
        size: the model's input size.
        rows: by which numbers warnings name them.
    """
    finite = raw.isfinite().all((1, 2))
    saliency = masking.finished(raw, size)
    blank = (saliency == 0).all((1, 2))
    for i in torch.nonzero(blank).flatten().tolist():
        if not finite[i]:
            why = "the method gave values that are not finite (logits too large for the model's precision?)"
        elif bool((raw[i] == raw[i].flatten()[0]).all()):
            value = raw[i].flatten()[0].item()
            why = f"the method gave {value:.3g} everywhere (the target's score may not depend on this layer)"
        elif bool((raw[i] <= 0).all()):
            why = "the method gave no value above 0 (nothing speaks for this target at this layer)"
        else:
            why = "it is constant after rectifying"
        warn(f"map {rows[i]} of the batch is blank (all zeros): {why}")
    return saliency
