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
    pretrained: bool = False,
    initial_checkpoint: str | None = None,
    backbone_pretrained: bool | str = False,
    **kwargs: Any,
) -> nn.Module:
    """A timm model to train.

    Args:
        name: as `timm.create_model` takes it.
        classes: how many it has; None for its own.
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
    if backbone_pretrained and not name.startswith("ca_"):
        raise ValueError(f'`backbone_pretrained` is for CA-Streams, but the model is "{name}": give --pretrained')
    kwargs |= {"backbone_pretrained": backbone_pretrained} if backbone_pretrained else {}
    try:
        if pretrained or initial_checkpoint:
            model: Any = create(name, checkpoint=initial_checkpoint, **kwargs)
        else:
            model = timm.create_model(name, pretrained=False, **kwargs)
    except TypeError as error:
        raise ValueError(f'"{name}" does not take all of `model_kwargs`: {error}') from error
    if classes not in (None, model.num_classes):
        raise ValueError(
            f'`initial_checkpoint` "{initial_checkpoint}" has {model.num_classes} classes, but the data has '
            f"{classes}: give a checkpoint of these, or --pretrained for timm's weights under a new head"
        )
    if initial_checkpoint:
        adapt(model, num_classes=model.num_classes)  # what its classifier was trained on
    network: nn.Module = model
    return network


def name_classes(model: nn.Module, names: Sequence[str]) -> None:
    """Writes its classes' names into a model's cfg, with which they go along from then on.

    Names of ImageNet's folders are left out: timm knows better ones.
    """
    cfg: Any = model.pretrained_cfg
    if list(names) != list(cfg.get("label_names") or ()) and not all(re.fullmatch(r"n\d{8}", n) for n in names):
        adapt(model, label_names=tuple(names), label_descriptions=None)


def adapt(model: nn.Module, **facts: Any) -> None:
    """Writes facts into a model's cfg, which goes with its weights."""
    any_model: Any = model
    any_model.pretrained_cfg = any_model.default_cfg = {**any_model.pretrained_cfg, **facts}


def freeze_backbone(model: nn.Module, *, hold_last: bool = False, distilled: bool = False) -> CAStream:
    """Freezes a CA-Stream's backbone; its classifier, too, unless that is new, for other classes than its weights had.

    Args:
        model: the network.
        hold_last: whether the last W is held as well, which over-fits first where pictures are few.
        distilled: whether the stream learns from the backbone's predictions.

    Raises:
        ValueError: if the model is no CA-Stream, or is to learn from a classifier that is new.
    """
    if not isinstance(model, CAStream):
        raise ValueError(
            f"`freeze_backbone` is for CA-Streams, but the model is a {type(model).__name__}: take a model whose name "
            'begins with "ca_"'
        )
    model.freeze_backbone()
    cfg: Any = model.pretrained_cfg
    if cfg["num_classes"] != model.num_classes:
        if distilled:
            raise ValueError(
                f"`distill` needs a backbone that knows the data's {model.num_classes} classes, but this one has "
                f"learned {cfg['num_classes']} others: fine-tune it first"
            )
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
