"""Slow twins of the methods, in float64, written from the papers' formulas: one picture at a time, loops welcome.

A twin knows nothing of the package. It gets a model in eval mode and float64, one normalised picture (1, 3, H, W), a
class c and a layer's name, and returns the raw map (h, w): not rectified, not upsampled, not scaled. A stands for the
layer's maps (C, h, w), G for the gradient of the logit of class c with respect to A, y for that logit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from oracles_tokens import slow_attention_rollout, slow_gradient_rollout, slow_legrad
from torch import Tensor, nn

Oracle = Callable[..., Tensor]
ORACLES: dict[str, Oracle] = {}


def oracle(name: str) -> Callable[[Oracle], Oracle]:
    """Makes the decorated function the twin of the method `name`."""

    def add(function: Oracle) -> Oracle:
        ORACLES[name] = function
        return function

    return add


oracle("attention_rollout")(slow_attention_rollout)
oracle("gradient_rollout")(slow_gradient_rollout)
oracle("legrad")(slow_legrad)

# --- the network, cut at a layer by a plain hook ---


def as_maps(output: Tensor) -> Tensor:
    """A layer's output for one picture as (C, h, w): (1, C, h, w), or a class token and a square of patch tokens."""
    if output.ndim == 4:
        return output[0]
    patches = output[0, 1:]
    side = round(len(patches) ** 0.5)
    return patches.T.reshape(-1, side, side)


def layer_output(model: nn.Module, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """The layer's whole output, in the graph, and the logits (classes,)."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, out: seen.append(out))
    logits: Tensor = model(x)
    handle.remove()
    return seen[0], logits[0]


def features(model: nn.Module, x: Tensor, layer: str) -> Tensor:
    """A, detached."""
    with torch.no_grad():
        return as_maps(layer_output(model, x, layer)[0])


def maps_and_gradients(model: nn.Module, x: Tensor, c: int, layer: str) -> tuple[Tensor, Tensor]:
    """A and G, detached."""
    output, logits = layer_output(model, x, layer)
    (gradient,) = torch.autograd.grad(logits[c], output)
    return as_maps(output).detach(), as_maps(gradient)


def with_maps(model: nn.Module, x: Tensor, layer: str, maps: Tensor) -> Tensor:
    """The logits (classes,) when the layer's maps are these; a class token stays what it is."""

    def replace(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        if output.ndim == 4:
            return maps[None]
        return torch.cat([output[:, :1], maps.flatten(1).T[None]], 1)

    handle = model.get_submodule(layer).register_forward_hook(replace)
    with torch.no_grad():
        logits: Tensor = model(x)
    handle.remove()
    return logits[0]


def weighted(weights: Sequence[Tensor] | Tensor, a: Tensor) -> Tensor:
    """sum_k w_k A_k."""
    total = torch.zeros_like(a[0])
    for w, channel in zip(weights, a, strict=True):
        total = total + w * channel
    return total


# --- masks ---


@functools.cache
def line(old: int, new: int, *, align_corners: bool) -> Tensor:
    """The matrix (new, old) of linear interpolation of `old` samples to `new`; edges are repeated."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        place = i * (old - 1) / (new - 1) if align_corners else (i + 0.5) * old / new - 0.5
        place = min(max(place, 0.0), old - 1.0)
        left = int(place)
        right = min(left + 1, old - 1)
        matrix[i, left] += 1 - (place - left)
        matrix[i, right] += place - left
    return matrix


def upsampled(saliency: Tensor, height: int, width: int, *, align_corners: bool = False) -> Tensor:
    """A map (h, w) as (height, width), bilinear."""
    h, w = saliency.shape
    rows = line(h, height, align_corners=align_corners)
    columns = line(w, width, align_corners=align_corners)
    return rows @ saliency @ columns.T


def scaled(saliency: Tensor) -> Tensor:
    """n: to [0, 1] by minimum and maximum, 0 where these are the same."""
    low, high = saliency.min(), saliency.max()
    if high == low:
        return torch.zeros_like(saliency)
    return (saliency - low) / (high - low)


def masked(model: nn.Module, x: Tensor, mask: Tensor, *, normalised: bool = False) -> Tensor:
    """The logits (classes,) of a picture under a mask (H, W), laid on pixels in [0, 1] or on the normalised picture."""
    config: Any = model.pretrained_cfg
    mean = torch.tensor(config["mean"], dtype=torch.float64)[:, None, None]
    std = torch.tensor(config["std"], dtype=torch.float64)[:, None, None]
    below = x * mask if normalised else ((x * std + mean) * mask - mean) / std
    logits: Tensor = model(below)
    return logits[0]


# --- methods that take gradients at the layer ---


@oracle("cam")
def slow_cam(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    """w_k = the classifier's row of class c."""
    classifier: Any = model
    return weighted(classifier.get_classifier().weight[c].detach(), features(model, x, layer))


@oracle("gradcam")
def slow_gradcam(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    """w_k = mean_ij G_k."""
    a, g = maps_and_gradients(model, x, c, layer)
    return weighted([gk.mean() for gk in g], a)


@oracle("gradcam_plusplus")
def slow_gradcam_plusplus(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    """w_k = sum_ij alpha_k ReLU(G_k), alpha_k = G_k^2 / (2 G_k^2 + (sum_ab A_k) G_k^3 + 1e-6), 0 where G_k is 0."""
    a, g = maps_and_gradients(model, x, c, layer)
    weights = []
    for ak, gk in zip(a, g, strict=True):
        total = a.new_zeros(())
        for gradient in gk.flatten():
            if gradient > 0:  # elsewhere ReLU(G) is 0
                total = total + gradient * gradient**2 / (2 * gradient**2 + ak.sum() * gradient**3 + 1e-6)
        weights.append(total)
    return weighted(weights, a)


@oracle("xgradcam")
def slow_xgradcam(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    """w_k = sum_ij G_k A_k / (sum_ij A_k + 1e-7)."""
    a, g = maps_and_gradients(model, x, c, layer)
    return weighted([(gk * ak).sum() / (ak.sum() + 1e-7) for ak, gk in zip(a, g, strict=True)], a)


@oracle("layercam")
def slow_layercam(
    model: nn.Module, x: Tensor, c: int, layer: str, *, positive: bool = True, fuse: tuple[str, ...] = ()
) -> Tensor:
    """sum_k ReLU(G_k) A_k, place by place; over several layers the largest of M / max M, tanh(2 M / max M), ..."""
    found = []
    for name in (layer, *fuse):
        a, g = maps_and_gradients(model, x, c, name)
        found.append(weighted([gk.clamp_min(0) if positive else gk for gk in g], a))
    if not fuse:
        return found[0]
    shares = [m.clamp_min(0) / m.max() for m in found]
    raised = [shares[0], *(2 / (1 + (-4 * m).exp()) - 1 for m in shares[1:])]
    height, width = max(m.shape[0] for m in found), max(m.shape[1] for m in found)
    return torch.stack([upsampled(m, height, width) for m in raised]).max(0).values


@oracle("hirescam")
def slow_hirescam(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    """sum_k G_k A_k, place by place."""
    a, g = maps_and_gradients(model, x, c, layer)
    return weighted(list(g), a)


@oracle("shapleycam")
def slow_shapleycam(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    """w_k = mean_ij (G - H A / 2)_k; H A is how G changes along A, by central differences."""
    step = 1e-4

    def gradient(factor: float) -> Tensor:
        """G where the layer's maps are A times a factor; a class token stays what it is."""
        found: list[Tensor] = []

        def scale(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            found.append((output if output.ndim == 4 else output[:, 1:]).detach().mul(factor).requires_grad_())
            return found[0] if output.ndim == 4 else torch.cat([output[:, :1].detach(), found[0]], 1)

        handle = model.get_submodule(layer).register_forward_hook(scale)
        logits = model(x)
        handle.remove()
        (g,) = torch.autograd.grad(logits[0, c], found[0])
        return as_maps(g if g.ndim == 4 else torch.cat([g[:, :1], g], 1))

    a = features(model, x, layer)
    along = (gradient(1 + step) - gradient(1 - step)) / (2 * step)
    return weighted([wk.mean() for wk in gradient(1) - along / 2], a)


# --- methods that take none ---


@oracle("eigencam")
def slow_eigencam(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    """The places' coordinates on the first principal axis of their C values, of either sign."""
    a = features(model, x, layer)
    places = a.flatten(1).T
    centred = places - places.mean(0)
    covariance = torch.zeros(len(a), len(a), dtype=torch.float64)
    for place in centred:
        covariance += torch.outer(place, place)
    axis = torch.linalg.eigh(covariance).eigenvectors[:, -1]  # of the largest eigenvalue
    saliency: Tensor = (centred @ axis).reshape(a.shape[1:])
    return saliency


@oracle("fakecam")
def slow_fakecam(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    """1 everywhere but in the top left pixel, at the picture's size."""
    return torch.tensor([[float((i, j) != (0, 0)) for j in range(x.shape[3])] for i in range(x.shape[2])]).double()


@oracle("center_gaussian")
def slow_center_gaussian(model: nn.Module, x: Tensor, c: int, layer: str, *, sigma: float = 0.25) -> Tensor:
    """exp(-d^2 / (2 sigma^2)), d the way to the middle in heights and widths of the picture."""
    height, width = x.shape[2:]
    far = [[(i + 0.5) / height - 0.5 for i in range(height)], [(j + 0.5) / width - 0.5 for j in range(width)]]
    return torch.tensor(
        [[math.exp(-(a * a + b * b) / (2 * sigma**2)) for b in far[1]] for a in far[0]], dtype=torch.float64
    )


@oracle("random")
def slow_random(model: nn.Module, x: Tensor, c: int, layer: str, *, seed: int = 0, grid: int = 7) -> Tensor:
    """Uniform noise on grid x grid places, whose seed is the picture's brightness in steps of 1/10,000, and `seed`."""
    config: Any = model.pretrained_cfg
    brightness = sum(float(m + s * p.mean()) for m, s, p in zip(config["mean"], config["std"], x[0], strict=True)) / 3
    return torch.rand(grid, grid, generator=torch.Generator().manual_seed(seed + round(10_000 * brightness))).double()


@oracle("ablationcam")
def slow_ablationcam(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    """w_k = (y - y with A_k = 0) / y."""
    a = features(model, x, layer)
    y = with_maps(model, x, layer, a)[c]
    weights = []
    for k in range(len(a)):
        ablated = a.clone()
        ablated[k] = 0
        weights.append((y - with_maps(model, x, layer, ablated)[c]) / y)
    return weighted(weights, a)


@oracle("reciprocam")
def slow_reciprocam(
    model: nn.Module, x: Tensor, c: int, layer: str, *, score: str = "probability", gaussian: bool = True
) -> Tensor:
    """At (i, j), what class c scores with A under a 3 x 3 binomial window around (i, j), zero outside of it."""
    a = features(model, x, layer)
    h, w = a.shape[1:]
    window = {-1: 0.25, 0: 0.5, 1: 0.25} if gaussian else {0: 1.0}
    saliency = torch.zeros(h, w, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            mask = torch.zeros(h, w, dtype=torch.float64)
            for di, row in window.items():
                for dj, column in window.items():
                    if 0 <= i + di < h and 0 <= j + dj < w:
                        mask[i + di, j + dj] = row * column
            logits = with_maps(model, x, layer, a * mask)
            saliency[i, j] = (logits.softmax(0) if score == "probability" else logits)[c]
    return saliency


# --- methods that mask the picture ---


@oracle("scorecam")
def slow_scorecam(
    model: nn.Module,
    x: Tensor,
    c: int,
    layer: str,
    *,
    score: str = "logit",
    softmax: bool = True,
    mask_space: str = "pixels",
    align_corners: bool = False,
) -> Tensor:
    """w = softmax over k of what class c scores on the picture under n(up(A_k))."""
    a = features(model, x, layer)
    scores = []
    for channel in a:
        mask = scaled(upsampled(channel, x.shape[2], x.shape[3], align_corners=align_corners))
        with torch.no_grad():
            logits = masked(model, x, mask, normalised=mask_space == "normalised")
        scores.append((logits.softmax(0) if score == "probability" else logits)[c])
    if softmax:
        total = torch.stack(scores).exp().sum()
        scores = [s.exp() / total for s in scores]
    return weighted(scores, a)


@oracle("attention")
def attention(model: nn.Module, x: Tensor, c: int, layer: str, *, block: int = -1, softmax: bool = False) -> Tensor:
    """The scores of a block less their minimum, or its attention; see `ca_stream` (`c` and `layer` do not matter)."""
    scores, weights, _ = ca_stream(model, x)[block]
    return weights if softmax else scores - scores.min()


def ca_stream(model: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Equations 5 to 9 on a residual network of timm's with stem, layer1, ..., layer4, one block after the other.

    Returns:
        For each block the scores A q / sqrt(d) and the attention, (h, w), and the next query.
    """
    net: Any = model.get_submodule("backbone")
    state = model.state_dict()
    q = state["stream.query"]
    found = []
    with torch.no_grad():
        a = net.maxpool(net.act1(net.bn1(net.conv1(x))))
        for l in range(5):
            if l:
                a = net.get_submodule(f"layer{l}")(a)
            _, d, h, w = a.shape
            places = [a[0, :, i, j] for i in range(h) for j in range(w)]
            scores = torch.stack([sum(p[k] * q[k] for k in range(d)) / d**0.5 for p in places])
            weights = scores.exp() / scores.exp().sum()
            pooled = sum(weights[n] * places[n] for n in range(h * w))
            q = state[f"stream.blocks.{l}.proj.weight"] @ pooled + state[f"stream.blocks.{l}.proj.bias"]
            found.append((scores.view(h, w), weights.view(h, w), q))
    return found


import oracles_input  # noqa: E402, F401, which registers its own
import oracles_opticam  # noqa: E402, F401
