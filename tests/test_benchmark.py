"""The benchmark runs, on a tiny network, and its table is whole. Nothing here depends on how fast anything is."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("benchmark")  # its fixtures take long: one worker makes them

RECIPE = Path(__file__).parents[1] / "recipes" / "benchmark.py"
TINY = "--model test_resnet --size 64 --batch 2 --repetitions 1 --processes 1 --threads 1 --pictures 2 --launches 1"
# What is raced against what, the unit of the ratio, the goal, and whether maps are compared.
ROWS = [
    ("import interp_zoo", "import timm", "s more", "at most 0.3", False),
    ("Grad-CAM, 2 pictures", "grad-cam's GradCAM", "x as fast", "at least 3", True),
    ("Grad-CAM, 2 pictures", "1 forward pass", "x its time", "at most 1.15", False),
    ("Grad-CAM, 2 pictures", "1 forward pass, channels last", "x its time", "", False),
    ("Grad-CAM, 2 pictures, and them masked", "1 forward pass", "x its time", "", False),
    ("Ablation-CAM, 1 picture", "grad-cam's AblationCAM", "x as fast", "at least 200", True),
    ("Score-CAM, 1 picture", "grad-cam's ScoreCAM", "x as fast", "", True),
    ("Score-CAM, 1 picture", "96 forward passes", "x its time", "at most 1.1", False),
    ("Score-CAM, 1 picture", "96 forward passes, channels last", "x its time", "", False),
    ("Insertion and deletion, 2 pictures", "36 forward passes", "x as fast", "at least 0.9", False),
    ("ROAD, 2 pictures", "grad-cam's ROADMostRelevantFirstAverage", "x as fast", "at least 3", True),
    ("evaluate.py, 2 pictures, 2 processes", "1 process", "x as fast", "at least 1.6", False),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("benchmark") / "benchmark.md"
    command = [sys.executable, str(RECIPE), *TINY.split(), "--output", str(file)]
    wide = os.environ | {"COLUMNS": "160"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=wide)
    assert done.returncode == 0, done.stderr
    assert "Score-CAM" in done.stdout
    return file.read_text(encoding="utf-8")


def test_every_race_is_in_the_table(page: str) -> None:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    assert lines[0] == ["what", "ms", "against", "its ms", "ratio", "goal", "met", "maps differ by"]
    assert len(lines) == 2 + len(ROWS)
    for line, (what, against, unit, goal, compared) in zip(lines[2:], ROWS, strict=True):
        assert line[0] == what
        assert line[2] == against
        number, _, kind = line[4].partition(" ")
        assert math.isfinite(float(number))
        assert kind == unit
        assert line[5] == goal
        assert (line[6] in ("yes", "no")) == bool(goal)
        assert all(float(time.split()[0]) > 0 for time in (line[1], line[3]))
        assert bool(line[7]) == compared
        if compared:
            assert float(line[7]) <= 1e-3  # the same maps: the race is fair


def test_the_page_says_how_it_was_made(page: str) -> None:
    assert f"`python recipes/benchmark.py {TINY} --output " in page
    for word in ("torch 2.", "timm 1.", "grad-cam 1.5.7", "1 threads", "CPUs", "medians of 1 repetitions"):
        assert word in page


def test_an_unknown_race_is_told() -> None:
    command = [sys.executable, str(RECIPE), *TINY.split(), "--races", "import,hurdles"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--races has hurdles, but must be some of import, gradcam, masks, metrics, processes" in done.stderr
