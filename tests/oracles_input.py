"""Slow twins of the methods whose maps are of the picture's size: gradients at the picture, and what hides parts of it.

As in `oracles.py`: a model in float64, one normalised picture x (1, 3, H, W), a class c; the layer does not matter. y
is the logit of class c, and 0 in x the mean colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from oracles import masked, oracle, upsampled
from torch import Tensor, nn

# --- gradients ---


def gradient(model: nn.Module, x: Tensor, c: int) -> Tensor:
    """dy / dx, (1, 3, H, W)."""
    x = x.detach().clone().requires_grad_()
    found: Tensor = torch.autograd.grad(model(x)[0, c], x)[0]
    return found


def largest(attribution: Tensor) -> Tensor:
    """max over channels of the absolute value, (H, W)."""
    red, green, blue = attribution[0].abs()
    return torch.maximum(torch.maximum(red, green), blue)


def total(attribution: Tensor) -> Tensor:
    """The sum over channels, (H, W)."""
    found: Tensor = sum(attribution[0], torch.zeros_like(attribution[0, 0]))
    return found


@oracle("saliency")
def slow_saliency(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    return largest(gradient(model, x, c))


@oracle("input_x_gradient")
def slow_input_x_gradient(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    return total(x * gradient(model, x, c))


def integrated(model: nn.Module, x: Tensor, c: int, steps: int = 50) -> Tensor:
    """x times the integral over a in [0, 1] of the gradient at a x, by Gauss and Legendre's rule."""
    mean = torch.zeros_like(x)
    for place, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True):
        mean += weight / 2 * gradient(model, (1 + place) / 2 * x, c)
    return x * mean


@oracle("integrated_gradients")
def slow_integrated_gradients(model: nn.Module, x: Tensor, c: int, layer: str, *, steps: int = 50) -> Tensor:
    return total(integrated(model, x, c, steps))


def positive(_module: nn.Module, back: Any, _output: Any) -> Any:
    return (back[0].clamp_min(0),)


@contextmanager
def guided(model: nn.Module) -> Iterator[None]:
    """ReLUs, which must be modules, let back through what is positive of what came back, and nothing else."""
    handles = []
    for module in model.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.inplace = False
            handles.append(module.register_full_backward_hook(positive))
    assert handles
    yield
    for handle in handles:
        handle.remove()


def guided_gradient(model: nn.Module, x: Tensor, c: int) -> Tensor:
    with guided(model):
        return gradient(model, x, c)


@oracle("guided_backprop")
def slow_guided_backprop(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    return largest(guided_gradient(model, x, c))


def times_gradient(model: nn.Module, x: Tensor, c: int) -> Tensor:
    return x * gradient(model, x, c)


ATTRIBUTIONS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]] = {
    "saliency": (gradient, largest),
    "input_x_gradient": (times_gradient, total),
    "integrated_gradients": (integrated, total),
    "guided_backprop": (guided_gradient, largest),
}


@oracle("smoothgrad")
def slow_smoothgrad(
    model: nn.Module,
    x: Tensor,
    c: int,
    layer: str,
    *,
    n: int = 50,
    sigma: float = 0.15,
    seed: int = 0,
    of: str = "saliency",
) -> Tensor:
    """The mean attribution at x + noise, whose standard deviation is a share of max(x) - min(x)."""
    attribution, as_one = ATTRIBUTIONS[of]
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros_like(x)
    for _ in range(n):
        noise = torch.randn(x.shape[1:], generator=generator).double()
        mean += attribution(model, x + sigma * (x.max() - x.min()) * noise, c) / n
    return as_one(mean)


# --- hiding ---


def chosen(logits: Tensor, c: int, score: str) -> Tensor:
    """The logit of class c, or its probability, from logits (classes,)."""
    return logits.softmax(0)[c] if score == "probability" else logits[c]


@oracle("occlusion")
def slow_occlusion(
    model: nn.Module,
    x: Tensor,
    c: int,
    layer: str,
    *,
    window: float = 0.15,
    stride: float = 0.05,
    score: str = "logit",
) -> Tensor:
    """At each pixel the mean, over the windows that hide it, of what the score loses."""
    height, width = x.shape[2:]
    side, step = round(window * min(height, width)), round(stride * min(height, width))
    found: dict[tuple[int, int], list[float]] = {(i, j): [] for i in range(height) for j in range(width)}
    with torch.no_grad():
        y = chosen(model(x)[0], c, score)
        for down in range(math.ceil((height - side) / step) + 1):
            for right in range(math.ceil((width - side) / step) + 1):
                rows = range(down * step, min(down * step + side, height))
                columns = range(right * step, min(right * step + side, width))
                hidden = x.clone()
                for i in rows:
                    hidden[0, :, i, columns.start : columns.stop] = 0
                loss = (y - chosen(model(hidden)[0], c, score)).item()
                for i in rows:
                    for j in columns:
                        found[i, j].append(loss)
    means = [[math.fsum(found[i, j]) / len(found[i, j]) for j in range(width)] for i in range(height)]
    return torch.tensor(means, dtype=torch.float64)


@oracle("rise")
def slow_rise(
    model: nn.Module,
    x: Tensor,
    c: int,
    layer: str,
    *,
    n: int = 8000,
    grid: int = 7,
    p: float = 0.5,
    seed: int = 0,
    score: str = "probability",
    mask_space: str = "normalised",
) -> Tensor:
    """sum_i f(x M_i) M_i / (n p), M_i a grid of Bernoulli(p), upsampled to grid + 1 cells, cropped within one cell.

    All grids are drawn first, then all ways down, then all ways to the right.
    """
    height, width = x.shape[2:]
    rows, columns = -(-height // grid), -(-width // grid)  # of a cell
    generator = torch.Generator().manual_seed(seed)
    grids = [torch.where(draw < p, 1.0, 0.0).double() for draw in torch.rand(n, grid, grid, generator=generator)]
    downs, rights = (torch.randint(cell, (n,), generator=generator).tolist() for cell in (rows, columns))
    saliency = torch.zeros(height, width, dtype=torch.float64)
    for cells, i, j in zip(grids, downs, rights, strict=True):
        mask = upsampled(cells, (grid + 1) * rows, (grid + 1) * columns)[i : i + height, j : j + width]
        with torch.no_grad():
            logits = masked(model, x, mask, normalised=mask_space == "normalised")
            saliency += chosen(logits, c, score) * mask / (n * p)
    return saliency


# --- extremal perturbations, as TorchRay has them ---


def smooth_mask(places: Tensor, height: int, width: int) -> Tensor:
    """The mask of places (h, w), of which (i, j) is at pixel (7 i, 7 j), with a margin of 21 pixels or some more.

    At each pixel, of the 9 x 9 places around (0 beyond the grid), each times exp(-2 max(d / 21 - 1/2, 0)^2) with its
    distance d, the mean weighted by their softmax at coldness 20.
    """
    h, w = places.shape
    rows, columns = (torch.arange(-21, 7 * (n + 6) - 27) for n in (h, w))
    padded = torch.zeros(h + 14, w + 14, dtype=torch.float64)
    padded[7:-7, 7:-7] = places
    terms = []
    for down in range(9):
        for right in range(9):
            i = torch.div(rows + 21, 7, rounding_mode="floor") - 7 + down
            j = torch.div(columns + 21, 7, rounding_mode="floor") - 7 + right
            distance = ((rows - 7 * i)[:, None] ** 2 + (columns - 7 * j)[None] ** 2).double().sqrt()
            far = (distance / 21 - 0.5).clamp_min(0)
            terms.append(padded[i + 7][:, j + 7] * torch.exp(-2 * far**2))
    stacked = torch.stack(terms)
    mask: Tensor = (stacked * (20 * stacked).softmax(0)).sum(0)
    return mask


def blurred(x: Tensor, sigma: float) -> Tensor:
    """x under a Gaussian that is cut off at four standard deviations, with zeros around."""
    if sigma == 0:
        return x
    reach = math.ceil(4 * sigma)
    line = torch.tensor([math.exp(-(t**2) / (2 * sigma**2)) for t in range(-reach, reach + 1)], dtype=torch.float64)
    kernel = (line / line.sum()).expand(3, 1, -1)
    down = nn.functional.conv2d(x, kernel[:, :, :, None], padding=(reach, 0), groups=3)
    return nn.functional.conv2d(down, kernel[:, :, None], padding=(0, reach), groups=3)


@oracle("extremal_perturbation")
def slow_extremal_perturbation(
    model: nn.Module,
    x: Tensor,
    c: int,
    layer: str,
    *,
    areas: tuple[float, ...] = (0.1,),
    iterations: int = 800,
) -> Tensor:
    """For each area the mask under which y is largest, at 1 the picture itself and at 0 the most blurred one; summed.

    Values of the mask that agree to six digits are sorted by their place.
    """
    height, width = x.shape[2:]
    levels = [blurred(x, 20 * (1 - level / 7)) for level in range(8)]
    found = torch.zeros(height, width, dtype=torch.float64)
    for area in areas:
        places = torch.ones(math.ceil(height / 7), math.ceil(width / 7), dtype=torch.float64, requires_grad=True)
        sgd = torch.optim.SGD([places], lr=0.01, momentum=0.9, dampening=0.9)
        for step in range(iterations):
            wide = smooth_mask(places, height, width)
            mask = wide[21 : 21 + height, 21 : 21 + width]
            shown = torch.zeros_like(x)
            for level in range(8):
                share = 7 * mask - level  # from this level to the next
                here = (share >= 0) & ((share < 1) | (level == 7))
                shown = shown + here * (levels[level] + share * (levels[min(level + 1, 7)] - levels[level]))
            y = model(shown.flip(3) if step % 2 == 0 else shown)[0, c]
            values = wide.flatten()
            ranks = sorted(range(len(values)), key=(1e6 * values).round().tolist().__getitem__)
            wanted = torch.zeros_like(values)
            wanted[ranks[int(len(values) * (1 - area)) :]] = 1
            loss = 300 * 1.0035**step * ((values - wanted) ** 2).mean() - y
            (places.grad,) = torch.autograd.grad(loss, places)
            sgd.step()
            with torch.no_grad():
                places.clamp_(0, 1)
        found += mask.detach()
    return found
