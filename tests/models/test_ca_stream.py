"""The stream: its equations, its sizes, its start, and the networks that it can be attached to."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
from conftest import lively, lively_ca
from hypothesis import given, settings, strategies as st
from oracles import ca_stream
from torch import Tensor, nn
from torch.nn import functional as F

import interp_zoo
from interp_zoo.models import CAStream
from interp_zoo.models.ca_stream import Stream
from interp_zoo.models.counting import architecture, flops, parameters

CA_MODELS = [name for name in interp_zoo.list_models() if name.startswith("ca_")]

# The thesis' table: parameters that the stream adds, all parameters in millions, and GFLOPs that it adds, rounded from
# two rounded numbers.
TABLE = {
    "ca_resnet18": (439_808, 12.13, 0.004),
    "ca_resnet50": (6_969_152, 32.53, 0.020),
    "ca_convnext_small": (979_104, 51.20, 0.005),
    "ca_convnext_base": (1_739_648, 90.33, 0.006),
}


@pytest.fixture
def x() -> Tensor:
    """Two normalised pictures, not square, (2, 3, 64, 96)."""
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def attached(name: str, **kwargs: Any) -> CAStream:
    """A stream on a lively backbone, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return CAStream(lively(name, num_classes=7, **kwargs)).eval()


# --- the equations ---


def test_equals_its_twin_in_float64(x: Tensor) -> None:
    model = lively_ca(num_classes=7).double()
    with torch.no_grad():
        logits, attention = model.forward_attention(x.double())
        for i in range(2):
            blocks = ca_stream(model, x[i : i + 1].double())
            assert len(blocks) == len(attention) == 5
            for (_, want, _), found in zip(blocks, attention, strict=True):
                torch.testing.assert_close(found[i], want, rtol=1e-9, atol=1e-12)
            pooled = blocks[-1][2]
            torch.testing.assert_close(logits[i], model.backbone.fc(pooled), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(
                model.forward_head(model.forward_features(x.double()), pre_logits=True)[i], pooled
            )


def test_attention_sums_to_one_and_is_not_uniform(x: Tensor) -> None:
    _, attention = lively_ca(num_classes=7).forward_attention(x)
    grids = [(16, 24), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert [tuple(a.shape[1:]) for a in attention] == grids
    for a in attention:
        torch.testing.assert_close(a.sum((1, 2)), torch.ones(2))
        assert a.min() > 0
        assert (a.amax((1, 2)) > 1.1 * a.mean((1, 2))).all()


def test_one_forward_pass_gives_logits_and_attention(x: Tensor) -> None:
    model = lively_ca(num_classes=7)
    calls: list[Any] = []
    model.backbone.conv1.register_forward_hook(lambda *_: calls.append(1))
    logits, _ = model.forward_attention(x)
    assert len(calls) == 1
    torch.testing.assert_close(logits, model(x))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 12), st.booleans())
@settings(max_examples=40, deadline=None)
def test_streams_of_any_widths_start_at_the_average(dims: list[int], batch: int, places: int, dead: bool) -> None:
    stream = Stream(dims)
    maps = [torch.zeros(batch, places, d) if dead else torch.randn(batch, places, d) for d in dims]
    query = stream.query.repeat(batch, 1)
    for block, a in zip(stream.blocks, maps, strict=True):
        query = block(query, a)
    torch.testing.assert_close(query, maps[-1].mean(1))
    assert stream.untrained
    assert not Stream(dims, init="paper").untrained


# --- sizes ---


@pytest.mark.parametrize("name", TABLE)
def test_the_papers_sizes(name: str) -> None:
    added, total, gflops = TABLE[name]
    model: Any = architecture(name)
    assert parameters(model.stream) == added
    assert parameters(model) - parameters(model.backbone) == added
    assert round(parameters(model) / 1e6, 2) == total
    assert abs((flops(model) - flops(model.backbone)) / 1e9 - gflops) <= 0.001


def test_flops_are_two_for_each_multiplication() -> None:
    model = architecture("resnet18_cifar", num_classes=10)
    places = {1: 32 * 32, 2: 16 * 16, 3: 8 * 8, 4: 4 * 4}
    want = 9 * 3 * 64 * 32 * 32 + 512 * 10
    for stage, (before, width) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), 1):
        want += places[stage] * 9 * (before * width + 3 * width * width)
        want += places[stage] * before * width if before != width else 0
    assert flops(model) == 2 * want


# --- the start ---


@pytest.mark.parametrize("name", CA_MODELS)
def test_starts_at_the_backbones_predictions(name: str) -> None:
    """What `backbone_pretrained=True` gives, on weights and statistics far from an untrained network's."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name).eval()
    model.backbone.load_state_dict(lively(model.backbone.pretrained_cfg["architecture"]).state_dict())
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        want, found = model.backbone(x), model(x)
    assert want.std() > 1e-2
    assert (want[0] - want[1]).abs().max() > 1e-4
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def test_training_moves_the_whole_stream(x: Tensor) -> None:
    """From the start on, too, whose zeros let the gradient through to all of it within a few steps."""
    backbone = lively("test_resnet", num_classes=7).double()
    model = CAStream(backbone, ("maxpool", "layer1", "layer2", "layer3"))
    before = copy.deepcopy(model.stream.state_dict())
    optimizer = torch.optim.SGD(model.freeze_backbone().train().stream.parameters(), lr=1.0)
    for _ in range(8):
        optimizer.zero_grad()
        F.cross_entropy(model(x.double()), torch.tensor([2, 5])).backward()
        optimizer.step()
    moved = {name for name, tensor in model.stream.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(before)
    assert not model.stream.untrained


def test_a_frozen_backbone_does_not_move(x: Tensor) -> None:
    model = CAStream(lively("test_resnet", num_classes=7, drop_rate=0.5)).freeze_backbone()
    backbone, stream = copy.deepcopy(model.backbone.state_dict()), copy.deepcopy(model.stream.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        model.train()
        assert model.stream.training
        assert not any(m.training for m in model.backbone.modules())
        F.cross_entropy(model(x), torch.tensor([2, 5])).backward()
        optimizer.step()
    assert all(p.grad is None for p in model.backbone.parameters())
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, backbone[name]), name
    assert any(not torch.equal(tensor, stream[name]) for name, tensor in model.stream.state_dict().items())
    model.freeze_backbone(False).train()
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


# --- any backbone ---

# Layouts (maps, maps channels last, tokens), depths, heads with norms and convolutions behind the pooling.
BACKBONES = {
    "test_resnet": 5,
    "test_convnext": 4,
    "test_efficientnet": 6,
    "test_mambaout": 4,
    "test_nfnet": 5,
    "mobilenetv3_small_050": 5,
    "swin_s3_tiny_224": 4,
    "vit_tiny_patch16_224": 1,
    "test_vit2": 1,
}
BLIND = {"vit_tiny_patch16_224"}  # heads that read something else than the average


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone(name: str) -> None:
    backbone = lively(name, num_classes=7)
    state = copy.deepcopy(backbone.state_dict())
    if name in BLIND:
        with pytest.warns(UserWarning, match="does not read the average of its last map.*train the classifier, too"):
            model = CAStream(backbone).eval()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = CAStream(backbone).eval()
    assert len(model.stream.blocks) == BACKBONES[name]
    size = backbone.pretrained_cfg["input_size"]  # type: ignore[index]
    x = torch.randn(2, *size)
    with torch.no_grad():
        found, want = model(x), backbone(x)
        tokens = model.forward_features(x)
        _, attention = model.forward_attention(x)
    if name not in BLIND:
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert tokens.shape[0] == 2
    assert tokens.shape[2] == model.num_features
    assert tokens.shape[1] == 1 + attention[-1][0].numel()
    for a in attention:
        torch.testing.assert_close(a.flatten(1).sum(1), torch.ones(2))
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_tokens_without_the_class_token_are_averaged() -> None:
    """A plain transformer that pools its patches starts at its own predictions, class token or not."""
    model = attached("test_vit", global_pool="avg")
    x = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(model(x), model.backbone(x), rtol=1e-4, atol=1e-5)


def test_building_touches_nothing_else() -> None:
    backbone = lively("test_resnet").train()
    backbone.get_submodule("layer2").eval()
    modes = [m.training for m in backbone.modules()]
    state, grads = copy.deepcopy(backbone.state_dict()), [p.grad for p in backbone.parameters()]
    with torch.inference_mode():
        CAStream(lively("test_resnet"))
    CAStream(backbone)
    assert [m.training for m in backbone.modules()] == modes
    assert [p.grad for p in backbone.parameters()] == grads
    assert all(torch.equal(t, state[k]) for k, t in backbone.state_dict().items())


def test_building_fills_no_cache() -> None:
    """LeViT keeps its attention biases in eval mode, and would go on with them after they are trained."""
    backbone: Any = timm.create_model("levit_128s").train()
    CAStream(backbone)
    flops(backbone)
    caches = [module.attention_bias_cache for module in backbone.modules() if hasattr(module, "attention_bias_cache")]
    assert len(caches) > 5
    assert not any(caches)


def test_on_meta_and_in_half_precision() -> None:
    with torch.device("meta"):
        assert {p.device.type for p in CAStream(timm.create_model("test_resnet")).parameters()} == {"meta"}
    model = CAStream(lively("test_resnet").bfloat16()).eval()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    model = CAStream(lively("test_resnet")).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize(
    ("build", "kind", "match"),
    [
        (
            lambda: CAStream(timm.create_model("test_resnet"), "layer2"),
            TypeError,
            '`taps` is "layer2", but must be a list',
        ),
        (lambda: CAStream(timm.create_model("test_resnet", global_pool="")), TypeError, "cannot read a single place"),
        (lambda: CAStream(nn.Linear(2, 2)), TypeError, "`backbone` is a Linear without timm's forward_features"),
        (lambda: CAStream(timm.create_model("crossvit_tiny_240")), TypeError, "`backbone` gives list and no single"),
        (
            lambda: CAStream(timm.create_model("pit_ti_224")),
            TypeError,
            r"`backbone` gives a tensor of shape \(1, 1, 256\)",
        ),
        (lambda: CAStream(timm.create_model("volo_d1_224")), TypeError, "has a head that cannot read a single place"),
        (
            lambda: CAStream(timm.create_model("test_resnet"), ["layer9"]),
            ValueError,
            '`taps` names "layer9", which is no',
        ),
        (
            lambda: CAStream(timm.create_model("test_resnet"), ["fc"]),
            ValueError,
            '`taps` names "fc", which is not run',
        ),
        (
            lambda: CAStream(timm.create_model("test_resnet"), ["global_pool"]),
            ValueError,
            '`taps` names "global_pool", which is not run: name another',
        ),
        (
            lambda: timm.create_model("ca_resnet18", init="zeros"),
            ValueError,
            '`init` is "zeros", but must be "identity"',
        ),
        (
            lambda: timm.create_model("ca_resnet18", global_pool="max"),
            ValueError,
            '`global_pool` is "max", but in a CA-',
        ),
    ],
)
def test_what_cannot_be(build: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(64, 96), (32, 64)])
def test_layouts_of_pictures_that_are_not_square(size: tuple[int, int]) -> None:
    """32 channels on 32 rows: the shape alone would not tell."""
    backbone: Any = lively("test_resnet", num_classes=7)
    backbone.pretrained_cfg["input_size"] = (3, *size)
    model = CAStream(backbone)
    blocks: Any = model.stream.blocks
    widths = [block.proj.in_features for block in blocks]
    assert widths == [
        *(info["num_chs"] for info in backbone.feature_info[: len(model.stream.blocks) - 1]),
        backbone.num_features,
    ]
