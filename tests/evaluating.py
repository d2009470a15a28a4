"""Running recipes/evaluate.py in a test: its data, its arguments, its results."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import saved, texture
from recipemodules import recipe_module

RECIPE = Path(__file__).parents[1] / "recipes" / "evaluate.py"
PICTURES = 33
FLOORS = ["center_gaussian", "fakecam", "random"]


def make_place(folder: Path) -> Path:
    """33 pictures with labels and boxes (but for picture 4), and a checkpoint of a model with 10 classes."""
    (folder / "pictures").mkdir()
    labels, boxes = ["file,class_index"], ["file,left,top,right,bottom"]
    for i in range(PICTURES):
        texture((40 + i % 3, 50), seed=i).save(folder / "pictures" / f"{i:02}.png")
        labels.append(f"{i:02}.png,{i % 10}")
        boxes += [f"{i:02}.png,{i % 5},3,30,25"] * (i != 4)
    (folder / "pictures" / "labels.csv").write_text("\n".join(labels))
    (folder / "boxes.csv").write_text("\n".join(boxes))
    saved("test_resnet", folder, num_classes=10)
    return folder


def arguments(place: Path, output: Path, *more: str) -> list[str]:
    """Steps of insertion and deletion are few: mechanics, not meaning."""
    asked = ["--methods", "gradcam", "--metrics", "recognition,causal,pointing_game", "--step", "6400"]
    data = ["--data-dir", str(place / "pictures"), "--boxes", str(place / "boxes.csv")]
    model = ["--model", "test_resnet", "--checkpoint", str(place / "test_resnet.safetensors")]
    return [*model, *data, *asked, "--output", str(output), *more]


def load_recipe() -> ModuleType:
    return recipe_module("evaluate")


def main(argv: list[str]) -> None:
    """Runs the recipe in this process."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", ["recipes/evaluate.py", *argv])
        load_recipe().main()


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "results.csv").open() as file:
        return list(csv.DictReader(file))


def figures(output: Path) -> dict[tuple[str, ...], dict[str, float]]:
    """The metrics of each row that it has, by what it is about."""
    names = [entry["name"] for entry in json.loads((output / "summary.json").read_text())["metrics"]]
    keys = ("model", "method", "target_kind", "file", "target")
    return {tuple(r[k] for k in keys): {n: float(r[n]) for n in names if r[n]} for r in rows(output)}


def written(output: Path, process: int = 0) -> list[dict[str, object]]:
    """What a process wrote, line by line."""
    file = output / "parts" / f"{process:05}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]
