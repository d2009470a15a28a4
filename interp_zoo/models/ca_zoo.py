"""CA-Stream networks as timm architectures. What they are made of is in `ca_stream`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import generate_default_cfgs, get_pretrained_cfg, register_model
from torch import Tensor, nn

from interp_zoo.models import cifar  # noqa: F401, the backbone of ca_resnet18_cifar
from interp_zoo.models.ca_stream import CAStream, check_global_pool
from interp_zoo.models.demo import BASE as DEMO_BASE, package_weights
from interp_zoo.models.pretrained import build, carried, difference_in_form, differences, trained
from interp_zoo.models.wrapping import own_cfg

__all__: list[str] = []

# The stem, and the stages before the last one.
_RESNET = ("maxpool", "layer1", "layer2", "layer3")
# As the authors attach it: the stem, and the layers that open the second and the third stage.
_CONVNEXT = ("stem", "stages.1.downsample", "stages.2.downsample")
# The last layers at strides 8, 16 and 32; the last map comes out of one more convolution.
_INVERTED = ("blocks.2", "blocks.4", "blocks.6")

# For each model the backbone with the weights that the paper starts from, where it has such, and the taps.
_PARTS = {
    "ca_resnet18": ("resnet18.tv_in1k", _RESNET),
    "ca_resnet34": ("resnet34.tv_in1k", _RESNET),
    "ca_resnet50": ("resnet50.tv_in1k", _RESNET),
    "ca_resnet101": ("resnet101.tv_in1k", _RESNET),
    "ca_convnext_tiny": ("convnext_tiny.fb_in1k", _CONVNEXT),
    "ca_convnext_small": ("convnext_small.fb_in1k", _CONVNEXT),
    "ca_convnext_base": ("convnext_base.fb_in1k", _CONVNEXT),
    "ca_efficientnet_lite0": ("tf_efficientnet_lite0.in1k", _INVERTED),
    "ca_mobilenetv2_100": ("mobilenetv2_100.ra_in1k", _INVERTED),
    "ca_resnet18_cifar": ("resnet18_cifar.cifar100", _RESNET),
}
_FACTORY = ("pretrained_cfg", "pretrained_cfg_overlay", "features_only", "out_indices", "feature_cls", "feature_cfg")


def _cfg(backbone: str) -> dict[str, Any]:
    found: Any = get_pretrained_cfg(backbone)
    cfg = own_cfg(found.to_dict(), "backbone")
    paper = {"paper_name": "CA-Stream: Attention-based pooling for interpretable image recognition"}
    return {**cfg, "paper_ids": None, "origin_url": None, **paper}


default_cfgs = generate_default_cfgs(
    {
        f"{name}.{'cifar100' if 'cifar' in name else 'in1k'}": {**_cfg(backbone), **carried(name)}
        for name, (backbone, _) in _PARTS.items()
    }
)


def _ca(name: str, pretrained: bool, *, backbone_pretrained: bool | str = False, **kwargs: Any) -> CAStream:
    """A CA-Stream network.

    Args:
        name: which of `_PARTS`.
        pretrained: whether with its own trained weights.
        backbone_pretrained: whether with trained weights of the backbone, and a stream that starts at its predictions:
            True for timm's, or whose, as `timm.create_model` takes it ("resnet50.a1_in1k", "hf-hub:...",
            "local-dir:..."). Own weights come before it.
        kwargs: `init` as for `Stream`, and what the backbone takes (`num_classes`, `in_chans`, `drop_rate`, ...).

    Raises:
        OSError: if there are no weights, or they cannot be had.
        ValueError: if the weights are not this architecture's, or another `global_pool` is asked for.
    """
    backbone, taps = _PARTS[name]
    architecture = backbone.partition(".")[0]
    feature_cls = kwargs.get("feature_cls", "getter")
    if feature_cls != "getter":
        raise ValueError(f'`feature_cls` is "{feature_cls}", but "{name}" has its features by "getter": leave it out')
    body: nn.Module | None = None
    if backbone_pretrained and not pretrained:
        own = {k: v for k, v in kwargs.items() if k not in (*_FACTORY, "init", "global_pool")}
        body = _trained(name, backbone if backbone_pretrained is True else backbone_pretrained, architecture, own)
        kwargs["num_classes"] = body.num_classes

    def attach(*, global_pool: str | None = None, init: Any = "identity", **own: Any) -> CAStream:
        check_global_pool(global_pool)
        return CAStream(body or timm.create_model(architecture, **own), taps, init=init)

    start = getattr(get_pretrained_cfg(backbone), "has_weights", False)
    otherwise = (
        f'; or start from its backbone\'s, timm.create_model("{name}", backbone_pretrained=True)' if start else ""
    )
    features = {"out_indices": tuple(range(4 if "convnext" in name else 5))}
    rest = partial(shared_weights, name)
    model = build(attach, name, pretrained, otherwise=otherwise, rest=rest, feature_cfg=features, **kwargs)
    if body is not None:  # the pictures as the backbone's weights take them, but for what was asked for
        cfg: Any = model.pretrained_cfg
        cfg |= own_cfg(body.pretrained_cfg, "backbone") | (kwargs.get("pretrained_cfg_overlay") or {})  # type: ignore[arg-type]
    return model


def shared_weights(name: str, folder: Path | None = None) -> dict[str, Tensor]:
    """The weights of a network's backbone that need not lie beside its stream's: they are at hand anyway.

    Args:
        name: the network's.
        folder: where carried weights are (the package's).

    Returns:
        Those that the package carries, or those that the demo's package has; an empty dict where there are none such.

    Raises:
        ImportError: if they are the demo's, and its package is not installed.
    """
    architecture = _PARTS[name][0].partition(".")[0]
    if file := carried(architecture, folder).get("file"):
        return load_file(file)
    return package_weights() if architecture == DEMO_BASE else {}


def _trained(name: str, source: str, architecture: str, own: dict[str, Any]) -> nn.Module:
    """The backbone with its trained weights.

    Raises:
        OSError: if they cannot be had.
        ValueError: if they are of another architecture.
    """
    classes = own.pop("num_classes", None)
    try:
        model: Any = trained(source, **own)  # all of them, then another classifier
    except OSError as error:
        raise OSError(f'`backbone_pretrained` is "{source}", whose weights cannot be had: {error}') from error
    with torch.device("meta"):
        plain = timm.create_model(architecture, **own, num_classes=model.num_classes)
    wrong = differences(model.state_dict(), plain) or difference_in_form(model, plain)
    if wrong:
        raise ValueError(f'`backbone_pretrained` is "{source}", which is no {architecture} as "{name}" has it: {wrong}')
    if classes not in (None, model.num_classes):
        model.reset_classifier(classes)
    network: nn.Module = model
    return network


@register_model
def ca_resnet18(pretrained: bool = False, **kwargs: Any) -> CAStream:
    """ResNet-18 pooled by a stream of five blocks."""
    return _ca("ca_resnet18", pretrained, **kwargs)


@register_model
def ca_resnet34(pretrained: bool = False, **kwargs: Any) -> CAStream:
    """ResNet-34 pooled by a stream of five blocks."""
    return _ca("ca_resnet34", pretrained, **kwargs)


@register_model
def ca_resnet50(pretrained: bool = False, **kwargs: Any) -> CAStream:
    """ResNet-50 pooled by a stream of five blocks."""
    return _ca("ca_resnet50", pretrained, **kwargs)


@register_model
def ca_resnet101(pretrained: bool = False, **kwargs: Any) -> CAStream:
    """ResNet-101 pooled by a stream of five blocks."""
    return _ca("ca_resnet101", pretrained, **kwargs)


@register_model
def ca_convnext_tiny(pretrained: bool = False, **kwargs: Any) -> CAStream:
    """ConvNeXt-T pooled by a stream of four blocks."""
    return _ca("ca_convnext_tiny", pretrained, **kwargs)


@register_model
def ca_convnext_small(pretrained: bool = False, **kwargs: Any) -> CAStream:
    """ConvNeXt-S pooled by a stream of four blocks."""
    return _ca("ca_convnext_small", pretrained, **kwargs)


@register_model
def ca_convnext_base(pretrained: bool = False, **kwargs: Any) -> CAStream:
    """ConvNeXt-B pooled by a stream of four blocks."""
    return _ca("ca_convnext_base", pretrained, **kwargs)


@register_model
def ca_efficientnet_lite0(pretrained: bool = False, **kwargs: Any) -> CAStream:
    """EfficientNet-Lite0 pooled by a stream of four blocks."""
    return _ca("ca_efficientnet_lite0", pretrained, **kwargs)


@register_model
def ca_mobilenetv2_100(pretrained: bool = False, **kwargs: Any) -> CAStream:
    """MobileNet-V2 pooled by a stream of four blocks."""
    return _ca("ca_mobilenetv2_100", pretrained, **kwargs)


@register_model
def ca_resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> CAStream:
    """ResNet-18 for 32 x 32 pixels pooled by a stream of five blocks."""
    return _ca("ca_resnet18_cifar", pretrained, **kwargs)
