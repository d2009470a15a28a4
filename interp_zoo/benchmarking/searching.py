"""Races of methods that run the network hundreds of times, against the loops of those who published them.

The loops are written here from the papers and what is known of the authors' code: Opti-CAM's demo (Adam, one batch, the
parameters' gradients taken along), TorchRay's RISE and extremal perturbations (parameters frozen). They run the network
as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp_zoo.benchmarking.apart import Apart
from interp_zoo.benchmarking.measuring import Row, race
from interp_zoo.explain import Explainer, Explanation, masking
from interp_zoo.explain.inputs import EXTENSIONS
from interp_zoo.explain.smoothmasks import SmoothMasks, between, blurred, ideal
from interp_zoo.metrics.functional import average_drop, average_gain

_PICTURES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
_AT_ONCE = 32  # masks in TorchRay's RISE, and the most in ours


def examples(folder: Path | None, count: int) -> list[Path]:
    """So many real pictures of a folder, evenly spaced; without one, those that scikit-image carries (at most 4)."""
    if folder is None:
        return [Path(str(resources.files("skimage") / "data" / name)) for name in _PICTURES[:count]]
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS)
    if len(files) < count:
        raise ValueError(f"`data_dir` {folder} holds {len(files)} pictures, but {count} are asked for")
    return [files[i * len(files) // count] for i in range(count)]


def race_opticam(model: nn.Module, pictures: Sequence[Any], repetitions: int) -> Iterator[Row]:
    """Opti-CAM by both solvers against the published loop; what they reach stands beside what they take.

    Args:
        model: a trained network (else there is nothing to reach), of which `forward_features` gives the maps.
        pictures: as in `explain`.
        repetitions: how often the default solver and the loop are timed, after once untimed; the other solver is once.
    """
    before = Explainer(model, "opticam", iterations=1)(pictures)
    classes = before.target
    with Explainer(model, "opticam").anatomy(pictures) as (anatomy, pixels):
        mean, std = anatomy.mean[:, None, None], anatomy.std[:, None, None]

    x = (pixels - mean) / std  # both begin with tensors: what loading takes is in neither's time
    published = partial(published_opticam, model, pixels, classes, mean, std)
    loops = reached(model, pixels, published(), before, mean, std)
    count = f"{len(pixels)} picture{'s' * (len(pixels) != 1)}"
    for solver, goal, times in (("fast", 10, repetitions), ("adam", None, 1)):
        explainer = Explainer(model, "opticam", solver=solver)
        own = reached(model, pixels, explainer.maps(x, classes), before, mean, std)
        with Apart(published) as alone:
            if goal:
                alone()  # ours has run once, too
            ours, base = race(partial(explainer.maps, x, classes), alone, times)
        what = f"Opti-CAM ({solver}), {count}: {_told(own)}"
        worse = {"logit": own[0] < 0.98 * loops[0], "AD": own[1] > loops[1] + 0.5, "AG": own[2] < loops[2] - 1}
        yield Row(
            what,
            ours,
            f"the published loop: {_told(loops)}",
            base,
            "x as fast",
            goal,
            worse=" and ".join(name for name, is_worse in worse.items() if is_worse),
        )


def reached(
    model: nn.Module, pixels: Tensor, maps: Tensor, before: Explanation, mean: Tensor, std: Tensor
) -> tuple[float, float, float]:
    """The masked pictures' mean logit of their class, and average drop and gain in percent, under maps (n, H, W)."""
    rows = torch.arange(len(pixels))
    with torch.no_grad():
        logits = model((masking.apply(pixels, maps) - mean) / std)
    after = logits.softmax(1)[rows, before.target]
    figures = logits[rows, before.target], *(f(before.probability, after) for f in (average_drop, average_gain))
    logit, drop, gain = (figure.mean().item() for figure in figures)
    return logit, drop, gain


def published_opticam(model: nn.Module, pixels: Tensor, classes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Maps (n, H, W): 100 steps of Adam with rate 0.1 on one batch; of each picture the best of them."""
    features: Any = model.forward_features
    with torch.no_grad():
        maps = features((pixels - mean) / std).relu()
    size, rows = (pixels.shape[2], pixels.shape[3]), torch.arange(len(pixels))
    u = torch.full(maps.shape[:2], 0.5, requires_grad=True)
    adam = torch.optim.Adam([u], lr=0.1)
    best, most = torch.zeros_like(pixels[:, 0]), torch.full((len(pixels),), -torch.inf)
    for _ in range(100):
        mask = masking.minmax(masking.up((u.softmax(1)[..., None, None] * maps).sum(1), size))
        logit = model((pixels * mask[:, None] - mean) / std)[rows, classes]
        model.zero_grad()
        adam.zero_grad()
        (-logit.sum()).backward()
        better = logit.detach() > most
        best[better], most[better] = mask.detach()[better], logit.detach()[better]
        adam.step()
    model.zero_grad()
    return best


def race_perturbations(
    model: nn.Module, x: Tensor, classes: list[int], repetitions: int, *, masks: int, steps: int
) -> Iterator[Row]:
    """RISE of one picture and extremal perturbations of all (n, channels, H, W), as the model takes them.

    Args:
        model: the network.
        x: pictures.
        classes: what is explained.
        repetitions: how often each is timed.
        masks: of RISE; the method has 8,000, each of which costs the same.
        steps: of extremal perturbations; the method has 800.
    """
    rise = Explainer(model, "rise", n=masks, batch_size=_AT_ONCE)
    extremal = Explainer(model, "extremal_perturbation", iterations=steps)

    races: list[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]] = [
        (
            f"RISE, {masks} masks, 1 picture",
            partial(rise.maps, x[:1], classes[:1]),
            partial(torchray_rise, model, x[:1], classes[0], masks),
        ),
        (
            f"Extremal perturbations, {steps} steps, {len(x)} pictures",
            partial(extremal.maps, x, classes),
            partial(torchray_extremal, model, x, classes, steps),
        ),
    ]
    for what, ours, loop in races:
        difference = (ours() - masking.minmax(loop())).abs().max().item()
        with Apart(loop) as alone:
            times, base = race(ours, alone, repetitions)
        yield Row(what, times, "TorchRay's loop", base, "x as fast", 1.3, difference, tolerance=0.02)


def torchray_rise(model: nn.Module, x: Tensor, c: int, masks: int) -> Tensor:
    """The map (1, H, W) of a picture (1, channels, H, W), as the model takes it, with the masks of our method."""
    height, width = x.shape[2:]
    generator, grid = torch.Generator().manual_seed(0), 7
    cells = (torch.rand(masks, grid, grid, generator=generator) < 0.5).float()
    down, right = (torch.randint(-(-n // grid), (masks,), generator=generator).tolist() for n in (height, width))
    larger = [(grid + 1) * -(-n // grid) for n in (height, width)]
    total = torch.zeros(1, height, width)
    with torch.no_grad():
        for start in range(0, masks, _AT_ONCE):
            some = range(start, min(start + _AT_ONCE, masks))
            big = F.interpolate(cells[some.start : some.stop, None], size=larger, mode="bilinear", align_corners=False)
            cut = [
                m[:, down[i] : down[i] + height, right[i] : right[i] + width] for i, m in zip(some, big, strict=True)
            ]
            shown = torch.stack(cut)
            scores = model(x * shown).softmax(1)[:, c]
            total += (scores[:, None, None, None] * shown).sum(0)
    return total / masks / 0.5


def torchray_extremal(model: nn.Module, x: Tensor, classes: list[int], steps: int, area: float = 0.1) -> Tensor:
    """The maps (n, H, W) of pictures (n, channels, H, W), one by one: SGD on a mask, every other step flipped."""
    masks, found = SmoothMasks.of(x), []
    for picture, c in zip(x, classes, strict=True):
        levels = blurred(picture)
        places = torch.ones(1, *masks.grid, requires_grad=True)
        sgd = torch.optim.SGD([places], lr=0.01, momentum=0.9, dampening=0.9)
        for step in range(steps):
            wide = masks(places)
            mask = masks.cropped(wide)
            shown = between(levels, mask)
            logit = model(shown.flip(3) if step % 2 == 0 else shown)[0, c]
            loss = 300 * 1.0035**step * (wide - ideal(wide.detach(), area)).square().mean() - logit
            sgd.zero_grad()
            loss.backward(inputs=[places])  # as with frozen parameters
            sgd.step()
            with torch.no_grad():
                places.clamp_(0, 1)
        found.append(mask.detach())
    return torch.cat(found)


def _told(figures: tuple[float, float, float]) -> str:
    return "logit {:.2f}, AD {:.1f}, AG {:.1f}".format(*figures)
