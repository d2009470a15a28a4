"""Time explanations, metrics and training steps against what they are made of and pytorch-grad-cam: a table of ratios.

    python recipes/benchmark.py --output docs/benchmark.md

Each row is a race of two, taken in turns (A B A B ...), so that whatever else slows the machine down slows down both;
other packages' loops wait for their turns in processes of their own (interp_zoo/benchmarking/apart.py). Times are
medians, with the fastest and the slowest. The networks are untrained, with all weights and statistics drawn from a
fixed seed: speed does not depend on their values.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

from interp_zoo import Explainer
from interp_zoo.benchmarking import training
from interp_zoo.benchmarking.explaining import PEER, forward, race_gradcam, race_masks, race_metrics
from interp_zoo.benchmarking.measuring import HEADER, Row, make_model, race, to_markdown
from interp_zoo.benchmarking.searching import examples, race_opticam, race_perturbations
from interp_zoo.explain.render import to_image

SEARCHES = 3  # times that Opti-CAM is raced, which takes minutes


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
        f"{args.model} at {args.size} x {args.size}, untrained (for Opti-CAM {args.trained} and real pictures, "
        f"{SEARCHES} times, by its other solver once); medians of {args.repetitions} repetitions in turns "
        f"(imports: {args.processes} processes each, evaluate.py: {args.launches} launches each, at the model's own "
        "size), with the fastest and the slowest",
        f"{packages}, Python {platform.python_version()}",
        f"{args.threads} threads on a machine of {os.cpu_count()} CPUs, {datetime.date.today()}",
    ]


def main() -> None:
    """Runs all races, prints the table and, with --output, writes it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="resnet18", help="a timm model, convolutional (resnet18)")
    parser.add_argument("--size", type=int, default=224, help="height and width of the pictures in pixels (224)")
    parser.add_argument("--batch", type=int, default=8, help="pictures in Grad-CAM's batch (8)")
    parser.add_argument("--repetitions", type=int, default=5, help="how often each of two is timed (5)")
    parser.add_argument("--processes", type=int, default=7, help="how often each import is timed (7)")
    parser.add_argument("--races", default="", help="some of them, such as import,gradcam (all)")
    parser.add_argument("--trained", default="demo_efficientnet_lite0", help="for Opti-CAM (demo_efficientnet_lite0)")
    parser.add_argument("--data-dir", type=Path, help="a folder with pictures for Opti-CAM (scikit-image's)")
    parser.add_argument("--examples", type=int, default=16, help="how many of them (16)")
    parser.add_argument("--masks", type=int, default=512, help="of RISE (512)")
    parser.add_argument("--steps", type=int, default=40, help="of extremal perturbations (40)")
    parser.add_argument("--train-batch", type=int, default=64, help="pictures in a training step (64)")
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
        "perturbations": lambda: race_perturbations(
            model, x, classes, args.repetitions, masks=args.masks, steps=args.steps
        ),
        "opticam": lambda: race_opticam(
            timm.create_model(args.trained, pretrained=True).eval(), examples(args.data_dir, args.examples), SEARCHES
        ),
        "metrics": lambda: race_metrics(model, x, classes, args.repetitions),
        "processes": lambda: [race_processes(model, args.model, pictures, args.launches)],
        "stream": lambda: training.race_stream(args.train_batch, args.repetitions),
        "penalty": lambda: training.race_penalty(args.train_batch, args.repetitions),
        "loading": lambda: training.race_loading(args.train_batch, args.repetitions),
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
