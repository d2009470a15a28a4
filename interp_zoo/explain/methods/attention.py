"""What a network attends to by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.grid import find_view
from interp_zoo.explain.methods.registry import UnsuitableModel, register
from interp_zoo.explain.targets import Target
from interp_zoo.models import CAStream


def _stream(model: nn.Module) -> CAStream:
    for module in model.modules():
        if isinstance(module, CAStream):
            return module
    raise UnsuitableModel(
        '`method` "attention" shows what a CA-Stream attends to, and this model has none: use "gradcam", or a model '
        "with a stream (interp_zoo.list_models(), or interp_zoo.models.CAStream on your own)"
    )


def _softmaxes(model: nn.Module) -> Sequence[nn.Module]:
    blocks: Any = _stream(model).stream.blocks
    return [block.softmax for block in blocks]


@register(
    "attention",
    paper="Torres, Zhang, Sicre, Ayache and Avrithis, CVPR workshops 2024",
    cost="1 forward",
    needs="a CA-Stream",
    watch=_softmaxes,
)
def attention(anatomy: Anatomy, pixels: Tensor, target: Target, *, block: int = -1, softmax: bool = False) -> Tensor:
    """What a CA-Stream's own query attends to: the scores of a block, A q / sqrt(d), the same for every class.

    The scores are what the paper shows. They are given less their minimum, which changes nothing of the attention.

    Args:
        anatomy: the network.
        pixels: the pictures.
        target: not used.
        block: which of the stream's blocks, counted from 0 in the order of the layers, or from -1 backwards.
        softmax: the attention itself, which sums to 1 over the places, in place of its scores.

    Raises:
        UnsuitableModel: if the model has no CA-Stream, or one that it does not run, or that is not trained yet.
        ValueError: if the stream has no such block.
    """
    stream = _stream(anatomy.model).stream
    scores = anatomy.split(pixels).watched
    if len(scores) != len(stream.blocks):
        raise UnsuitableModel('`method` "attention": the model does not run its stream: use "gradcam"')
    if stream.untrained and block in (-1, len(scores) - 1):
        raise UnsuitableModel(
            '`method` "attention": the stream is not trained yet, and its last block\'s attention is uniform'
        )
    if not -len(scores) <= block < len(scores):
        raise ValueError(f"`block` is {block}, but the stream has {len(scores)} blocks: 0 to {len(scores) - 1}, or -1")
    found = scores[block]
    info = _stream(anatomy.model).feature_info
    size = (int(pixels.shape[2]), int(pixels.shape[3]))
    view = find_view((*found.shape, 1), size, strides=[int(i["reduction"]) for i in info], prefix=0)
    if view is None:
        raise ValueError(f"`block` is {block}, whose {found.shape[1]} places are no grid on the picture: take another")
    maps = found.softmax(1) if softmax else found - found.amin(1, keepdim=True)
    return view.maps(maps[:, :, None])[:, 0]
