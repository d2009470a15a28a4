"""Networks with a CA-Stream, explained: the stream's own maps, and the stream in the way of all others' gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import lively, lively_ca
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain.cutting import find_cut
from interp_zoo.models import CAStream
from interp_zoo.untouched import untouched

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:map .* is blank:UserWarning")]


def pictures(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("size", [(64, 64), (64, 160), (97, 65)])
@pytest.mark.parametrize("block", [0, 1, 2, 3, 4, -1, -5])
def test_maps_are_the_forward_passs_own(block: int, size: tuple[int, int]) -> None:
    model, x = lively_ca(), pictures(*size)
    with torch.no_grad():
        want = model.forward_attention(x)[1][block]
    exp = interp_zoo.explain(model, x, "attention", block=block, softmax=True)
    torch.testing.assert_close(exp.raw, want, rtol=1e-5, atol=1e-9)
    assert exp.saliency.shape == (2, *size)
    scores = interp_zoo.explain(model, x, "attention", block=block)
    torch.testing.assert_close(scores.raw.flatten(1).softmax(1).view_as(want), want, rtol=1e-4, atol=1e-8)
    assert (scores.raw.amin((1, 2)) == 0).all()
    assert (scores.cost.forward, scores.cost.backward, scores.cost.tail) == (1, 0, 0)


def test_maps_on_transformers_and_windows() -> None:
    for model in (
        CAStream(lively("test_vit", global_pool="avg"), init="paper").eval(),
        CAStream(lively("swin_s3_tiny_224"), init="paper").eval(),
    ):
        x = torch.randn(1, *model.pretrained_cfg["input_size"])
        with torch.no_grad():
            want = model.forward_attention(x)[1]
        for block, a in enumerate(want):
            raw = interp_zoo.explain(model, x, "attention", block=block, softmax=True).raw
            assert raw.shape[1] == raw.shape[2]
            torch.testing.assert_close(raw.flatten(1), a.flatten(1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["attention", "gradcam", "reciprocam"])
def test_wrapped_models_are_cut_at_the_same_place(method: str) -> None:
    """By its layers alone, without timm's interface: nothing gets around the tokens."""
    model, x = lively_ca(num_classes=7).double(), pictures(64, 160).double()
    wrapped = nn.Sequential(nn.Identity(), model)
    want, found = (interp_zoo.explain(m, x, method, target=3) for m in (model, wrapped))
    assert (want.layer, found.layer) == ("tokens", "1.tokens")
    torch.testing.assert_close(found.raw, want.raw)


def test_all_that_the_stream_reads_goes_through_the_stem() -> None:
    """Also its keys and values, which the stem's tap takes after a cut there."""
    model = lively_ca(num_classes=7)
    with untouched(model):
        stem, stage = (find_cut(model, (3, 64, 64), f"backbone.{layer}") for layer in ("maxpool", "layer2"))
    assert stem.bottleneck
    assert not stage.bottleneck


def gradcam_at(model: nn.Module, x: Tensor, layer: str, *, prepend: bool) -> Tensor:
    """Grad-CAM of class 3 by a hook of the test's own, which comes before the stream's taps with `prepend`."""
    leaves: list[Tensor] = []

    def put(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[-1].clone()

    handle = model.get_submodule(layer).register_forward_hook(put, prepend=prepend)
    logits = model(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, 3].sum(), leaves[0])
    return (gradient.mean((2, 3), keepdim=True) * leaves[0]).sum(1)


@pytest.mark.parametrize("layer", ["backbone.layer3", "backbone.layer3.0"])  # the stage, and the block that ends it
def test_gradients_go_through_the_whole_stream(layer: str) -> None:
    """At a tapped layer A enters the stream as key and value, and the next layer: the gradient comes both ways."""
    model, x = lively_ca(num_classes=7).double(), pictures(64, 64).double()
    want, one_way = (gradcam_at(model, x, layer, prepend=prepend) for prepend in (True, False))
    exp = interp_zoo.explain(model, x, "gradcam", target=3, layer=layer)
    assert exp.layer == layer
    size = want.abs().max()
    assert (exp.raw - want).abs().max() < 1e-6 * size
    assert layer == "backbone.layer3.0" or (one_way - want).abs().max() > 1e-4 * size


@pytest.mark.parametrize("method", ["ablationcam", "reciprocam"])
def test_tails_alone_hold_the_stream(method: str) -> None:
    """What is answered from memory before a tapped layer, and what the tap then sees, give the model's own logits."""
    model, x = lively_ca(num_classes=7).double(), pictures(64, 64).double()
    explainer = interp_zoo.Explainer(model, method, layer="backbone.layer2")
    with explainer.anatomy(x) as (anatomy, pixels):
        split = anatomy.split(pixels)
        other = split.maps.detach() * torch.linspace(0.5, 1.5, split.maps.shape[3])
        got = torch.stack([anatomy.tail(pixels, i, other[i : i + 1])[0] for i in range(2)])

    def put(_module: nn.Module, _args: Any, _output: Tensor) -> Tensor:
        return other.clone()

    handle = model.get_submodule("backbone.layer2").register_forward_hook(put, prepend=True)
    want = model(x)
    handle.remove()
    assert (want - model(x)).abs().max() > 1e-6
    torch.testing.assert_close(got.detach(), want.detach(), rtol=1e-9, atol=1e-9)


def test_saturated_attention_is_cut_at_the_last_map() -> None:
    """Where attention is one at one place, no other place has a gradient, but the head reads them all."""
    model, x = lively_ca(num_classes=7), pictures(64, 64)
    with torch.no_grad():
        model.stream.query.mul_(1e6)
        model.backbone.layer4.register_forward_hook(lambda _m, _a, out: out * 1e4)
    logits, attention = model.forward_attention(x)
    assert attention[-1].amax((1, 2)).min() == 1
    assert logits.isfinite().all()
    assert interp_zoo.explain(model, x, "gradcam").layer == "tokens"


def test_hooks_of_the_users_act_on_every_pass() -> None:
    """What a hook makes of a layer's output belongs to what follows the layer, whole passes and tails alike."""
    model, x = lively("test_resnet", num_classes=7).double(), pictures(64, 64).double()
    model.get_submodule("layer2").register_forward_hook(lambda _m, _a, out: out.clamp(max=0.3))
    model.get_submodule("layer3").register_forward_hook(lambda _m, _a, out: 2 * out)
    stream = lively_ca(num_classes=7).double()
    stream.get_submodule("backbone.layer1.0").register_forward_hook(lambda _m, _a, out: 2 * out)
    for network, layer in ((model, "layer2"), (model, "layer3"), (model, "layer4"), (stream, "backbone.layer3")):
        explainer = interp_zoo.Explainer(network, "gradcam", layer=layer)
        with explainer.anatomy(x) as (anatomy, pixels), torch.no_grad():
            split = anatomy.split(pixels)
            torch.testing.assert_close(split.logits, network(x))
            for i in range(2):
                tail = anatomy.tail(pixels, i, split.maps[i : i + 1])
                torch.testing.assert_close(tail[0], split.logits[i])


@pytest.mark.parametrize("layer", ["stages.1", "stages.2", "stages.2.blocks.0", "stages.3.blocks.0.mlp.fc2"])
@pytest.mark.parametrize("method", ["ablationcam", "reciprocam", "gradcam"])
def test_layers_after_taps_within_them(layer: str, method: str) -> None:
    """ConvNeXt's taps are within its stages, which a tail that starts later does not run."""
    backbone = lively("test_convnext", num_classes=7)
    model = CAStream(backbone, ("stem", "stages.1.downsample", "stages.2.downsample"), init="paper").eval().double()
    x = pictures(96, 96).double()
    explainer = interp_zoo.Explainer(model, method, layer=f"backbone.{layer}")
    assert explainer(x, target=[1, 2]).raw.isfinite().all()
    with explainer.anatomy(x) as (anatomy, pixels), torch.no_grad():
        split = anatomy.split(pixels)
        torch.testing.assert_close(split.logits, model(x))
        for i in range(2):
            torch.testing.assert_close(anatomy.tail(pixels, i, split.maps[i : i + 1])[0], split.logits[i])


@pytest.mark.usefixtures("quick")
def test_streams_that_cannot_be_shown() -> None:
    model, x = lively_ca(num_classes=7), pictures(64, 64)
    with pytest.raises(ValueError, match='`layer` does not go with method "attention"'):
        interp_zoo.explain(model, x, "attention", layer="backbone.layer2")
    untrained = CAStream(lively("test_resnet")).eval()
    with pytest.raises(ValueError, match="the stream is not trained yet, and its last block's attention is uniform"):
        interp_zoo.explain(untrained, x, "attention")
    assert interp_zoo.explain(untrained, x, "attention", block=0).raw.amax() > 0
    assert "not trained yet" in interp_zoo.compare(untrained, x).left_out["attention"]

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.network = lively_ca(num_classes=7), lively("test_resnet", num_classes=7)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.network(x)
            return logits

    with pytest.raises(ValueError, match="the model does not run its stream"):
        interp_zoo.explain(Idle().eval(), x, "attention")


def test_hooks_of_the_users_do_not_move_the_cut() -> None:
    """What a layer returned is recorded before its hooks, which then act once, not twice."""
    model, x = lively("test_vit", num_classes=7).double(), torch.randn(2, 3, 160, 160).double()
    with untouched(model):
        want = find_cut(model, (3, 160, 160)).name
    assert want == "blocks.4"
    hooked = lively("test_vit", num_classes=7).double()
    hooked.get_submodule(want).register_forward_hook(lambda _m, _a, out: 1.5 * out)
    with untouched(hooked):
        cut = find_cut(hooked, (3, 160, 160))
    assert (cut.name, cut.bottleneck) == (want, True)
    with interp_zoo.Explainer(hooked, "gradcam").anatomy(x) as (anatomy, pixels), torch.no_grad():
        torch.testing.assert_close(anatomy.split(pixels).logits, hooked(x))
