"""Which pictures go through the network together, and what is done when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from interp_zoo import memory
from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.inputs import Picture
from interp_zoo.told import warn

T = TypeVar("T")


def stack(pictures: list[Picture], anatomy: Anatomy) -> Tensor:
    """The pictures' pixels (B, channels, H, W), where the model is and as it likes them to be laid out."""
    pixels = torch.stack([p.pixels for p in pictures])
    return pixels.to(anatomy.device, memory_format=anatomy.cut.memory_format)


def in_rounds(
    run: Callable[[Tensor, list[int]], T], of: Iterable[int], pictures: list[Picture], anatomy: Anatomy
) -> Iterator[tuple[list[int], T]]:
    """Rows, and what `run` makes of their pixels, a row a picture, as many at once as go together `within_memory`.

    `of` has each row's picture. Those of several rows come once for each, as the very same tensor: what is known of it
    need not be run again.
    """
    rows: dict[int, list[int]] = {}
    for row, picture in enumerate(of):
        rows.setdefault(picture, []).append(row)
    for targets in sorted({len(of_one) for of_one in rows.values()}):
        some = [picture for picture, of_one in rows.items() if len(of_one) == targets]
        while some:
            chunk, some = some[: anatomy.batch_size], some[anatomy.batch_size :]
            pixels = stack([pictures[i] for i in chunk], anatomy)
            for nth in range(targets):
                yield from within_memory(run, pixels, [rows[i][nth] for i in chunk], anatomy)
            anatomy.forget()


def within_memory(
    run: Callable[[Tensor, list[int]], T], pixels: Tensor, rows: list[int], anatomy: Anatomy
) -> Iterator[tuple[list[int], T]]:
    """Rows, and what `run` makes of them and their pixels, at most `batch_size` at once.

    Where memory runs out, of fewer at once, from then on, with a warning.

    Raises:
        RuntimeError: as torch has it, if there is no memory for a single picture.
    """
    done = 0
    while done < len(rows):
        size = anatomy.batch_size  # less than there were, if memory ran out meanwhile
        whole = done == 0 and size >= len(rows)
        part = pixels if whole else pixels[done : done + size]  # the very same tensor: it may have been run before
        try:
            yield rows[done : done + size], run(part, rows[done : done + size])
            done += size
            continue
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not memory.ran_out(error):
                raise
        # Not within the `except`: the error holds on to the tensors of the pass that failed.
        anatomy.batch_size = size // 2
        anatomy.forget()
        memory.release(anatomy.device)
        warn(f"memory ran out: at most {anatomy.batch_size} pictures at once from here on (`batch_size`)")
