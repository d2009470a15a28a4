"""Files that are never half written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Writes a file so that it is the old one or the new one, whenever the machine stops."""
    with replacing(file) as new, new.open("w", encoding="utf-8") as open_file:
        open_file.write(text)
        open_file.flush()
        os.fsync(open_file.fileno())


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A new file to write to, which takes the place of `file` at the end of the block, unless that raises."""
    new = file.with_name(f".{file.name}.new")
    try:
        yield new
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
