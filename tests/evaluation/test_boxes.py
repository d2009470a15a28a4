"""Boxes: three formats to one, and where the model's transform takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import assert_one_line
from PIL import Image, ImageDraw
from torch import Tensor

from interp_zoo.evaluation.boxes import on_input, read_boxes
from interp_zoo.explain.inputs import Preprocess

VOC = "<object><name>cat</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]><annotation>&c;</annotation>'


def xml(path: Path, *boxes: tuple[float, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{''.join(VOC.format(*box) for box in boxes)}</annotation>")
    return path


def coco(path: Path, boxes: list[Any], names: tuple[str, ...] = ("a.jpg", "b.jpg")) -> Path:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"id": i, "image_id": 0, "category_id": 1, "bbox": box, "iscrowd": 0} for i, box in enumerate(boxes)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def same(got: dict[str, Tensor], want: dict[str, list[list[float]]]) -> None:
    assert list(got) == list(want)
    for file, boxes in want.items():
        assert got[file].dtype == torch.float64
        assert got[file].tolist() == boxes


def test_xml_counts_from_one_and_includes_the_last_pixel(tmp_path: Path) -> None:
    xml(tmp_path / "deep" / "a.xml", (1, 1, 1, 1), (11, 21, 40, 60))
    xml(tmp_path / "b.XML", (0, 0, 500, 375.5))
    xml(tmp_path / "empty.xml")
    (tmp_path / "unasked.xml").write_text("broken")
    got = read_boxes(tmp_path, ["b.jpg", "a.png", "empty.jpg", "without.jpg"])
    same(got, {"b.jpg": [[0, 0, 500, 375.5]], "a.png": [[0, 0, 1, 1], [10, 20, 40, 60]]})


def test_coco_has_corner_and_size_and_leaves_out_crowds(tmp_path: Path) -> None:
    path = coco(tmp_path / "x.json", [[0, 0, 1, 1], [10.5, 20, 30, 40], [1, 1, 9, 9]])
    data = json.loads(path.read_text())
    data["annotations"][2]["iscrowd"] = 1
    path.write_text(json.dumps(data))
    same(read_boxes(path, ["a.jpg", "b.jpg"]), {"a.jpg": [[0, 0, 1, 1], [10.5, 20, 40.5, 60]]})


def test_csv_has_edges_in_columns_of_any_order(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        "\ufeffclass,file,top,left,bottom,right\n3,./n/a.jpg,1,2,3,4.5\n3,b.jpg,0,0,1,1\n5,n/a.jpg,5,6,7,8\n"
    )
    same(read_boxes(path, ["n/a.jpg"]), {"n/a.jpg": [[2, 1, 4.5, 3], [6, 5, 8, 7]]})


def test_names_match_in_full_before_without_ending_and_folder(tmp_path: Path) -> None:
    for number, name in enumerate(("x/1", "y/1", "train/n02/n02_7", "val.v2"), 1):
        xml(tmp_path / f"{name}.xml", (1, 1, number, 1))
    got = read_boxes(tmp_path, ["y/1.jpg", "x/1.jpg", "n02_7.JPEG", "val.v2.png"])
    assert {file: box[0, 2].item() for file, box in got.items()} == {
        "x/1.jpg": 1,
        "y/1.jpg": 2,
        "n02_7.JPEG": 3,
        "val.v2.png": 4,
    }
    path = tmp_path / "x.csv"
    path.write_text("file,left,top,right,bottom\n1.png,0,0,1,1\n1.jpg,0,0,2,1\n")
    same(read_boxes(path, ["d/1.jpg"]), {"d/1.jpg": [[0, 0, 2, 1]]})


def test_a_box_file_belongs_to_the_picture_that_fits_best(tmp_path: Path) -> None:
    xml(tmp_path / "x" / "1.xml", (1, 1, 2, 2))
    same(read_boxes(tmp_path, ["y/1.jpg", "x/1.jpg"]), {"x/1.jpg": [[0, 0, 2, 2]]})


def test_names_that_could_be_either_are_refused(tmp_path: Path) -> None:
    xml(tmp_path / "x" / "1.xml", (1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"x/1.xml fits both pictures 1.jpg and c/1.jpg") as raised:
        read_boxes(tmp_path, ["1.jpg", "c/1.jpg"])
    assert_one_line(raised.value)
    xml(tmp_path / "y" / "1.xml", (1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"both x/1.xml and y/1.xml fit the picture 1.jpg") as raised:
        read_boxes(tmp_path, ["1.jpg"])
    assert_one_line(raised.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_before_they_grow(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.xml").write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{LAUGHS}'.encode(encoding))
    with pytest.raises(ValueError, match=r'^`boxes` ".*a\.xml" cannot be read: it declares a DOCTYPE') as raised:
        read_boxes(tmp_path, ["a.jpg"])
    assert_one_line(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", r"a\.xml\" cannot be read: no element found: line 1, column 20"),
        ('<?xml version="1.0" encoding="none"?><a/>', r"a\.xml\" cannot be read: unknown encoding"),
        ("<annotation><object/></annotation>", r"a\.xml\", object 1: a box must be four numbers, not \[None"),
        (VOC.format(1, 2, 3, "wide").join(("<a>", "</a>")), r"object 1: a box must be four numbers, not .*'wide'"),
        (
            VOC.format(1, 2, 3, "inf").join(("<a>", "</a>")),
            r"object 1: a box must be finite, not \[1.0, 2.0, 3.0, inf\]",
        ),
        (VOC.format(5, 2, 4, 9).join(("<a>", "</a>")), r"object 1: right and bottom must be beyond left and top"),
    ],
)
def test_broken_xml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        read_boxes(tmp_path, ["a.jpg"])
    assert_one_line(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"is no JSON: .* line 1"),
        ("[" * 100_000, r"is no JSON: .*recursion"),
        ("[]", r'has no list "images"'),
        ('{"images": [], "annotations": {}}', r'has no list "annotations"'),
        ('{"images": [{"id": 1}], "annotations": []}', r'images\[0\] has no "file_name"'),
        ('{"images": [], "annotations": [7]}', r'annotations\[0\] has no "image_id"'),
    ],
)
def test_broken_json_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        read_boxes(tmp_path / "x.json", ["a.jpg"])
    assert_one_line(raised.value)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1, 2, 3], r"annotations\[1\]: a box must be four numbers, not \[1, 2, 3\]"),
        (None, r"annotations\[1\]: a box must be four numbers, not None"),
        ([1, 2, float("nan"), 4], r"annotations\[1\]: a box must be finite"),
        ([1, 2, 10**400, 4], r"annotations\[1\]: a box must be four numbers"),
        ([1, 2, 3, 0], r"annotations\[1\]: right and bottom must be beyond left and top"),
    ],
)
def test_broken_coco_boxes_are_one_line(tmp_path: Path, box: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read_boxes(coco(tmp_path / "x.json", [[0, 0, 1, 1], box]), ["a.jpg"])
    assert_one_line(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have the columns file, left, top, right, bottom, but has none"),
        ("file,x,y\n", r"must have the columns file, left, top, right, bottom, but has file, x, y"),
        ("file,left,top,right,bottom\na.jpg,0,0,1,1\na.jpg,0,0,1\n", r"line 3: a box must be four numbers"),
        ("file,left,top,right,bottom\na.jpg,0,0,nan,1\n", r"line 2: a box must be finite"),
        ("file,left,top,right,bottom\na.jpg,5,0,5,1\n", r"line 2: right and bottom must be beyond"),
        ("file,left,top,right,bottom\n,5,0,6,1\n", r"line 2: it names no file"),
        ("file,left,top,right,bottom\n", r"boxes for none of the 1 pictures: .*, and there is no box at all"),
        (b"file,left,top,right,bottom\n\xff,0,0,1,1\n", r"is no CSV file in UTF-8"),
    ],
)
def test_broken_csv_is_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "x.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=message) as raised:
        read_boxes(tmp_path / "x.csv", ["a.jpg"])
    assert_one_line(raised.value)


def test_what_is_no_boxes_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'^`boxes` ".*/none" does not exist$'):
        read_boxes(tmp_path / "none", ["a.jpg"])
    with pytest.raises(ValueError, match=r"must be a folder of \.xml files, a COCO \.json or a \.csv: it has no \.xml"):
        read_boxes(tmp_path, ["a.jpg"])
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a\.txt\" must be a folder of \.xml files, a COCO \.json or a \.csv$"):
        read_boxes(tmp_path / "a.txt", ["a.jpg"])
    xml(tmp_path / "b.xml", (1, 1, 2, 2))
    with pytest.raises(
        ValueError, match=r"has boxes for none of the 2 pictures: first picture a.jpg, first box file b.xml"
    ):
        read_boxes(tmp_path, ["a.jpg", "c.jpg"])
    xml(tmp_path / "b.xml")
    with pytest.raises(ValueError, match=r"has boxes for none of the 1 pictures: first picture b.jpg"):
        read_boxes(tmp_path, ["b.jpg"])


@pytest.mark.parametrize("size", [(400, 400), (640, 360), (300, 520)])
@pytest.mark.parametrize(("mode", "pct"), [("center", 0.875), ("center", 1.0), ("squash", 0.9), ("border", 1.0)])
def test_boxes_land_where_the_transform_takes_what_they_enclose(mode: str, pct: float, size: tuple[int, int]) -> None:
    model: Any = timm.create_model("test_resnet", num_classes=2)
    model.pretrained_cfg.update(crop_mode=mode, crop_pct=pct, interpolation="bilinear", mean=(0.0, 0.0, 0.0))
    preprocess = Preprocess(model)
    # Near the middle, so that no crop touches it.
    box = [round(size[0] * 0.38), round(size[1] * 0.42), round(size[0] * 0.6), round(size[1] * 0.66)]
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
    seen = preprocess.picture(image, "x").pixels[0].numpy()
    boxes = torch.tensor([box, [0, 0, *size]], dtype=torch.float64)
    got = on_input(boxes, size, preprocess)
    assert got.shape == (2, 4)
    assert got.dtype == torch.float64
    # Half-covered pixels count by how much of them is white, along lines through the middle of the rectangle.
    row, column = seen[int(got[0, 1::2].mean())], seen[:, int(got[0, ::2].mean())]
    for line, start, end in ((row, got[0, 0], got[0, 2]), (column, got[0, 1], got[0, 3])):
        middle = np.average(np.arange(len(line)) + 0.5, weights=line)
        assert float(line.sum()) == pytest.approx(float(end - start), abs=0.6)
        assert middle == pytest.approx(float(start + end) / 2, abs=0.6)
    width, height = got[1, 2] - got[1, 0], got[1, 3] - got[1, 1]
    if mode == "center" and size != (400, 400):  # not clipped: the picture is larger than what the model sees of it
        assert max(width, height) > 1.5 * 160 / pct
    if mode == "border":
        assert max(width, height) == pytest.approx(160, abs=1.5)


def test_no_box_stays_none() -> None:
    preprocess = Preprocess(timm.create_model("test_resnet", num_classes=2))
    assert on_input(torch.zeros(0, 4, dtype=torch.float64), (300, 200), preprocess).shape == (0, 4)
