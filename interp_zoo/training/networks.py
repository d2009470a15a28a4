"""The network that a run trains: where its weights come from, its classes, and what of it is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn

from interp_zoo.models import CAStream
from interp_zoo.models.loading import check_name, create


def make_network(
    name: str,
    *,
    classes: int | None,
    class_names: Sequence[str] | None = None,
    pretrained: bool = False,
    initial_checkpoint: str | None = None,
    backbone_pretrained: bool | str = False,
    **kwargs: Any,
) -> nn.Module:
    """A timm model to train.

    Args:
        name: as `timm.create_model` takes it.
        classes: how many it has; None for its own.
        class_names: their names; they go into the model's cfg, and with its weights from then on.
        pretrained: whether it starts from its pretrained weights; with another number of classes its head is new.
        initial_checkpoint: a safetensors file that it starts from.
        backbone_pretrained: for CA-Streams, see `interp_zoo.models`.
        kwargs: more for `timm.create_model`.

    Raises:
        ValueError: if there is no such model, it cannot start so, or the checkpoint has other classes.
        OSError: if the weights cannot be had.
    """
    check_name(name)
    starts = [pretrained, bool(initial_checkpoint), bool(backbone_pretrained)]
    if sum(starts) > 1:
        raise ValueError("`pretrained`, `initial_checkpoint` and `backbone_pretrained` exclude each other: give one")
    kwargs |= {} if classes is None else {"num_classes": classes}
    model: Any
    if initial_checkpoint:
        model = create(name, checkpoint=initial_checkpoint, **kwargs)
        if classes not in (None, model.num_classes):
            raise ValueError(
                f'`initial_checkpoint` "{initial_checkpoint}" has {model.num_classes} classes, but the data has '
                f"{classes}: give a checkpoint of these, or --pretrained for timm's weights under a new head"
            )
    elif pretrained:
        model = create(name, **kwargs)
    else:
        _check_taken(name, backbone_pretrained)
        kwargs |= {"backbone_pretrained": backbone_pretrained} if backbone_pretrained else {}
        model = timm.create_model(name, pretrained=False, **kwargs)
    if class_names and not _are_wnids(class_names) and list(class_names) != list(_names(model)):
        adapt(model, label_names=tuple(class_names), label_descriptions=None)
    network: nn.Module = model
    return network


def adapt(model: nn.Module, **facts: Any) -> None:
    """Writes facts into a model's cfg, which goes with its weights."""
    cfg: Any = model.pretrained_cfg
    cfg |= facts
    if getattr(model, "default_cfg", cfg) is not cfg:
        model.default_cfg = cfg


def freeze_backbone(model: nn.Module, *, hold_last: bool = False) -> CAStream:
    """Freezes a CA-Stream's backbone; its classifier, too, unless that is new, for other classes than its weights had.

    Args:
        model: the network.
        hold_last: whether the last W is held as well, which over-fits first where pictures are few.

    Raises:
        ValueError: if the model is no CA-Stream.
    """
    if not isinstance(model, CAStream):
        raise ValueError(
            f"`freeze_backbone` is for CA-Streams, but the model is a {type(model).__name__}: take a model whose name "
            'begins with "ca_"'
        )
    model.freeze_backbone()
    cfg: Any = model.pretrained_cfg
    if cfg["num_classes"] != model.num_classes:
        model.get_classifier().requires_grad_()
    if hold_last:
        blocks: Any = model.stream.blocks
        blocks[-1].proj.requires_grad_(False)
    return model


def memory_format(channels_last: bool) -> torch.memory_format:
    """How weights and pictures are laid out."""
    return torch.channels_last if channels_last else torch.preserve_format


def check_trained(model: nn.Module) -> int:
    """How many parameters are trained.

    Raises:
        ValueError: if there is none.
    """
    number = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not number:
        raise ValueError(f"`model` is a {type(model).__name__} of which everything is frozen: nothing is to be trained")
    return number


def _check_taken(name: str, backbone_pretrained: bool | str) -> None:
    if backbone_pretrained and not name.startswith("ca_"):
        raise ValueError(f'`backbone_pretrained` is for CA-Streams, but the model is "{name}": give --pretrained')


def _names(model: Any) -> Sequence[str]:
    return model.pretrained_cfg.get("label_names") or ()


def _are_wnids(names: Sequence[str]) -> bool:
    """Whether classes are named as ImageNet's folders are, of which more is known than that."""
    return all(re.fullmatch(r"n\d{8}", name) for name in names)
