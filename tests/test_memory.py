"""Memory that is taken from the system once."""

from __future__ import annotations

import platform
import subprocess
import sys
import weakref

import pytest
import torch
from conftest import lively

from interp_zoo import Explainer
from interp_zoo.memory import FORWARD_PIXELS, at_once, steady

GLIBC = platform.libc_ver()[0] == "glibc"
LOOP = """
import ctypes, resource
from interp_zoo.memory import steady
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def step():
    blocks = []
    for _ in range(8):
        blocks.append(libc.malloc(16 << 20))
        libc.memset(blocks[-1], 1, 16 << 20)
    while blocks:
        libc.free(blocks.pop())
def faults():
    step(), step(), step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
held = steady()
print(first, faults())
"""


@pytest.mark.skipif(not GLIBC, reason="another malloc")
def test_a_step_finds_its_memory_again() -> None:
    """Pages that five steps take from the system, in a process of their own."""
    without, held = map(int, subprocess.check_output([sys.executable, "-c", LOOP]).split())
    assert without > 50_000
    assert held < 500


@pytest.mark.skipif(not GLIBC, reason="another malloc")
def test_what_is_held_takes_no_memory() -> None:
    import resource  # which other systems do not have

    steady()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = steady()
    assert held is not None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100


def test_another_malloc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert steady() is None


@pytest.mark.skipif(not GLIBC, reason="another malloc")
def test_it_is_held_for_a_call_and_no_longer() -> None:
    with Explainer(lively("test_resnet"), "opticam").anatomy(torch.randn(1, 3, 64, 64)) as (anatomy, pixels):
        anatomy.hasten(pixels)
        assert anatomy._heap is not None
        held = weakref.ref(anatomy._heap)
    del anatomy
    assert held() is None


@pytest.mark.parametrize(("size", "on_cpu"), [((224, 224), 8), ((448, 448), 2), ((32, 32), 64), ((2000, 2000), 1)])
def test_a_pass_on_a_cpu_is_small(size: tuple[int, int], on_cpu: int) -> None:
    assert at_once(64, torch.device("cpu"), size, FORWARD_PIXELS) == on_cpu
    assert at_once(64, torch.device("cuda"), size, FORWARD_PIXELS) == 64
    assert at_once(1, torch.device("cpu"), size, FORWARD_PIXELS) == 1
