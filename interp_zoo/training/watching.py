"""What a network is worth while it is trained: its accuracy, and how well Grad-CAM explains it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from interp_zoo.evaluation.data import Data, Item
from interp_zoo.explain import Explainer
from interp_zoo.metrics import AverageDrop, AverageGain, AverageIncrease
from interp_zoo.training.pictures import UNREADABLE, labelled


@torch.inference_mode()
def accuracy(
    network: Callable[[Tensor], Tensor], loader: Iterable[tuple[Tensor, Tensor]], classes: int, accelerator: Accelerator
) -> dict[str, float]:
    """The cross-entropy ("loss"), and the accuracy in percent ("top-1", and "top-5" of six classes and more).

    Each picture counts once, on any number of processes.

    Args:
        network: gives logits (B, classes); in eval mode.
        loader: gives this process' pictures and their labels; those with label -1 do not count.
        classes: how many there are.
        accelerator: knows the precision and the device.
    """
    ks = (1, 5) if classes > 5 else (1,)
    hits: dict[str, Any] = {}
    for k in ks:
        metric = MulticlassAccuracy(classes, top_k=k, average="micro", ignore_index=UNREADABLE, validate_args=False)
        hits[f"top-{k}"] = metric.to(accelerator.device)
    loss = MeanMetric().to(accelerator.device)
    for x, labels in loader:
        with accelerator.autocast():
            logits = network(x)
        kept = labels != UNREADABLE
        if kept.any():
            each = nn.functional.cross_entropy(logits.float()[kept], labels[kept], reduction="none")
            loss.update(each)
            for metric in hits.values():
                metric.update(logits.float(), labels)
    return {"loss": float(loss.compute())} | {
        name: round(100 * float(metric.compute()), 4) for name, metric in hits.items()
    }


def recognition_by_gradcam(
    model: nn.Module, data: Data, indices: Sequence[int], accelerator: Accelerator, batch_size: int
) -> dict[str, float]:
    """Average drop, gain and increase ("AD", "AG", "AI", in percent) of Grad-CAM's maps of the labelled classes.

    Args:
        model: the network; it stays as it is.
        data: the pictures.
        indices: which of them; processes share them out.
        accelerator: knows the processes.
        batch_size: pictures at once.
    """
    metrics: dict[str, Any] = {"AD": AverageDrop(), "AG": AverageGain(), "AI": AverageIncrease()}
    for metric in metrics.values():
        metric.to(accelerator.device)
    explainer = Explainer(model, "gradcam")
    with accelerator.split_between_processes(list(indices)) as mine:
        items = [item for item in map(data.read, mine) if isinstance(item, Item)]
        for start in range(0, len(items), batch_size):
            some = items[start : start + batch_size]
            with warnings.catch_warnings():  # blank maps are what early epochs give
                warnings.simplefilter("ignore", UserWarning)
                exp = explainer([item.image for item in some], target=[labelled(item) for item in some])
            for metric in metrics.values():
                metric.update(exp.probability.to(metric.device), exp.masked_probability.to(metric.device))
    return {name: float(metric.compute()) for name, metric in metrics.items()}
