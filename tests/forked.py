"""Scripts in processes that have imported already what takes seconds: they are forked off one that has.

Started as users start them they are tried by the tests that name accelerate's launcher, torchrun or the README.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["timm", "datasets", "torchmetrics", "accelerate", "interp_zoo.training.watching"])


def _run(script: str, argv: list[str], environment: dict[str, str], said: str) -> None:
    os.setsid()
    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()  # that of the process that was forked is as old as its first fork
    os.environ.update(environment)
    usual = multiprocessing.get_all_start_methods()[0]
    multiprocessing.set_start_method(usual, force=True)  # for what the script starts, as if it were not forked itself
    torch.set_num_threads(1)
    sys.argv = [script, *argv]
    runpy.run_path(script, run_name="__main__")


class Forked:
    """A script that runs, with a session of its own: the part of `subprocess.Popen` that is used here.

    Args:
        script: what is run as `__main__`.
        argv: its arguments.
        environment: what is added to this process' own (what reads it when it is imported has done so already).
    """

    def __init__(self, script: Path, argv: list[str], environment: Mapping[str, str]) -> None:
        output, said = tempfile.mkstemp(suffix=".txt")
        os.close(output)
        self._said = Path(said)
        self._process = FORKING.Process(target=_run, args=(str(script), argv, {**os.environ, **environment}, said))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, -9 after kill -9, None as long as it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it said, once it has ended; to be asked once."""
        self._process.join(timeout)
        said = self._said.read_text()
        assert self.returncode is not None, f"it runs longer than {timeout} s: {said}"
        self._said.unlink()
        return said, None
