"""Methods that take the gradient of the target's score (the logit, before any softmax) at the picture itself.

x is what the model takes, (channels, H, W), after its normalisation, in which 0 is the mean colour; y is the score. The
maps are of the picture's size. Each method is an attribution for every channel, and a way to make one of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.checks import above_zero, at_least_one, one_of, usable_seed
from interp_zoo.explain.methods.registry import UnsuitableModel, register
from interp_zoo.explain.targets import Target
from interp_zoo.models.rectifiers import Rectifiers, Unguided

_COST = "2 forward, 1 backward"
_STEPS = 50  # of integrated gradients, as captum


@register("saliency", paper="Simonyan, Vedaldi and Zisserman, ICLR workshop 2014", cost=_COST, at_picture=True)
def saliency(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """How much the score changes with a pixel: max over channels of |dy / dx|."""
    return _largest(_gradient(anatomy, _taken(anatomy, pixels), target))


@register("input_x_gradient", paper="Shrikumar et al., 2016, arXiv 1605.01713", cost=_COST, at_picture=True)
def input_x_gradient(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """What a pixel adds to a score that is linear in it: sum over channels of x dy / dx."""
    return _total(_input_x_gradient(anatomy, _taken(anatomy, pixels), target))


@register(
    "guided_backprop",
    paper="Springenberg, Dosovitskiy, Brox and Riedmiller, ICLR workshop 2015",
    cost=_COST,
    needs="ReLU or ReLU6",
    aliases=("guided_backpropagation",),
    at_picture=True,
)
def guided_backprop(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """The gradient, of which each ReLU lets through what is positive: max over channels of |.|.

    Raises:
        UnsuitableModel: if the model has other activations, such as GELU or SiLU.
    """
    return _largest(_guided(anatomy, _taken(anatomy, pixels), target))


@register(
    "integrated_gradients",
    paper="Sundararajan, Taly and Yan, ICML 2017",
    cost="1 + steps forward, steps backward",
    aliases=("ig",),
    at_picture=True,
)
def integrated_gradients(anatomy: Anatomy, pixels: Tensor, target: Target, *, steps: int = _STEPS) -> Tensor:
    """What each pixel adds to the score on the way from the mean colour to the picture: sum over channels of x mean(G).

    The mean of G = dy / dx is taken on the straight way from 0 to x, by Gauss and Legendre's rule. The map's sum is the
    picture's score less that of the mean colour.

    Args:
        anatomy: the cut model.
        pixels: pictures.
        target: what is explained.
        steps: in how many places of the way the gradient is taken.
    """
    at_least_one(steps=steps)
    anatomy.hasten(pixels)
    return _total(_integrated(anatomy, _taken(anatomy, pixels), target, steps))


@register(
    "smoothgrad", paper="Smilkov et al., 2017, arXiv 1706.03825", cost="1 + n forward, n backward", at_picture=True
)
def smoothgrad(
    anatomy: Anatomy,
    pixels: Tensor,
    target: Target,
    *,
    n: int = 50,
    sigma: float = 0.15,
    seed: int = 0,
    of: str = "saliency",
) -> Tensor:
    """The mean of a gradient method over noisy copies of the picture, taken before its channels become one.

    Args:
        anatomy: the cut model.
        pixels: pictures.
        target: what is explained.
        n: how many copies (by integrated gradients each costs 50 passes).
        sigma: the noise's standard deviation, as a share of the range, largest less smallest, of the picture's x.
        seed: of the noise, which is the same for every picture.
        of: "saliency", "input_x_gradient", "integrated_gradients" or "guided_backprop".
    """
    at_least_one(n=n)
    one_of(_METHODS, of=of)
    above_zero(sigma=sigma)
    usable_seed(seed)
    attribution, as_one = _METHODS[of]
    if of != "guided_backprop":  # which listens to the network's own activations
        anatomy.hasten(pixels)
    x = _taken(anatomy, pixels)
    mean = torch.zeros_like(x)
    for i in range(len(x)):
        generator = torch.Generator().manual_seed(seed)
        spread = sigma * (x[i].amax() - x[i].amin())
        for copies in anatomy.chunks(n):  # the noise of each by itself, so that `batch_size` changes nothing
            noise = [torch.randn(x.shape[1:], generator=generator) for _ in range(copies.start, copies.stop)]
            noisy = x[i] + spread * torch.stack(noise).to(x)
            mean[i] += attribution(anatomy, noisy, target[i : i + 1].repeat(len(noisy))).sum(0) / n
    return as_one(mean)


def _gradient(anatomy: Anatomy, x: Tensor, target: Target) -> Tensor:
    return anatomy.input_gradients(x, target)


def _input_x_gradient(anatomy: Anatomy, x: Tensor, target: Target) -> Tensor:
    return x * anatomy.input_gradients(x, target)


def _guided(anatomy: Anatomy, x: Tensor, target: Target) -> Tensor:
    listening = Rectifiers()
    try:
        gradients = anatomy.input_gradients(x, target, listening)
        listening.check(anatomy.model)
    except Unguided as error:
        raise UnsuitableModel(
            f'`method` "guided_backprop" needs ReLU or ReLU6 throughout, and this model has {error.found}: '
            'use "saliency", "integrated_gradients" or "gradcam"'
        ) from error
    return gradients


def _integrated(anatomy: Anatomy, x: Tensor, target: Target, steps: int = _STEPS) -> Tensor:
    places, weights = (x.new_tensor(values) for values in np.polynomial.legendre.leggauss(steps))  # on [-1, 1]
    mean = torch.zeros_like(x)
    for i in range(len(x)):
        for some in anatomy.chunks(steps):
            on_the_way = x[i] * (places[some, None, None, None] + 1) / 2
            gradients = anatomy.input_gradients(on_the_way, target[i : i + 1])
            mean[i] += torch.einsum("s,schw->chw", weights[some] / 2, gradients)
    return x * mean


def _taken(anatomy: Anatomy, pixels: Tensor) -> Tensor:
    """x, in float32 where the model is of half precision."""
    x = anatomy.normalise(pixels.detach())
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _largest(attributions: Tensor) -> Tensor:
    return attributions.abs().amax(1)


def _total(attributions: Tensor) -> Tensor:
    return attributions.sum(1)


# An attribution of each channel, (n, channels, H, W), from x of the same shape, and how it becomes a map.
_METHODS: dict[str, tuple[Callable[[Anatomy, Tensor, Target], Tensor], Callable[[Tensor], Tensor]]] = {
    "saliency": (_gradient, _largest),
    "input_x_gradient": (_input_x_gradient, _total),
    "integrated_gradients": (_integrated, _total),
    "guided_backprop": (_guided, _largest),
}
