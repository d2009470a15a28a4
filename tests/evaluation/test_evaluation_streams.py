"""Pictures and labels from what has no files: rows in memory, streams, Hugging Face, webdataset."""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
import torch.distributed
from conftest import assert_one_line
from PIL import Image
from torch.utils.data import IterableDataset

from interp_zoo.evaluation.data import Item, Unreadable, open_data


def red(item: Item | Unreadable) -> Any:
    assert isinstance(item, Item)
    assert item.image.mode == "RGB"
    return np.asarray(item.image)[0, 0, 0]


class Rows:
    """What torchvision's data sets without files look like: pictures in memory, and targets."""

    def __init__(self, targets: Any) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        if index == 3:
            raise OSError("disk\nfull")
        return Image.new("L", (2, 2), index), self.targets[index]


@pytest.fixture
def timm_gives(monkeypatch: pytest.MonkeyPatch) -> Any:
    def give(dataset: Any) -> None:
        monkeypatch.setattr(timm.data, "create_dataset", lambda *args, **kwargs: dataset)

    return give


@pytest.mark.parametrize("targets", [[5, 6, -1, 8], torch.tensor([5, 6, -1, 8])])
def test_pictures_without_files(tmp_path: Path, timm_gives: Any, targets: Any) -> None:
    timm_gives(Rows(targets))
    data = open_data(tmp_path, "torch/mnist")
    first, second, third, broken = data
    assert data.names == ["picture 0", "picture 1", "picture 2", "picture 3"]
    assert data.about == "torch/mnist, split validation, all 4 pictures"
    assert [item.label for item in (first, second, third) if isinstance(item, Item)] == [5, 6, None]
    assert red(second) == 1
    assert broken == Unreadable(3, "picture 3", "disk full")
    with pytest.raises(ValueError, match=r'picture 3 "picture 3" is labelled 8, but the model has 8 classes'):
        data.check_labels(8)
    timm_gives(Rows([5, 6, -1, 9]))
    assert open_data(tmp_path, "torch/mnist").fingerprint != data.fingerprint


def test_labels_of_several_classes_are_refused(tmp_path: Path, timm_gives: Any) -> None:
    timm_gives(Rows([[1, 2], [3]]))
    data = open_data(tmp_path, "torch/x")
    with pytest.raises(
        ValueError, match=r'^"picture 1" is labelled \[3\], but a label must be the index of one class$'
    ):
        data[1]


class Stream(IterableDataset[Any]):
    """A data set without access by index; it counts what it has given."""

    def __init__(self, number: int) -> None:
        self.number, self.given = number, 0

    def __iter__(self) -> Iterator[tuple[Image.Image, Any]]:
        for index in range(self.number):
            self.given += 1
            yield Image.new("RGB", (2, 2), (index, 0, 0)), np.int64(index + 40)


class Counted(Stream):
    """The same with a length, as timm's have."""

    length: int

    def __len__(self) -> int:
        return self.length


@pytest.mark.parametrize("length", [None, 0, 6])
def test_streams_give_the_first_pictures(tmp_path: Path, timm_gives: Any, length: int | None) -> None:
    stream = Stream(6) if length is None else Counted(6)
    if isinstance(stream, Counted):
        stream.length = length or 0
    timm_gives(stream)
    data = open_data(tmp_path, "torch/x", limit=4)
    assert stream.given == 0
    assert data.chosen == [0, 1, 2, 3]
    assert stream.given == (0 if length else 4)  # only where the length is unknown they are counted
    last = list(data)[3]
    assert isinstance(last, Item)
    assert (last.index, last.file, last.label, red(last)) == (3, "picture 3", 43, 3)
    assert data.names == [f"picture {i}" for i in range(4)]
    assert data.about == "torch/x, split validation, the first 4 pictures"
    assert open_data(tmp_path, "torch/x", limit=9).chosen == list(range(6))
    whole = open_data(tmp_path, "torch/x")
    assert whole.about == "torch/x, split validation, all 6 pictures"
    assert whole.fingerprint == data.fingerprint
    assert whole.fingerprint != open_data(tmp_path, "torch/x", "test").fingerprint
    with pytest.raises(TypeError, match=r"has no access by index: take its pictures from `stream`"):
        data[0]


def test_each_process_takes_its_share_of_a_stream(tmp_path: Path, timm_gives: Any) -> None:
    stream = Stream(9)
    timm_gives(stream)
    data = open_data(tmp_path, "torch/x")
    shares = [list(data.stream(data.chosen[rank::2])) for rank in (0, 1)]
    assert [[item.index for item in share] for share in shares] == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]
    assert [[red(item) for item in share] for share in shares] == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]
    stream.given = 0
    assert [item.index for item in data.stream([3, 1])] == [1, 3]
    assert stream.given == 4  # and goes no further
    assert list(data.stream([])) == []


def test_streams_that_end_or_break_are_said(tmp_path: Path, timm_gives: Any) -> None:
    stream = Counted(3)
    stream.length = 5
    timm_gives(stream)
    items = list(open_data(tmp_path, "torch/x"))
    assert [item.index for item in items] == [0, 1, 2, 3, 4]
    assert items[3:] == [Unreadable(i, f"picture {i}", "the data set ends after 3 pictures") for i in (3, 4)]
    timm_gives(Broken())
    with pytest.raises(ValueError, match=r'^`dataset` "torch/x" breaks off: connection lost$') as raised:
        list(open_data(tmp_path, "torch/x", limit=2))
    assert_one_line(raised.value)
    timm_gives(Stream(0))
    with pytest.raises(ValueError, match=r"^`dataset` torch/x, split validation has no picture$"):
        len(open_data(tmp_path, "torch/x").chosen)


class Broken(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("connection\nlost")


def test_labels_of_streams_are_checked_on_the_way(tmp_path: Path, timm_gives: Any) -> None:
    timm_gives(Stream(3))
    data = open_data(tmp_path, "torch/x")
    data.check_labels(42)
    pictures = iter(data)
    assert [next(pictures).index, next(pictures).index] == [0, 1]
    with pytest.raises(ValueError, match=r'picture 2 "picture 2" is labelled 42, but the model has 42 classes'):
        next(pictures)


def shards(root: Path) -> Path:
    """Two shards of three samples; the second picture is broken."""
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"x-{shard}.tar", "w") as archive:
            for i in range(3):
                number = 3 * shard + i
                encoded = io.BytesIO()
                Image.new("RGB", (4, 4), (number, 0, 0)).save(encoded, "png")
                data = encoded.getvalue()[: 20 if number == 1 else None]
                for ending, content in (("png", data), ("cls", str(number + 50).encode())):
                    entry = tarfile.TarInfo(f"s{number}.{ending}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return root


@pytest.mark.filterwarnings("ignore")  # the package's own
def test_web_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("webdataset")
    root = shards(tmp_path / "wds")
    for name, value in (("is_available", True), ("is_initialized", True), ("get_world_size", 2), ("get_rank", 1)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    for split, total in (("x-{0..1}.tar|6", 6), ("x-{0..1}.tar", None)):
        data = open_data(root, "wds/x", split)
        assert data.total == total
        assert data.chosen == list(range(6))  # of both shards, though this is the second process of two
        assert data.names == [f"s{i}.png" for i in range(6)]
        items = list(data.stream([1, 4]))
        assert isinstance(items[0], Unreadable)
        assert items[0].file == "s1.png"
        assert red(items[1]) == 4
        assert [item.label for item in items[1:] if isinstance(item, Item)] == [54]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with pytest.raises(ValueError, match=r'^`dataset` "wds/x" in .* cannot be opened: split nowhere not found'):
        open_data(root, "wds/x", "nowhere")


def test_a_hub_that_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach 'me/pictures' on the Hub")

    monkeypatch.setattr("timm.data.create_dataset", fail)
    with pytest.raises(
        ValueError, match=r"cannot be opened: Couldn't reach .*; hfds/FOLDER reads a folder of its"
    ) as e:
        open_data(tmp_path, "hfds/me/pictures")
    assert_one_line(e.value)


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with one parquet file as the Hub has them; the second picture is broken."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = []
    for number in range(4):
        encoded = io.BytesIO()
        Image.new("RGB", (4, 4), (number, 0, 0)).save(encoded, "png")
        rows.append({"bytes": encoded.getvalue()[: 20 if number == 1 else None], "path": f"d/{number}.png"})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcdefgh"))})
    table = datasets.Dataset.from_dict({"image": rows, "label": [7, 6, 5, 4]}, features)
    table.to_parquet(str(folder / "validation-00000.parquet"))
    return str(folder)


@pytest.mark.filterwarnings("ignore")  # the package's own
@pytest.mark.parametrize("kind", ["hfds", "hfids"])
def test_hugging_face(parquet: str, kind: str, tmp_path: Path) -> None:
    data = open_data(tmp_path / "cache", f"{kind}/{parquet}")
    assert data.chosen == [0, 1, 2, 3]
    assert data.names == ["0.png", "1.png", "2.png", "3.png"]
    items = list(data)
    assert isinstance(items[1], Unreadable)
    assert items[1].file == "1.png"
    assert [(item.label, red(item)) for item in items if isinstance(item, Item)] == [(7, 0), (5, 2), (4, 3)]
    with pytest.raises(ValueError, match=r'`target_key` "fine" is no column of .*: it has image, label'):
        list(open_data(tmp_path / "cache", f"{kind}/{parquet}", target_key="fine"))
    with pytest.raises(ValueError, match=r'`input_key` "img" is no column of .*: it has image, label'):
        list(open_data(tmp_path / "cache", f"{kind}/{parquet}", input_key="img"))
    data.check_labels(8)
    if kind == "hfds":
        with pytest.raises(ValueError, match=r"numbers 8 classes of its own, but the model has 9"):
            data.check_labels(9)
    with pytest.raises(ValueError, match=r'^`dataset` "hfi?ds/.*" in .* cannot be opened: .') as raised:
        open_data(tmp_path / "cache", f"{kind}/{tmp_path / 'nowhere'}")
    assert_one_line(raised.value)
