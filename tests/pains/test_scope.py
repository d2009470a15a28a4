"""Pains 20, 21, 24 and 25: what is out of scope and says so, attention in fused kernels, metrics that agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import assert_one_line, lively
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain import masking
from interp_zoo.explain.inputs import Preprocess
from interp_zoo.metrics.functional import average_drop, insertion_curve

pytestmark = pytest.mark.filterwarnings("ignore:map .* is blank")  # what an untrained network says of some classes


class Replies(nn.Module):
    """A network that is no classifier of pictures."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv: nn.Module = nn.Conv3d(3, 4, 3) if kind == "video" else nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Any:
        maps: Tensor = self.conv(x)
        if self.kind == "detector":
            return [{"boxes": maps.mean((1, 2)), "scores": maps.mean((1, 2, 3))}]
        return maps if self.kind == "segmenter" else maps.flatten(2).mean(2)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = lively("test_resnet", num_classes=10)

    def forward(self, x: Tensor, age: Tensor) -> Tensor:
        return torch.cat([self.net(x), age], 1)


class ByKeyword(nn.Module):
    def forward(self, x: Tensor, *, age: Tensor) -> Tensor:
        return x.mean((2, 3)) + age


class TextAndPicture(nn.Module):
    def forward(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None) -> Tensor:
        assert pixel_values is not None
        return pixel_values.mean((2, 3))


@pytest.mark.parametrize(
    ("kind", "inputs"), [(TwoInputs, "x, age"), (ByKeyword, "x, age"), (TextAndPicture, "input_ids, pixel_values")]
)
def test_pain_20_several_inputs(kind: type[nn.Module], inputs: str, batch: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"`model` takes several inputs \({inputs}\).*wrap it so that") as error:
        interp_zoo.explain(kind().eval(), batch, "gradcam")
    assert_one_line(error.value)


def test_pain_20_the_other_input_fixed(batch: Tensor) -> None:
    """What the guide tells to do: a module around it."""
    model = TwoInputs().eval()

    class At(nn.Module):
        def __init__(self, model: nn.Module, age: Tensor) -> None:
            super().__init__()
            self.model = model
            self.age: Tensor
            self.register_buffer("age", age)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.model(x, self.age.expand(len(x), -1))
            return out

    exp = interp_zoo.explain(At(model, torch.tensor([[30.0]])).eval(), batch, "hirescam", target=3)
    torch.testing.assert_close(exp.raw, interp_zoo.explain(model.net, batch, "hirescam", target=3).raw)


@pytest.mark.parametrize(
    ("kind", "elsewhere"), [("detector", "xaitk-saliency"), ("segmenter", "captum"), ("video", "captum")]
)
def test_pain_21_out_of_scope(kind: str, elsewhere: str, batch: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"`model` .*out of scope here[:,] see {elsewhere}") as error:
        interp_zoo.explain(Replies(kind).eval(), batch, "gradcam")
    assert_one_line(error.value)


@pytest.mark.parametrize("method", ["attention_rollout", "gradient_rollout", "legrad"])
def test_pain_24_attention_in_fused_kernels(method: str, tiny_vit: nn.Module, batch: Tensor) -> None:
    before = [vars(m).get("fused_attn") for m in tiny_vit.modules()]
    assert True in before
    exp = interp_zoo.explain(tiny_vit, batch, method, target=3)
    assert [vars(m).get("fused_attn") for m in tiny_vit.modules()] == before
    for module in tiny_vit.modules():
        if "fused_attn" in vars(module):
            module.__dict__["fused_attn"] = False
    torch.testing.assert_close(interp_zoo.explain(tiny_vit, batch, method, target=3).saliency, exp.saliency)


def test_pain_24_windows_are_refused() -> None:
    model = lively("swin_tiny_patch4_window7_224", num_classes=5, depths=(1, 1), embed_dim=24, num_heads=(2, 2))
    with pytest.raises(
        ValueError, match=r'`method` "attention_rollout" .*plain vision transformers.*use "gradcam"'
    ) as e:
        interp_zoo.explain(model, torch.randn(1, 3, 224, 224), "attention_rollout")
    assert_one_line(e.value)


def test_pain_25_metrics_and_explanations_mask_alike(tiny_cnn: nn.Module, batch: Tensor) -> None:
    """One masking function: average drop of an explanation's own probabilities is that of its maps."""
    exp = interp_zoo.explain(tiny_cnn, batch, "gradcam", target=1)
    pre = Preprocess(tiny_cnn)
    mean, std = pre.mean[:, None, None], pre.std[:, None, None]
    masked = (masking.apply(batch * std + mean, exp.saliency) - mean) / std
    with torch.no_grad():
        before, after = (tiny_cnn(x).softmax(1)[:, 1] for x in (batch, masked))
    torch.testing.assert_close(exp.masked_probability, after)
    by_hand = ((before - after).clamp(min=0) / before * 100).double()
    found = average_drop(exp.probability, exp.masked_probability).double()
    torch.testing.assert_close(found, by_hand, atol=1e-3, rtol=1e-4)


def test_pain_25_curves_begin_and_end_where_they_must(tiny_cnn: nn.Module, batch: Tensor) -> None:
    """Insertion begins at the fill's probability and ends at the picture's own, whatever the map."""
    pre = Preprocess(tiny_cnn)
    mean, std = pre.mean[:, None, None], pre.std[:, None, None]

    def classify(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            probabilities: Tensor = tiny_cnn((pixels - mean) / std).softmax(1)
        return probabilities

    exp = interp_zoo.explain(tiny_cnn, batch, "gradcam", target=1)
    pixels = (batch * std + mean).clamp(0, 1)
    for fill in ("blur", "black", "mean"):
        curve = insertion_curve(classify, pixels, exp.saliency, exp.target, mean=pre.mean, fill=fill, step=6400)
        torch.testing.assert_close(curve[:, -1], classify(pixels)[:, 1])
        if fill != "blur":
            flat = torch.zeros(3) if fill == "black" else pre.mean
            torch.testing.assert_close(curve[:, 0], classify(flat[:, None, None].expand_as(pixels))[:, 1])
