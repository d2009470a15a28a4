"""Methods that weigh the maps by gradients of the target's score (the logit, before any softmax) at the layer.

Each needs one forward pass and one backward pass through the tail. In the formulas A is (B, C, h, w), G the gradient
of the score with respect to A. All maps are rectified, upsampled and scaled afterwards, the same way for all methods.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp_zoo.explain import masking
from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.targets import Target

_COST = "1 forward, 1 tail backward"
# Division guards, as pytorch-grad-cam sets them, so that maps can be compared digit by digit.
_EPS_PLUSPLUS, _EPS_XGRAD = 1e-6, 1e-7


@register("gradcam", paper="Selvaraju et al., ICCV 2017", cost=_COST)
def gradcam(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """Weighs each channel by its mean gradient: sum_k mean_ij(G_k) A_k."""
    maps, gradients = anatomy.maps_and_gradients(pixels, target)
    return (gradients.mean((2, 3), keepdim=True) * maps).sum(1)


@register("gradcam_plusplus", paper="Chattopadhay et al., WACV 2018", cost=_COST, aliases=("gradcam++", "gradcampp"))
def gradcam_plusplus(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """Weighs positive gradients so that several instances count alike: w_k = sum_ij alpha ReLU(G).

    alpha = G^2 / (2 G^2 + (sum_ij A) G^3), 0 where G is 0; for the exponential of the score, as the paper assumes.
    """
    maps, gradients = anatomy.maps_and_gradients(pixels, target)
    squares = gradients.square()
    denominator = 2 * squares + maps.sum((2, 3), keepdim=True) * squares * gradients + _EPS_PLUSPLUS
    alpha = torch.where(gradients == 0, 0, squares / denominator)
    return ((alpha * gradients.relu()).sum((2, 3), keepdim=True) * maps).sum(1)


@register("xgradcam", paper="Fu et al., BMVC 2020", cost=_COST, aliases=("axiomcam",))
def xgradcam(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """Axiom-based Grad-CAM: weighs each channel by its gradient where it is active, w_k = sum_ij G A / sum_ij A."""
    maps, gradients = anatomy.maps_and_gradients(pixels, target)
    weights = (gradients * maps).sum((2, 3), keepdim=True) / (maps.sum((2, 3), keepdim=True) + _EPS_XGRAD)
    return (weights * maps).sum(1)


@register("layercam", paper="Jiang et al., IEEE TIP 2021", cost=f"{_COST}, for each layer")
def layercam(
    anatomy: Anatomy, pixels: Tensor, target: Target, *, positive: bool = True, fuse: tuple[str, ...] = ()
) -> Tensor:
    """Weighs A place by place: sum_k ReLU(G_k) A_k.

    Args:
        anatomy: the cut model.
        pixels: pictures (B, channels, H, W) in [0, 1].
        target: what is explained.
        positive: whether negative gradients are dropped, as in the paper.
        fuse: names of earlier layers, whose maps are finer: the place's largest value counts, as in the paper, after
            each map was divided by its largest, and those of earlier layers, which are weak, raised by tanh(2 M).
    """
    last = _place_by_place(anatomy, pixels, target, positive)
    if not fuse:
        return last
    found = [masking.by_largest(last.relu())]
    for layer in fuse:
        try:
            earlier = anatomy.at(layer, pixels)
        except (TypeError, ValueError) as error:
            raise type(error)(f"`fuse`: {error}") from None
        weak = _place_by_place(earlier, pixels, target, positive).relu()
        found.append((2 * masking.by_largest(weak)).tanh())
    size = (max(maps.shape[1] for maps in found), max(maps.shape[2] for maps in found))
    return torch.stack([masking.up(maps, size) for maps in found]).amax(0)


def _place_by_place(anatomy: Anatomy, pixels: Tensor, target: Target, positive: bool) -> Tensor:
    maps, gradients = anatomy.maps_and_gradients(pixels, target)
    return ((gradients.relu() if positive else gradients) * maps).sum(1)


@register("hirescam", paper="Draelos and Carin, 2020, arXiv 2011.08891", cost=_COST)
def hirescam(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """What each place adds to the score of a linear tail: sum_k G_k A_k.

    Behind a LayerNorm that follows A directly (class token ViTs), the score does not depend on a token's size, and the
    sum all but vanishes: use "layercam" there.
    """
    maps, gradients = anatomy.maps_and_gradients(pixels, target)
    return (gradients * maps).sum(1)


@register("shapleycam", paper="Cai, 2025, arXiv 2501.06261", cost="1 forward, 1 tail, up to 2 tail backward")
def shapleycam(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """Weighs each channel by its Shapley value to second order: w_k = mean_ij((G - H A / 2)_k), H the Hessian at A.

    Where the tail is affine, or made of such pieces (ReLU, BatchNorm), H is 0 and this is "gradcam".
    """
    gradients, along = anatomy.curvature(pixels, target)
    weights = (gradients - along / 2).mean((2, 3), keepdim=True)
    return (weights * anatomy.split(pixels).maps.detach()).sum(1)
