"""Pains 6 to 8: frozen weights, memory that grows, models that come back changed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from conftest import lively
from torch import Tensor, nn

import interp_zoo


@pytest.mark.parametrize("way", ["frozen", "no_grad", "inference_mode"])
@pytest.mark.parametrize("method", ["gradcam", "opticam", "integrated_gradients"])
def test_pain_06_gradients_where_there_are_none(way: str, method: str, tiny_cnn: nn.Module, batch: Tensor) -> None:
    options: dict[str, Any] = {"opticam": {"iterations": 3}, "integrated_gradients": {"steps": 3}}.get(method, {})
    want = interp_zoo.explain(tiny_cnn, batch, method, target=3, **options).saliency
    if way == "frozen":
        tiny_cnn.requires_grad_(False)
        got = interp_zoo.explain(tiny_cnn, batch, method, target=3, **options).saliency
    else:
        with torch.no_grad() if way == "no_grad" else torch.inference_mode():
            got = interp_zoo.explain(tiny_cnn, batch, method, target=3, **options).saliency
    assert torch.equal(got, want)
    assert want.max() > 0


def test_pain_07_nothing_stays(tiny_vit: nn.Module, batch: Tensor) -> None:
    """No hook, no graph; tests/explain/test_no_trace.py has a thousand calls."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in tiny_vit.modules()]
    exp = interp_zoo.explain(tiny_vit, batch, "gradcam")
    assert hooks == [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in tiny_vit.modules()
    ]
    assert not exp.raw.requires_grad
    before = weakref.ref(exp.raw)
    del exp
    gc.collect()
    assert before() is None
    tensors = sum(issubclass(type(o), Tensor) for o in gc.get_objects())
    for _ in range(20):
        interp_zoo.explain(tiny_vit, batch, "gradcam")
    gc.collect()
    assert sum(issubclass(type(o), Tensor) for o in gc.get_objects()) <= tensors


def test_pain_08_in_the_midst_of_training(batch: Tensor) -> None:
    """A step of training with an explanation between backward and step is the same step, to the last bit."""
    steps: list[dict[str, Tensor]] = []
    for explained in (False, True):
        model = lively("test_resnet", num_classes=10).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        nn.functional.cross_entropy(model(batch), torch.zeros(len(batch), dtype=torch.long)).backward()
        if explained:
            interp_zoo.explain(model, batch, "gradcam")
            assert model.training
        optimizer.step()
        steps.append({k: v.clone() for k, v in model.state_dict().items()})
    assert all(torch.equal(steps[0][k], steps[1][k]) for k in steps[0])
