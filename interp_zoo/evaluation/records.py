"""Rows on disk, line by line, so that a run that is killed goes on where it was."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp_zoo.files import write_whole

Row = dict[str, Any]  # what was measured of one picture, method and target

IDENTITY = "run.json"
_PARTS = "parts"
_REPORTS = ("results.parquet", "results.csv", "summary.json", "report.html")

# What one row is about: model, method, target kind, picture.
Key = tuple[str, str, str, int]
# What a picture lacks: methods and target kinds.
Missing = frozenset[tuple[str, str]]


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        rows: by key, the last one written where there are two.
        thumbnails: by model and picture.
        left_out: why a model does not admit a method, by both.
        unreadable: pictures that cannot be decoded, and why, by index.
    """

    rows: dict[Key, Row] = field(default_factory=dict)
    thumbnails: dict[tuple[str, int], str] = field(default_factory=dict)
    left_out: dict[tuple[str, str], str] = field(default_factory=dict)
    unreadable: dict[int, tuple[str, str]] = field(default_factory=dict)

    def todo(self, indices: Iterable[int], model: str, pairs: Iterable[tuple[str, str]]) -> dict[Missing, list[int]]:
        """The pictures that lack rows of a model, grouped by the (method, target kind) that they lack.

        Args:
            indices: the pictures that are to be evaluated.
            model: its name.
            pairs: the methods and target kinds that each of them is to have.
        """
        wanted = [pair for pair in pairs if (model, pair[0]) not in self.left_out]
        found: dict[Missing, list[int]] = {}
        for index in indices:
            missing = frozenset(pair for pair in wanted if (model, *pair, index) not in self.rows)
            if missing:
                found.setdefault(missing, []).append(index)
        return found


class Records:
    """The folder of one run. Each process writes a file of its own; a line is whole, or it does not count."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Makes the folder this run's, or finds that it is already. To be called by one process.

        Args:
            identity: what makes results comparable: data, settings, versions, and in "models" what each model is by
                its name. Methods and models may be added to a run.
            overwrite: whether to delete the results of another run.

        Raises:
            ValueError: if the folder holds another run's results, or other files.
        """
        file = self.folder / IDENTITY
        wanted = json.loads(json.dumps(identity))
        if file.is_file() and not overwrite:
            try:
                held = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                raise ValueError(f'`output` "{self.folder}": {IDENTITY} is broken: give --overwrite') from None
            old, new = held.get("models", {}), wanted.get("models", {})
            differing = [key for key in sorted({*held, *wanted} - {"models"}) if held.get(key) != wanted.get(key)]
            for key, before, now in [(key, held.get(key), wanted.get(key)) for key in differing] + [
                (name, old[name], new[name]) for name in old if name in new and old[name] != new[name]
            ]:
                raise ValueError(
                    f'`output` "{self.folder}" holds the results of another run ({key}: {_short(before)} there, '
                    f"{_short(now)} here): choose another folder, or give --overwrite"
                )
            write_whole(file, json.dumps(wanted | {"models": old | new}, indent=1))
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f'`output` "{self.folder}" is a file: choose another folder')
        held_files = [p.name for p in self.folder.iterdir()] if self.folder.is_dir() else []
        # A run that was killed may leave new files that did not take their names, or a folder that it had just made.
        own = {_PARTS, *((IDENTITY, *_REPORTS) if file.is_file() else ())}
        strangers = sorted(n for n in held_files if n not in own and not (n.startswith(".") and n.endswith(".new")))
        if strangers or (not file.is_file() and self.read().rows):
            raise ValueError(
                f'`output` "{self.folder}" holds other files ({(strangers or [_PARTS])[0]}): choose another'
            )
        for name in (*_REPORTS, IDENTITY):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / _PARTS, ignore_errors=True)
        (self.folder / _PARTS).mkdir(parents=True)
        write_whole(file, json.dumps(wanted, indent=1))

    def read(self) -> Found:
        """All that was written so far, by all processes."""
        found = Found()
        for file in sorted((self.folder / _PARTS).glob("*.jsonl")):
            for line in _lines(file):
                kind = line.pop("kind")
                if kind == "row":
                    key = (line["model"], line["method"], line["target_kind"], line["index"])
                    found.rows[key] = line
                elif kind == "thumbnail":
                    found.thumbnails[line["model"], line["index"]] = line["image"]
                elif kind == "left_out":
                    found.left_out[line["model"], line["method"]] = line["why"]
                elif kind == "unreadable":
                    found.unreadable[line["index"]] = (line["file"], line["why"])
        return found

    def writer(self, process: int) -> Writer:
        """What a process writes with."""
        return Writer(self.folder / _PARTS / f"{process:05d}.jsonl")


class Writer:
    """Appends to one file. What is written is on the disk when the call returns."""

    def __init__(self, file: Path) -> None:
        self.file = file
        if file.is_file():  # a run that was killed may have left half a line
            with file.open("rb+") as open_file:
                content = open_file.read()
                open_file.truncate(content.rfind(b"\n") + 1)

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows, all at once."""
        self._append({"kind": "row", **row} for row in rows)

    def thumbnails(self, model: str, images: Mapping[int, str]) -> None:
        """Adds what a model saw, by the picture's index."""
        self._append({"kind": "thumbnail", "model": model, "index": i, "image": image} for i, image in images.items())

    def left_out(self, model: str, method: str, why: str) -> None:
        """Notes a method that a model does not admit."""
        self._append([{"kind": "left_out", "model": model, "method": method, "why": why}])

    def unreadable(self, index: int, file: str, why: str) -> None:
        """Notes a picture that cannot be decoded."""
        self._append([{"kind": "unreadable", "index": index, "file": file, "why": why}])

    def _append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)
        with self.file.open("ab") as open_file:
            open_file.write(text.encode())
            open_file.flush()
            os.fsync(open_file.fileno())


def finite(value: Any) -> float | None:
    """A number as JSON takes it: None for None, NaN and infinity."""
    return float(value) if value is not None and math.isfinite(value) else None


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as open_file:
        for line in open_file:
            # What was cut off, or is broken in another way, is done again.
            with contextlib.suppress(ValueError):
                if line.endswith(b"\n") and isinstance(entry := json.loads(line), dict) and "kind" in entry:
                    yield entry


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
