"""What a model that wraps a timm model owes timm: its cfg and its parameter groups under their new names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from interp_zoo.models.pretrained import names_in

# Where weights come from, and what they are of: not what the wrapped model's cfg says.
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag", "custom_load")


def own_cfg(cfg: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A model's `pretrained_cfg` for one that holds it under `prefix`: the same pictures, classes and licence."""
    cfg = {key: value for key, value in cfg.items() if key not in _SOURCES}
    for key in ("first_conv", "classifier"):
        names = tuple(f"{prefix}.{name}" for name in names_in(cfg.get(key)))
        cfg[key] = names[0] if len(names) == 1 else names or None
    return cfg


def input_shape(model: nn.Module) -> torch.Size:
    """The pictures that a timm model takes, (channels, H, W)."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    channels, *size = cfg.get("input_size") or (3, 224, 224)
    embed = getattr(model, "patch_embed", None)
    if getattr(embed, "strict_img_size", False) and getattr(embed, "img_size", None):
        size = list(embed.img_size)  # type: ignore[union-attr]
    for first in names_in(cfg.get("first_conv"))[:1]:
        convolution = model.get_submodule(first)
        if isinstance(convolution, nn.Conv2d) and convolution.groups == 1:
            channels = convolution.in_channels
    return torch.Size((getattr(model, "in_chans", channels), *size))


def prefixed_groups(matcher: Mapping[str, Any] | Callable[[str], Any], prefix: str) -> Any:
    """What a timm model's `group_matcher` returns, for one that holds the model under `prefix`.

    What matches nothing is in the last group, with the classifier, as timm has it.
    """
    if callable(matcher):
        return lambda name: matcher(name.removeprefix(f"{prefix}.")) if name.startswith(f"{prefix}.") else math.inf

    def below(patterns: Any) -> Any:
        if isinstance(patterns, str):
            # timm anchors some alternatives only ("^conv1|bn1"), but matches from the start anyhow
            return rf"^{prefix}\.(?:" + re.sub(r"(?<![\[\\])\^", "", patterns) + ")"
        return [(below(pattern), ordinal) for pattern, ordinal in patterns or ()]

    return {name: below(patterns) for name, patterns in matcher.items()}
