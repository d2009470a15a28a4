"""Use a model and leave it exactly as it was."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

# Flags of timm's networks that replay parts of the forward pass during backward: off for the block.
_RECOMPUTE_FLAGS = ("grad_checkpointing", "_grad_checkpointing", "use_checkpoint")

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_FINDING = threading.Lock()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Puts `model` in eval mode for the block, and afterwards puts back everything that the block changed on it.

    Module by module, not through `train()`, which networks override: training mode, attributes (caches that some
    networks fill in eval mode, such as LeViT's attention biases, would otherwise go stale), the registered parameters,
    buffers and hooks, whatever happens in the block.

    Threads that have such blocks of the same model wait for each other. Those that use it in other ways do not: what
    the block does to it they see.
    """
    with _FINDING:
        lock = _LOCKS.setdefault(model, threading.RLock())
    with lock, _eager(model):
        yield from _untouched(model)


def _eager(model: nn.Module) -> AbstractContextManager[object]:
    """Runs what torch.compile made of the model's parts as they were written: hooks would compile them anew."""
    for module in model.modules():
        if "_orig_mod" in vars(module)["_modules"] or vars(module).get("_compiled_call_impl") is not None:
            stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
            return stance
    return nullcontext()


def _untouched(model: nn.Module) -> Iterator[None]:
    before: list[tuple[nn.Module, dict[str, Any], dict[str, dict[Any, Any]]]] = []
    try:
        for module in model.modules():
            state = dict(vars(module))
            before.append((module, state, {k: v.copy() for k, v in state.items() if isinstance(v, dict)}))
            module.__dict__["training"] = False
            for flag in _RECOMPUTE_FLAGS:
                if isinstance(state.get(flag), bool):
                    module.__dict__[flag] = False
        yield
    finally:
        for module, state, dicts in before:
            for name, content in dicts.items():
                _put_back(state[name], content)
            _put_back(module.__dict__, state)


def _put_back(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Makes `now` hold what `before` holds, in its order, touching it only where it differs."""
    same = len(now) == len(before) and all(a is b and now[a] is before[b] for a, b in zip(now, before, strict=True))
    if not same:
        now.clear()
        now.update(before)
