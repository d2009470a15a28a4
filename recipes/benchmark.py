"""Time explanations and metrics against bare forward passes and pytorch-grad-cam, and write the table of ratios.

    python recipes/benchmark.py --output docs/benchmark.md

Each row is a race of two, taken in turns (A B A B ...) in one process, so that whatever else slows the machine down
slows down both; times are medians, with the fastest and the slowest. The network is untrained, with all weights and
statistics drawn from a fixed seed: speed does not depend on their values. Before a race against pytorch-grad-cam, the
maps are compared: rectified, upsampled and scaled to [0, 1] by each package, for the same classes at the same layer.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import io
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import pytorch_grad_cam
import timm
import torch
from pytorch_grad_cam.metrics.road import ROADMostRelevantFirstAverage
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

from interp_zoo import Explainer
from interp_zoo.explain.render import to_image
from interp_zoo.metrics.functional import deletion_curve, insertion_curve

SAME_MAPS = 1e-3  # the most that maps of two packages may differ to be called the same
MASKED_AT_ONCE = 16  # pytorch-grad-cam's Score-CAM, and our default `batch_size`
PEER = "grad-cam"
HEADER = ("what", "ms", "against", "its ms", "ratio", "goal", "met", "maps differ by")


@dataclass(frozen=True)
class Times:
    """Seconds of several repetitions."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """What is compared with another's."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        three = (self.median, min(self.seconds), max(self.seconds))
        return "{} ({} to {})".format(*(f"{1000 * s:.{0 if s >= 0.1 else 1}f}" for s in three))


@dataclass(frozen=True)
class Row:
    """One race.

    Attributes:
        what: what we do.
        ours: our times.
        against: what we are compared with.
        base: its times.
        kind: what the ratio says: "x its time" (ours by its, small is good), "x as fast" (its by ours), or "s more".
        goal: the most, or for "x as fast" the least, that is wanted; None for rows that only inform.
        difference: the largest difference of two values of the maps, both in [0, 1]; None without a peer.
    """

    what: str
    ours: Times
    against: str
    base: Times
    kind: Literal["x its time", "x as fast", "s more"] = "x its time"
    goal: float | None = None
    difference: float | None = None

    @property
    def ratio(self) -> float:
        """Ours against the base, as `kind` says."""
        if self.kind == "s more":
            return self.ours.median - self.base.median
        quotient = self.ours.median / self.base.median
        return 1 / quotient if self.kind == "x as fast" else quotient

    def cells(self) -> tuple[str, ...]:
        """The row of the table, see `HEADER`."""
        times = (self.what, str(self.ours), self.against, str(self.base), f"{self.ratio:.3g} {self.kind}")
        difference = "" if self.difference is None else f"{self.difference:.1e}"
        if self.goal is None:
            return *times, "", "", difference
        least = self.kind == "x as fast"
        met = self.ratio >= self.goal if least else self.ratio <= self.goal
        verdict = ("yes" if met else "no") if (self.difference or 0) <= SAME_MAPS else "other maps"
        return *times, f"at {'least' if least else 'most'} {self.goal:g}", verdict, difference


def race(first: Callable[[], object], second: Callable[[], object], repetitions: int) -> tuple[Times, Times]:
    """Times two functions in turns."""
    ours, base = Times([]), Times([])
    for _ in range(repetitions):
        for function, times in ((first, ours), (second, base)):
            start = time.perf_counter()
            function()
            times.seconds.append(time.perf_counter() - start)
    return ours, base


def make_model(name: str, seed: int = 0) -> nn.Module:
    """An untrained model in eval mode, none of whose weights or statistics is trivial."""
    torch.manual_seed(seed)
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and isinstance(module.running_var, Tensor):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, 0.1)
    return model


class Peer:
    """A method of pytorch-grad-cam, on a copy of the model of its own: its hooks stay on it."""

    def __init__(self, name: str, model: nn.Module, layer: str) -> None:
        model = copy.deepcopy(model)
        self.name = name
        self.cam = getattr(pytorch_grad_cam, name)(model, [model.get_submodule(layer)])

    def __call__(self, x: Tensor, classes: list[int]) -> Tensor:
        """Maps (B, H, W) in [0, 1]."""
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            return torch.from_numpy(self.cam(x, [ClassifierOutputTarget(c) for c in classes]))

    def race(
        self, what: str, explainer: Explainer, x: Tensor, classes: list[int], repetitions: int, goal: float | None
    ) -> Row:
        """The same maps from both, first compared, then timed."""
        difference = (explainer.maps(x, classes) - self(x, classes)).abs().max().item()
        ours, base = race(partial(explainer.maps, x, classes), partial(self, x, classes), repetitions)
        return Row(what, ours, f"{PEER}'s {self.name}", base, "x as fast", goal, difference)


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
    yield Peer("ScoreCAM", model, layer).race(what, explainer, x, classes, repetitions, goal=None)
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

    tenth, road = x[0, 0].numel() // 10, ROADMostRelevantFirstAverage()
    targets = [ClassifierOutputSoftmaxTarget(c) for c in classes]

    def removed() -> Tensor:  # the mean change of the probability as 10 to 90 % of the pixels are interpolated
        curve = deletion_curve(classify, x, maps, target, mean=mean, fill="linear", step=tenth)
        return curve[:, 1:10].mean(1) - curve[:, 0]

    def peers() -> Tensor:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # numpy's, about its code
            return torch.from_numpy(road(x, maps.numpy(), targets, model))

    difference = (removed() - peers()).abs().max().item()
    ours, base = race(removed, peers, repetitions)
    yield Row(f"ROAD, {len(x)} pictures", ours, f"{PEER}'s {type(road).__name__}", base, "x as fast", 3, difference)


def race_processes(model: nn.Module, name: str, pictures: Tensor, launches: int) -> Row:
    """recipes/evaluate.py as a whole, on two processes with one thread each against one such."""
    with tempfile.TemporaryDirectory() as folder:
        data, weights, turn = Path(folder, "data"), Path(folder, "model.safetensors"), itertools.count()
        data.mkdir()
        save_file(model.state_dict(), weights)
        for i, picture in enumerate(pictures):
            to_image(picture.sigmoid()).save(data / f"{i:03}.png")
        asked = f"--model {name} --checkpoint {weights} --data-dir {data} --target predicted --methods gradcam"

        def launch(processes: int) -> None:
            recipe = [
                str(Path(__file__).with_name("evaluate.py")),
                *asked.split(),
                "--output",
                f"{folder}/{next(turn)}",
            ]
            command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *recipe]
            quiet = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
            subprocess.run(command, env=quiet, check=True, capture_output=True)

        ours, base = race(partial(launch, 2), partial(launch, 1), launches)
    what = f"evaluate.py, {len(pictures)} pictures, 2 processes"
    return Row(what, ours, "1 process", base, "x as fast", 1.6)


def race_import(processes: int) -> Row:
    """What importing the package adds to importing timm, each time in a fresh process."""
    first, second = ([sys.executable, "-c", f"import {module}"] for module in ("interp_zoo", "timm"))
    ours, base = race(partial(subprocess.check_call, first), partial(subprocess.check_call, second), processes)
    return Row("import interp_zoo", ours, "import timm", base, "s more", 0.3)


def conditions(args: argparse.Namespace) -> list[str]:
    """What one must know to run it again."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("interp_zoo", "torch", "timm", PEER))
    return [
        f"Command: `{' '.join(['python recipes/benchmark.py', *sys.argv[1:]])}`",
        f"{args.model} at {args.size} x {args.size}, untrained; medians of {args.repetitions} repetitions in turns "
        f"(imports: {args.processes} processes each, evaluate.py: {args.launches} launches each, at the model's own "
        "size), with the fastest and the slowest",
        f"{packages}, Python {platform.python_version()}",
        f"{args.threads} threads on a machine of {os.cpu_count()} CPUs, {datetime.date.today()}",
    ]


def to_markdown(rows: list[Row], facts: list[str]) -> str:
    """The page for the documentation."""
    lines = [HEADER, ("---",) * len(HEADER), *(row.cells() for row in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "# Speed\n\n" + "\n".join(f"- {fact}" for fact in facts) + f"\n\n{table}\n"


def main() -> None:
    """Runs all races, prints the table and, with --output, writes it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="resnet18", help="a timm model, convolutional (resnet18)")
    parser.add_argument("--size", type=int, default=224, help="height and width of the pictures in pixels (224)")
    parser.add_argument("--batch", type=int, default=8, help="pictures in Grad-CAM's batch (8)")
    parser.add_argument("--repetitions", type=int, default=5, help="how often each of two is timed (5)")
    parser.add_argument("--processes", type=int, default=7, help="how often each import is timed (7)")
    parser.add_argument("--races", default="", help="some of import,gradcam,masks,metrics,processes (all)")
    parser.add_argument("--pictures", type=int, default=24, help="pictures for evaluate.py (24)")
    parser.add_argument("--launches", type=int, default=3, help="how often evaluate.py is launched each way (3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    parser.add_argument("--output", type=Path, help="a markdown file to write the table to")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = make_model(args.model)
    x = torch.randn(args.batch, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    classes = forward(model, x).argmax(1).tolist()
    layer = Explainer(model, "gradcam")(x[:1]).layer

    pictures = torch.randn(args.pictures, 3, args.size, args.size, generator=torch.Generator().manual_seed(1))
    races: dict[str, Callable[[], Iterable[Row]]] = {
        "import": lambda: [race_import(args.processes)],
        "gradcam": lambda: race_gradcam(model, x, classes, layer, args.repetitions),
        "masks": lambda: race_masks(model, x[:1], classes[:1], layer, args.repetitions),
        "metrics": lambda: race_metrics(model, x, classes, args.repetitions),
        "processes": lambda: [race_processes(model, args.model, pictures, args.launches)],
    }
    wanted = args.races.split(",") if args.races else list(races)
    if unknown := [name for name in wanted if name not in races]:
        parser.error(f"--races has {unknown[0]}, but must be some of {', '.join(races)}")
    with Console(stderr=True).status("racing"):
        rows = [row for name in wanted for row in races[name]()]
    console, table = Console(), Table(*HEADER, box=box.SIMPLE)
    for row in rows:
        table.add_row(*row.cells())
    console.print(table)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(to_markdown(rows, conditions(args)), encoding="utf-8")
        console.print(f"written to {args.output}")


if __name__ == "__main__":
    main()
