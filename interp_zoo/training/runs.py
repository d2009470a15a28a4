"""The folder of one training run: what it is, what it wrote, and what was seen step by step."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from interp_zoo.files import write_whole
from interp_zoo.hub import write_weights

ARGUMENTS = "args.yaml"
IDENTITY = "run.json"
STEPS, SUMMARY = "steps.csv", "summary.csv"
CHECKPOINTS, FEATURES, LOGS = "checkpoints", "features", "logs"
_OWN = (ARGUMENTS, IDENTITY, STEPS, SUMMARY, CHECKPOINTS, FEATURES, "best", "last", "best_ema", "last_ema", LOGS)
# How a run is watched and where it runs, which another command may change when it goes on.
_FREE = {
    *("output", "overwrite", "config", "data_dir", "workers", "validation_batch_size", "batch_size"),
    *("grad_accum_steps", "log_interval", "log_with", "checkpoint_minutes"),
}


def claim(folder: Path, arguments: Mapping[str, Any], facts: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Makes a folder this run's, or finds that it is already. To be called by one process.

    Writes args.yaml, which can be given to --config again.

    Args:
        folder: made if needed.
        arguments: of the command line.
        facts: what else makes the run what it is, such as its data and its first weights.
        overwrite: whether to delete another run.

    Raises:
        ValueError: if the folder holds another run, or other files.
    """
    wanted = {key: value for key, value in arguments.items() if key not in _FREE} | dict(facts)
    wanted = json.loads(json.dumps(wanted, default=str))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'`output` "{folder}" is a file: choose another folder')
    file = folder / IDENTITY
    held = _read(file)
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    own = _OWN if held is not None else (ARGUMENTS,)  # what is there before run.json is
    strangers = [n for n in names if n not in own and not (n.startswith(".") and n.endswith(".new"))]
    if strangers:
        raise ValueError(f'`output` "{folder}" holds other files ({strangers[0]}): choose another folder')
    if held == wanted:
        return
    if held is not None and {*names} & {CHECKPOINTS, "best", "last", "best_ema", "last_ema"} and not overwrite:
        for key in sorted({*held, *wanted}):
            if held.get(key) != wanted.get(key):
                raise ValueError(
                    f'`output` "{folder}" holds another run ({key}: {_short(held.get(key))} there, '
                    f"{_short(wanted.get(key))} here): choose another folder, or give --overwrite"
                )
    for name in sorted(names, key=lambda name: name == IDENTITY):  # last: until then it is known to be a run
        _delete(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}
    plain = {k: v for k, v in plain.items() if k not in ("config", "overwrite") and v not in (None, [], {})}
    write_whole(folder / ARGUMENTS, yaml.safe_dump(plain, sort_keys=False))
    write_whole(file, json.dumps(wanted, indent=1))


class Journal:
    """What is written of a run while it goes on: a line a step in steps.csv, a line an epoch in summary.csv.

    Losses stay on their device until `flush`, so that no step waits for the one before.

    Args:
        folder: the run's.
        columns: of summary.csv.
        writes: whether this process writes the files.
    """

    def __init__(self, folder: Path, columns: Sequence[str], *, writes: bool) -> None:
        self.folder, self.columns, self._writes = folder, list(columns), writes
        self._pending: list[tuple[int, int, float, bool, Tensor]] = []
        self.sums = [0.0, 0, 0.0, 0]  # the losses of this epoch and how many, their extras and how many

    def rewind(self, step: int, epoch: int, sums: Sequence[float] | None) -> None:
        """Forgets what came after a checkpoint, and takes up its sums."""
        self.sums, self._pending = list(sums or self.sums), []
        if self._writes:
            _cut(self.folder / STEPS, ["step", "epoch", "lr", "loss", "extra"], step)
            _cut(self.folder / SUMMARY, self.columns, epoch)

    def step(self, step: int, epoch: int, lr: float, loss: Tensor, extra: Tensor | None = None) -> None:
        """Notes a step's cross-entropy and what was added to it, scalars that all processes share."""
        both = torch.stack([loss, torch.full_like(loss, math.nan) if extra is None else extra])
        self._pending.append((step, epoch, lr, extra is not None, both.detach().float()))

    def flush(self) -> float:
        """Writes down what was noted since, and returns the last loss.

        Raises:
            FloatingPointError: if a loss is not finite; the message tells the step.
        """
        if not self._pending:
            return math.nan
        values = torch.stack([both for *_, both in self._pending]).tolist()
        lines = []
        for (step, epoch, lr, has, _), (loss, extra) in zip(self._pending, values, strict=True):
            lines.append([step, epoch, repr(lr), repr(loss), repr(extra) if has else ""])
            if not math.isfinite(loss) or (has and not math.isfinite(extra)):
                self._write(STEPS, lines)
                what = f"loss is {loss}" if not math.isfinite(loss) else f"term that is added to the loss is {extra}"
                raise FloatingPointError(
                    f"the {what} in step {step} (epoch {epoch}); the last checkpoint is whole, but leads here: try a "
                    "lower `lr`, or `clip_grad`"
                )
            for i, value in enumerate((loss, extra)):
                if not math.isnan(value):
                    self.sums[2 * i] += value
                    self.sums[2 * i + 1] += 1
        self._pending = []
        self._write(STEPS, lines)
        return float(values[-1][0])

    def means(self) -> tuple[float | None, float | None]:
        """The mean loss of this epoch, and that of its extras (of the steps that had one); a new epoch begins."""
        losses, steps, extras, some = self.sums
        self.sums = [0.0, 0, 0.0, 0]
        return losses / steps if steps else None, extras / some if some else None

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Adds a line to summary.csv."""
        self._write(SUMMARY, [["" if row.get(c) is None else row[c] for c in self.columns]])

    def _write(self, name: str, lines: Sequence[Sequence[Any]]) -> None:
        if self._writes:
            with (self.folder / name).open("a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(lines)


def save_weights(
    folder: Path, model: nn.Module, *, command: str, dataset: str, split: str, accuracy: Mapping[str, float]
) -> None:
    """Writes a network as timm loads it ("local-dir:FOLDER"), and its results file for `interp-zoo push --results`.

    Args:
        folder: made if needed.
        model: the network.
        command: that trained and measured it.
        dataset: its name.
        split: the part of it that was measured.
        accuracy: in percent, by "top-1" and "top-5".
    """
    write_weights(model, folder)
    cfg: Any = model.pretrained_cfg
    results = {
        "model": cfg["architecture"],
        "command": command,
        "training": command,
        "datasets": [dataset],
        "results": [
            {"dataset": dataset, "split": split, "metric": metric, "name": name, "value": round(accuracy[name], 4)}
            for name, metric in (("top-1", "accuracy"), ("top-5", "top-5 accuracy"))
            if name in accuracy
        ],
    }
    write_whole(folder / "results.json", json.dumps(results, indent=1))


def _read(file: Path) -> dict[str, Any] | None:
    """What a run.json holds; {} if it is broken, None if it is not there."""
    if not file.is_file():
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def _cut(file: Path, header: Sequence[str], last: int) -> None:
    """Keeps the lines of a CSV file whose first number is not above `last`."""
    lines: list[list[str]] = []
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as old:
            lines = [line for line in csv.reader(old) if line and line[0].isdigit() and int(line[0]) <= last]
    whole = [line for line in lines if len(line) == len(header)]
    write_whole(file, "".join(",".join(line) + "\r\n" for line in (list(header), *whole)))


def _delete(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    for below in path.iterdir():
        _delete(below)
    path.rmdir()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
