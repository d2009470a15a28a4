"""A model with a stream as a module: gradients, precision, copies, threads, compiled parts, checkpointing."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import timm
import torch
from conftest import lively, lively_ca
from torch import Tensor, nn
from torch.nn import functional as F

import interp_zoo
from interp_zoo.models import CAStream
from interp_zoo.models.ca_stream import CABlock

# Those of one kind differ in how often a block is repeated.
KINDS = [
    n
    for n in interp_zoo.list_models()
    if n.startswith("ca_") and n not in ("ca_resnet101", "ca_convnext_small", "ca_convnext_base")
]


@pytest.fixture
def x() -> Tensor:
    """Two normalised pictures, not square, (2, 3, 64, 96)."""
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_a_picture_alone(name: str) -> None:
    """One picture has the gradient that it has in a batch: at the input, and at the backbone's convolutions."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name, init="paper", num_classes=7).double().eval()
    first = model.get_submodule(model.pretrained_cfg["first_conv"]).weight
    x = torch.randn(1, *(min(s, 64) for s in model.pretrained_cfg["input_size"]), dtype=torch.float64)
    found = []
    for n in (1, 2):
        pictures = x.repeat(n, 1, 1, 1).requires_grad_()
        gradients = torch.autograd.grad(model(pictures)[:, 3].sum() / n, [pictures, first])
        found.append((gradients[0][:1] * n, gradients[1]))
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-9 * together.abs().max().item())


def test_large_features_in_half_precision() -> None:
    """Scores are scaled before they are summed: 2,048 products of large numbers do not fit into float16."""
    block = CABlock(2048, 4).half()
    query, attention = block.attend(torch.full((1, 2048), 8.0).half(), 10 * torch.rand(1, 49, 2048).half())
    assert attention.isfinite().all()
    assert query.isfinite().all()


def test_parts_can_be_compiled(x: Tensor) -> None:
    for part in ("layer1", "layer3"):
        model = lively_ca(num_classes=7)
        with torch.no_grad():
            want, other = model(x), model(2 * x)
            model.backbone.get_submodule(part).compile(backend="eager")
            torch.testing.assert_close(model(x), want)
            torch.testing.assert_close(model(2 * x), other)


def test_a_layer_that_is_passed_by(x: Tensor) -> None:
    model = lively_ca(num_classes=7)
    model.backbone.layer2 = nn.Sequential(*model.backbone.layer2)  # another module, without the tap
    for part in model.backbone.layer2.modules():
        part._forward_hooks.clear()
    with pytest.raises(RuntimeError, match='the layer "layer2" was not run in this pass, but the stream taps it'):
        model(x)


def test_copies_in_the_midst_of_a_pass(x: Tensor) -> None:
    model = lively_ca(num_classes=7)
    copies: list[Any] = []
    handle = model.backbone.layer4.register_forward_hook(lambda *_: copies.append(copy.deepcopy(model)))
    want = model(x)
    handle.remove()
    assert torch.equal(copies[0](x), want)


def test_a_refused_backbone_is_as_it_was() -> None:
    backbone = lively("test_resnet")
    for taps in (["layer1", "layer9"], ["layer1", "fc"]):
        with pytest.raises(ValueError, match="`taps` names"):
            CAStream(backbone, taps)
    assert not any(module._forward_hooks for module in backbone.modules())


def test_copies_are_whole(x: Tensor) -> None:
    model = lively_ca(num_classes=7)
    want = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), want)
        with torch.no_grad():
            twin.backbone.conv1[0].weight.zero_()  # its own taps, not the other's
        assert not torch.equal(twin(x), want)
        assert torch.equal(model(x), want)


def test_threads_do_not_mix(x: Tensor) -> None:
    model = lively_ca(num_classes=7)
    pictures = [x + i for i in range(4)]
    with torch.no_grad():
        want = [model(picture) for picture in pictures]
    wrong: list[int] = []

    def run(i: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                if not torch.allclose(model(pictures[i]), want[i], atol=1e-6):
                    wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_is_kept_after_a_pass(x: Tensor) -> None:
    model = lively_ca(num_classes=7)
    model(x)
    assert not model._taps._kept
    with pytest.raises(RuntimeError, match="channels"):
        model(x[:, :2])

    def fail(*_: Any) -> None:
        raise IndexError("too late")

    model.backbone.layer4.register_forward_hook(fail)  # when all maps before it are kept
    with pytest.raises(IndexError, match="too late"):
        model(x)
    assert not model._taps._kept


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_gradients_with_checkpointing(name: str) -> None:
    """Checkpointing runs a stage's blocks one by one, and again in the backward pass."""
    model = CAStream(lively(name, num_classes=7), init="paper").train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x, y = torch.randn(2, 3, 64, 64), torch.tensor([2, 5])
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert not model._taps._kept
    assert len(found[0]) == len(found[1]) == len(list(model.parameters()))
    for without, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, without, rtol=1e-4, atol=1e-6)
