"""Methods that need the maps alone, or the maps and a linear classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.registry import UnsuitableModel, register
from interp_zoo.explain.targets import Target


@register(
    "cam",
    paper="Zhou et al., CVPR 2016",
    cost="1 forward, 1 tail backward",
    needs="global average pooling and a linear classifier after the layer",
)
def cam(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """Class activation map: the maps weighted by the classifier's row of the class.

    Behind global average pooling and a linear classifier, the gradient at each of A's hw places is that row / hw.

    Raises:
        UnsuitableModel: if what follows the layer is anything else.
    """
    maps, gradients = anatomy.maps_and_gradients(pixels, target)
    mean = gradients.mean((2, 3), keepdim=True)
    spread = (gradients - mean).abs().amax()
    if not anatomy.tail_is_affine(pixels) or spread > 1e-4 * gradients.abs().amax():
        raise UnsuitableModel(
            '`method` "cam" needs global average pooling and a linear classifier right after the layer '
            f'"{anatomy.cut.name}", which this model does not have: use "gradcam" or "layercam"'
        )
    return (mean * maps.shape[2] * maps.shape[3] * maps).sum(1)


@register("eigencam", paper="Muhammad and Yeasin, IJCNN 2020", cost="1 forward")
def eigencam(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """The maps' first principal component over places: the same for every class.

    A principal component has no sign of its own; the one that agrees with the mean map is taken.
    """
    maps = anatomy.split(pixels).maps.detach()
    places = maps.flatten(2).transpose(1, 2)  # (B, hw, C)
    centred = places - places.mean(1, keepdim=True)
    _, _, axes = torch.linalg.svd(centred.nan_to_num(0, 0, 0), full_matrices=False)
    projection = (centred @ axes[:, 0, :, None])[..., 0]
    agree = (projection * places.mean(2)).sum(1, keepdim=True).sign()
    signed: Tensor = projection * torch.where(agree == 0, 1, agree)
    return signed.view(-1, *maps.shape[2:])
