"""Pictures for training: what is random of one depends on the seed, the epoch and its index, and on nothing else.

So they are the same on any number of processes and workers, and after a run was killed and started again.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import transforms

from interp_zoo.evaluation.data import Data, Item

Transform = Callable[[Image.Image], Tensor]
UNREADABLE = -1  # the label of a picture that could not be read: it does not count


def number(*numbers: int) -> int:
    """A seed that depends on some numbers, unlike those of their neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's random numbers; afterwards all is as it was before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class TrainingPictures(Dataset[tuple[Tensor, int]]):
    """Augmented pictures (channels, H, W) with their labels, by (epoch, place among the indices).

    A picture that cannot be decoded is told on stderr, and the next one stands in its place.

    Args:
        data: the pictures.
        indices: which of them.
        transform: draws from Python's, NumPy's and torch's random numbers.
        seed: of the run.
    """

    def __init__(self, data: Data, indices: Sequence[int], transform: Transform, seed: int) -> None:
        self.data, self.indices, self.transform, self.seed = data, indices, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, place = key
        for index in (self.indices[(place + later) % len(self.indices)] for later in range(len(self.indices))):
            item = self.data.read(index)
            if isinstance(item, Item):
                with drawing(number(self.seed, epoch, index)):
                    return self.transform(item.image), labelled(item)
            print(f"not read: {item.file}: {item.why}; the next picture stands in its place", file=sys.stderr)
        raise ValueError("none of the pictures to train on can be read")


class EvaluationPictures(Dataset[tuple[Tensor, int]]):
    """Pictures (channels, H, W) with their labels, each once; with label -1 and blank if it cannot be decoded."""

    def __init__(self, data: Data, indices: Sequence[int], transform: Transform) -> None:
        self.data, self.indices, self.transform = data, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        item = self.data.read(self.indices[place])
        if isinstance(item, Item):
            return self.transform(item.image), labelled(item)
        print(f"not read: {item.file}: {item.why}; it does not count", file=sys.stderr)
        return self.transform(Image.new("RGB", (64, 64))), UNREADABLE


def labelled(item: Item) -> int:
    """A picture's label.

    Raises:
        ValueError: if it has none.
    """
    if item.label is None:
        raise ValueError(f'picture "{item.file}" has no label: give class folders, or a labels.csv')
    return item.label


class Epochs(Sampler[tuple[int, int]]):
    """The keys (epoch, place) of one epoch after another: all pictures in an order drawn from the seed.

    Of an epoch's pictures, so many as fill whole steps are taken; which ones are left out is drawn anew each time.

    Args:
        total: how many pictures there are.
        step: how many of them one step of the optimiser takes, over all processes.
        seed: of the run.

    Raises:
        ValueError: if they do not fill one step.
    """

    def __init__(self, total: int, step: int, seed: int) -> None:
        if total < step:
            raise ValueError(
                f"`batch_size` times `grad_accum_steps` times processes is {step}, more than the {total} pictures to "
                "train on: give a smaller one"
            )
        self.total, self.step, self.seed = total, step, seed
        self.steps = total // step
        self.start_at(0, 0)

    def start_at(self, epoch: int, steps: int) -> None:
        """The epoch that comes next, and how many steps of it are done already."""
        self.epoch, self.done = epoch, steps

    def __len__(self) -> int:
        return (self.steps - self.done) * self.step

    def __iter__(self) -> Iterator[tuple[int, int]]:
        places = np.random.default_rng([self.seed, self.epoch]).permutation(self.total).tolist()
        return ((self.epoch, place) for place in places[self.done * self.step : self.steps * self.step])


def training_transform(config: dict[str, Any], *, crop_padding: int | None, rotation: float, **timm: Any) -> Transform:
    """The augmentation: timm's, with two of the field's on small pictures that timm has not.

    Args:
        config: the model's, as `timm.data.resolve_data_config` returns it.
        crop_padding: in place of timm's random resized crop, pad the picture by so many pixels and crop it at random.
        rotation: by up to so many degrees either way.
        timm: as for `timm.data.create_transform`.

    Raises:
        ValueError: if timm does not know an `auto_augment`.
    """
    size, interpolation = config["input_size"], timm.pop("interpolation") or config["interpolation"]
    mean_std = {key: config[key] for key in ("mean", "std")}
    try:
        made = create_transform(size, is_training=True, interpolation=interpolation, **mean_std, **timm)
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f'`aa` is "{timm.get("auto_augment")}", of which timm makes no augmentation ({type(error).__name__} '
            f'{error}): give one such as "rand-m9-mstd0.5"'
        ) from error
    steps: list[Any] = list(made.transforms)
    if timm.get("no_aug"):
        crop_padding, rotation = None, 0.0
    if crop_padding is not None:
        steps[:1] = [transforms.Resize(min(size[-2:])), transforms.RandomCrop(size[-2:], padding=crop_padding)]
    if rotation:
        steps.insert(0 if crop_padding is None else 2, transforms.RandomRotation(rotation))
    transform: Transform = transforms.Compose(steps)
    return transform
