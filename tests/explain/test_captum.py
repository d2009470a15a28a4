"""The same maps as captum's, where its definitions are ours."""

from __future__ import annotations

from typing import Any

import captum.attr as peer
import pytest
import torch
from torch import Tensor, nn

import interp_zoo

TARGETS = [2, 9]

pytestmark = pytest.mark.filterwarnings(r"ignore:map \d of the batch is blank:UserWarning")  # raw maps matter here


@pytest.fixture
def pictures(batch: Tensor) -> Tensor:
    """Two normalised pictures, (2, 3, 96, 96), which both tiny models take."""
    return batch[:2, :, :96, :96]


def ours(name: str, model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    return interp_zoo.Explainer(model, name, **options)(x, target=TARGETS).raw


def assert_parity(got: Tensor, want: Tensor) -> None:
    """Within 1e-4 of the map's largest value."""
    assert got.shape == want.shape == (2, 96, 96)
    size = want.abs().amax((1, 2), keepdim=True)
    assert (size > 0).all()
    torch.testing.assert_close(got / size, want.detach() / size, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["tiny_cnn", "tiny_vit"])
@pytest.mark.parametrize("name", ["saliency", "input_x_gradient", "integrated_gradients", "occlusion"])
def test_captum(name: str, kind: str, request: pytest.FixtureRequest, pictures: Tensor) -> None:
    model: nn.Module = request.getfixturevalue(kind)
    x, c = pictures, torch.tensor(TARGETS)
    leaf = x.clone().requires_grad_()
    if name == "saliency":
        assert_parity(ours(name, model, x), peer.Saliency(model).attribute(leaf, target=c).amax(1))
    elif name == "input_x_gradient":
        assert_parity(ours(name, model, x), peer.InputXGradient(model).attribute(leaf, target=c).sum(1))
    elif name == "integrated_gradients":
        assert_parity(ours(name, model, x), peer.IntegratedGradients(model).attribute(x, target=c).sum(1))
        few = peer.IntegratedGradients(model).attribute(x, target=c, n_steps=7).sum(1)
        assert_parity(ours(name, model, x, steps=7), few)
    else:  # windows of 38 pixels, 29 from each other, the last ones cut off; of captum's channels each is the map
        with torch.no_grad():
            want = peer.Occlusion(model).attribute(x, (3, 38, 38), (3, 29, 29), target=c)
        assert_parity(ours(name, model, x, window=0.4, stride=0.3), want[:, 1])


def test_captum_on_guided_backprop(tiny_cnn: nn.Module, pictures: Tensor) -> None:
    got = ours("guided_backprop", tiny_cnn, pictures)
    for module in tiny_cnn.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # which captum does not take
    peers, leaf = peer.GuidedBackprop(tiny_cnn), pictures.clone().requires_grad_()
    with pytest.warns(UserWarning, match="Setting backward hooks on ReLU"):
        want = peers.attribute(leaf, target=torch.tensor(TARGETS))
    assert_parity(got, want.abs().amax(1))


@pytest.mark.parametrize("of", ["saliency", "input_x_gradient"])
def test_noise_that_all_but_vanishes(of: str, tiny_vit: nn.Module, pictures: Tensor) -> None:
    assert_parity(ours("smoothgrad", tiny_vit, pictures, of=of, n=2, sigma=1e-6), ours(of, tiny_vit, pictures))


def test_integrated_gradients_add_up_to_the_difference(tiny_vit: nn.Module, pictures: Tensor) -> None:
    with torch.no_grad():
        rows = torch.arange(2)
        difference = (tiny_vit(pictures) - tiny_vit(torch.zeros_like(pictures)))[rows, TARGETS]
    found = ours("integrated_gradients", tiny_vit, pictures)
    torch.testing.assert_close(found.sum((1, 2)), difference, rtol=1e-3, atol=1e-3)
