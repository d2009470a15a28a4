"""Pictures and labels from folders and archives; what is said about those that cannot be opened."""

from __future__ import annotations

import gc
import importlib.util
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
from conftest import assert_one_line
from PIL import Image

from interp_zoo.evaluation.data import Data, Item, Unreadable, open_data
from interp_zoo.training.splits import open_splits


def picture(path: Path, value: int = 0, size: tuple[int, int] = (6, 4), **kwargs: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path, **kwargs)
    return path


def labelled(root: Path, labels: dict[str, Any], header: str = "file,class_index,more") -> Path:
    for number, file in enumerate(labels):
        picture(root / file, number)
    root.mkdir(exist_ok=True)
    (root / "labels.csv").write_text("\n".join([header, *(f"{file},{label},x" for file, label in labels.items()), ""]))
    return root


def class_folders(root: Path, number: int = 3, each: int = 2) -> Path:
    for c in range(number):
        for i in range(each):
            picture(root / f"n{c}" / f"{c}_{i}.png", 10 * c + i)
    return root


def read(data: Data) -> list[Item]:
    items = list(data)
    assert all(isinstance(item, Item) for item in items)
    return [item for item in items if isinstance(item, Item)]


def red(item: Item | Unreadable) -> Any:
    assert isinstance(item, Item)
    assert item.image.mode == "RGB"
    return np.asarray(item.image)[0, 0, 0]


def test_labels_csv(tmp_path: Path) -> None:
    root = labelled(tmp_path, {"b.png": 7, "./sub/a.png": 0, "unused/../c.png": 12})
    picture(root / "unlabelled.png")
    data = open_data(root)
    assert data.names == ["b.png", "sub/a.png", "c.png"]
    assert [(item.index, item.file, item.label, red(item)) for item in read(data)] == [
        (0, "b.png", 7, 0),
        (1, "sub/a.png", 0, 1),
        (2, "c.png", 12, 2),
    ]
    assert data.about == f"folder with labels.csv {root}, all 3 pictures"
    data.check_labels(13)
    with pytest.raises(ValueError, match=r'picture 2 "c.png" is labelled 12, but the model has 12 classes, 0 to 11'):
        data.check_labels(12)


def test_folder_without_labels(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".cache").mkdir()
    data = open_data(tmp_path, "folder")
    assert [(item.file, item.label) for item in read(data)] == [("a.JPG", None), ("b.png", None), ("c.webp", None)]
    assert data.about == f"folder without labels {tmp_path}, all 3 pictures"
    data.check_labels(2)


@pytest.mark.parametrize(("number", "limit", "want"), [(10, 3, [0, 3, 6]), (10, 10, None), (10, 99, None), (3, 1, [0])])
def test_limit_is_spread_evenly(tmp_path: Path, number: int, limit: int, want: list[int] | None) -> None:
    root = labelled(tmp_path, {f"{i}.png": i for i in range(number)})
    data = open_data(root, limit=limit)
    assert data.total == number
    assert data.chosen == (want or list(range(number)))
    assert [item.index for item in read(data)] == data.chosen
    assert data.names == [f"{i}.png" for i in data.chosen]
    part = f"{limit} of {number} pictures, evenly spaced" if want else f"all {number} pictures"
    assert data.about.endswith(part)
    assert data[number - 1].label == number - 1  # what is not chosen is there all the same
    with pytest.raises(IndexError, match=rf"`index` {number} is out of range: the data set has {number} pictures"):
        data[number]


def test_what_training_has_held_out(tmp_path: Path) -> None:
    """The very pictures that `--hold-out` of the training recipe chooses by, and of them so many."""
    root = labelled(tmp_path, {f"{i:02}.png": i % 3 for i in range(30)})
    splits = open_splits(root, "", "train", "validation", 0.2)
    data = open_data(root, held=0.2)
    assert data.chosen == splits.val_indices
    assert len(data.chosen) == 6
    assert data.about.endswith("6 of those pictures that training on them with --hold-out 0.2 leaves out")
    assert open_data(root, limit=2, held=0.2).chosen == [splits.val_indices[i] for i in (0, 3)]
    with pytest.raises(ValueError, match=r"`hold_out` is 1\.5, but must be between"):
        _ = open_data(root, held=1.5).chosen
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "plain" / "a.png")
    with pytest.raises(ValueError, match=r"`hold_out` is a share .* does not tell the labels") as error:
        _ = open_data(tmp_path / "plain", held=0.2).chosen
    assert_one_line(error.value)


def test_pictures_are_upright_rgb(tmp_path: Path) -> None:
    for root, file in ((tmp_path / "csv", "a.jpg"), (tmp_path / "folders", "n0/a.jpg")):
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        picture(root / file, exif=exif)
        if root.name == "csv":
            (root / "labels.csv").write_text("file,class_index\na.jpg,0\n")
        for dataset in ("", "torch/image_folder") if root.name == "folders" else ("",):
            assert open_data(root, dataset)[0].image.size == (4, 6)


def test_unreadable_pictures_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    root = labelled(tmp_path / "csv", {"a.png": 0, "b.png": 1, "c.png": 2, "d.png": 3})
    folders = class_folders(tmp_path / "folders")
    for path, cut in ((root / "b.png", 45), (root / "c.png", 0), (folders / "n0" / "0_1.png", 45)):
        path.write_bytes(path.read_bytes()[:cut])
    data = open_data(root)
    (root / "d.png").unlink()
    first, *rest = data.stream(data.chosen)
    assert red(first) == 0
    assert [(item.index, item.file) for item in rest] == [(1, "b.png"), (2, "c.png"), (3, "d.png")]
    assert [item.why for item in rest if isinstance(item, Unreadable)][1:] == [
        "no picture format that Pillow knows",
        "does not exist",
    ]
    with pytest.raises(ValueError, match=r'^picture 1 "b.png" cannot be read: .') as raised:
        data[1]
    assert_one_line(raised.value)
    # timm itself would give the next picture in its place, with the wrong index.
    for dataset in ("", "torch/image_folder"):
        items = list(open_data(folders, dataset))
        assert [type(item) for item in items] == [Item, Unreadable, Item, Item, Item, Item]
        assert items[1].file == "n0/0_1.png"
        assert red(items[2]) == 10


def test_fingerprint_knows_the_same_data_again(tmp_path: Path) -> None:
    one = labelled(tmp_path / "one", {"a.png": 0, "b.png": 1})
    same = labelled(tmp_path / "moved", {"a.png": 0, "b.png": 1})
    wanted = open_data(one).fingerprint
    assert len(wanted) == 64
    assert open_data(same, limit=1).fingerprint == wanted  # a resumed run may want more pictures
    for labels in ({"a.png": 0, "b.png": 2}, {"a.png": 0, "c.png": 1}, {"b.png": 1, "a.png": 0}, {"a.png": 0}):
        (same / "labels.csv").unlink()
        assert open_data(labelled(same, labels)).fingerprint != wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have the columns file and class_index, but has none"),
        ("name,label\n", r"must have the columns file and class_index, but has name, label"),
        ("file,class_index\n", r"names no picture"),
        ("file,class_index\na.png,0\na.png,x\n", r'line 3: class_index must be an integer from 0, not "x"'),
        ("file,class_index\na.png,-1\n", r'line 2: class_index must be an integer from 0, not "-1"'),
        ("file,class_index\na.png,1.0\n", r'line 2: class_index must be an integer from 0, not "1.0"'),
        ("file,class_index\na.png\n", r'line 2: class_index must be an integer from 0, not ""'),
        ("file,class_index\n,1\n", r'line 2: file must be a path inside the folder, not ""'),
        ("file,class_index\n/a.png,1\n", r'line 2: file must be a path inside the folder, not "/a.png"'),
        ("file,class_index\nx/../../a.png,1\n", r'line 2: file must be a path inside the folder, not "x/../../a.png"'),
        ("file,class_index\na.png,0\n./a.png,0\n", r'line 3: "a.png" is there a second time'),
        ("file,class_index\na.png,0\nb.png,0\nc.png,0\n", r'2 of its 3 files do not exist, the first is "b.png"'),
        (b"file,class_index\n\xff.png,0\n", r"is no CSV file in UTF-8"),
    ],
)
def test_broken_labels_csv_is_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises((ValueError, FileNotFoundError), match=r"^`data_dir` \".*labels\.csv\".*" + message) as raised:
        open_data(tmp_path)
    assert_one_line(raised.value)


def test_what_cannot_be_opened_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def fails(kind: type[Exception], message: str, *args: Any, **kwargs: Any) -> None:
        with pytest.raises(kind, match=message) as raised:
            open_data(*args, **kwargs)
        assert_one_line(raised.value)

    fails(FileNotFoundError, r'^`data_dir` ".*/none" does not exist', tmp_path / "none")
    fails(FileNotFoundError, r"^`data_dir` is missing: give the folder", None)
    fails(FileNotFoundError, r"^`data_dir` is missing: give the folder", None, "torch/cifar10")
    fails(ValueError, r"^`data_dir` folder without labels .*: there is no picture that ends in .png, .jpg", tmp_path)
    fails(ValueError, r'^`data_dir` ".*/a\.png" must be a folder or a \.tar', picture(tmp_path / "a.png"))
    fails(ValueError, r"^`limit` must be at least 1, not 0", tmp_path, limit=0)
    fails(ValueError, r'"imagenet-1k" is unknown: .* or give one of torch/\.\.\., hfds/\.\.\.', tmp_path, "imagenet-1k")
    fails(ValueError, r'"hfdss/x" is unknown \(did you mean hfds', tmp_path, "hfdss/x")
    fails(ValueError, r'"torch" is unknown \(did you mean torch', tmp_path, "torch")
    fails(ValueError, r'"torch/cifr" in .* cannot be opened: Unknown torchvision dataset cifr', tmp_path, "torch/cifr")
    fails(ValueError, r'"torch/cifar10" in .* cannot be opened: Dataset not found', tmp_path, "torch/cifar10")
    (tmp_path / "hollow" / "n0").mkdir(parents=True)
    fails(ValueError, r"cannot be opened: Found 0 images in subfolders", tmp_path / "hollow")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("dataset", "package"),
    [("hfds/x", "datasets"), ("hfids/x", "datasets"), ("wds/x", "webdataset"), ("tfds/x", "tensorflow")],
)
def test_a_package_that_timm_needs_is_named(
    dataset: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf'^`dataset` "{dataset}" needs {package}: pip install {package}$'):
        open_data(tmp_path, dataset)


def test_a_package_that_is_broken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def create(*args: Any, **kwargs: Any) -> None:
        print("Please install x")
        raise ImportError("no\nsuch", name="pyarrow")

    monkeypatch.setattr(timm.data, "create_dataset", create)
    with pytest.raises(ImportError, match=r'^`dataset` "torch/x" needs pyarrow, which is not installed$'):
        open_data(tmp_path, "torch/x")
    assert capfd.readouterr() == ("", "")


def test_class_folders(tmp_path: Path) -> None:
    class_folders(tmp_path / "val", 3)
    class_folders(tmp_path / "train", 4, 1)
    data = open_data(tmp_path)
    assert data.about == f"3 class folders {tmp_path / 'val'}, all 6 pictures"
    assert [(item.file, item.label, red(item)) for item in read(data)][2:4] == [
        ("n1/1_0.png", 1, 10),
        ("n1/1_1.png", 1, 11),
    ]
    assert open_data(tmp_path, split="train").total == 4
    data.check_labels(3)
    with pytest.raises(
        ValueError, match=r"numbers 3 classes of its own, but the model has 1000: give `class_map`"
    ) as e:
        data.check_labels(1000)
    assert_one_line(e.value)
    with pytest.raises(ValueError, match=r'^`split` "vall" is not in `data_dir` ".*", which holds train, val$'):
        open_data(tmp_path, split="vall")


def test_class_map_numbers_folders_as_the_model_does(tmp_path: Path) -> None:
    class_folders(tmp_path / "data")
    (tmp_path / "classes.txt").write_text("n9\nn1\nn0\nn2\n")
    data = open_data(tmp_path / "data", class_map=str(tmp_path / "classes.txt"))
    assert [item.label for item in read(data)] == [2, 2, 1, 1, 3, 3]
    data.check_labels(4)
    with pytest.raises(ValueError, match=r'picture 4 "n2/2_0.png" is labelled 3, but the model has 3 classes'):
        data.check_labels(3)


def test_the_folder_of_a_split_may_be_of_another_kind(tmp_path: Path) -> None:
    picture(tmp_path / "flat" / "val" / "a.png")
    assert [item.label for item in read(open_data(tmp_path / "flat"))] == [None]  # timm would label them 0
    labelled(tmp_path / "csv" / "val", {"x/a.png": 5})
    assert [item.label for item in read(open_data(tmp_path / "csv"))] == [5]
    picture(class_folders(tmp_path / "mixed") / "loose.png")
    with pytest.raises(ValueError, match=r'^`data_dir` ".*mixed" has pictures beside class folders, like "loose.png"$'):
        open_data(tmp_path / "mixed")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm keeps it open
def test_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(class_folders(tmp_path / "data"), "data")
    data = open_data(tmp_path / "x.tar", limit=3)
    assert data.names == ["data/n0/0_0.png", "data/n1/1_0.png", "data/n2/2_0.png"]
    assert [(item.label, red(item)) for item in read(data)] == [(0, 0), (1, 10), (2, 20)]
    data.check_labels(3)
    (tmp_path / "x.tar").rename(tmp_path / "y.tar")
    assert open_data(tmp_path / "y.tar").fingerprint == data.fingerprint
    del data
    gc.collect()


def test_torchvision_folder(tmp_path: Path) -> None:
    data = open_data(class_folders(tmp_path), "torch/image_folder", limit=2)
    assert data.names == ["n0/0_0.png", "n1/1_1.png"]
    assert [(item.label, red(item)) for item in read(data)] == [(0, 0), (1, 11)]
    with pytest.raises(ValueError, match=r"numbers 3 classes of its own, but the model has 5"):
        data.check_labels(5)


def test_imagenet_pictures() -> None:
    root = Path(os.environ.get("INTERP_ZOO_DATA", "")) / "imagenet800"
    if "INTERP_ZOO_DATA" not in os.environ or not root.is_dir():
        pytest.skip("needs INTERP_ZOO_DATA")
    data = open_data(root, limit=8)
    assert data.about == f"folder with labels.csv {root}, 8 of 800 pictures, evenly spaced"
    data.check_labels(1000)
    items = read(data)
    assert items[0].label == 0
    assert [item.index for item in items] == list(range(0, 800, 100))
    assert all(min(item.image.size) == 256 for item in items)
