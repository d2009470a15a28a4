"""What goes into a pass on a CPU, and memory that stays the process's own while a network is run hundreds of times.

glibc's malloc gives memory at the top of the heap back to the system as soon as enough of it is free, which it is
after every step. The next step takes the same memory again, and the system zeroes each page of it: a fifth to a
third of a step's time. Below a block that is in use nothing is given back.
"""

from __future__ import annotations

import gc
import platform

import torch
from torch import Tensor

_LARGEST = (32 << 20) - (64 << 10)  # bytes; malloc takes what is larger from the system, and smaller from its heap ...
_BLOCK, _BLOCKS = 24 << 20, 10  # ... once it has seen a block of that size given back

# What torch's allocators say for CPUs and MPS; for CUDA there is an error of its own.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")

# Pixels in a pass on a CPU. With more, tensors are so large that malloc takes each from the system and gives it back,
# which may cost as much as computing with it.
FORWARD_PIXELS, BACKWARD_PIXELS = 8 * 224 * 224, 4 * 224 * 224


def at_once(most: int, device: torch.device, size: tuple[int, int], budget: int) -> int:
    """How many of `most` pictures of a size (H, W) go into a pass: on a CPU, those within the budget of pixels."""
    if device.type != "cpu":
        return most
    return max(1, min(most, budget // (size[0] * size[1])))


def steady() -> Tensor | None:
    """A block of 24 MiB above 240 MiB of heap, which malloc keeps for as long as the block lives.

    Neither takes memory before it is written to, which the block is never.

    Returns:
        The block, or None where malloc is not glibc's.
    """
    if platform.libc_ver()[0] != "glibc":
        return None
    torch.empty(_LARGEST, dtype=torch.uint8)
    return [torch.empty(_BLOCK, dtype=torch.uint8) for _ in range(1 + _BLOCKS)][-1]


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def release(device: torch.device) -> None:
    """Gives back what torch keeps of a device's memory, so that smaller tensors find room."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
