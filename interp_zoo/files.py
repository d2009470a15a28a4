"""Files that are never half written."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Writes a file so that it is the old one or the new one, whenever the machine stops."""
    # Names of files may hold what is no UTF-8: it is written as JSON and Python escape it.
    with replacing(file) as new, new.open("w", encoding="utf-8", errors="backslashreplace") as open_file:
        open_file.write(text)
        open_file.flush()
        os.fsync(open_file.fileno())


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A new file to write to, which takes the place of `file` at the end of the block, unless that raises.

    It gets the permissions of the old one; what is a link stays one.
    """
    file = file.resolve()
    new = file.with_name(f".{file.name[:80]}.new")  # a name may be no longer than 255 bytes
    try:
        yield new
        if file.exists():
            shutil.copymode(file, new)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
