"""One model on a batch of pictures: every method's maps, and every metric on them, as rows."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from interp_zoo.evaluation.boxes import on_input
from interp_zoo.evaluation.data import Item, Unreadable
from interp_zoo.evaluation.measures import DELETION_FILL, INSERTION_FILL
from interp_zoo.evaluation.records import Row, finite
from interp_zoo.evaluation.specs import Spec
from interp_zoo.explain import Explainer, Explanation, render
from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.api import Amp, Loaded
from interp_zoo.explain.inputs import Preprocess
from interp_zoo.explain.methods import UnsuitableModel
from interp_zoo.explain.targets import two_sided
from interp_zoo.metrics import functional as F
from interp_zoo.metrics.functional.fills import FILLS
from interp_zoo.metrics.functional.recognition import Protocol

MAP_SIZE, THUMBNAIL = 56, 112  # pixels of what the report shows
FILL_STEPS = 5  # of the curves with other fills
STAGES = 4  # of cascading randomisation


@dataclass(frozen=True)
class Settings:
    """How everything is measured: the same for every method and model.

    Attributes:
        metrics: their names, see `measures`.
        protocol: whose average drop and increase.
        step: pixels a step of insertion and deletion, None for 8 rows of them.
        blur_kernel: the width of insertion's blur in pixels.
        blur_sigma: its standard deviation in pixels.
        batch_size: the most pictures, masked copies included, that are in the network at once.
        amp: "bf16", "fp16" or None.
        seed: of whatever is random.
    """

    metrics: Sequence[str]
    protocol: Protocol = "papers"
    step: int | None = None
    blur_kernel: int = 11
    blur_sigma: float = 5.0
    batch_size: int = 64
    amp: Amp | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures with what does not depend on the method; its anatomy is good within `Examiner.batch` alone.

    Attributes:
        items: N pictures.
        loaded: the same as the model takes them.
        anatomy: the model, cut.
        pixels: (N, channels, H, W) in [0, 1].
        predicted: the predicted classes, (N,).
        least_likely: the least likely ones, (N,).
        targets: what is explained, (N,), by kind.
        regions: where the objects are in the model's input, (M, 4) a picture.
        ends: where curves begin and end, (places, 2), by metric and target: the first method's, as they hang on no map.
    """

    items: Sequence[Item]
    loaded: Loaded
    anatomy: Anatomy
    pixels: Tensor
    predicted: Tensor
    least_likely: Tensor
    targets: Mapping[str, Tensor]
    regions: Sequence[Tensor]
    ends: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Of pixels (B, channels, H, W) in [0, 1], (B, classes)."""
        return probabilities(self.anatomy.logits(pixels))

    def thumbnails(self) -> list[str]:
        """The pictures as the model sees them, small JPEG files in base 64."""
        images = [render.to_image(picture) for picture in self.pixels]
        return [_base64(i.resize((max(1, round(i.width * THUMBNAIL / i.height)), THUMBNAIL)), "JPEG") for i in images]


class Examiner:
    """Examines one model, batch by batch."""

    def __init__(self, model: nn.Module, name: str, methods: Sequence[Spec], settings: Settings) -> None:
        self.model, self.name, self.settings = model, name, settings
        self._methods = {method.text: method for method in methods}
        self._explainers = {method.text: self._explainer(model, method) for method in methods}
        self._preprocess = Preprocess(model)

    def _explainer(self, model: nn.Module, method: Spec) -> Explainer:
        size, amp = self.settings.batch_size, self.settings.amp
        return Explainer(model, method.name, batch_size=size, amp=amp, progress=False, **method.options)

    @contextlib.contextmanager
    def batch(self, items: Sequence[Item], kinds: Sequence[str], boxes: Mapping[str, Tensor]) -> Iterator[Batch]:
        """Pictures, ready to be examined.

        Args:
            items: the pictures, not more than fit into the network at once.
            kinds: what is to be explained: "label", "predicted", "least_likely".
            boxes: where the objects are in the pictures, by file, (M, 4).
        """
        images = [item.image for item in items]
        size, amp = self.settings.batch_size, self.settings.amp
        cut = Explainer(self.model, batch_size=size, amp=amp, progress=False)  # of any method: it is not run
        with cut.anatomy(images) as (anatomy, pixels):
            loaded = Loaded(images, self.model)
            with torch.no_grad():
                p = probabilities(anatomy.logits(pixels))
            targets = {"predicted": p.argmax(1), "least_likely": p.argmin(1)}
            if "label" in kinds:
                targets["label"] = torch.tensor([item.label for item in items], device=p.device)
            none = torch.zeros(0, 4)
            regions = [on_input(boxes.get(item.file, none), item.image.size, loaded.preprocess) for item in items]
            yield Batch(
                items=items,
                loaded=loaded,
                anatomy=anatomy,
                pixels=pixels,
                predicted=targets["predicted"],
                least_likely=targets["least_likely"],
                targets={kind: targets[kind] for kind in kinds},
                regions=regions,
            )

    def admitted(self, item: Item | Unreadable) -> Item | Unreadable:
        """The picture, if it can be made as large as the model takes it."""
        if isinstance(item, Item):
            try:
                self._preprocess.check_size(item.image.size)
            except OSError as error:
                return Unreadable(item.index, item.file, str(error))
        return item

    def probe(self, item: Item) -> None:
        """Explains one picture by each method that was given options: values that are wrong are found at once."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for method in (m for m in self._methods.values() if m.options):
                with contextlib.suppress(UnsuitableModel):
                    self._explainers[method.text].maps([item.image])

    def rows(
        self,
        batch: Batch,
        method: str,
        kind: str,
        *,
        fills: Sequence[int] = (),
        sanity: Sequence[int] = (),
        shown: Sequence[int] = (),
    ) -> list[Row]:
        """A row for every picture of the batch.

        Args:
            batch: the pictures.
            method: the method's text.
            kind: which target.
            fills: the positions in the batch at which insertion and deletion are made with other fills, too.
            sanity: the positions in the batch at which the sanity checks are made: they need more explanations.
            shown: the positions whose maps are kept for the report.

        Raises:
            UnsuitableModel: if the model does not admit the method.
        """
        target = batch.targets[kind]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="map .* is blank", category=UserWarning)  # the table counts them
            exp = self._explainers[method].explain_loaded(batch.loaded, target.tolist())
            saliency = exp.saliency.to(batch.pixels.device)
            before, after = self._scores(batch, exp, saliency, target)
            figures = self._recognition(before, after) | self._localization(batch, saliency, target)
            curves = self._causal(batch, saliency, kind, range(len(saliency)), default=True)
            figures |= {name: F.area(curve) for name, curve in curves.items()}
            for name, curve in self._causal(batch, saliency, kind, fills, default=False).items():
                figures[name] = _spread(F.area(curve), fills, len(saliency))
            if sanity:
                self._sanity(batch, method, kind, saliency, sanity, figures)
        hits = self._hits(batch, saliency)
        return [
            {
                "index": item.index,
                "file": item.file,
                "model": self.name,
                "method": method,
                "target_kind": kind,
                "target": int(exp.target[i]),
                "label": exp.label[i],
                "truth": item.label,
                "predicted": int(batch.predicted[i]),
                "probability": finite(exp.probability[i]),
                "masked_probability": finite(exp.masked_probability[i]),
                "metrics": {n: finite(figures[n][i]) if n in figures else None for n in self.settings.metrics},
                "curves": {n: [finite(v) for v in curve[i]] for n, curve in curves.items()},
                "hits": None
                if hits is None or bool(hits[i].isnan().any())
                else "".join(map(str, hits[i].int().tolist())),
                "seconds": exp.cost.seconds,
                "forward": exp.cost.forward,
                "backward": exp.cost.backward,
                "tail": exp.cost.tail,
                "blank": not bool(saliency[i].any()),
                "map": _small(saliency[i]) if i in shown else None,
            }
            for i, item in enumerate(batch.items)
        ]

    def _scores(self, batch: Batch, exp: Explanation, saliency: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The target's score without and with the mask, (N,) each, as the protocol has it."""
        if self.settings.protocol == "papers":
            return exp.probability, exp.masked_probability
        x, scores = batch.anatomy.normalise(batch.pixels), []
        for seen in (x, x * saliency[:, None].to(x.dtype)):
            with torch.no_grad():
                logits = batch.anatomy.logits(seen, normalised=True)
            softmax = self.settings.protocol == "pytorch-grad-cam"
            values = probabilities(logits) if softmax else two_sided(logits)
            scores.append(values.gather(1, target[:, None])[:, 0])
        return scores[0], scores[1]

    def _recognition(self, before: Tensor, after: Tensor) -> dict[str, Tensor]:
        protocol = self.settings.protocol
        figures = {
            "average_drop": F.average_drop(before, after, protocol=protocol),
            "average_increase": F.average_increase(before, after, protocol=protocol),
        }
        return figures | ({"average_gain": F.average_gain(before, after)} if protocol == "papers" else {})

    def _causal(
        self, batch: Batch, saliency: Tensor, kind: str, places: Sequence[int], *, default: bool
    ) -> dict[str, Tensor]:
        """Insertion and deletion curves of some of the pictures, with the default fill or with the others."""
        settings = self.settings
        found: dict[str, Tensor] = {}
        if not places:
            return found
        some = torch.tensor(places, device=saliency.device)
        coarse = math.ceil(saliency[0].numel() / FILL_STEPS)
        for word, curve, usual in (
            ("insertion", F.insertion_curve, INSERTION_FILL),
            ("deletion", F.deletion_curve, DELETION_FILL),
        ):
            for fill in (usual,) if default else [fill for fill in FILLS if fill != usual]:
                name = word if default else f"{word}_{fill}"
                if name in settings.metrics:
                    found[name] = curve(
                        batch.probabilities,
                        batch.pixels[some],
                        saliency[some],
                        batch.targets[kind][some],
                        mean=batch.anatomy.mean,
                        fill=fill,
                        step=settings.step if default else coarse,
                        blur_kernel=settings.blur_kernel,
                        blur_sigma=settings.blur_sigma,
                        seed=settings.seed,
                        batch_size=settings.batch_size,
                        ends=batch.ends.get((name, kind)),
                    )
                    batch.ends.setdefault((name, kind), found[name][:, [0, -1]])
        return found

    def _localization(self, batch: Batch, saliency: Tensor, target: Tensor) -> dict[str, Tensor]:
        wanted, found = set(self.settings.metrics), {}
        if "saliency_metric" in wanted:
            size = self.settings.batch_size
            found["saliency_metric"] = F.saliency_metric(
                batch.probabilities, batch.pixels, saliency, target, batch_size=size
            )
        for name, function in (
            ("localization_error", F.localization_error),
            ("pixel_f1", F.pixel_f1),
            ("pointing_game", F.pointing_game),
            ("energy_pointing_game", F.energy_pointing_game),
        ):
            if name in wanted:
                found[name] = function(saliency, batch.regions)
        if "official_metric" in wanted:
            right = [item.label == int(p) for item, p in zip(batch.items, batch.predicted, strict=True)]
            found["official_metric"] = F.official_metric(saliency, batch.regions, torch.tensor(right))
        return found

    def _hits(self, batch: Batch, saliency: Tensor) -> Tensor | None:
        """Box accuracy's hits, 0 or 1 for each threshold: which one is best only all pictures together tell."""
        if "box_accuracy" not in self.settings.metrics:
            return None
        return F.box_accuracy(saliency, batch.regions) / 100

    def _sanity(
        self,
        batch: Batch,
        method: str,
        kind: str,
        saliency: Tensor,
        places: Sequence[int],
        figures: dict[str, Tensor],
    ) -> None:
        """Adds the sanity checks of some of the pictures; the others have NaN."""
        images = [batch.items[i].image for i in places]
        target = batch.targets[kind]
        other = torch.where(batch.least_likely == target, batch.predicted, batch.least_likely)
        rows = torch.tensor(places, device=saliency.device)
        if "class_sensitivity" in self.settings.metrics:
            maps = self._explainers[method].maps(images, other[rows].tolist())
            unlike = F.class_sensitivity(saliency[rows], maps)
            figures["class_sensitivity"] = _spread(unlike, places, len(saliency))
        if "randomization" in self.settings.metrics:
            classes, spec = target[rows].tolist(), self._methods[method]
            curve = F.randomization_curve(
                self.model,
                lambda network: (
                    saliency[rows] if network is self.model else self._explainer(network, spec).maps(images, classes)
                ),
                stages=STAGES,
                seed=self.settings.seed,
            )
            figures["randomization"] = _spread(curve.mean(1), places, len(saliency))


def probabilities(logits: Tensor) -> Tensor:
    """Of logits (B, classes), (B, classes): softmax, or sigmoid of one logit, which has the classes 0 and 1."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[1] == 1:
        return torch.cat([(-logits).sigmoid(), logits.sigmoid()], 1)
    return logits.softmax(1)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers, by which a result is tied to its weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode() + flat.numpy().tobytes())
    return digest.hexdigest()


def _spread(figures: Tensor, places: Sequence[int], n: int) -> Tensor:
    """Figures of some of n pictures as figures of all, (n,): NaN for the others."""
    where = torch.tensor(places, device=figures.device)
    return torch.full((n,), torch.nan, dtype=torch.float64, device=figures.device).index_put((where,), figures.double())


def _small(saliency: Tensor) -> str:
    """A map (H, W) in [0, 1] as a small grey PNG in base 64."""
    grey = (adaptive_avg_pool2d(saliency[None].float(), MAP_SIZE)[0] * 255).round().to(torch.uint8)
    return _base64(Image.fromarray(grey.cpu().numpy()), "PNG")


def _base64(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()
