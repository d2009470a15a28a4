"""Those whom we race against, in processes of their own.

Our explanations make glibc's malloc keep memory (`interp_zoo.memory`), which serves whatever else runs in the
process: pytorch-grad-cam's Score-CAM takes a fifth less time beside them than alone, as its users have it.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import torch


class Apart:
    """A function that is run in a fresh process, with as many threads as this one has: `with Apart(f) as run: run()`.

    Args:
        function: what is run; it and all that it holds must be picklable. Its result stays where it is.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["interp_zoo", "pytorch_grad_cam"])  # which take seconds to import
        self._here, there = context.Pipe()
        whole = pickle.dumps(function)  # tensors by value: torch's own way to send them has one file open for each
        arguments = (whole, there, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._answer()  # when it has imported all
        return self

    def __call__(self) -> None:
        """Runs it and waits.

        Raises:
            RuntimeError: what the function raised, in words, or that its process is gone.
        """
        self._here.send(True)
        self._answer()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.join()

    def _answer(self) -> None:
        try:
            error = self._here.recv()
        except EOFError:
            self._process.join()
            error = f"the process ended with exit code {self._process.exitcode} before it answered"
        if error:
            raise RuntimeError(error)


def _serve(whole: bytes, there: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    function: Callable[[], object] = pickle.loads(whole)
    there.send("")
    while there.recv():
        try:
            function()
        except Exception as error:  # whatever it is, it is told
            there.send(f"{type(error).__name__}: {error}")
        else:
            there.send("")
