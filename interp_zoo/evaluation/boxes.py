"""Boxes around objects: from VOC or ImageNet XML, COCO JSON or CSV, mapped to the pixels of a model's input."""

from __future__ import annotations

import csv
import json
import math
import posixpath
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp_zoo.explain.inputs import Preprocess

_EDGES = ("left", "top", "right", "bottom")
# Left, top, right, bottom.
_Box = tuple[float, float, float, float]
_Reader = Callable[[str], list[_Box]]


def read_boxes(path: Path, files: Sequence[str]) -> dict[str, Tensor]:
    """The boxes of pictures: (M, 4) float64 by file, those alone that have any.

    Left, top, right and bottom are edges in pixels of the upright original: around its first pixel 0, 0, 1, 1.
    A picture is found by its name, by that without its ending, without its folders, and without both, in this order.

    Args:
        path: a folder with an .xml a picture, named like it (PASCAL VOC and ImageNet: `object/bndbox`, whose pixels
            count from 1, the last included), a COCO .json (crowds are left out), or a .csv with the columns file,
            left, top, right and bottom, a box a line.
        files: the names of the pictures.

    Raises:
        FileNotFoundError: if `path` does not exist.
        ValueError: if it cannot be read, a box is none, or there are boxes for none of the pictures.
    """
    if not path.exists():
        raise FileNotFoundError(f'`boxes` "{path}" does not exist')
    if path.is_dir():
        boxed, read = _xml_folder(path)
    elif path.suffix.lower() == ".json":
        boxed, read = _coco(path)
    elif path.suffix.lower() == ".csv":
        boxed, read = _csv(path)
    else:
        raise ValueError(f'`boxes` "{path}" must be a folder of .xml files, a COCO .json or a .csv')
    matched = _match(path, files, boxed)
    boxes = {file: read(matched[file]) for file in files if file in matched}
    found = {file: torch.tensor(some, dtype=torch.float64) for file, some in boxes.items() if some}
    if not found:
        pictures = f"the {len(files)} pictures: first picture {files[0]}" if files else "0 pictures"
        first = f"first box file {boxed[0]}" if boxed else "and there is no box at all"
        raise ValueError(f'`boxes` "{path}" has boxes for none of {pictures}, {first}')
    return found


def on_input(boxes: Tensor, size: tuple[int, int], preprocess: Preprocess) -> Tensor:
    """Boxes in pixels of the model's input, not clipped to it.

    Args:
        boxes: (M, 4), left, top, right, bottom in pixels of the original.
        size: width and height of the original.
        preprocess: the model's transform.

    Returns:
        (M, 4), left, top, right, bottom.
    """
    left, top, right, bottom = preprocess.box(size)
    height, width = preprocess.size
    origin = boxes.new_tensor([left, top, left, top])
    scale = boxes.new_tensor([width / (right - left), height / (bottom - top)]).repeat(2)
    return (boxes - origin) * scale


def _match(path: Path, files: Sequence[str], boxed: Iterable[str]) -> dict[str, str]:
    """Which of the names in `boxed` each picture has."""
    by = (str, _bare, posixpath.basename, lambda name: _bare(posixpath.basename(name)))
    matched: dict[str, str] = {}
    left = list(dict.fromkeys(boxed))
    for key in by:
        keyed: defaultdict[str, list[str]] = defaultdict(list)
        for name in left:
            keyed[key(name)].append(name)
        taken: dict[str, str] = {}
        for file in files:
            names = keyed.get(key(file), []) if file not in matched else []
            if len(names) > 1:
                raise ValueError(f'`boxes` "{path}": both {names[0]} and {names[1]} fit the picture {file}')
            for name in names:
                if taken.setdefault(name, file) != file:
                    raise ValueError(f'`boxes` "{path}": {name} fits both pictures {taken[name]} and {file}')
        matched |= {file: name for name, file in taken.items()}
        left = [name for name in left if name not in taken]
    return matched


def _bare(name: str) -> str:
    """A name without its ending."""
    return posixpath.splitext(name)[0]


def _xml_folder(folder: Path) -> tuple[list[str], _Reader]:
    """The names of a folder's XML files, and what reads one."""
    found = sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() == ".xml" and p.is_file()
    )
    if not found:
        raise ValueError(f'`boxes` "{folder}" must be a folder of .xml files, a COCO .json or a .csv: it has no .xml')
    return found, lambda name: _xml(folder / name)


class _Elements(ET.TreeBuilder):
    """Builds the elements; refuses declarations, whose entities can grow without limit."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a DOCTYPE, which no box file needs")


def _xml(path: Path) -> list[_Box]:
    """The boxes of one XML file."""
    where = f'`boxes` "{path}"'
    try:
        root = ET.parse(path, ET.XMLParser(target=_Elements())).getroot()
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that there is not
        raise ValueError(f"{where} cannot be read: {error}") from None
    boxes = []
    for number, item in enumerate(root.findall("object"), 1):
        corner = [item.findtext(f"bndbox/{tag}") for tag in ("xmin", "ymin", "xmax", "ymax")]
        left, top, right, bottom = _numbers(corner, f"{where}, object {number}")
        # Pixels count from 1, the last included; some annotations have 0 all the same.
        boxes.append(_box((max(left - 1, 0), max(top - 1, 0), right, bottom), f"{where}, object {number}"))
    return boxes


def _coco(path: Path) -> tuple[list[str], _Reader]:
    """The names in a COCO file that have boxes, and what reads those of one."""
    where = f'`boxes` "{path}"'
    try:
        with open(path, encoding="utf-8-sig") as text:
            data = json.load(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    for part, keys in (("images", ("id", "file_name")), ("annotations", ("image_id", "bbox"))):
        if not isinstance(data, dict) or not isinstance(data.get(part), list):
            raise ValueError(f'{where} must be COCO\'s JSON, but has no list "{part}"')
        for number, entry in enumerate(data[part]):
            absent = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if absent:
                raise ValueError(f'{where}: {part}[{number}] has no "{absent[0]}"')
    by_image: defaultdict[str, list[tuple[int, Any]]] = defaultdict(list)
    for number, entry in enumerate(data["annotations"]):
        if not entry.get("iscrowd"):
            by_image[str(entry["image_id"])].append((number, entry["bbox"]))
    images = {str(entry["file_name"]): str(entry["id"]) for entry in data["images"] if str(entry["id"]) in by_image}

    def read(name: str) -> list[_Box]:
        boxes = []
        for number, written in by_image[images[name]]:
            here = f"{where}, annotations[{number}]"
            x, y, width, height = _numbers(written, here)
            boxes.append(_box((x, y, x + width, y + height), here))
        return boxes

    return list(images), read


def _csv(path: Path) -> tuple[list[str], _Reader]:
    """The names in a CSV file, and what reads the boxes of one."""
    where, found = f'`boxes` "{path}"', defaultdict[str, list[_Box]](list)
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            columns = rows.fieldnames or []
            if not {"file", *_EDGES} <= set(columns):
                came = ", ".join(columns) or "none"
                raise ValueError(f"{where} must have the columns file, {', '.join(_EDGES)}, but has {came:.200}")
            for row in rows:
                here = f"{where}, line {rows.line_num}"
                if not row["file"]:
                    raise ValueError(f"{here}: it names no file")
                edges = _numbers([row[edge] for edge in _EDGES], here)
                found[posixpath.normpath(row["file"])].append(_box(edges, here))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is no CSV file in UTF-8: {error}") from None
    return list(found), found.__getitem__


def _numbers(written: Any, where: str) -> _Box:
    """Four finite numbers, from texts or numbers."""
    try:
        a, b, c, d = (float(number) for number in written)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: a box must be four numbers, not {written!r:.120}") from None
    if not all(math.isfinite(number) for number in (a, b, c, d)):
        raise ValueError(f"{where}: a box must be finite, not {[a, b, c, d]}")
    return a, b, c, d


def _box(edges: _Box, where: str) -> _Box:
    left, top, right, bottom = edges
    if right <= left or bottom <= top:
        raise ValueError(f"{where}: right and bottom must be beyond left and top, but the box is {edges}")
    return edges
