"""What was measured, as it lies in docs/reproduction/."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Json = Mapping[str, Any]


class Measured:
    """The summaries in a folder, by name.

    Whoever asks for a file that is not there gets a FileNotFoundError; for a model that a run does not have, or has for
    several targets, a ValueError.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def summary(self, name: str) -> Any:
        """A run's summary.json, or other figures that lie there."""
        return json.loads(self._read(f"{name}.json"))

    def comparison(self, name: str, model: str) -> Json:
        """What a run says of a model beside the first of its models."""
        return self._one(name, "comparisons", "second", model)

    def table(self, name: str, model: str) -> Json:
        """What a run says of a model by itself."""
        return self._one(name, "tables", "model", model)

    def accuracy(self, name: str, model: str) -> tuple[float, int]:
        """Top-1 in percent on the pictures of a run, and their number."""
        facts = self._one(name, "models", "name", model)
        return 100 * facts["correct"] / facts["labelled"], facts["labelled"]

    def epochs(self, run: str) -> list[dict[str, str]]:
        """The summary.csv of a training run."""
        return [*csv.DictReader(self._read(f"{run}.csv").splitlines())]

    def penalty(self, run: str) -> str:
        """The mean penalty in the last epoch of a training run, "" if it had none."""
        last = self.epochs(run)[-1]
        return f"{float(last['penalty']):.3f}" if last.get("penalty") else ""

    def penalties(self, run: str) -> Tensor:
        """The penalty in each step of a training run that noted every step, from its steps.csv, (steps,)."""
        steps = csv.DictReader(self._read(f"{run}.csv", "steps").splitlines())
        return torch.tensor([float(step["extra"]) for step in steps], dtype=torch.float64)

    def _one(self, name: str, part: str, key: str, model: str) -> Json:
        found: list[Json] = [its for its in self.summary(name)[part] if its[key] == model]
        if len(found) != 1:
            raise ValueError(f'"{name}.json" has "{model}" {len(found)} times among its {part}, but must have it once')
        return found[0]

    def _read(self, name: str, part: str = "summary") -> str:
        file = self._folder / name
        if not file.is_file():
            raise FileNotFoundError(f'there is no "{file}": copy the {part}{file.suffix} of the run there')
        return file.read_text(encoding="utf-8")
