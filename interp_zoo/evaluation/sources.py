"""Where pictures come from: a folder with labels.csv, a plain folder, whatever `timm.data.create_dataset` opens."""

from __future__ import annotations

import contextlib
import csv
import importlib
import importlib.util
import io
import json
import logging
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import timm.data
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from interp_zoo.explain.decoding import decode, opened, upright
from interp_zoo.explain.inputs import EXTENSIONS
from interp_zoo.words import nearest

# timm's prefixes, and what each needs beyond this package's own dependencies.
_NEEDS: dict[str, tuple[str, ...]] = {
    "torch": (),
    "hfds": ("datasets",),
    "hfids": ("datasets",),
    "tfds": ("tensorflow", "tensorflow_datasets"),
    "wds": ("webdataset",),
}
_ON_DISK = ("", "torch", "wds")
_SPLITS = ("train", "training", "val", "valid", "validation", "eval", "evaluation", "test")

# Decodes a picture, and tells its label as it is written; raises BrokenPictureError.
Load = Callable[[], tuple[Image.Image, Any]]


class BrokenPictureError(Exception):
    """A picture that cannot be decoded; the message says why."""


def _nothing() -> Iterator[tuple[str, Load]]:
    return iter(())


@dataclass
class Source:
    """What a data set offers.

    Attributes:
        kind: what it is, for the report.
        total: how many pictures it has, or None if that is known at its end only.
        files: their names, or None if they have none or these are known on the way only.
        labels: their labels, or None if these are known together with the pictures only.
        classes: the names of the classes that it numbers by itself, in order, or None.
        load: decodes a picture by its index; None if there is no access by index.
        walk: all pictures in order: the name of each, and what decodes it.
        identity: what tells it from others besides names and labels.
    """

    kind: str
    total: int | None
    files: Sequence[str] | None = None
    labels: Sequence[Any] | None = None
    classes: Sequence[str] | None = None
    load: Callable[[int], tuple[Image.Image, Any]] | None = None
    walk: Callable[[], Iterator[tuple[str, Load]]] = _nothing
    identity: tuple[str, ...] = ()


def nameless(index: int) -> str:
    """The name of a picture that has none."""
    return f"picture {index}"


def class_index(written: Any, file: str) -> int | None:
    """A label as a class index; None for none, which some data sets write as a negative number."""
    if written is None:
        return None
    try:
        index = operator.index(written)
    except TypeError:
        raise ValueError(f'"{file}" is labelled {written!r:.60}, but a label must be the index of one class') from None
    return index if index >= 0 else None


def open_source(root: Path | None, dataset: str, split: str, options: dict[str, str]) -> Source:
    """The data set of that name; see `open_data`.

    Args:
        options: class_map, input_key and target_key, those that are given.
    """
    prefix = (dataset.partition("/")[0] if "/" in dataset else dataset).lower()
    if prefix == "folder":
        prefix = dataset = ""
    if prefix and (prefix not in _NEEDS or "/" not in dataset):
        known = ", ".join(f"{name}/..." for name in _NEEDS)
        hint = nearest(prefix, list(_NEEDS))
        raise ValueError(f'`dataset` "{dataset}" is unknown{hint}: leave it out for folders, or give one of {known}')
    for package in _NEEDS.get(prefix, ()):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'`dataset` "{dataset}" needs {package}: pip install {package.replace("_", "-")}')
    if prefix in _ON_DISK:
        if root is None or not root.exists():
            what = "is missing" if root is None else f'"{root}" does not exist'
            raise FileNotFoundError(f"`data_dir` {what}: give the folder of the pictures")
        if not dataset and not (root.is_dir() or root.suffix == ".tar"):
            raise ValueError(f'`data_dir` "{root}" must be a folder or a .tar')
        source = _folder(root) if not dataset else None
        if source is not None:
            return source
    return _from_timm(root, dataset, split, options)


def _decode(file: Any) -> Image.Image:
    """A file as an upright RGB image."""
    try:
        with opened(file) as image:
            return decode(image)
    except OSError as error:
        raise BrokenPictureError(str(error)) from None


def _line(error: BaseException) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _folder(root: Path) -> Source | None:
    """A folder with labels.csv, or one without subfolders; None for others."""
    if (root / "labels.csv").is_file():
        files, labels = _read_labels(root)
        return _from_files(f"folder with labels.csv {root}", root, files, labels)
    if root.is_dir() and not any(p.is_dir() and not p.name.startswith(".") for p in root.iterdir()):
        files = sorted(p.name for p in root.iterdir() if p.suffix.lower() in EXTENSIONS and p.is_file())
        return _from_files(f"folder without labels {root}", root, files, [None] * len(files))
    return None


def _from_files(
    kind: str, root: Path, files: Sequence[str], labels: Sequence[Any], classes: Sequence[str] | None = None
) -> Source:
    sizes = " ".join(str((root / file).stat().st_size) if (root / file).is_file() else "-" for file in files)
    return Source(
        kind,
        len(files),
        files,
        labels,
        classes,
        load=partial(_file, root, files, labels),
        identity=(sizes,),  # another picture by the same name is told by its size
    )


def _file(root: Path, files: Sequence[str], labels: Sequence[Any], index: int) -> tuple[Image.Image, Any]:
    return _decode(root / files[index]), labels[index]


def _read_labels(root: Path) -> tuple[list[str], list[int]]:
    """The columns file and class_index of a folder's labels.csv."""
    path, found = root / "labels.csv", dict[str, int]()
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            columns = rows.fieldnames or []
            if not {"file", "class_index"} <= set(columns):
                came = ", ".join(columns) or "none"
                raise ValueError(f'`data_dir` "{path}" must have the columns file and class_index, but has {came:.200}')
            for row in rows:
                where = f'`data_dir` "{path}", line {rows.line_num}'
                file, label = Path(os.path.normpath(row["file"] or "")), (row["class_index"] or "").strip()
                if not (label.isascii() and label.isdigit()):
                    raise ValueError(f'{where}: class_index must be an integer from 0, not "{label:.40}"')
                if not file.parts or file.is_absolute() or file.parts[0] == "..":
                    raise ValueError(f'{where}: file must be a path inside the folder, not "{row["file"] or "":.200}"')
                if file.as_posix() in found:
                    raise ValueError(f'{where}: "{file}" is there a second time')
                found[file.as_posix()] = int(label)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f'`data_dir` "{path}" is no CSV file in UTF-8: {_line(error)}') from None
    if not found:
        raise ValueError(f'`data_dir` "{path}" names no picture')
    absent = [file for file in found if not (root / file).is_file()]
    if absent:
        raise FileNotFoundError(
            f'`data_dir` "{path}": {len(absent)} of its {len(found)} files do not exist, the first is "{absent[0]}"'
        )
    return list(found), list(found.values())


def _from_timm(root: Path | None, dataset: str, split: str, options: dict[str, str]) -> Source:
    """What timm opens. Its readers are asked rather than its data sets, which skip what cannot be decoded."""
    opened, total = _create(root, dataset, split, options)
    reader = getattr(opened, "reader", None)
    kind = f"{dataset}, split {split}" if dataset else str(root)
    if isinstance(opened, IterableDataset):
        classes = list(getattr(reader, "class_to_idx", ())) if "class_map" not in options else None
        walk, identity = _walker(opened, dataset), (dataset, split, str(root))
        return Source(kind, total, classes=classes or None, walk=walk, identity=identity)
    if hasattr(reader, "samples") and not hasattr(reader, "targets"):
        return _class_folders(reader, root, split, "class_map" in options)
    if reader is None and hasattr(opened, "samples"):  # torchvision's ImageFolder, and what derives from it
        base = Path(opened.root)
        files = [Path(file).relative_to(base).as_posix() for file, _ in opened.samples]
        return _from_files(kind, base, files, opened.targets, list(opened.classes))
    source = Source(kind, total, load=partial(_row, opened), identity=(dataset, split))
    names = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    if hasattr(reader, "label_key"):
        source.files, source.labels = _columns(reader, dataset)
    elif reader is not None:  # a .tar
        source.files, source.labels = [str(file) for file in reader.filenames()], list(reader.targets)
        source.kind, source.identity = f"archive {root}", ()
    else:
        source.labels, names = _targets(opened), getattr(opened, "classes", None)
    if names and "class_map" not in options:
        source.classes = [str(name) for name in names]
    return source


def _create(root: Path | None, dataset: str, split: str, options: dict[str, str]) -> tuple[Any, int | None]:
    """The data set from timm, without transforms, and its length if that is known."""
    arguments: dict[str, Any] = {"root": root and str(root), "split": split, "is_training": False, **options}
    known = True
    try:
        with _quiet():
            try:
                opened = timm.data.create_dataset(dataset, **arguments)
            except ValueError as error:
                if "num_samples" not in str(error):
                    raise
                # A stream of unknown length, which timm wants to be told. It does not stop there in evaluation.
                opened, known = timm.data.create_dataset(dataset, **arguments, num_samples=1), False
    except ImportError as error:
        raise ImportError(f'`dataset` "{dataset}" needs {error.name or _line(error)}, which is not installed') from None
    except Exception as error:  # whatever the packages behind timm raise
        what = f'`dataset` "{dataset}"' + ("" if root is None else f' in `data_dir` "{root}"')
        offline = dataset.startswith("hf") and isinstance(error, ConnectionError)
        hint = "; hfds/FOLDER reads a folder of its parquet files without the Hub" if offline else ""
        raise ValueError(f"{what} cannot be opened: {_line(error)}{hint}") from None
    if isinstance(opened, IterableDataset):
        # Each process walks over everything: shares are the caller's business, not the reader's.
        for name, value in (("dist_rank", 0), ("dist_num_replicas", 1), ("global_num_workers", 1)):
            if hasattr(reader := getattr(opened, "reader", None), name):
                setattr(reader, name, value)
        # 0 is timm's word for a length that it does not know.
        return opened, (len(opened) or None) if known and hasattr(opened, "__len__") else None
    return opened, len(opened)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps timm from printing and logging what is raised here as an error."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _class_folders(reader: Any, data_dir: Path | None, split: str, mapped: bool) -> Source:
    """A folder a class, as timm finds them."""
    root = Path(reader.root)
    flat = _folder(root)  # the folder of the split may be of another kind than the one above it
    if flat is not None:
        return flat
    if root == data_dir:
        holds = [name for name in _SPLITS if any(p.is_dir() for p in (root / name).glob("*"))]
        if holds:
            raise ValueError(f'`split` "{split}" is not in `data_dir` "{root}", which holds {", ".join(holds)}')
    loose = next((file for file, _ in reader.samples if Path(file).parent == root), None)
    if loose is not None:
        raise ValueError(f'`data_dir` "{root}" has pictures beside class folders, like "{Path(loose).name}"')
    files = [Path(file).relative_to(root).as_posix() for file, _ in reader.samples]
    classes = None if mapped else list(reader.class_to_idx)
    kind = f"{len(classes):,} class folders {root}" if classes else f"class folders {root}"
    return _from_files(kind, root, files, [target for _, target in reader.samples], classes)


def _columns(reader: Any, dataset: str) -> tuple[list[str] | None, list[Any]]:
    """Names and labels of a Hugging Face data set, without reading its pictures."""
    rows = reader.dataset
    table = rows.with_format("arrow").select_columns(reader.image_key)[:]
    if 0 < table.column(reader.image_key).null_count == len(table):  # timm adds an empty one where there is none
        raise _no_column("input_key", reader.image_key, rows.column_names, dataset)
    if reader.label_key not in rows.column_names:
        raise _no_column("target_key", reader.label_key, rows.column_names, dataset)
    paths = [path for chunk in table.column(reader.image_key).chunks for path in chunk.field("path").to_pylist()]
    if None in paths:
        return None, list(rows[reader.label_key])
    short = [PurePosixPath(path).name for path in paths]
    return short if len(set(short)) == len(paths) else paths, list(rows[reader.label_key])


def _no_column(option: str, key: str, columns: Iterable[str], dataset: str) -> ValueError:
    held = ", ".join(column for column in columns if column != key)  # timm may have added it, empty
    return ValueError(f'`{option}` "{key}" is no column of `dataset` "{dataset}": it has {held}')


def _targets(opened: Any) -> list[Any] | None:
    """The labels of a torchvision data set, where it has one a picture."""
    targets = getattr(opened, "targets", None)
    if isinstance(targets, Tensor):
        targets = targets.tolist()
    usable = isinstance(targets, list) and len(targets) == len(opened) and all(isinstance(t, int) for t in targets)
    return targets if usable else None


def _row(opened: Any, index: int) -> tuple[Image.Image, Any]:
    """A picture of a data set with access by index."""
    try:
        picture, label = (getattr(opened, "reader", None) or opened)[index]
    except Exception as error:  # a row without a picture, or whose file is not there
        raise BrokenPictureError(_line(error)) from None
    if isinstance(picture, Image.Image):
        return _upright(picture, label)
    with picture:
        return _decode(picture), label


def _walker(opened: Any, dataset: str) -> Callable[[], Iterator[tuple[str, Load]]]:
    """All pictures of a data set without access by index, from the start each time."""
    raw = {"hfids": _hugging_face_stream, "wds": _web_dataset}.get(dataset.partition("/")[0].lower(), _decoded)

    def walk() -> Iterator[tuple[str, Load]]:
        try:
            yield from raw(opened, dataset)
        except Exception as error:  # of whatever kind, from the packages behind timm
            raise ValueError(f'`dataset` "{dataset}" breaks off: {_line(error)}') from error

    return walk


def _decoded(opened: Any, dataset: str) -> Iterator[tuple[str, Load]]:
    """A stream that decodes by itself: tfds."""
    for index, (picture, label) in enumerate(opened):
        yield nameless(index), partial(_upright, picture, label)


def _upright(picture: Image.Image, label: Any) -> tuple[Image.Image, Any]:
    try:
        return upright(picture), label
    except OSError as error:
        raise BrokenPictureError(str(error)) from None


def _hugging_face_stream(opened: Any, dataset: str) -> Iterator[tuple[str, Load]]:
    """A stream of rows, whose pictures are still encoded."""
    reader, datasets = opened.reader, importlib.import_module("datasets")
    if reader.ds is None:
        reader._lazy_init()
    for index, row in enumerate(reader.ds.cast_column(reader.input_key, datasets.Image(decode=False))):
        if reader.target_key not in row:
            raise _no_column("target_key", reader.target_key, row, dataset)
        if index == 0 and row[reader.input_key] is None:
            raise _no_column("input_key", reader.input_key, row, dataset)
        picture = row[reader.input_key]
        path = picture["path"] if picture else None
        file = PurePosixPath(path).name if path else nameless(index)
        yield file, partial(_encoded, picture, row[reader.target_key])


def _encoded(picture: dict[str, Any] | None, label: Any) -> tuple[Image.Image, Any]:
    if not picture:
        raise BrokenPictureError("the row has no picture")
    return _decode(io.BytesIO(picture["bytes"]) if picture["bytes"] else picture["path"]), label


def _web_dataset(opened: Any, dataset: str) -> Iterator[tuple[str, Load]]:
    """The samples of the shards; timm's own pipeline leaves out those that it cannot decode."""
    reader, wds = opened.reader, importlib.import_module("webdataset")
    shards = [os.path.join(reader.root, file) for file in reader.split_info.filenames]
    for sample in wds.DataPipeline(wds.SimpleShardList(shards), wds.tarfile_to_samples()):
        ending = next((ending for ending in reader.input_key.split(";") if ending in sample), None)
        yield f"{sample['__key__']}.{ending or '?'}", partial(_web_sample, sample, ending, reader)


def _web_sample(sample: dict[str, Any], ending: str | None, reader: Any) -> tuple[Image.Image, Any]:
    """A picture, and its label from the .cls or a field of the .json beside it."""
    if ending is None:
        raise BrokenPictureError(f"has no {reader.input_key.replace(';', ', ')}")
    key = reader.target_key if reader.target_key not in (None, "cls") else reader.split_info.alt_label
    try:
        label = json.loads(sample["json"])[key] if key else int(sample["cls"])
    except (KeyError, ValueError, TypeError) as error:
        what = f"{key} in its .json" if key else ".cls"
        raise ValueError(f'"{sample["__key__"]}" has no label, {what}: {_line(error)}') from None
    return _decode(io.BytesIO(sample[ending])), label
