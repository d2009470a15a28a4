"""Where networks are cut: variants of heads, inputs and layers, against timm's own intermediate features."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from conftest import lively
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain.cutting import Cut, find_cut
from interp_zoo.untouched import untouched


def cut_of(model: nn.Module, shape: tuple[int, int, int] = (3, 160, 160)) -> Cut:
    with untouched(model):
        return find_cut(model, shape)


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "layer", "grid"),
    [
        ("test_vit", {"global_pool": "avg"}, (160, 160), "norm", (10, 10)),
        ("test_vit", {"global_pool": "token"}, (160, 160), "blocks.4", (10, 10)),
        ("test_vit", {"global_pool": "map"}, (160, 160), "norm", (10, 10)),
        ("test_vit", {"in_chans": 1}, (160, 160), "blocks.4", (10, 10)),
        ("test_vit", {"img_size": (96, 160)}, (96, 160), "blocks.4", (6, 10)),
        ("test_vit", {"dynamic_img_size": True}, (128, 256), "blocks.4", (8, 16)),
        ("test_vit", {"reg_tokens": 4}, (160, 160), "blocks.4", (10, 10)),
        ("test_vit", {"reg_tokens": 4, "class_token": False, "global_pool": "avg"}, (160, 160), "norm", (10, 10)),
        ("test_resnet", {"in_chans": 1}, (160, 160), "layer4", (5, 5)),
        ("test_resnet", {}, (96, 200), "layer4", (3, 7)),
        ("test_resnet", {}, (64, 320), "layer4", (2, 10)),
        ("test_resnet", {"global_pool": "catavgmax"}, (160, 160), "layer4", (5, 5)),
        ("test_resnet", {"global_pool": "max"}, (160, 160), "layer4", (5, 5)),
        ("test_convnext", {}, (200, 96), "norm_pre", (6, 3)),
        ("test_mambaout", {}, (96, 192), "stages", (3, 6)),
        ("test_coatnet", {"img_size": (96, 160)}, (96, 160), "norm", (3, 5)),
    ],
)
@pytest.mark.filterwarnings("ignore:map .* is blank")  # an untrained network may speak against a class everywhere
def test_heads_and_input_sizes(
    name: str, kwargs: dict[str, Any], size: tuple[int, int], layer: str, grid: tuple[int, int]
) -> None:
    model = lively(name, num_classes=7, **kwargs)
    x = torch.randn(2, kwargs.get("in_chans", 3), *size, generator=torch.Generator().manual_seed(0))
    exp = interp_zoo.explain(model, x, "hirescam", target=[1, 6])
    assert exp.layer == layer
    assert tuple(exp.raw.shape[1:]) == grid
    assert tuple(exp.saliency.shape) == (2, *size)
    assert (exp.raw.amax((1, 2)) > exp.raw.amin((1, 2))).all()
    with torch.no_grad():
        want = model(x).softmax(1)
    torch.testing.assert_close(exp.probability, want[[0, 1], [1, 6]])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout", "test_convnext", "test_coatnet"])
def test_features_are_those_of_timm(name: str) -> None:
    """At the end of a stage or block, timm's own forward_intermediates gives the map on the picture's grid."""
    model = lively(name)
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    layer = {"test_resnet": "layer3", "test_vit": "blocks.3"}.get(name, "stages.2")
    index = {"test_resnet": 3, "test_vit": 3, "test_coatnet": 3}.get(name, 2)
    with torch.no_grad():
        want = model.forward_intermediates(x, indices=[index], intermediates_only=True, output_fmt="NCHW")[0]  # type: ignore[operator]
    torch.testing.assert_close(interp_zoo.Explainer(model, "gradcam", layer=layer).features(x), want)


def test_another_head_is_another_cut(batch: Tensor) -> None:
    model = timm.create_model("test_vit", num_classes=10).eval()
    assert cut_of(model).name == "blocks.4"
    model.reset_classifier(3, "avg")  # type: ignore[operator]
    assert cut_of(model).name == "norm"
    assert interp_zoo.explain(model, batch, "gradcam").layer == "norm"


def test_class_token_of_the_last_block_reads_nobody_elses_map() -> None:
    """The cut is before the last block: behind it, the patch tokens act on nothing."""
    model = lively("test_vit", num_classes=10)
    x = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    late = interp_zoo.Explainer(model, "gradcam", layer="blocks.5")
    with pytest.warns(UserWarning, match="blank"):
        assert not late(x).raw.any()
    assert interp_zoo.Explainer(model, "gradcam")(x).raw.any()


def test_frozen_and_gradient_checkpointing_change_nothing(batch: Tensor) -> None:
    model = lively("test_vit", num_classes=10)
    want = interp_zoo.Explainer(model, "gradcam").maps(batch)
    model.set_grad_checkpointing(True)  # type: ignore[operator]
    torch.testing.assert_close(interp_zoo.Explainer(model, "gradcam").maps(batch), want)
    model.requires_grad_(False)
    torch.testing.assert_close(interp_zoo.Explainer(model, "gradcam").maps(batch), want)


class _Other(nn.Module):
    """A classifier that is not timm's: no forward_features, no feature_info."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(inplace=True)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_any_classifier_will_do() -> None:
    torch.manual_seed(0)
    exp = interp_zoo.explain(_Other(), torch.randn(2, 3, 64, 48), "cam", target=2)
    assert exp.layer == "body"
    assert tuple(exp.raw.shape) == (2, 16, 12)


def test_only_what_comes_after_the_cut_runs_again() -> None:
    model = lively("test_vit", num_classes=10)
    calls = {"early": 0, "late": 0}
    model.blocks[0].attn.qkv.register_forward_hook(lambda *_: calls.update(early=calls["early"] + 1))  # type: ignore[index, union-attr]
    model.blocks[5].attn.qkv.register_forward_hook(lambda *_: calls.update(late=calls["late"] + 1))  # type: ignore[index, union-attr]
    x = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    explainer = interp_zoo.Explainer(model, "ablationcam", batch_size=8)
    explainer.maps(x)  # finds the cut
    calls.update(early=0, late=0)
    explainer.maps(x)
    assert calls == {"early": 1, "late": 1 + 64 // 8}
