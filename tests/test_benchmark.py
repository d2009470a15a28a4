"""The benchmark runs, on a tiny network, and its table is whole. Nothing here depends on how fast anything is."""

from __future__ import annotations

import copy
import itertools
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recipemodules import recipe_module
from torch import Tensor, nn

import interp_zoo
from interp_zoo.benchmarking import training
from interp_zoo.benchmarking.measuring import Row, Times, make_model
from interp_zoo.training.gradients import Penalty
from interp_zoo.training.networks import freeze_backbone
from interp_zoo.training.objectives import InterpretableGradients, Plain, StreamTraining

RECIPE = Path(__file__).parents[1] / "recipes" / "benchmark.py"
TINY = "--model test_resnet --size 64 --batch 2 --repetitions 1 --processes 1 --threads 1 --pictures 2 --launches 1"
TINY += " --train-batch 2 --examples 1 --masks 40 --steps 2"
TIME = ("x its time",)
TORCHS = "the same by torch's second gradients"
# What is raced against what, the unit of the ratio, the goal, and whether maps are compared.
ROWS = [
    ("import interp_zoo", "import timm", "s more", "at most 0.3", False),
    ("Grad-CAM, 2 pictures", "grad-cam's GradCAM", "x as fast", "at least 3", True),
    ("Grad-CAM, 2 pictures", "1 forward pass", "x its time", "at most 1.15", False),
    ("Grad-CAM, 2 pictures", "1 forward pass, channels last", "x its time", "", False),
    ("Grad-CAM, 2 pictures, and them masked", "1 forward pass", "x its time", "", False),
    ("Ablation-CAM, 1 picture", "grad-cam's AblationCAM", "x as fast", "at least 200", True),
    ("Score-CAM, 1 picture", "grad-cam's ScoreCAM", "x as fast", "at least 1.5", True),
    ("Score-CAM, 1 picture, amp=bf16", "grad-cam's ScoreCAM", "x as fast", "at least 2.5", True),
    ("Score-CAM, 1 picture", "96 forward passes", "x its time", "at most 1.1", False),
    ("Score-CAM, 1 picture", "96 forward passes, channels last", "x its time", "", False),
    ("RISE, 40 masks, 1 picture", "TorchRay's loop", "x as fast", "at least 1.3", True),
    ("Extremal perturbations, 2 steps, 2 pictures", "TorchRay's loop", "x as fast", "at least 1.3", True),
    ("Opti-CAM (fast), 1 picture", "the published loop", "x as fast", "at least 10", False),
    ("Opti-CAM (adam), 1 picture", "the published loop", "x as fast", "", False),
    ("Insertion and deletion, 2 pictures", "36 forward passes", "x as fast", "at least 0.9", False),
    ("ROAD, 2 pictures", "grad-cam's ROADMostRelevantFirstAverage", "x as fast", "at least 3", True),
    ("evaluate.py, 2 pictures, 2 processes", "1 process", "x as fast", "at least 1.6", False),
    *(
        (
            f"Step of {name}, 2 pictures of {size}",
            "backbone's forward, stream's two passes",
            *TIME,
            "at most 1.15",
            False,
        )
        for name, size in (("ca_resnet18", "224 x 224"), ("ca_resnet18_cifar", "32 x 32"))
    ),
    *(
        (f"{what.format(f'{name}, {how}, 2 pictures of 32 x 32')}", against, *kind, goal, False)
        for name, least in (("resnet18_cifar", 1.5), ("mobilenetv2_cifar", 2.5))
        for how, what, against, *kind, goal in (
            ("float32", "Penalised step of {}", "plain step", *TIME, "at most 5"),
            ("float32", "4 steps of {}, 1 penalised", "4 plain steps", *TIME, "at most 2.2"),
            ("bf16 autocast", "Penalised step of {}", "plain step", *TIME, "at most 5"),
            ("bf16 autocast", "4 steps of {}, 1 penalised", "4 plain steps", *TIME, "at most 2.2"),
            ("float32, channels last", "Penalised step of {}", TORCHS, "x as fast", f"at least {least}"),
        )
    ),
    (
        "Waiting for 2 pictures of textures, 1 worker",
        "step of resnet18_cifar, bf16 autocast",
        *TIME,
        "at most 0.1",
        False,
    ),
    ("Making 2 pictures of textures without a worker", "the same step", *TIME, "", False),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("benchmark")
    file, trained = folder / "benchmark.md", make_model("test_resnet")
    interp_zoo.hub.prepare(trained, "me/trained", folder / "trained")
    command = [sys.executable, str(RECIPE), *TINY.split(), "--output", str(file), "--trained"]
    command.append(f"local-dir:{folder / 'trained'}")
    wide = {key: value for key, value in os.environ.items() if key != "INTERP_ZOO_DATA"} | {"COLUMNS": "160"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=wide)
    assert done.returncode == 0, done.stderr
    assert "Score-CAM" in done.stdout
    return file.read_text(encoding="utf-8")


def test_every_race_is_in_the_table(page: str) -> None:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    assert lines[0] == ["what", "ms", "against", "its ms", "ratio", "goal", "met", "maps differ by"]
    assert len(lines) == 2 + len(ROWS)
    for line, (what, against, unit, goal, compared) in zip(lines[2:], ROWS, strict=True):
        assert line[0].partition(": ")[0] == what  # what Opti-CAM reaches may follow
        assert line[2].partition(": ")[0] == against
        number, _, kind = line[4].partition(" ")
        assert math.isfinite(float(number))
        assert kind == unit
        assert line[5] == goal
        assert (line[6].partition(":")[0] in ("yes", "no")) == bool(goal)
        assert all(float(time.split()[0]) > 0 for time in (line[1], line[3]))
        assert bool(line[7]) == compared
        if compared:
            least = {"RISE": 1e-3, "Extremal": 2e-2}.get(what.split()[0].rstrip(","), 2e-2 if "bf16" in what else 1e-3)
            assert float(line[7]) <= least  # the same maps: the race is fair


def test_the_page_says_how_it_was_made(page: str) -> None:
    assert f"`python recipes/benchmark.py {TINY} --output " in page
    for word in ("torch 2.", "timm 1.", "grad-cam 1.5.7", "1 threads", "CPUs", "medians of 1 repetitions"):
        assert word in page


def test_an_unknown_race_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *TINY.split(), "--races", "import,hurdles"])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    with pytest.raises(SystemExit) as ended:
        recipe_module("benchmark").main()
    assert ended.value.code == 2
    assert (
        "--races has hurdles, but must be some of import, gradcam, masks, perturbations, opticam, metrics, "
        "processes, stream, penalty, loading" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("kind", "goal", "difference", "told"),
    [
        ("x its time", None, None, ("1.5 x its time", "", "", "")),
        ("x its time", 1.5, None, ("1.5 x its time", "at most 1.5", "yes", "")),
        ("x its time", 1.15, None, ("1.5 x its time", "at most 1.15", "no", "")),
        ("x as fast", 0.6, 1e-4, ("0.667 x as fast", "at least 0.6", "yes", "1.0e-04")),
        ("x as fast", 0.9, 1e-4, ("0.667 x as fast", "at least 0.9", "no", "1.0e-04")),
        ("x as fast", 0.6, 0.2, ("0.667 x as fast", "at least 0.6", "other maps", "2.0e-01")),
        ("s more", 0.3, None, ("0.1 s more", "at most 0.3", "yes", "")),
    ],
)
def test_a_row_tells_its_medians_and_whether_the_goal_is_met(
    kind: Any, goal: float | None, difference: float | None, told: tuple[str, ...]
) -> None:
    row = Row("we", Times([0.3, 9.0, 0.0123]), "they", Times([0.1, 0.2, 0.4]), kind, goal, difference)
    assert row.cells() == ("we", "300 (12.3 to 9000)", "they", "200 (100 to 400)", *told)


def stream() -> tuple[Any, Tensor, Tensor]:
    model = freeze_backbone(make_model("ca_resnet18_cifar")).train()
    return model, *training._batch(model, 2)


def test_a_step_trains_the_stream_and_its_parts_train_nothing() -> None:
    model, x, y = stream()
    before = copy.deepcopy(model.state_dict())
    training._parts(model, x, y)()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    training.Steps(StreamTraining(model), Plain(nn.CrossEntropyLoss()))(x, y)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(before[key], value)}
    assert moved
    assert all(key.startswith("stream.") for key in moved)


def test_the_parts_are_the_step_without_the_optimiser() -> None:
    model, x, y = stream()
    found: Any = training._parts(model, x, y)()
    loss = nn.functional.cross_entropy(StreamTraining(model)(x), y)
    trained = list(model.stream.parameters())
    assert len(found) == len(trained)
    for ours, theirs in zip(found, torch.autograd.grad(loss, trained), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_are_penalised_as_asked_in_the_precision_that_is_asked(dtype: torch.dtype) -> None:
    model: Any = make_model("test_resnet").train()
    objective = InterpretableGradients(nn.CrossEntropyLoss(), Penalty(0.1, every=4))
    steps, seen = training.Steps(model, objective, dtype), []
    model.layer1.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    x, y = training._batch(model, 2)
    penalised = [steps(x, y) is not None for _ in range(5)]
    assert penalised == [True, False, False, False, True]
    assert set(seen) == {dtype}
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_waiting_is_what_the_loader_takes_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    def load() -> Iterator[tuple[Tensor, Tensor]]:
        for i in itertools.count():
            pass_time(100.0 if i == 0 else 0.25)  # the worker starts
            yield torch.zeros(1), torch.zeros(1)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    waited, whole = training.waits(load(), lambda x, y: pass_time(2.0), repetitions=3)
    assert waited.seconds == [0.25] * 3
    assert whole.seconds == [2.25] * 3


def test_pictures_are_cut_as_they_are_for_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTERP_ZOO_DATA", raising=False)
    data, kind = training._pictures(tmp_path)
    assert kind == "textures"
    assert len(data.chosen) == training.MADE
    x, y = next(training._batches(data, make_model("resnet18_cifar"), 3, workers=0))
    assert x.shape == (3, 3, 32, 32)
    assert y.shape == (3,)
