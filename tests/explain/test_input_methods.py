"""Methods whose maps are of the picture's size: in half precision, on odd networks, and what their maps mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import lively
from torch import Tensor, nn
from torch.nn import functional as F

import interp_zoo
from interp_zoo.explain.methods import UnsuitableModel

GRADIENTS = ["saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "guided_backprop"]
OTHERS = ["extremal_perturbation", "occlusion", "rise"]

pytestmark = [
    pytest.mark.usefixtures("one_thread", "quick"),
    pytest.mark.filterwarnings(r"ignore:map \d of the batch is blank:UserWarning"),
]


@pytest.fixture
def pictures(batch: Tensor) -> Tensor:
    """Two normalised pictures, (2, 3, 64, 64)."""
    return batch[:2, :, :64, :64]


def raw(model: nn.Module, x: Tensor, method: str, **arguments: Any) -> Tensor:
    found = interp_zoo.explain(model, x, method, target=3, **arguments).raw
    assert found.shape == (len(x), *x.shape[2:])
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    return found


def alike(one: Tensor, other: Tensor) -> float:
    """The least correlation of two maps of a picture."""
    a, b = (maps.flatten(1) - maps.flatten(1).mean(1, keepdim=True) for maps in (one, other))
    return F.cosine_similarity(a, b, dim=1).min().item()


@pytest.mark.parametrize("method", GRADIENTS + OTHERS)
def test_half_precision(method: str, tiny_cnn: nn.Module, pictures: Tensor) -> None:
    want = raw(tiny_cnn, pictures, method)
    assert alike(raw(tiny_cnn, pictures, method, amp="bf16"), want) > 0.9
    assert alike(raw(tiny_cnn.bfloat16(), pictures, method), want) > 0.9


class Blunt(nn.Module):
    """A network that begins with an activation in place, 3 times the mean of the red above 0 for class 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.ReLU(inplace=True), nn.Conv2d(3, 5, 1, bias=False)
        self.conv.weight.data.zero_()
        self.conv.weight.data[3, 0] = 3

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv(self.first(x)).mean((2, 3))
        return logits


@pytest.mark.parametrize("method", ["saliency", "guided_backprop"])
def test_a_gradient_known_by_hand(method: str, pictures: Tensor) -> None:
    """3 / (H W) where the red of x is above 0; the network begins in place, which a leaf does not admit."""
    want = (pictures[:, 0] > 0) * 3 / 64**2
    torch.testing.assert_close(raw(Blunt().eval(), pictures, method), want)


def test_what_is_linear_is_shared_out(pictures: Tensor) -> None:
    want = pictures[:, 0].relu() * 3 / 64**2
    for method in ("input_x_gradient", "integrated_gradients"):
        torch.testing.assert_close(raw(Blunt().eval(), pictures, method), want)


def test_occlusion_finds_the_part_that_counts() -> None:
    """What a window loses is what it hides: only the windows over the one bright square lose."""
    x = torch.zeros(1, 3, 60, 60)
    x[:, 0, 20:30, 40:50] = 1
    found = raw(Blunt().eval(), x, "occlusion", window=1 / 6, stride=1 / 6)
    torch.testing.assert_close(found, x[:, 0] * 3 * 100 / 60**2)


@pytest.mark.parametrize("method", ["rise", "extremal_perturbation"])
def test_the_part_that_counts_stands_out(method: str) -> None:
    x = torch.full((1, 3, 56, 56), -1.0)
    x[:, 0, 8:24, 32:48] = 4
    options = {"n": 400, "score": "logit"} if method == "rise" else {"iterations": 120}
    found = raw(Blunt().eval(), x, method, **options)[0]
    inside = x[0, 0] > 0
    assert found[inside].mean() > found[~inside].mean() + (0.2 if method == "extremal_perturbation" else 0.02)
    if method == "extremal_perturbation":
        larger = raw(Blunt().eval(), x, method, areas=(0.5,), **options)[0]
        assert larger.mean() > found.mean() + 0.1


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_efficientnet"])
def test_guided_backprop_names_what_it_met(name: str, batch: Tensor) -> None:
    model = lively(name, num_classes=10)
    refusal = (
        r'^`method` "guided_backprop" needs ReLU or ReLU6 throughout, and this model has (gelu|silu): use "saliency"'
    )
    with pytest.raises(UnsuitableModel, match=refusal) as error:
        interp_zoo.explain(model, batch[:1], "guided_backprop")
    assert "\n" not in str(error.value)


def test_guided_backprop_without_any_relu(pictures: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(UnsuitableModel, match="and this model has no ReLU at all: use"):
        interp_zoo.explain(model, pictures, "guided_backprop", target=3)


def test_a_target_may_have_activations_of_its_own(tiny_cnn: nn.Module, pictures: Tensor) -> None:
    """Guided backpropagation looks at the network's ReLUs, not at what is made of its logits."""
    by_class = interp_zoo.explain(tiny_cnn, pictures, "guided_backprop", target=2).raw
    by_function = interp_zoo.explain(tiny_cnn, pictures, "guided_backprop", target=lambda s: F.elu(s[:, 2].abs())).raw
    with torch.no_grad():
        positive = tiny_cnn(pictures)[:, 2] > 0
    assert positive.any()
    torch.testing.assert_close(by_function[positive], by_class[positive])


@pytest.mark.parametrize("method", ["rise", "smoothgrad"])
def test_seeds(method: str, tiny_cnn: nn.Module, pictures: Tensor) -> None:
    """The same seed gives the same map whatever was drawn before; another seed another map."""
    first = raw(tiny_cnn, pictures, method)
    torch.rand(7)
    assert torch.equal(raw(tiny_cnn, pictures, method), first)
    assert not torch.allclose(raw(tiny_cnn, pictures, method, seed=1), first, rtol=0.05)
    assert not torch.equal(first[0], first[1])
