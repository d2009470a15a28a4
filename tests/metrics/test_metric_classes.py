"""The torchmetrics classes: the functions' figures, kept, whatever the batches, and gathered over processes."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from interp_zoo import metrics
from interp_zoo.metrics import functional as F
from interp_zoo.metrics.picture import CurveMetric, PictureMetric
from interp_zoo.metrics.statistics import interval

MEAN = torch.tensor([0.5, 0.4, 0.3])
N = 9


def classify(pixels: Tensor) -> Tensor:
    """Probabilities of three classes."""
    weight = torch.randn(3, pixels[0].numel(), generator=torch.Generator().manual_seed(0))
    return (pixels.float().flatten(1) @ weight.T).softmax(1)


class Tiny(nn.Module):
    """A network with two layers, whose maps are its first layer's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)


def given(rows: slice = slice(None)) -> dict[str, Any]:
    """What metrics take, of N pictures or of some of them."""
    generator = torch.Generator().manual_seed(1)
    pixels, saliency = torch.rand(N, 3, 10, 8, generator=generator), torch.rand(N, 10, 8, generator=generator)
    every: dict[str, Any] = {
        "pixels": pixels,
        "saliency": saliency,
        "other": torch.rand(N, 10, 8, generator=generator),
        "target": torch.randint(3, (N,), generator=generator),
        "before": torch.rand(N, generator=generator),
        "after": torch.rand(N, generator=generator),
        "correct": torch.rand(N, generator=generator) < 0.5,
        "regions": [torch.tensor([[0.0, 0, 4 + i % 3, 5]])[: i != 2] for i in range(N)],  # picture 2 has none
    }
    some = {name: value[rows] for name, value in every.items()}
    x = some["pixels"]
    return some | {
        "classify": classify,
        "model": Tiny(),
        "explain": lambda model: (model.first(x) * model.last.weight[0, :, None, None]).sum(1).detach(),
    }


# Each class, how it is made, and the function that gives the same figures.
CASES: dict[str, tuple[Callable[[], PictureMetric], Callable[..., Tensor]]] = {
    "AverageDrop": (metrics.AverageDrop, F.average_drop),
    "AverageGain": (metrics.AverageGain, F.average_gain),
    "AverageIncrease": (metrics.AverageIncrease, F.average_increase),
    "BoxAccuracy": (metrics.BoxAccuracy, F.box_accuracy),
    "ClassSensitivity": (metrics.ClassSensitivity, F.class_sensitivity),
    "Deletion": (lambda: metrics.Deletion(MEAN), lambda **k: F.deletion(mean=MEAN, **k)),
    "EnergyPointingGame": (metrics.EnergyPointingGame, F.energy_pointing_game),
    "Insertion": (lambda: metrics.Insertion(MEAN), lambda **k: F.insertion(mean=MEAN, **k)),
    "LocalizationError": (metrics.LocalizationError, F.localization_error),
    "OfficialMetric": (metrics.OfficialMetric, F.official_metric),
    "PixelF1": (metrics.PixelF1, F.pixel_f1),
    "PointingGame": (metrics.PointingGame, F.pointing_game),
    "Randomization": (metrics.Randomization, F.randomization),
    "SaliencyMetric": (metrics.SaliencyMetric, F.saliency_metric),
}


def arguments(metric: Metric, rows: slice = slice(None)) -> dict[str, Any]:
    """What this metric's `update` takes."""
    names = inspect.signature(inspect.unwrap(type(metric).update)).parameters
    return {name: value for name, value in given(rows).items() if name in names}


def figures(name: str) -> Tensor:
    """The function's figures of all pictures."""
    made, function = CASES[name]
    found = function(**arguments(made()))
    return found[:, F.best_threshold(found)] if name == "BoxAccuracy" else found


def test_each_class_is_tried() -> None:
    assert set(CASES) == set(metrics.__all__)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 4, N])
def test_batches_change_nothing(name: str, size: int) -> None:
    metric = CASES[name][0]()
    for start in range(0, N, size):
        metric.update(**arguments(metric, slice(start, start + size)))
    want = figures(name).float()
    torch.testing.assert_close(metric.per_picture(), want, equal_nan=True)
    torch.testing.assert_close(metric.compute(), want.nanmean())
    torch.testing.assert_close(metric.interval(), interval(want))
    metric.reset()
    assert metric.per_picture().shape == (0,)


@pytest.mark.parametrize("name", CASES)
def test_directions(name: str) -> None:
    low = {"AverageDrop", "Deletion", "LocalizationError", "OfficialMetric", "SaliencyMetric", "Randomization"}
    assert CASES[name][0]().higher_is_better == (name not in low)


def test_curves_are_kept() -> None:
    for metric, function in (
        (metrics.Insertion(MEAN, fill="black", step=16), F.insertion_curve),
        (metrics.Deletion(MEAN, fill="black", step=16), F.deletion_curve),
    ):
        metric.update(**arguments(metric, slice(0, 4)))
        metric.update(**arguments(metric, slice(4, N)))
        want = function(**arguments(metric), mean=MEAN, fill="black", step=16)
        assert want.shape == (N, 6)
        torch.testing.assert_close(metric.per_picture_curves(), want)
        torch.testing.assert_close(metric.curve(), want.mean(0))


def test_box_accuracy_is_the_best_of_one_threshold_for_all() -> None:
    metric = metrics.BoxAccuracy(thresholds=20)
    metric.update(**arguments(metric))
    hits = F.box_accuracy(**arguments(metric), thresholds=20)
    assert metric.compute().item() == pytest.approx(hits.nanmean(0).max().item())
    torch.testing.assert_close(metric.curve(), hits.nanmean(0).float())


def test_protocols_are_the_functions() -> None:
    before, after = given()["before"], given()["after"]
    for protocol in ("pytorch-grad-cam", "torchcam"):
        metric = metrics.AverageDrop(protocol=protocol)
        metric.update(before, after)
        torch.testing.assert_close(metric.per_picture(), F.average_drop(before, after, protocol=protocol))
        assert not torch.equal(metric.per_picture(), F.average_drop(before, after))


def test_they_do_what_torchmetrics_do() -> None:
    collection = MetricCollection([metrics.AverageDrop(), metrics.AverageGain()])
    before, after = given()["before"], given()["after"]
    collection.update(before, after)
    assert set(collection.compute()) == {"AverageDrop", "AverageGain"}
    again = pickle.loads(pickle.dumps(collection["AverageDrop"]))
    assert again.compute() == collection["AverageDrop"].compute()
    assert torch.equal(collection["AverageDrop"](before[:1], after[:1]), F.average_drop(before[:1], after[:1])[0])


SPLITS = {
    "AverageGain": 5,
    "Insertion": N,
    "BoxAccuracy": 4,
}  # pictures of the first process; the second has the others


def test_a_collection_keeps_metrics_apart_whose_first_batch_is_the_same() -> None:
    """torchmetrics merges those whose states are equal then, and have the same names."""
    batches = [(torch.tensor([0.5, 0.5]), torch.tensor(after)) for after in ([0.2, 0.1], [0.6, 0.9])]
    alone: dict[str, PictureMetric] = {
        "increase": metrics.AverageIncrease(),
        "gain": metrics.AverageGain(),
        "drop": metrics.AverageDrop(),
        "theirs": metrics.AverageDrop(protocol="pytorch-grad-cam"),
    }
    collection = MetricCollection(
        {name: type(m)(**({"protocol": m.protocol} if hasattr(m, "protocol") else {})) for name, m in alone.items()}
    )
    for before, after in batches:
        collection.update(before, after)
        for metric in alone.values():
            metric.update(before, after)
    assert collection.compute() == {name: metric.compute() for name, metric in alone.items()}
    names = {name for name, _ in CASES.items() for name in CASES[name][0]()._defaults}
    assert len(names) == len(CASES) + sum(isinstance(made(), CurveMetric) for made, _ in CASES.values())


def test_curves_of_other_lengths_are_refused() -> None:
    metric = metrics.Insertion(MEAN)
    metric.update(**arguments(metric))
    with pytest.raises(ValueError, match="`curves` have 4 points, but those before have 3: give pictures of one size"):
        metric.add_curves(torch.zeros(1), torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: metrics.AverageDrop(protocol="x"), '`protocol` is "x", but must be one of papers'),  # type: ignore[arg-type]
        (lambda: metrics.Insertion(MEAN, fill="x"), '`fill` is "x", but must be one of blur, mean'),  # type: ignore[arg-type]
        (lambda: metrics.BoxAccuracy(0), "`thresholds` is 0, but must be at least 1"),
    ],
)
def test_options_are_refused_at_once(make: Callable[[], Metric], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def share(rank: int, folder: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name, split in SPLITS.items():
        metric = CASES[name][0]()
        rows = slice(0, split) if rank == 0 else slice(split, N)
        if rows.start < rows.stop:
            metric.update(**arguments(metric, rows))
            own = len(metric.values)
            found[f"{name}.mean"] = metric.compute()
            assert len(metric.values) == own  # its own again
        else:
            with metric.sync_context():  # takes part in the other's `compute`
                pass
        found[f"{name}.values"], found[f"{name}.interval"] = metric.per_picture(), metric.interval()
        if isinstance(metric, CurveMetric):
            found[f"{name}.curve"] = metric.curve()
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_two_processes_count_each_picture_once(tmp_path: Path) -> None:
    """Also where one of them has no picture at all."""
    mp.start_processes(share, (str(tmp_path),), nprocs=2, start_method="fork")  # type: ignore[attr-defined, no-untyped-call]
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in SPLITS:
        metric = CASES[name][0]()
        metric.update(**arguments(metric))
        for rank, found in enumerate(both):
            torch.testing.assert_close(found[f"{name}.values"], metric.per_picture(), equal_nan=True)
            torch.testing.assert_close(found[f"{name}.interval"], metric.interval())
            if rank == 0 or SPLITS[name] < N:
                torch.testing.assert_close(found[f"{name}.mean"], metric.compute())
            if isinstance(metric, CurveMetric):
                torch.testing.assert_close(found[f"{name}.curve"], metric.curve(), equal_nan=True)
