"""Explanations as files: what is saved is read back, and what others made is read with care."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_one_line, lively, texture
from torch import Tensor, nn

import interp_zoo
from interp_zoo import Explanation

pytestmark = pytest.mark.filterwarnings("ignore:map .* is blank")  # what an untrained network says of some classes


@pytest.fixture
def exp(tiny_cnn: nn.Module) -> Explanation:
    return interp_zoo.explain(tiny_cnn, [texture(), texture((90, 60), 1)], "hirescam", target=[[1, 3], [2]])


@pytest.mark.parametrize("ending", [".npz", ".json"])
def test_saved_and_read_back(ending: str, exp: Explanation, tmp_path: Path) -> None:
    file = tmp_path / "new" / f"it{ending}"
    assert exp.save(file) == [file]
    back = Explanation.load(file)
    for name in ("saliency", "raw", "target", "probability", "masked_probability", "picture"):
        assert torch.equal(getattr(back, name), getattr(exp, name)), name
        assert getattr(back, name).dtype == getattr(exp, name).dtype
    for name in ("label", "name", "method", "layer", "cost", "skipped"):
        assert getattr(back, name) == getattr(exp, name)
    assert repr(back) == repr(exp)
    assert not list(tmp_path.glob("new/.*"))  # no half-written file stays
    if ending == ".npz":
        images: Any
        wanted: Any
        images, wanted = back.overlay(), exp.overlay()
        assert all(np.array_equal(a, b) for a, b in zip(images, wanted, strict=True))
        back.save(tmp_path / "again.png")
    else:
        with pytest.raises(ValueError, match=r"read from JSON, which holds no pictures: save it as \.npz") as error:
            back.overlay()
        assert_one_line(error.value)
        with pytest.raises(ValueError, match=r"read from JSON, which holds no pictures: save it as \.npz"):
            back.save(tmp_path / "again.png")
        assert back._repr_png_() is None


@pytest.mark.parametrize("ending", [".npz", ".json", ".png"])
def test_an_interrupted_save_leaves_what_was_there(
    ending: str, exp: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_self: Path, _target: Path) -> Path:
        raise KeyboardInterrupt

    (file, *_) = exp.save(tmp_path / f"it{ending}")
    before = file.read_bytes()
    monkeypatch.setattr(Path, "replace", interrupted)  # the last moment: all is written, beside the old file
    with pytest.raises(KeyboardInterrupt):
        interp_zoo.explain(lively("test_resnet", num_classes=10), texture(), "fakecam").save(file)
    assert file.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_json_holds_what_json_cannot(tiny_cnn: nn.Module, batch: Tensor, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_cnn.fc.bias.fill_(torch.nan)  # type: ignore[operator, union-attr]
    exp = interp_zoo.explain(tiny_cnn, batch, "gradcam", target=3)
    assert exp.raw.isnan().all()
    exp.save(tmp_path / "it.json")
    json.loads((tmp_path / "it.json").read_text(), parse_constant=lambda c: pytest.fail(c))  # no NaN, which is no JSON
    back = Explanation.load(tmp_path / "it.json")
    assert back.raw.isnan().all()
    assert back.probability.isnan().all()
    assert torch.equal(back.saliency, exp.saliency)


def test_an_explanation_may_be_pickled(exp: Explanation) -> None:
    """By processes that hand it on, not by us: `load` unpickles nothing."""
    back = pickle.loads(pickle.dumps(exp))
    assert torch.equal(back.saliency, exp.saliency)
    one: Any
    other: Any
    one, other = back.overlay(on="original"), exp.overlay(on="original")
    assert np.array_equal(one[1], other[1])


WRONG: dict[str, dict[str, Any]] = {
    "format": {"format": "something else"},
    "lengths": {"label": []},
    "one text": {"label": "abc"},
    "numbers as names": {"name": [1, 2, 3]},
    "negative size": {"size": [-1, 5]},
    "no size": {"size": [0, 0]},
    "size of a wall": {"size": [1_000_000, 1_000_000]},
    "infinite size": {"size": [float("inf"), 5]},
    "no target": {"target": [None, 1, 2]},
    "deep targets": {"target": [[1], [2], [3]]},
    "cost as a list": {"cost": [1, 2]},
    "cost of more": {"cost": {"forward": 1, "backward": 1, "tail": 0, "seconds": 1, "soul": 1}},
    "skipped as a list": {"skipped": ["a"]},
    "method as a number": {"method": 3},
}
ARRAYS: dict[str, dict[str, Any]] = {
    "pickled": {"raw": np.array([object()], dtype=object)},
    "integers": {"raw": np.zeros((3, 5, 5), dtype=np.int64)},
    "complex": {"raw": np.zeros((3, 5, 5), dtype=np.complex64)},
    "flat": {"raw": np.zeros(3, dtype=np.float32)},
    "another length": {"saliency": np.zeros((2, 160, 160), dtype=np.float32)},
    "another rank": {"saliency": np.zeros((3, 160), dtype=np.float32)},
    "not finite": {"saliency": np.full((3, 160, 160), np.nan, dtype=np.float32)},
    "above 1": {"saliency": np.full((3, 160, 160), 2, dtype=np.float32)},
    "float targets": {"target": np.zeros(3, dtype=np.float32)},
    "other pixels": {"pixels": np.zeros((3, 3, 5, 5), dtype=np.float32)},
}
TEXTS = {"list": "[]", "nested": "[" * 100_000, "empty": "", "bytes": "\udcff\udcfe"}


@pytest.mark.parametrize("wrong", [*WRONG, *ARRAYS, *TEXTS, "cut off", "without numbers", "another zip"])
def test_files_that_hold_none(wrong: str, exp: Explanation, tmp_path: Path) -> None:
    exp.save(tmp_path / "good.npz")
    exp.save(tmp_path / "good.json")
    file = tmp_path / ("bad.json" if wrong in (*WRONG, *TEXTS) else "bad.npz")
    with np.load(tmp_path / "good.npz") as found:
        good = dict(found)
    if wrong in WRONG:
        file.write_text(json.dumps(json.loads((tmp_path / "good.json").read_text()) | WRONG[wrong]))
    elif wrong in ARRAYS:
        np.savez(file, **good | ARRAYS[wrong])
    elif wrong in TEXTS:
        file.write_bytes(TEXTS[wrong].encode(errors="surrogateescape"))
    elif wrong == "cut off":
        file.write_bytes((tmp_path / "good.npz").read_bytes()[:-200])
    elif wrong == "without numbers":
        np.savez(file, facts=good["facts"], raw=good["raw"])
    else:
        with zipfile.ZipFile(file, "w") as other:
            other.writestr("hello", "world")
    with pytest.raises(ValueError, match=r'^`path` ".*bad.*" holds no explanation: .') as error:
        Explanation.load(file)
    assert_one_line(error.value)


def test_mutated_files(exp: Explanation, tmp_path: Path) -> None:
    """Read, or one line: no error of zip, zlib, numpy or json comes out."""
    rng = random.Random(0)
    exp.save(tmp_path / "good.npz")
    exp.save(tmp_path / "good.json")
    read = 0
    for n in range(600):
        good = tmp_path / f"good{('.npz', '.json')[n % 2]}"
        data = bytearray(good.read_bytes())
        for _ in range(rng.randint(1, 3)):
            data[rng.choice((rng.randrange(len(data)), -rng.randint(1, 400)))] = rng.randrange(256)
        file = tmp_path / f"bad{good.suffix}"
        file.write_bytes(data)
        try:
            Explanation.load(file)
            read += 1
        except ValueError as error:
            if "holds no explanation" not in str(error) or "\n" in str(error):
                raise
    assert 0 < read < 600


def test_what_is_replaced_keeps_what_it_was(exp: Explanation, tmp_path: Path) -> None:
    """Its permissions, and where a link to it points."""
    file, link = tmp_path / "it.json", tmp_path / "link.json"
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file)
    exp.save(link)
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o600
    assert Explanation.load(file).label == exp.label


def test_names_of_all_kinds(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"not utf-8 \xff.png")
    texture().save(odd)
    long = tmp_path / ("x" * 251 + ".png")
    texture().save(long)
    exp = interp_zoo.explain(tiny_cnn, [odd, long], "fakecam")
    for ending in (".json", ".npz"):
        exp.save(tmp_path / f"it{ending}")
        assert Explanation.load(tmp_path / f"it{ending}").name == [str(odd), str(long)]
    named = dataclasses.replace(exp, name=["https://host/a/cat.png?size=1/2", "https://host/"])
    files = named.save(tmp_path / "out")
    assert [file.name for file in files] == ["cat_fakecam.png", "host_fakecam.png"]
    one = interp_zoo.explain(tiny_cnn, texture(), "fakecam")
    assert one.save(tmp_path / ("y" * 250 + ".png"))[0].is_file()


def test_paths_that_cannot_be(exp: Explanation, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Explanation.load(tmp_path / "none.npz")
    exp.save(tmp_path)
    with pytest.raises(ValueError, match=r"must end in \.npz or \.json: pictures cannot be read back"):
        Explanation.load(next(tmp_path.glob("*.png")))
    for ending in (".xyz", ".h5", ".xbm"):  # the last two Pillow knows, but writes no colours to
        with pytest.raises(ValueError, match=r"end it in \.png, \.npz or \.json"):
            exp.save(tmp_path / f"it{ending}")
