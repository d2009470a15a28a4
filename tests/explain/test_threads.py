"""One model explained by several threads, as servers do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import lively
from torch import Tensor, nn

import interp_zoo
from interp_zoo.untouched import untouched


@pytest.mark.filterwarnings("ignore:map .* blank")
@pytest.mark.parametrize("method", ["gradcam", "opticam", "guided_backprop"])
def test_threads_wait_for_each_other(method: str) -> None:
    model = lively("test_resnet", num_classes=10).train()
    x = torch.randn(6, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"iterations": 3} if method == "opticam" else {}

    def saliency(i: int) -> Tensor:
        return interp_zoo.explain(model, x[i], method, target=i, **options).saliency

    want = [saliency(i) for i in range(6)]
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(saliency, [*range(6)] * 5))
    for i, one in enumerate(got):
        assert torch.equal(one, want[i % 6])
    assert all(module.training for module in model.modules())


def test_models_do_not_wait_for_other_models() -> None:
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    done = threading.Event()

    def use(model: nn.Module) -> None:
        with untouched(model):
            done.set()

    with untouched(one):
        threading.Thread(target=use, args=(other,)).start()
        assert done.wait(20)
        done.clear()
        waiting = threading.Thread(target=use, args=(one,))
        waiting.start()
        assert not done.wait(0.3)
        with untouched(one):  # the same thread may
            pass
    assert done.wait(20)
    waiting.join()


def test_the_next_may_go_on_after_an_error() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="no"), untouched(model):
        raise RuntimeError("no")
    assert model.training

    done = threading.Event()

    def use() -> None:
        with untouched(model):
            done.set()

    threading.Thread(target=use, daemon=True).start()  # another thread: this one may enter even what it holds
    assert done.wait(20)
