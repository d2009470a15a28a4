"""Checkpoints of a run that is under way: whole, or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_NEW = ".new"  # what is being written
_PROGRESS = "progress.json"
_AVERAGE = "ema.safetensors"


class Checkpoints:
    """The checkpoints of one run, of which the last one is kept.

    What accelerate was given to prepare (network, optimiser, the loss' scale) goes its own way, tensors only; what the
    recipe counts goes into a JSON file, and averaged weights into a safetensors file.

    Args:
        folder: where they are; made if needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def latest(self) -> Path | None:
        """The last checkpoint, None if there is none."""
        return max(self.folder.glob("step-*"), default=None)

    def save(self, accelerator: Accelerator, progress: Mapping[str, Any], average: nn.Module | None = None) -> None:
        """Writes a checkpoint, and then deletes the one before. To be called by all processes.

        A new folder takes its name when all of it is on the disk: whenever the machine stops, one is whole.

        Args:
            accelerator: knows what it prepared.
            progress: what the recipe counts; `progress["step"]` is part of the name.
            average: a network whose weights are kept, too.
        """
        new = self.folder / _NEW
        if accelerator.is_main_process:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(new))
        if accelerator.is_main_process:
            (new / _PROGRESS).write_text(json.dumps(progress, allow_nan=False), encoding="utf-8")
            if average is not None:
                save_file(_own(average.state_dict()), new / _AVERAGE)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for file in (*new.rglob("*"), new):
                _sync(file)
            name = self.folder / f"step-{progress['step']:09}"
            shutil.rmtree(name, ignore_errors=True)
            new.rename(name)
            _sync(self.folder)
            for old in self.folder.glob("step-*"):
                if old != name:
                    shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def load(self, accelerator: Accelerator, average: nn.Module | None = None) -> dict[str, Any] | None:
        """Puts all as it was at the last checkpoint, and returns its progress; None if there is none."""
        latest = self.latest()
        if latest is None:
            return None
        accelerator.load_state(str(latest))
        accelerator.step = 0  # passes since a whole step, of which the run that goes on may make more or fewer
        if average is not None:
            average.load_state_dict(load_file(latest / _AVERAGE))
        progress: dict[str, Any] = json.loads((latest / _PROGRESS).read_text(encoding="utf-8"))
        return progress


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as safetensors wants them."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _sync(path: Path) -> None:
    """Sees to it that a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
