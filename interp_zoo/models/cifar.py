"""Networks for pictures of 32 x 32 pixels and 100 classes (CIFAR-100), plain and with interpretable gradients.

A network with interpretable gradients (Torres, Zhang, Sicre, Ayache and Avrithis, "A learning paradigm for
interpretable gradients", VISAPP 2024) differs from the plain one in how it is trained, and in nothing else:
`gr_resnet18_cifar` is `resnet18_cifar` with other weights.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, model_entrypoint, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from interp_zoo.models.pretrained import build, carried

__all__: list[str] = []

_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CLASSES = tuple(_CLASSES.split())


def cifar_cfg(first_conv: str, classifier: str, pool_size: int) -> dict[str, Any]:
    """The cfg of a network on CIFAR-100; mean and std are those of the paper's authors."""
    return {
        "num_classes": 100,
        "label_names": CLASSES,
        "label_descriptions": {name: name.replace("_", " ") for name in CLASSES if "_" in name},
        "input_size": (3, 32, 32),
        "pool_size": (pool_size, pool_size),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.2010),
        "first_conv": first_conv,
        "classifier": classifier,
        "license": "apache-2.0",
    }


_RESNET = cifar_cfg("conv1", "fc", 4)
_MOBILENET = cifar_cfg("conv_stem", "classifier", 2)
_PAPER = {"paper_name": "A learning paradigm for interpretable gradients"}

default_cfgs = generate_default_cfgs(
    {
        "resnet18_cifar.cifar100": {**_RESNET, **carried("resnet18_cifar")},
        "mobilenetv2_cifar.cifar100": {**_MOBILENET, **carried("mobilenetv2_cifar")},
        "gr_resnet18_cifar.cifar100": {**_RESNET, **_PAPER, **carried("gr_resnet18_cifar")},
        "gr_mobilenetv2_cifar.cifar100": {**_MOBILENET, **_PAPER, **carried("gr_mobilenetv2_cifar")},
    }
)


def _resnet18(**kwargs: Any) -> nn.Module:
    """A ResNet-18 of timm's with a stem of one 3 x 3 convolution, which leaves the picture its size."""
    model: Any = ResNet(BasicBlock, layers=(2, 2, 2, 2), **kwargs)  # type: ignore[arg-type]
    model.conv1 = nn.Conv2d(model.conv1.in_channels, model.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's others
    model.maxpool = nn.Identity()
    for info, reduction in zip(model.feature_info, (1, 1, 2, 4, 8), strict=True):
        info["reduction"] = reduction
    network: nn.Module = model
    return network


def _mobilenetv2(**kwargs: Any) -> nn.Module:
    """A MobileNet-V2 of timm's with a stem of stride 1."""
    model: Any = model_entrypoint("mobilenetv2_100")(**kwargs)
    model.conv_stem.stride = (1, 1)
    for info in model.feature_info:
        info["reduction"] //= 2
    network: nn.Module = model
    return network


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 for 32 x 32 pixels: a 3 x 3 stem of stride 1, no pooling before the first stage, 4 x 4 last places."""
    return build(_resnet18, "resnet18_cifar", pretrained, **kwargs)


@register_model
def mobilenetv2_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNet-V2 for 32 x 32 pixels: a stem of stride 1, 2 x 2 last places."""
    return build(_mobilenetv2, "mobilenetv2_cifar", pretrained, **kwargs)


@register_model
def gr_resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`resnet18_cifar` trained with interpretable gradients."""
    return build(_resnet18, "gr_resnet18_cifar", pretrained, **kwargs)


@register_model
def gr_mobilenetv2_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`mobilenetv2_cifar` trained with interpretable gradients."""
    return build(_mobilenetv2, "gr_mobilenetv2_cifar", pretrained, **kwargs)
