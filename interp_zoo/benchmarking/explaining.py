"""Races of explanations and metrics against bare forward passes and pytorch-grad-cam.

Before a race against pytorch-grad-cam, the maps are compared: rectified, upsampled and scaled to [0, 1] by each
package, for the same classes at the same layer.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import pytorch_grad_cam
import torch
from pytorch_grad_cam.metrics.road import ROADMostRelevantFirstAverage
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from torch import Tensor, nn

from interp_zoo.benchmarking.apart import Apart
from interp_zoo.benchmarking.measuring import SAME_MAPS, Row, race
from interp_zoo.explain import Explainer
from interp_zoo.metrics.functional import deletion_curve, insertion_curve

PEER = "grad-cam"
MASKED_AT_ONCE = 16  # pytorch-grad-cam's Score-CAM, and our default `batch_size`


@dataclass(frozen=True)
class Peer:
    """A method of pytorch-grad-cam, on a copy of the model of its own: its hooks stay on it.

    Attributes:
        name: as the peer has it.
        model: the network.
        layer: which of its layers is explained.
    """

    name: str
    model: nn.Module
    layer: str

    @cached_property
    def cam(self) -> Any:
        """The peer's object. It cannot be pickled: it is made where it is used."""
        model = copy.deepcopy(self.model)
        return getattr(pytorch_grad_cam, self.name)(model, [model.get_submodule(self.layer)])

    def __call__(self, x: Tensor, classes: list[int]) -> Tensor:
        """Maps (B, H, W) in [0, 1]."""
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            return torch.from_numpy(self.cam(x, [ClassifierOutputTarget(c) for c in classes]))

    def race(
        self,
        what: str,
        explainer: Explainer,
        x: Tensor,
        classes: list[int],
        repetitions: int,
        goal: float | None,
        tolerance: float = SAME_MAPS,
    ) -> Row:
        """The same maps from both, first compared, then timed."""
        with Apart(partial(self, x, classes)) as alone:
            difference = (explainer.maps(x, classes) - replace(self)(x, classes)).abs().max().item()
            ours, base = race(partial(explainer.maps, x, classes), alone, repetitions)
        return Row(what, ours, f"{PEER}'s {self.name}", base, "x as fast", goal, difference, tolerance)


def forward(model: nn.Module, *batches: Tensor) -> Tensor:
    """The logits, by bare forward passes without gradients."""
    with torch.no_grad():
        return torch.cat([model(x) for x in batches])


def layouts(x: Tensor) -> list[tuple[str, Tensor]]:
    """Pictures as torch makes them, and as our explanations lay them out where the network takes that: it is faster."""
    return [("", x), (", channels last", x.contiguous(memory_format=torch.channels_last))]


def race_gradcam(model: nn.Module, x: Tensor, classes: list[int], layer: str, repetitions: int) -> Iterator[Row]:
    """Grad-CAM of a batch, against the peer and against one forward pass."""
    explainer, what = Explainer(model, "gradcam"), f"Grad-CAM, {len(x)} pictures"
    yield Peer("GradCAM", model, layer).race(what, explainer, x, classes, repetitions, goal=3)
    for layout, pictures in layouts(x):
        ours, base = race(partial(explainer.maps, x, classes), partial(forward, model, pictures), repetitions)
        yield Row(what, ours, f"1 forward pass{layout}", base, goal=None if layout else 1.15)
    ours, base = race(partial(explainer, x, classes), partial(forward, model, x), repetitions)
    yield Row(f"{what}, and them masked", ours, "1 forward pass", base)


def race_masks(model: nn.Module, x: Tensor, classes: list[int], layer: str, repetitions: int) -> Iterator[Row]:
    """Ablation-CAM and Score-CAM, against the peer, whose way of laying masks on is taken, and bare forward passes."""
    explainer, what = Explainer(model, "ablationcam"), "Ablation-CAM, 1 picture"
    yield Peer("AblationCAM", model, layer).race(what, explainer, x, classes, repetitions, goal=200)
    explainer = Explainer(model, "scorecam", batch_size=MASKED_AT_ONCE, mask_space="normalised", align_corners=True)
    what = "Score-CAM, 1 picture"
    peer = Peer("ScoreCAM", model, layer)
    yield peer.race(what, explainer, x, classes, repetitions, goal=1.5)
    half = Explainer(
        model, "scorecam", batch_size=MASKED_AT_ONCE, mask_space="normalised", align_corners=True, amp="bf16"
    )
    yield peer.race(f"{what}, amp=bf16", half, x, classes, repetitions, goal=2.5, tolerance=0.02)
    channels = explainer.features(x).shape[1]
    for layout, pictures in layouts(x.repeat(MASKED_AT_ONCE, 1, 1, 1)):
        batches = [pictures[: len(masks)] for masks in torch.arange(channels).split(MASKED_AT_ONCE)]
        ours, base = race(partial(explainer.maps, x, classes), partial(forward, model, *batches), repetitions)
        yield Row(what, ours, f"{channels} forward passes{layout}", base, goal=None if layout else 1.1)


def race_metrics(model: nn.Module, x: Tensor, classes: list[int], repetitions: int) -> Iterator[Row]:
    """Insertion and deletion against the forward passes that they need, and ROAD against the peer's."""
    maps, target, mean = Explainer(model, "gradcam").maps(x, classes), torch.tensor(classes), torch.zeros(x.shape[1])

    def classify(pictures: Tensor) -> Tensor:
        return forward(model, pictures).softmax(1)

    def curves() -> Tensor:
        return torch.cat([curve(classify, x, maps, target, mean=mean) for curve in (insertion_curve, deletion_curve)])

    scores = curves().numel()
    batches = [x.repeat(64, 1, 1, 1)[: len(part)] for part in torch.arange(scores).split(64)]
    ours, base = race(curves, partial(forward, model, *batches), repetitions)
    yield Row(f"Insertion and deletion, {len(x)} pictures", ours, f"{scores} forward passes", base, "x as fast", 0.9)

    tenth = x[0, 0].numel() // 10

    def removed() -> Tensor:  # the mean change of the probability as 10 to 90 % of the pixels are interpolated
        curve = deletion_curve(classify, x, maps, target, mean=mean, fill="linear", step=tenth)
        return curve[:, 1:10].mean(1) - curve[:, 0]

    peers = partial(_road, model, x, maps, classes)
    difference = (removed() - peers()).abs().max().item()
    with Apart(peers) as alone:
        ours, base = race(removed, alone, repetitions)
    against = f"{PEER}'s {ROADMostRelevantFirstAverage.__name__}"
    yield Row(f"ROAD, {len(x)} pictures", ours, against, base, "x as fast", 3, difference)


def _road(model: nn.Module, x: Tensor, maps: Tensor, classes: list[int]) -> Tensor:
    """The peer's ROAD (B,)."""
    targets = [ClassifierOutputSoftmaxTarget(c) for c in classes]
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # numpy's, about its code
        return torch.from_numpy(ROADMostRelevantFirstAverage()(x, maps.numpy(), targets, model))
