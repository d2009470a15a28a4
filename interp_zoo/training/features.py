"""A frozen backbone's maps, computed once and kept on the disk for all epochs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from interp_zoo.files import write_whole
from interp_zoo.models import CAStream
from interp_zoo.training.pictures import UNREADABLE, EvaluationPictures

_DONE = "done.json"


class KeptMaps:
    """What a CA-Stream reads of each picture, one file a map, shared by all processes.

    Args:
        folder: for the files; made if needed.
        model: the CA-Stream, whose backbone is frozen.
        pictures: as they are at every epoch.
        identity: tells these pictures and this backbone from others.

    Raises:
        ValueError: if the maps do not fit on the disk.
    """

    def __init__(
        self, folder: Path, model: CAStream, pictures: EvaluationPictures, accelerator: Accelerator, identity: str
    ) -> None:
        self._device = accelerator.device
        with torch.no_grad(), accelerator.autocast():
            maps = model.eval().maps(pictures[0][0][None].to(self._device))
        self._shapes, self._types = [a.shape[1:] for a in maps], [a.dtype for a in maps]
        self._folder, self._pictures = folder, len(pictures)
        told = json.dumps(
            [identity, self._pictures, [[*map(int, s)] for s in self._shapes], [str(t) for t in self._types]]
        )
        done = (folder / _DONE).is_file() and (folder / _DONE).read_text(encoding="utf-8") == told
        accelerator.wait_for_everyone()
        if not done and accelerator.is_main_process:
            self._check_room()
        accelerator.wait_for_everyone()
        self._maps = [
            torch.from_file(
                str(folder / f"{i}.bin"), shared=True, size=self._pictures * math.prod(shape), dtype=dtype
            ).view(self._pictures, *shape)
            for i, (shape, dtype) in enumerate(zip(self._shapes, self._types, strict=True))
        ]
        if not done:
            self._fill(model, pictures, accelerator)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_whole(folder / _DONE, told)

    def take(self, places: Tensor) -> list[Tensor]:
        """The maps of some pictures, by their places among all."""
        return [kept[places.cpu()].to(self._device) for kept in self._maps]

    def _check_room(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        a_picture = sum(math.prod(s) * t.itemsize for s, t in zip(self._shapes, self._types, strict=True))
        need, free = a_picture * self._pictures, shutil.disk_usage(self._folder).free
        if need > 0.9 * free:
            raise ValueError(
                f"`cache_features` needs {need / 1e9:,.1f} GB for {self._pictures:,} pictures, but of the output's "
                f"disk {free / 1e9:,.1f} GB are free: leave it out"
            )

    def _fill(self, model: CAStream, pictures: EvaluationPictures, accelerator: Accelerator, batch: int = 64) -> None:
        with accelerator.split_between_processes(list(range(len(pictures)))) as mine:
            for start in range(0, len(mine), batch):
                places = mine[start : start + batch]
                found_pictures = [pictures[place] for place in places]
                if UNREADABLE in [label for _, label in found_pictures]:
                    raise ValueError("`cache_features`: a picture cannot be read (see above): take it out of the data")
                x = torch.stack([picture for picture, _ in found_pictures]).to(self._device)
                with torch.no_grad(), accelerator.autocast():
                    for kept, found in zip(self._maps, model.maps(x), strict=True):
                        kept[places] = found.cpu()


class Places(Dataset[tuple[int, int]]):
    """In place of pictures, their places among those whose maps are kept, with their labels; by (epoch, place)."""

    def __init__(self, labels: Sequence[int]) -> None:
        self.labels = labels

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key[1], self.labels[key[1]]
