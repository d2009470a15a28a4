"""A thousand mixed calls with faults among them: flat memory, models as they were, each good picture explained."""

from __future__ import annotations

import gc
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lively, texture
from torch import Tensor, nn

import interp_zoo

CALLS = 1_000
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("gradcam", {}),
    ("layercam", {}),
    ("hirescam", {}),
    ("gradcam_plusplus", {}),
    ("saliency", {}),
    ("opticam", {"iterations": 1}),
    ("random", {}),
    ("fakecam", {}),
]


class Fault:
    """Raises in one of the next calls of a layer, if it is armed."""

    def __init__(self, layer: nn.Module) -> None:
        self.error: BaseException | None = None
        self.handle = layer.register_forward_hook(self)

    def __call__(self, *_args: Any) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error


def state(model: nn.Module) -> list[Any]:
    """All that a call could leave on a model."""
    return [
        (
            module.training,
            sorted(k for k in vars(module)),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            [
                (n, p.requires_grad, p.grad is None, p.data_ptr(), p._version)
                for n, p in module.named_parameters(recurse=False)
            ],
            [(n, b.data_ptr(), b._version) for n, b in module.named_buffers(recurse=False)],
        )
        for module in model.modules()
    ]


def rss() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory off /proc")
def test_a_soak(tmp_path: Path) -> None:
    rng = random.Random(0)
    small: dict[str, Any] = {"pretrained_cfg_overlay": {"input_size": (3, 64, 64)}}
    models = [
        lively("test_resnet", num_classes=10, **small),
        lively("test_vit", num_classes=10, img_size=64),
        lively("test_efficientnet", num_classes=10, **small),
    ]
    models[0].train()
    for model in models:
        interp_zoo.explain(model, texture(), "gradcam")  # finds the cut, for which memory must do
    faults = [Fault(next(iter(model.children()))) for model in models]
    before = [state(model) for model in models]
    good = tmp_path / "good.png"
    texture().save(good)
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:300])
    gc.collect()
    gc.freeze()  # the package collects garbage when memory runs out: a hundred times here
    explained, wanted, raised, tensors, memory = 0, 0, 0, 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # blank maps, skipped pictures, memory that runs out: by the hundred
        for call in range(CALLS):
            which = rng.randrange(len(models))
            method, options = rng.choice(METHODS)
            what = rng.choice(
                ["good", "good", "good", "bad among good", "raises", "out of memory", "interrupted", "target"]
            )
            pictures: list[Any] = [good, texture((50, 70), call % 7)]
            target: Any = rng.randrange(10)
            if what == "bad among good":
                pictures.insert(1, bad)
            elif what == "raises":
                faults[which].error = RuntimeError("the model's own")
            elif what == "out of memory":
                faults[which].error = torch.OutOfMemoryError("CUDA out of memory")
            elif what == "interrupted":
                faults[which].error = KeyboardInterrupt()
            elif what == "target":
                target = 10
            must = what in ("good", "bad among good", "out of memory")
            wanted += 2 * must
            try:
                exp = interp_zoo.explain(models[which], pictures, method, target=target, **options)
                explained += len(exp) * must
                assert exp.saliency.isfinite().all()
            except (RuntimeError, KeyboardInterrupt, ValueError):
                assert not must
                raised += 1
            faults[which].error = None
            if call == CALLS // 4:  # all is loaded, found and kept by now
                gc.collect()
                tensors, memory = sum(issubclass(type(o), Tensor) for o in gc.get_objects()), rss()
    assert explained == wanted > CALLS
    assert raised == CALLS - wanted // 2
    assert [state(model) for model in models] == before
    gc.collect()
    assert sum(issubclass(type(o), Tensor) for o in gc.get_objects()) <= tensors + 5
    assert rss() - memory < 60e6
