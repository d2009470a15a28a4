"""Pictures and labels for an evaluation, and which of them are evaluated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from interp_zoo.evaluation.samples import evenly, hold_out
from interp_zoo.evaluation.sources import BrokenPictureError, Source, class_index, nameless, open_source
from interp_zoo.explain.inputs import EXTENSIONS


@dataclass(frozen=True)
class Item:
    """One picture.

    Attributes:
        index: its number in the data set.
        file: its name, relative to the data set; "picture 3" where it has none.
        image: RGB, upright, before the model's transform.
        label: its class, or None if it has none.
    """

    index: int
    file: str
    image: Image.Image
    label: int | None


@dataclass(frozen=True)
class Unreadable:
    """A picture that cannot be decoded, and why."""

    index: int
    file: str
    why: str


class Data:
    """Pictures with their labels, and which of them are evaluated.

    Args:
        source: where they are.
        limit: how many are evaluated, None for all.
        held: of which share, the one that training with the same share leaves out; None for all.

    Attributes:
        total: how many pictures the data set has, or None if that is known at its end only.
        indexable: whether `data[index]` works; if not, pictures come from `stream` alone.
        class_names: the names of the classes that the data set numbers by itself, or None.
    """

    def __init__(self, source: Source, limit: int | None = None, held: float | None = None) -> None:
        self.total, self.indexable = source.total, source.load is not None
        self.class_names = source.classes
        self._source, self._limit, self._held = source, limit, held
        self._out_of: int | None = None

    @cached_property
    def chosen(self) -> list[int]:
        """The indices that are evaluated, ascending: evenly spaced where there is access by index, else the first.

        Raises:
            ValueError: if there is no picture, or a part is wanted of what has no labels or no access by index.
        """
        total = self.total
        if self._held is not None:
            if not self.indexable or self.labels is None or None in self.labels:
                kind = self._source.kind
                raise ValueError(f"`hold_out` is a share of each class, and {kind} does not tell the labels")
            _, held = hold_out(self.labels, self._held)
            return evenly(held, self._limit)
        if total is None:  # it is walked over once, as far as the limit
            total = sum(1 for _ in islice(self._source.walk(), self._limit))
            if not total:
                raise ValueError(f"`dataset` {self._source.kind} has no picture")
        return evenly(range(total), self._limit) if self.indexable else list(range(min(total, self._limit or total)))

    @cached_property
    def names(self) -> list[str]:
        """The names of the `chosen` pictures, in their order, without decoding where the data set allows it."""
        if self.indexable:
            return [self._file(index) for index in self.chosen]
        walked = [file for file, _ in islice(self._source.walk(), len(self.chosen))]
        return walked + [nameless(index) for index in self.chosen[len(walked) :]]

    @cached_property
    def labels(self) -> list[int | None] | None:
        """The label of each picture, None for none; None for all if they are not known without decoding."""
        if self._source.labels is None or self.total is None:
            return None
        return [self._known_label(index) for index in range(self.total)]

    @cached_property
    def labelled(self) -> bool:
        """Whether the pictures have labels: the first one tells, where they are not known without decoding."""
        if self._source.labels is not None:
            return any(self._known_label(index) is not None for index in self.chosen)
        first = next(self.stream(self.chosen[:1]))
        return isinstance(first, Item) and first.label is not None

    @cached_property
    def about(self) -> str:
        """One line for the report: what the data is, and how much of it is evaluated."""
        number = len(self.chosen)
        if self._held is not None:
            part = f"{number:,} of those pictures that training on them with --hold-out {self._held:g} leaves out"
        elif number == self.total or self._limit is None:
            part = f"all {number:,} pictures"
        elif self.indexable:
            part = f"{number:,} of {self.total:,} pictures, evenly spaced"
        else:
            part = f"the first {number:,} pictures"
        return f"{self._source.kind}, {part}"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all names, labels and sizes that are known without decoding, whatever is chosen of them."""
        digest = hashlib.sha256(repr((self._source.identity, self.total)).encode())
        for index in range(self.total or 0) if self.indexable else ():
            digest.update(f"{self._file(index)}\0{self._known_label(index)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def __getitem__(self, index: int) -> Item:
        item = self.read(index)
        if isinstance(item, Unreadable):
            raise ValueError(f'picture {index} "{item.file}" cannot be read: {item.why}')
        return item

    def __iter__(self) -> Iterator[Item | Unreadable]:
        return self.stream(self.chosen)

    def read(self, index: int) -> Item | Unreadable:
        """One picture by its index, or why it cannot be read."""
        load = self._source.load
        if load is None or self.total is None:
            raise TypeError(f"{self._source.kind} has no access by index: take its pictures from `stream`")
        if not 0 <= index < self.total:
            raise IndexError(f"`index` {index} is out of range: the data set has {self.total} pictures")
        return self._item(index, self._file(index), lambda: load(index))

    def stream(self, indices: Sequence[int]) -> Iterator[Item | Unreadable]:
        """Pictures one after another; without access by index in ascending order, in one walk.

        Several processes can each ask for their own share: each walks over all, and decodes only its own where
        timm's reader does not decode by itself (tfds does). It is not meant for the workers of a data loader.

        Args:
            indices: which pictures, each once.
        """
        if self.indexable:
            for index in indices:
                yield self.read(index)
            return
        entries, seen = self._source.walk(), 0
        for index in sorted(set(indices)):
            for file, load in entries:
                seen += 1
                if seen == index + 1:
                    yield self._item(index, file, load)
                    break
            else:
                yield Unreadable(index, nameless(index), f"the data set ends after {seen} pictures")

    def check_labels(self, classes: int) -> None:
        """Whether the labels can be the model's: all that are known by now, the others when they are read.

        Args:
            classes: how many classes the model has.

        Raises:
            ValueError: if a label is out of range, or the data numbers its own classes and has more or fewer.
        """
        own = self.class_names
        if own is not None and len(own) != classes:
            raise ValueError(
                f"{self._source.kind} numbers {len(own)} classes of its own, but the model has {classes}: give "
                "`class_map`, a .txt with the name of a class a line in the model's order, or a folder with labels.csv"
            )
        self._out_of = classes
        for index in range(self.total or 0) if self._source.labels is not None else ():
            self._check(self._known_label(index), index, self._file(index))

    def _item(self, index: int, file: str, load: Callable[[], tuple[Image.Image, Any]]) -> Item | Unreadable:
        try:
            image, written = load()
        except BrokenPictureError as error:
            return Unreadable(index, file, str(error))
        label = class_index(written, file)
        self._check(label, index, file)
        return Item(index, file, image, label)

    def _check(self, label: int | None, index: int, file: str) -> None:
        if label is not None and self._out_of is not None and label >= self._out_of:
            raise ValueError(
                f'picture {index} "{file}" is labelled {label}, but the model has {self._out_of} classes, 0 to '
                f"{self._out_of - 1}: give the labels in the model's numbering"
            )

    def _file(self, index: int) -> str:
        return nameless(index) if self._source.files is None else self._source.files[index]

    def _known_label(self, index: int) -> int | None:
        return None if self._source.labels is None else class_index(self._source.labels[index], self._file(index))


def open_data(
    data_dir: Path | None,
    dataset: str = "",
    split: str = "validation",
    limit: int | None = None,
    *,
    held: float | None = None,
    class_map: str = "",
    input_key: str = "",
    target_key: str = "",
) -> Data:
    """A data set for evaluation; nothing is decoded yet.

    Args:
        data_dir: a folder with labels.csv (columns file and class_index), a plain folder of pictures (no labels), or
            the root of what timm opens: class folders, a .tar, the files of torch/, tfds/, wds/, the cache of hfds/.
        dataset: "" for folders, else timm's name of a data set: torch/..., hfds/..., hfids/..., tfds/..., wds/...
        split: which part of it; for class folders, the subfolder of that name if there is one.
        limit: how many pictures are evaluated, or None for all.
        held: evaluate the share that training with this `hold_out` leaves out.
        class_map: file with the names of the classes in the model's order, as timm takes it.
        input_key: column that holds the pictures, as timm takes it.
        target_key: column that holds the labels, as timm takes it.

    Raises:
        FileNotFoundError: if `data_dir`, or a file that labels.csv names, does not exist.
        ValueError: if the data cannot be opened, or has no picture.
        ImportError: if timm needs a package that is not installed.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1, not {limit}")
    options = {"class_map": class_map, "input_key": input_key, "target_key": target_key}
    source = open_source(data_dir, dataset, split, {key: value for key, value in options.items() if value})
    if source.total == 0:
        raise ValueError(f"`data_dir` {source.kind}: there is no picture that ends in {', '.join(EXTENSIONS)}")
    return Data(source, limit, held)
