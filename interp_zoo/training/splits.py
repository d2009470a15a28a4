"""The two parts of a data set: what is trained on, and what accuracy is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp_zoo.evaluation.data import Data, open_data
from interp_zoo.evaluation.samples import hold_out


@dataclass(frozen=True)
class Splits:
    """Two data sets, or two parts of one, and the indices that count.

    Attributes:
        name: of the data set, without its folder.
        measured: the name of the part that accuracy is measured on.
    """

    train: Data
    train_indices: list[int]
    val: Data
    val_indices: list[int]
    name: str
    measured: str

    @property
    def classes(self) -> int | None:
        """How many classes the data numbers by itself; None if it takes the model's numbers."""
        return len(self.train.class_names) if self.train.class_names is not None else None

    @property
    def train_labels(self) -> list[int]:
        """The label of each picture that is trained on.

        Raises:
            ValueError: if one has none, or they are not known without decoding.
        """
        labels = self.train.labels or [None] * (max(self.train_indices) + 1)
        found = [label for index in self.train_indices if (label := labels[index]) is not None]
        if len(found) < len(self.train_indices):
            raise ValueError(f'`dataset` "{self.name}" does not tell the labels of its pictures beforehand')
        return found

    @property
    def facts(self) -> dict[str, Any]:
        """What tells these pictures from others."""
        return {"train": self.train.fingerprint, "val": self.val.fingerprint}


def open_splits(
    data_dir: Path | None,
    dataset: str,
    train_split: str,
    val_split: str,
    held: float | None,
    **keys: str,
) -> Splits:
    """Opens what is trained on, and what is measured on.

    Args:
        data_dir: as for `open_data`.
        dataset: as for `open_data`.
        train_split: the name of the part that is trained on.
        val_split: the name of the part that accuracy is measured on.
        held: measure on this share of the train split instead.
        keys: class_map, input_key and target_key as for `open_data`.

    Raises:
        FileNotFoundError: if there is no such data.
        ValueError: if a part is empty, has no labels, or is the same as the other.
    """
    train = _open(data_dir, dataset, "train_split", train_split, keys)
    named = Path(dataset.partition("/")[2]).name
    name = named or (data_dir.resolve().name if data_dir else "")
    if held is not None:
        labels = train.labels if train.labels is not None else [0] * len(train.chosen)
        if None in labels:
            raise ValueError(f'`train_split` "{train_split}" has pictures without labels: give each one')
        kept, out = hold_out(labels, held)
        return Splits(train, kept, train, out, name, f"{held:g} of {train_split}")
    val = _open(data_dir, dataset, "val_split", val_split, keys)
    if train.fingerprint == val.fingerprint:
        raise ValueError(
            f'`val_split` "{val_split}" is the same pictures as `train_split` "{train_split}": name another, or give '
            "--hold-out 0.1"
        )
    if train.class_names is not None and val.class_names is not None and train.class_names != val.class_names:
        odd = ", ".join(sorted({*train.class_names} ^ {*val.class_names})[:3]) or "in another order"
        raise ValueError(
            f'`val_split` "{val_split}" numbers other classes than `train_split` "{train_split}" ({odd}): give '
            "`class_map`"
        )
    return Splits(train, train.chosen, val, val.chosen, name, val_split)


def _open(data_dir: Path | None, dataset: str, which: str, split: str, keys: dict[str, Any]) -> Data:
    try:
        data = open_data(data_dir, dataset, split, None, **keys)
    except ValueError as error:
        raise ValueError(f'`{which}` "{split}": {error}') from None
    if not data.indexable or data.total is None:
        raise ValueError(
            f'`dataset` "{dataset}" is a stream, without an order to draw: take folders, hfds/... or torch/...'
        )
    if not data.labelled:
        raise ValueError(f'`{which}` "{split}" has no labels: give class folders, or a labels.csv')
    return data
