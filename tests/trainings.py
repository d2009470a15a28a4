"""Running recipes/train.py in a test: its data, its arguments, what it wrote."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import texture
from forked import Forked
from recipemodules import recipe_module
from safetensors.torch import load_file
from torch import Tensor

RECIPE = Path(__file__).parents[1] / "recipes" / "train.py"


def make_folder(folder: Path, classes: int = 4, train: int = 6, validation: int = 3) -> Path:
    """Class folders of 40 x 50 pixels; the classes differ in brightness, so that they can be learned."""
    for split, number in (("train", train), ("validation", validation)):
        for c in range(classes):
            place = folder / split / f"class_{c}"
            place.mkdir(parents=True)
            for i in range(number):
                picture = texture((40, 50), seed=1000 * c + i + 500 * (split == "validation"))
                picture.point(lambda v, c=c: v // (1 + c)).save(place / f"{i}.png")
    return folder


def arguments(folder: Path, output: Path, *more: str, model: str = "test_resnet", batch: int = 4) -> list[str]:
    """A run of two epochs, of which every step is written down. A flag that is given again counts."""
    data = ["--data-dir", str(folder), "--output", str(output), "--workers", "0"]
    short = ["--epochs", "2", "--batch-size", str(batch), "--warmup-epochs", "0", "--lr", "0.01", "--log-interval", "1"]
    return ["--model", model, *data, *short, "--img-size", "64", *more]


def load_recipe() -> ModuleType:
    return recipe_module("train")


def main(argv: list[str]) -> None:
    """Runs the recipe in this process."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    load_recipe().main(argv)


def launch(argv: list[str], processes: int = 1) -> list[Forked]:
    """Starts the recipe in processes of its own, with what torchrun would tell them."""
    if processes == 1:
        return [Forked(RECIPE, argv, {})]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    meet["LOCAL_WORLD_SIZE"] = str(processes)
    ranks = map(str, range(processes))
    return [Forked(RECIPE, argv, {**meet, "RANK": rank, "LOCAL_RANK": rank}) for rank in ranks]


def torchrun(argv: list[str], processes: int) -> list[subprocess.Popen[str]]:
    """The same, as users do it; it takes seconds longer, and what it starts is not killed with it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), str(RECIPE), *argv]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True, **pipes)]


def finished(started: Sequence[subprocess.Popen[str] | Forked]) -> str:
    """Waits for a launch that is to go well, and returns what it said."""
    try:
        said = "".join(process.communicate(timeout=240)[0] for process in started)
    finally:
        for process in started:  # of which one may wait for another that is gone
            process.kill()
    assert all(process.returncode == 0 for process in started), said
    return said


def table(file: Path) -> list[dict[str, str]]:
    """A CSV file's lines."""
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def losses(output: Path) -> list[float]:
    """The loss of each step."""
    return [float(row["loss"]) for row in table(output / "steps.csv")]


def weights(output: Path, which: str = "last") -> dict[str, Tensor]:
    return load_file(output / which / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether weights are equal, bit for bit."""
    return a.keys() == b.keys() and all(bool((a[name] == b[name]).all()) for name in a)
