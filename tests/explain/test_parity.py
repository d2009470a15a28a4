"""The same raw maps as pytorch-grad-cam, before its own scaling and resizing, on the same layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_grad_cam as peer
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import interp_zoo

GRADIENTS = {
    "gradcam": peer.GradCAM,
    "gradcam_plusplus": peer.GradCAMPlusPlus,
    "xgradcam": peer.XGradCAM,
    "layercam": peer.LayerCAM,
    "hirescam": peer.HiResCAM,
}
TARGETS = [2, 4, 3]  # on the tiny models, of scores above and below 0


def peers_maps(
    kind: Any, model: nn.Module, layer: nn.Module, x: Tensor, reshape: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The peer's maps (B, h, w): its forward pass, its activations and gradients, then its `get_cam_image` alone."""
    cam = kind(model, [layer], reshape_transform=reshape)
    targets = [ClassifierOutputTarget(c) for c in TARGETS]
    try:
        outputs = cam.activations_and_grads(x)
        gradients = None
        if cam.uses_gradients:
            torch.stack([target(output) for target, output in zip(targets, outputs, strict=True)]).sum().backward()
            gradients = cam.activations_and_grads.gradients[0].numpy()
        activations = cam.activations_and_grads.activations[0].numpy()
        return torch.as_tensor(cam.get_cam_image(x, layer, targets, activations, gradients, False))
    finally:
        cam.activations_and_grads.release()


def patches(tokens: Tensor) -> Tensor:
    """(B, 1 + h * w, C) as (B, C, h, w), the peer's `reshape_transform`."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, side, side)


def assert_parity(got: Tensor, want: Tensor) -> None:
    """Equal, map by map, up to a ten thousandth of the peer's largest value."""
    assert got.shape == want.shape
    size = want.abs().amax((1, 2))
    assert (size > 0).all(), "the peer's maps must not be blank"
    assert ((got - want).abs().amax((1, 2)) / size).max().item() <= 1e-4


def of_same_sign(got: Tensor, want: Tensor) -> Tensor:
    """`want` with each map's sign as `got` has it: a principal component has none."""
    return want * (got * want).sum((1, 2), keepdim=True).sign()


def ours(name: str, model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    return interp_zoo.Explainer(model, name, **options)(x, target=TARGETS).raw


@pytest.fixture
def small(batch: Tensor) -> Tensor:
    """Three pictures, (3, 3, 96, 96): the peer runs the whole network for each channel."""
    return batch[:, :, :96, :96]


pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(r"ignore:map \d of the batch is blank:UserWarning"),
]  # raw maps matter here


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_methods_on_a_cnn(name: str, tiny_cnn: nn.Module, batch: Tensor) -> None:
    want = peers_maps(GRADIENTS[name], tiny_cnn, tiny_cnn.get_submodule("layer4"), batch)
    assert want.shape == (3, 5, 5)
    assert_parity(ours(name, tiny_cnn, batch), want)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_methods_on_a_vit(name: str, tiny_vit: nn.Module, batch: Tensor) -> None:
    if name == "hirescam":  # before LayerNorm sum_k G_k A_k is rounding alone in float32, see test_methods.py
        tiny_vit, batch = tiny_vit.double(), batch.double()
    want = peers_maps(GRADIENTS[name], tiny_vit, tiny_vit.get_submodule("blocks.4"), batch, patches)
    assert want.shape == (3, 10, 10)
    assert_parity(ours(name, tiny_vit, batch), want)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_methods_at_a_named_layer(name: str, tiny_cnn: nn.Module, batch: Tensor) -> None:
    """A layer further down, where the gradient is not the same at all places of a channel."""
    want = peers_maps(GRADIENTS[name], tiny_cnn, tiny_cnn.get_submodule("layer3"), batch)
    assert want.shape == (3, 10, 10)
    assert_parity(ours(name, tiny_cnn, batch, layer="layer3"), want)


def test_eigencam(tiny_cnn: nn.Module, batch: Tensor) -> None:
    got = ours("eigencam", tiny_cnn, batch)
    want = peers_maps(peer.EigenCAM, tiny_cnn, tiny_cnn.get_submodule("layer4"), batch)
    assert_parity(got, of_same_sign(got, want))


def test_eigencam_on_a_vit(tiny_vit: nn.Module, batch: Tensor) -> None:
    got = ours("eigencam", tiny_vit, batch)
    want = peers_maps(peer.EigenCAM, tiny_vit, tiny_vit.get_submodule("blocks.4"), batch, patches)
    assert_parity(got, of_same_sign(got, want))


def test_scorecam(tiny_cnn: nn.Module, small: Tensor) -> None:
    got = ours("scorecam", tiny_cnn, small, mask_space="normalised", align_corners=True)
    assert_parity(got, peers_maps(peer.ScoreCAM, tiny_cnn, tiny_cnn.get_submodule("layer4"), small))


def test_scorecam_on_a_vit(tiny_vit: nn.Module, small: Tensor) -> None:
    got = ours("scorecam", tiny_vit, small, mask_space="normalised", align_corners=True)
    assert_parity(got, peers_maps(peer.ScoreCAM, tiny_vit, tiny_vit.get_submodule("blocks.4"), small, patches))


def test_ablationcam(tiny_cnn: nn.Module, small: Tensor) -> None:
    """layer4 ends in ReLU: only where a map's least value is 0 does the peer, too, set ablated channels to 0."""
    layer = tiny_cnn.get_submodule("layer4")
    assert interp_zoo.Explainer(tiny_cnn, "ablationcam").features(small).amin((1, 2, 3)).tolist() == [0, 0, 0]
    got = ours("ablationcam", tiny_cnn, small)
    assert_parity(got, peers_maps(peer.AblationCAM, tiny_cnn, layer, small))
    assert tiny_cnn.get_submodule("layer4") is layer  # the peer put it back
