"""A race's other party, in a process of its own."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp_zoo.benchmarking.apart import Apart


def note(file: Path, x: Tensor) -> Tensor:
    with file.open("a") as lines:
        lines.write(f"{os.getpid()} {torch.get_num_threads()} {x.sum().item():g}\n")
    return x


def fail() -> None:
    raise ValueError("no such layer")


def test_it_runs_elsewhere_with_as_many_threads(tmp_path: Path) -> None:
    file, threads = tmp_path / "notes", torch.get_num_threads()
    with Apart(partial(note, file, torch.arange(4.0))) as run:
        assert not file.exists(), "only when called"
        run()
        run()
    first, second = file.read_text().splitlines()
    assert first == second
    process, *rest = first.split()
    assert int(process) != os.getpid()
    assert rest == [str(threads), "6"]


def test_hundreds_of_tensors_go_there() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(200)))
    with Apart(partial(model, torch.ones(1))) as run:
        run()


def test_what_fails_there_is_told_here() -> None:
    with Apart(fail) as run, pytest.raises(RuntimeError, match="ValueError: no such layer"):
        run()


def test_a_process_that_is_gone_is_told() -> None:
    with Apart(partial(os._exit, 3)) as run, pytest.raises(RuntimeError, match="exit code 3 before"):
        run()
