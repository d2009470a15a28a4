"""Explanations as files of numbers: .npz with all of it and the pictures, .json to read by eye and with other tools.

Of the map, JSON holds `raw`: `saliency` follows from it. Reading runs no code from a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp_zoo.explain import masking
from interp_zoo.explain.inputs import Picture
from interp_zoo.explain.render import format_of
from interp_zoo.files import replacing, write_whole

if TYPE_CHECKING:
    from interp_zoo.explain.explanation import Explanation

ENDINGS = (".npz", ".json")
_NUMBERS = {  # one a row
    "target": torch.int64,
    "probability": torch.float32,
    "masked_probability": torch.float32,
    "picture": torch.int64,
}
_COST = {"forward", "backward", "tail", "seconds"}
_LARGEST = 2**33  # bytes, unpacked: what claims to be larger is not read
_FORMAT = "interp_zoo explanation 1"


def holds_numbers(path: Path) -> bool:
    """Whether a path's ending says that it is for numbers, not for pictures."""
    return path.suffix.lower() in ENDINGS and not path.is_dir()


def check_ending(path: Path) -> None:
    """Raises ValueError if `path` ends in what is neither for numbers nor a picture format that can be written."""
    if path.suffix and not path.is_dir() and not holds_numbers(path) and format_of(path) is None:
        raise ValueError(
            f'`path` "{path}" ends in {path.suffix}, no picture format: end it in .png, .npz or .json, or name a folder'
        )


def write(exp: Explanation, file: Path) -> None:
    """Writes an explanation to a file that ends in one of `ENDINGS`, whole or not at all."""
    facts = {
        "format": _FORMAT,
        "method": exp.method,
        "layer": exp.layer,
        "cost": vars(exp.cost),
        "label": exp.label,
        "name": exp.name,
        "skipped": exp.skipped,
        "size": list(exp.saliency.shape[1:]),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() == ".json":
        numbers = {key: _plain(getattr(exp, key)) for key in (*_NUMBERS, "raw")}
        write_whole(file, json.dumps(facts | numbers, ensure_ascii=False, allow_nan=False) + "\n")
        return
    arrays = {key: getattr(exp, key).numpy() for key in (*_NUMBERS, "raw", "saliency")}
    if exp._pictures:
        arrays["pixels"] = torch.stack([p.pixels.detach().cpu().float() for p in exp._pictures]).numpy()
    with replacing(file) as new, new.open("wb") as open_file:
        np.savez_compressed(open_file, facts=np.array(json.dumps(facts)), **arrays)


def read(file: Path) -> dict[str, Any]:
    """The fields of the explanation in a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no explanation.
    """
    if not file.is_file():
        raise FileNotFoundError(f'`path` "{file}" does not exist')
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {".npz": _read_npz, ".json": _read_json}
    if file.suffix.lower() not in readers:
        raise ValueError(f'`path` "{file}" must end in {" or ".join(ENDINGS)}: pictures cannot be read back')
    try:
        return _fields(readers[file.suffix.lower()](file))
    except Exception as error:  # zip, zlib, numpy and json each raise their own on broken files
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f'`path` "{file}" holds no explanation: {why}') from None


def _read_npz(file: Path) -> dict[str, Any]:
    with file.open("rb") as open_file, np.load(open_file, allow_pickle=False) as found:
        declared = sum(entry.file_size for entry in found.zip.infolist())
        if declared > _LARGEST:
            raise ValueError(f"it is {declared:,} bytes large when it is unpacked, more than {_LARGEST:,}")
        facts: dict[str, Any] = json.loads(str(found["facts"]))
        keys = {*_NUMBERS, "raw", "saliency", "pixels"} & set(found.files)
        return facts | {key: torch.from_numpy(found[key]) for key in keys}


def _read_json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for key, kind in {**_NUMBERS, "raw": torch.float32}.items():
        found[key] = torch.tensor(_with_nan(found[key]), dtype=kind)
    return found


def _fields(found: Mapping[str, Any]) -> dict[str, Any]:
    """Checked, and with `saliency` where it is to be made."""
    _must(found["format"] == _FORMAT, f'its format is not "{_FORMAT}"')
    raw, n = found["raw"], len(found["raw"])
    _must(raw.ndim == 3 and raw.dtype == torch.float32 and raw.numel() > 0, "its raw maps are no float32 (N, h, w)")
    for key, kind in _NUMBERS.items():
        _must(found[key].shape == (n,) and found[key].dtype == kind, f"{key} is no {kind} of {n} numbers")
    for key in ("label", "name"):
        _must(_are_texts(found[key]) and len(found[key]) == n, f"{key} is no list of {n} texts")
    _must(_are_texts([found["method"], found["layer"]]), "method or layer is no text")
    skipped, cost = found["skipped"], found["cost"]
    _must(isinstance(skipped, dict) and _are_texts([*skipped, *skipped.values()]), "skipped is no object of texts")
    _must(set(cost) == _COST and all(isinstance(v, int | float) for v in cost.values()), f"cost is not {sorted(_COST)}")
    height, width = found["size"]
    right = all(type(length) is int and 0 < length <= 2**15 for length in (height, width))
    _must(right and n * height * width * 4 <= _LARGEST, f"its size is {height} x {width}")
    saliency = found.get("saliency")
    if saliency is None:
        saliency = masking.finished(raw, (height, width))
    _must(saliency.shape == (n, height, width) and saliency.dtype == torch.float32, "saliency is no float32 (N, H, W)")
    _must(bool(((saliency >= 0) & (saliency <= 1)).all()), "saliency is not in [0, 1]")
    pixels = found.get("pixels")
    if pixels is not None:
        right = pixels.ndim == 4 and len(pixels) == n and pixels.shape[2:] == (height, width)
        _must(right and pixels.dtype == torch.float32, "its pixels are no float32 (N, channels, H, W)")
    pictures = () if pixels is None else tuple(map(Picture, pixels, found["name"]))
    fields = {key: found[key] for key in ("raw", "label", "name", "method", "layer", "cost", "skipped", *_NUMBERS)}
    return fields | {"saliency": saliency, "_pictures": pictures}


def _must(right: bool, what: str) -> None:
    if not right:
        raise ValueError(what)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, str) for v in values)


def _plain(tensor: Tensor) -> Any:
    """A tensor as nested lists: the shortest decimals that give its numbers back, None for what is not finite."""
    if not tensor.is_floating_point():
        return tensor.tolist()
    short = [float(str(v)) if np.isfinite(v) else None for v in tensor.float().numpy().ravel()]
    return np.array(short, dtype=object).reshape(tuple(tensor.shape)).tolist()


def _with_nan(values: Any) -> Any:
    if isinstance(values, list):
        return [_with_nan(v) for v in values]
    return float("nan") if values is None else values
