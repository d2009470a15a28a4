"""Pains 1 to 5: which layer, which shape, which hook."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from conftest import lively
from timm.models.vgg import VGG
from torch import Tensor, nn

import interp_zoo

# Of each kind a network whose libraries' users ask for its layer or reshape_transform: input size, grid, prefix tokens.
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "convolutions": ("test_resnet", {}, (5, 5)),
    "one class token": ("test_vit", {}, (10, 10)),
    "registers": ("test_vit3", {}, (10, 10)),
    "no class token": ("test_vit_relpos", {}, (10, 10)),
    "not square": ("test_vit", {"img_size": (96, 160)}, (6, 10)),
    "windows, NHWC": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, (7, 7)),
    "hybrid": ("test_coatnet", {}, (5, 5)),
    "channels last blocks": ("test_convnext", {}, (5, 5)),
}


# The end of the body, or for a class token the last but one of the blocks.
LAYERS = {"layer4", "blocks.4", "blocks.10", "norm", "stages", "norm_pre"}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, tuple[int, int]]:
    name, arguments, grid = NETWORKS[request.param]
    model = lively(name, num_classes=10, **arguments)
    size = arguments.get("img_size") or timm.data.resolve_model_data_config(model)["input_size"][1:]
    return model, torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1)), grid


def test_pain_01_no_layer_to_name(network: tuple[nn.Module, Tensor, tuple[int, int]]) -> None:
    model, x, _ = network
    exp = interp_zoo.explain(model, x, "gradcam")
    assert exp.layer in LAYERS  # reported ...
    assert exp.saliency.std() > 0.01
    again = interp_zoo.explain(model, x, "gradcam", layer=exp.layer)  # ... and an answer to `layer=`
    assert torch.equal(again.saliency, exp.saliency)


@pytest.mark.parametrize("within", [False, True], ids=["", "within a module"])
def test_pain_02_no_reshape_transform(network: tuple[nn.Module, Tensor, tuple[int, int]], within: bool) -> None:
    model, x, grid = network
    whole = nn.Sequential(nn.Identity(), model).eval() if within else model
    assert interp_zoo.explain(whole, x, "gradcam").raw.shape == (1, *grid)


@pytest.mark.parametrize(("size", "grid"), [((96, 128), (6, 8)), ((128, 160), (8, 10))])
def test_pain_02_class_tokens_that_would_fill_a_square(size: tuple[int, int], grid: tuple[int, int]) -> None:
    """With the token, 6 x 8 is 7 x 7, and 8 x 10 is 9 x 9: told by the model, or by the map that tokens are made of."""
    model = lively("test_vit", num_classes=10, img_size=size)
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    for whole in (model, nn.Sequential(nn.Identity(), model).eval(), Plain().eval()):
        assert interp_zoo.explain(whole, x, "hirescam", target=3).raw.shape == (1, *grid)


@pytest.mark.parametrize("registers", [8, 16])
def test_pain_02_many_registers(registers: int) -> None:
    model = lively("test_vit", num_classes=10, reg_tokens=registers)
    exp = interp_zoo.explain(model, torch.randn(1, 3, 160, 160), "hirescam", target=3)
    assert exp.raw.shape == (1, 10, 10)
    assert exp.layer == "blocks.4"


class Plain(nn.Module):
    """A vision transformer of nobody's, which says nothing of itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 32, 16, stride=16)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True) for _ in range(3))
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))[:, 0])
        return out


class NHWC(nn.Module):
    """A network whose maps are (B, h, w, C), and whose logits come out of a 1 x 1 convolution, as BiT's do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 12, 16, stride=16)
        self.stage = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12), nn.GELU())
        self.head = nn.Conv2d(12, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stage(self.stem(x).permute(0, 2, 3, 1))
        logits: Tensor = self.head(maps.mean((1, 2))[..., None, None]).flatten(1)
        return logits


def test_pain_03_stages_and_heads_of_other_shapes() -> None:
    exp = interp_zoo.explain(NHWC().eval(), torch.randn(1, 3, 96, 64), "gradcam", target=3)
    assert (exp.layer, exp.raw.shape) == ("stage", (1, 6, 4))
    bit = lively("resnetv2_50x1_bit", num_classes=7)
    assert interp_zoo.explain(bit, torch.randn(1, 3, 96, 96), "gradcam").saliency.std() > 0.01


def test_pain_04_patch_tokens_still_act_at_the_cut() -> None:
    """After the last block of a network that reads its class token, patch tokens have no gradient."""
    model, x = lively("test_vit", num_classes=10), torch.randn(1, 3, 160, 160)
    last = interp_zoo.explain(model, x, "opticam", target=3).layer
    names = [name for name, _ in model.named_modules()]
    assert names.index("blocks.3") < names.index(last) < names.index("blocks.5.mlp")
    with interp_zoo.Explainer(model, "gradcam").anatomy(x) as (anatomy, pixels):
        maps = anatomy.split(pixels).maps.detach()
        with torch.no_grad():
            moved = [
                (anatomy.tail(pixels, 0, maps.masked_fill(torch.arange(100).view(10, 10) == place, 0)) - one)
                .abs()
                .max()
                for one in [anatomy.split(pixels).logits.detach()]
                for place in (0, 37, 99)
            ]
    assert min(moved) > 1e-5  # a patch that is deleted moves the logits: the map is read


@pytest.mark.parametrize("name", ["densenet121", "vgg", "mnasnet_small", "test_resnet"])
def test_pain_05_in_place_activations(name: str) -> None:
    if name == "vgg":  # with fewer channels than any that has a name
        torch.manual_seed(0)
        model: nn.Module = VGG([8, "M", 16, "M", 16, "M", 32, "M", 32, "M"], num_classes=5, mlp_ratio=0.01).eval()
    else:
        kwargs: dict[str, Any] = {"growth_rate": 8, "block_config": (2, 2)} if name == "densenet121" else {}
        model = lively(name, num_classes=5, **kwargs)
    flags = {n: m.inplace for n, m in model.named_modules() if getattr(m, "inplace", None) is True}
    assert flags  # or it is no test of them
    exp = interp_zoo.explain(model, torch.randn(1, 3, 64, 64), "hirescam")
    assert exp.raw.abs().max() > 0
    assert {n: m.inplace for n, m in model.named_modules() if getattr(m, "inplace", None) is True} == flags
