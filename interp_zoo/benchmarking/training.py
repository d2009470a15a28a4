"""Races of training steps against what they are made of, and how long a training waits for its pictures."""

from __future__ import annotations

import copy
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader

from interp_zoo.benchmarking.measuring import Row, Times, make_model, race
from interp_zoo.evaluation.data import Data, open_data
from interp_zoo.explain.render import to_image
from interp_zoo.models.wrapping import input_shape
from interp_zoo.training import gradients
from interp_zoo.training.gradients import Penalty
from interp_zoo.training.networks import freeze_backbone
from interp_zoo.training.objectives import InterpretableGradients, Objective, Plain, StreamTraining
from interp_zoo.training.pictures import Epochs, TrainingPictures, training_transform
from interp_zoo.training.twice import TwiceDifferentiated

STREAMS = ("ca_resnet18", "ca_resnet18_cifar")
PENALTIES = {"resnet18_cifar": (7.5e-3, 1.5), "mobilenetv2_cifar": (1e-3, 2.5)}  # the paper's lambda; what is wanted
PRECISIONS = {"float32": torch.float32, "bf16 autocast": torch.bfloat16}
SPARED = 4  # of so many steps one is penalised
WORKERS = 1  # the fewest that load while the network computes; the recipe has 4
MADE = 512  # pictures that are made where CIFAR-100 is not at hand


@dataclass
class Steps:
    """A training that makes one step a call, as recipes/train.py does but for what it writes down.

    Attributes:
        network: what is trained, in training mode.
        objective: what is minimised.
        dtype: of the forward pass; less than float32 by autocast, as accelerate does it.
        done: how many steps are made.
    """

    network: nn.Module
    objective: Objective
    dtype: torch.dtype = torch.float32
    done: int = 0

    def __post_init__(self) -> None:
        # A small rate, so that the network stays as it is drawn however often a step is repeated on one batch.
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor | None:
        """One step; returns what the objective adds to the cross-entropy, if it does in this step."""
        total, _, extra = self.objective(self._forward, x, y, step=self.done, scale=1.0)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        return extra

    def _forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            logits: Tensor = self.network(x)
        return logits.float()


def race_stream(batch: int, repetitions: int) -> Iterator[Row]:
    """A step of a CA-Stream's training against the frozen backbone's forward pass and the stream's own two passes."""
    for name in STREAMS:
        model: Any = freeze_backbone(make_model(name)).train()
        training = Steps(StreamTraining(model), Plain(nn.CrossEntropyLoss()))
        x, y = _batch(model, batch)
        ours, base = _steady_race(partial(training, x, y), _parts(model, x, y), repetitions)
        yield Row(
            f"Step of {name}, {_size(x)}",
            ours,
            "backbone's forward, stream's two passes",
            base,
            goal=1.15,
        )


def _parts(model: Any, x: Tensor, y: Tensor) -> Callable[[], object]:
    """The least that a step of the stream can do: the backbone without hooks, the stream on maps that are there."""
    with torch.no_grad():
        maps = model.maps(x)
    trained = [p for p in model.parameters() if p.requires_grad]

    def parts() -> object:
        with torch.no_grad():
            model.backbone.forward_features(x)
        return torch.autograd.grad(nn.functional.cross_entropy(model.forward_maps(maps), y), trained)

    return parts


def race_penalty(batch: int, repetitions: int) -> Iterator[Row]:
    """A step with the penalty on the input gradient against a plain one, and several of which one is penalised.

    Both in the same precision. And one against the same with torch's own gradients of gradients, channels last.
    """
    criterion = nn.CrossEntropyLoss()
    for name, (weight, goal) in PENALTIES.items():
        model = make_model(name).train()
        x, y = _batch(model, batch)
        for precision, dtype in PRECISIONS.items():
            plain = Steps(copy.deepcopy(model), Plain(criterion), dtype)
            penalised, spared = (
                Steps(copy.deepcopy(model), InterpretableGradients(criterion, Penalty(weight, every=every)), dtype)
                for every in (1, SPARED)
            )
            what = f"{name}, {precision}, {_size(x)}"
            ours, base = _steady_race(partial(penalised, x, y), partial(plain, x, y), repetitions)
            yield Row(f"Penalised step of {what}", ours, "plain step", base, goal=5)
            several = [partial(_repeat, training, x, y) for training in (spared, plain)]
            ours, base = race(several[0], several[1], repetitions)
            yield Row(f"{SPARED} steps of {what}, 1 penalised", ours, f"{SPARED} plain steps", base, goal=2.2)
        layout = {"memory_format": torch.channels_last}
        penalised = Steps(copy.deepcopy(model).to(**layout), InterpretableGradients(criterion, Penalty(weight)))
        step = partial(penalised, x.contiguous(**layout), y)
        ours, base = _steady_race(step, partial(_by_torchs, step), repetitions)
        what = f"Penalised step of {name}, float32, channels last, {_size(x)}"
        yield Row(what, ours, "the same by torch's second gradients", base, "x as fast", goal)


class _Torchs(TwiceDifferentiated):
    """Leaves all to torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs or {})


def _by_torchs(step: Callable[[], object]) -> None:
    with patch.object(gradients, "TwiceDifferentiated", _Torchs):
        step()


def _repeat(training: Steps, x: Tensor, y: Tensor) -> None:
    for _ in range(SPARED):
        training(x, y)


def race_loading(batch: int, repetitions: int) -> Iterator[Row]:
    """How much of its time a training waits for pictures, augmented as in the configurations for CIFAR-100."""
    with tempfile.TemporaryDirectory() as folder:
        data, kind = _pictures(Path(folder))
        training = Steps(make_model("resnet18_cifar").train(), Plain(nn.CrossEntropyLoss()), torch.bfloat16)
        what = f"{batch} pictures of {kind}"
        waited, whole = waits(_batches(data, training.network, batch, WORKERS), training, repetitions)
        yield Row(
            f"Waiting for {what}, {WORKERS} worker", waited, "step of resnet18_cifar, bf16 autocast", whole, goal=0.1
        )
        alone = _batches(data, training.network, batch, workers=0)
        ours, base = _steady_race(partial(next, alone), partial(training, *next(alone)), repetitions)
        yield Row(f"Making {what} without a worker", ours, "the same step", base)


def waits(
    batches: Iterator[tuple[Tensor, Tensor]], training: Callable[[Tensor, Tensor], object], repetitions: int
) -> tuple[Times, Times]:
    """Times how long a training waits for its batches, and how long it takes in all, a step.

    The first batches are left out: until then the workers start, and what they loaded ahead is used up.

    Args:
        batches: as many as are asked for.
        training: makes a step.
        repetitions: how often that is timed, each time as the mean of as many steps as the workers load ahead.
    """
    steps = 2 * WORKERS  # torch's prefetch_factor is 2: a wait may come at each so-manieth step alone
    waited, whole = Times([]), Times([])
    for i in range(1 + repetitions):
        waiting, start = 0.0, time.perf_counter()
        for _ in range(steps):
            before = time.perf_counter()
            x, y = next(batches)
            waiting += time.perf_counter() - before
            training(x, y)
        if i:
            waited.seconds.append(waiting / steps)
            whole.seconds.append((time.perf_counter() - start) / steps)
    return waited, whole


def _batches(data: Data, network: nn.Module, batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, as recipes/train.py loads them."""
    transform = training_transform(
        resolve_data_config({}, model=network),
        crop_padding=4,
        rotation=15,
        hflip=0.5,
        color_jitter=None,
        interpolation="",
    )
    indices = data.chosen * -(-1000 * batch // len(data.chosen))  # one epoch that no race comes to the end of
    order = Epochs(len(indices), batch, seed=0)
    pictures = TrainingPictures(data, indices, transform, seed=0)
    return iter(DataLoader(pictures, batch, sampler=order, drop_last=True, num_workers=workers))


def _pictures(folder: Path) -> tuple[Data, str]:
    """CIFAR-100 where its parquet files are at hand and can be read, else as many textures as a test would make."""
    cifar = Path(os.environ.get("INTERP_ZOO_DATA", ""), "cifar100")
    if any(cifar.glob("*.parquet")) and importlib.util.find_spec("datasets"):
        return open_data(folder, f"hfds/{cifar}", "train", input_key="img", target_key="fine_label"), "CIFAR-100"
    generator = torch.Generator().manual_seed(0)
    for i in range(MADE):
        place = folder / "train" / f"class_{i % 8}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = torch.rand(1, 3, 8, 8, generator=generator)
        to_image(nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")[0]).save(place / f"{i:03}.png")
    return open_data(folder, "", "train"), "textures"


def _batch(model: nn.Module, batch: int) -> tuple[Tensor, Tensor]:
    """Random pictures of the model's size, and classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *input_shape(model), generator=generator)
    return x, torch.randint(100, (batch,), generator=generator)


def _size(x: Tensor) -> str:
    return f"{len(x)} pictures of {x.shape[-2]} x {x.shape[-1]}"


def _steady_race(first: Callable[[], object], second: Callable[[], object], repetitions: int) -> tuple[Times, Times]:
    """A race after a turn of each that does not count: it makes the optimiser's buffers."""
    first()
    second()
    return race(first, second, repetitions)
