"""The peers' own numbers: pytorch-grad-cam's and torchcam's metrics, on the same maps, in their protocols."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchcam.methods import GradCAM
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from interp_zoo.metrics import AverageDrop, AverageIncrease
from interp_zoo.metrics.functional import average_drop, average_increase, deletion, insertion

CLASSES = [3, 1, 7]


def maps(x: Tensor) -> Tensor:
    """Any maps (B, H, W) in [0, 1]."""
    coarse = torch.rand(len(x), 1, 5, 5, generator=torch.Generator().manual_seed(2))
    return interpolate(coarse, size=x.shape[2:], mode="bilinear")[:, 0]


def scores(model: nn.Module, x: Tensor, saliency: Tensor, *, softmax: bool) -> tuple[Tensor, Tensor]:
    """The classes' scores (B,) on the normalised pictures, and on these under their maps."""
    with torch.no_grad():
        both = [model(x), model(x * saliency[:, None])]
    rows = torch.arange(len(x))
    one, other = [(logits.softmax(1) if softmax else logits)[rows, CLASSES] for logits in both]
    return one, other


@pytest.mark.parametrize("softmax", [True, False])
def test_pytorch_grad_cams(softmax: bool, tiny_cnn: nn.Module, batch: Tensor) -> None:
    saliency = maps(batch)
    before, after = scores(tiny_cnn, batch, saliency, softmax=softmax)
    kind: Any = ClassifierOutputSoftmaxTarget if softmax else ClassifierOutputTarget
    given = (batch, saliency.numpy(), [kind(c) for c in CLASSES], tiny_cnn)
    for peer, function in ((DropInConfidence, average_drop), (IncreaseInConfidence, average_increase)):
        want = 100 * peer()(*given)
        got = function(before, after, protocol="pytorch-grad-cam")
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-4)
    assert (average_drop(before, after, protocol="pytorch-grad-cam") > 0).any()


def torchcams(model: nn.Module, x: Tensor, *, softmax: bool) -> tuple[GradCAM, Tensor]:
    """Its extractor, and its maps of our classes, (B, H, W), as its metrics see them: gradients of the same scores."""
    extractor = GradCAM(model, "layer4")
    logits = model(x)
    cams = extractor(CLASSES, logits.softmax(1) if softmax else logits)
    return extractor, interpolate(cams[0][:, None], size=x.shape[2:], mode="bilinear")[:, 0]


@pytest.mark.parametrize("softmax", [False, True])  # torchcam takes logits unless told
def test_torchcams_drop_and_increase(softmax: bool, tiny_cnn: nn.Module, batch: Tensor) -> None:
    extractor, saliency = torchcams(tiny_cnn, batch, softmax=softmax)
    peer = ClassificationMetric(extractor, (lambda logits: logits.softmax(-1)) if softmax else None)
    peer.update(batch, CLASSES)
    extractor.remove_hooks()
    before, after = scores(tiny_cnn, batch, saliency, softmax=softmax)
    drop, increase = AverageDrop(protocol="torchcam"), AverageIncrease(protocol="torchcam")
    for metric in (drop, increase):
        metric.update(before, after)
    assert drop.compute().item() == pytest.approx(100 * peer.summary()["avg_drop"], rel=1e-4, abs=1e-4)
    assert increase.compute().item() == pytest.approx(100 * peer.summary()["conf_increase"])


def test_torchcams_insertion_and_deletion(tiny_cnn: nn.Module, batch: Tensor) -> None:
    """Its baseline of zeros is our mean colour, for both; a twentieth of the pixels a step."""
    extractor, saliency = torchcams(tiny_cnn, batch, softmax=True)
    peer = DeletionInsertionMetric(extractor, lambda logits: logits.softmax(-1), steps=20)
    peer.update(batch, CLASSES)
    extractor.remove_hooks()
    mean = torch.zeros(3)  # normalised pictures, of which the mean colour is 0
    given: Any = (lambda x: tiny_cnn(x).softmax(1), batch, saliency, torch.tensor(CLASSES))
    options: Any = {"mean": mean, "fill": "mean", "step": 160 * 160 // 20}
    assert insertion(*given, **options).mean().item() == pytest.approx(100 * peer.summary()["insertion_auc"], rel=1e-4)
    assert deletion(*given, **options).mean().item() == pytest.approx(100 * peer.summary()["deletion_auc"], rel=1e-4)


def test_logits_are_refused_in_the_papers_protocol_alone() -> None:
    before, after = torch.tensor([3.0, -2.0]), torch.tensor([1.0, -3.0])
    with pytest.raises(ValueError, match=r"`before` holds values outside of \[0, 1\]"):
        average_drop(before, after)
    torch.testing.assert_close(average_drop(before, after, protocol="pytorch-grad-cam"), torch.tensor([200.0, 100.0]))
    with pytest.raises(
        ValueError, match='`protocol` is "gradcam", but must be one of papers, pytorch-grad-cam, torchcam'
    ):
        average_drop(before, after, protocol="gradcam")  # type: ignore[arg-type]
