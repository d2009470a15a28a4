"""Opti-CAM on several pictures in one pass: only where that changes no bit of what each comes to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import lively
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.targets import Target

STEPS = 12


def passes(model: nn.Module, x: Tensor, **options: Any) -> tuple[list[int], Tensor]:
    """How many pictures went through the network in each of Opti-CAM's steps, and the maps."""
    found: list[int] = []
    found_logits = Anatomy.logits

    def logits(self: Anatomy, pixels: Tensor, **normalised: bool) -> Tensor:
        found.append(len(pixels))
        return found_logits(self, pixels, **normalised)

    explainer = interp_zoo.Explainer(model, "opticam", iterations=STEPS, **options)
    explainer(x, target=3)  # tries whether they go together
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Anatomy, "logits", logits)
        maps = explainer.maps(x, target=3)
    return found, maps


@pytest.mark.parametrize("together", [True, False])
def test_pictures_that_change_nothing_for_each_other_go_together(
    together: bool, batch: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Anatomy, "alike", lambda _self, pixels, _target: len(pixels) == 1 or together)
    found, _ = passes(lively("test_vit", num_classes=10), batch[:3])
    assert found == ([3] * STEPS if together else [1] * 3 * STEPS)


@pytest.mark.parametrize(("most", "parts"), [(8, [3]), (2, [2, 1])])
def test_a_cpu_gets_few_at_once(most: int, parts: list[int], batch: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp_zoo.memory.BACKWARD_PIXELS", most * batch.shape[2] * batch.shape[3] + 1)
    monkeypatch.setattr(Anatomy, "alike", lambda *_: True)
    found, _ = passes(lively("test_vit", num_classes=10), batch[:3])
    assert found == parts * STEPS


@pytest.mark.parametrize(("several", "alike"), [(2, False), (3, False), (4, True)])
@pytest.mark.parametrize("what", ["logits", "gradients"])
def test_whether_they_do_is_tried(
    what: str, several: int, alike: bool, batch: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network that takes pictures one by one, but rounds otherwise where it is given `several` or more."""

    def logits(_self: Anatomy, pixels: Tensor) -> Tensor:
        found = torch.stack([p.mean() * torch.arange(10.0).to(p) for p in pixels])
        off = 2**-20 * found if len(pixels) >= several else 0 * found
        return found + (off if what == "logits" else off - off.detach())  # which is nothing, but for its gradient

    model, target = lively("test_vit", num_classes=10).double(), Target(torch.tensor([3, 3, 3]))
    with interp_zoo.Explainer(model, "opticam").anatomy(batch[:3].double()) as (anatomy, pixels):
        monkeypatch.setattr(Anatomy, "logits", logits)
        assert anatomy.alike(pixels[:1], target[:1])
        assert anatomy.alike(pixels, target) == alike
        monkeypatch.setattr(Anatomy, "logits", None)
        assert anatomy.alike(pixels, target) == alike, "once is enough"


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_a_picture_has_one_map(name: str, batch: Tensor) -> None:
    """To the last bit, in float32, in 25 steps that enlarge the least difference."""
    explainer = interp_zoo.Explainer(lively(name, num_classes=10), "opticam")
    x = batch[:3, :, :96, :96] if name != "test_vit" else batch[:3]
    together = explainer(x, target=[1, 2, 3]).raw
    assert torch.equal(together, torch.cat([explainer(x[i], target=i + 1).raw for i in range(3)]))
    assert torch.equal(together, interp_zoo.Explainer(explainer.model, "opticam", batch_size=2)(x, [1, 2, 3]).raw)


def test_a_picture_that_stops_leaves_its_batch(batch: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Anatomy, "alike", lambda *_: True)
    found, _ = passes(lively("test_vit", num_classes=10), batch[:3], early_stop=True, lr=30.0)
    assert found[0] == 3
    assert found == sorted(found, reverse=True)
    assert found[-1] < 3
    assert len(found) <= STEPS
