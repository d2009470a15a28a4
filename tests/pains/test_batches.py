"""Pains 12, 13, 22 and 23: batches, pictures that are not square, cost, memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import lively, texture
from PIL import Image
from torch import Tensor, nn

import interp_zoo
from interp_zoo import Explainer

BLANK = pytest.mark.filterwarnings("ignore:map .* is blank")  # what an untrained network says of some classes


@BLANK
@pytest.mark.parametrize("method", ["gradcam", "scorecam", "opticam"])
def test_pain_12_a_batch_is_its_pictures(method: str, tiny_cnn: nn.Module) -> None:
    """Each picture with its own target, whatever its neighbours and their sizes."""
    pictures = [texture(size, seed) for seed, size in enumerate([(240, 320), (90, 60), (160, 160)], 1)]
    options: dict[str, Any] = {"iterations": 4} if method == "opticam" else {}
    together = interp_zoo.explain(tiny_cnn, pictures, method, target=[1, 2, 5], **options)
    assert together.picture.tolist() == [0, 1, 2]
    for i, (picture, target) in enumerate(zip(pictures, [1, 2, 5], strict=True)):
        alone = interp_zoo.explain(tiny_cnn, picture, method, target=target, **options)
        torch.testing.assert_close(together.saliency[i], alone.saliency[0], atol=1e-4, rtol=1e-3)


def test_pain_12_lists_of_other_lengths_are_refused(tiny_cnn: nn.Module, batch: Tensor) -> None:
    with pytest.raises(ValueError, match="`target` has 2 entries for 3 pictures"):
        interp_zoo.explain(tiny_cnn, batch, "gradcam", target=[1, 2])


@BLANK
@pytest.mark.parametrize("method", ["gradcam", "layercam", "cam", "ablationcam"])
def test_pain_12_several_classes_from_one_pass(method: str, tiny_cnn: nn.Module, batch: Tensor) -> None:
    classes = [1, 4, 7, 8]
    exp = interp_zoo.explain(tiny_cnn, batch, method, target=[classes] * 3)
    assert exp.target.tolist() == classes * 3
    assert exp.picture.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert exp.cost.forward == 1 / 4
    for nth, target in enumerate(classes):
        one = interp_zoo.explain(tiny_cnn, batch, method, target=target)
        torch.testing.assert_close(exp.saliency[nth::4], one.saliency)
        torch.testing.assert_close(exp.probability[nth::4], one.probability)


@BLANK
def test_pain_12_pictures_with_different_numbers_of_classes(tiny_cnn: nn.Module, batch: Tensor) -> None:
    targets = [[3], [1, 4], 2, [5, 6], "predicted"]
    five = torch.cat([batch, batch[:2].flip(3)])
    exp = interp_zoo.explain(tiny_cnn, five, "gradcam", target=targets)
    assert exp.picture.tolist() == [0, 1, 1, 2, 3, 3, 4]
    assert exp.target.tolist()[:6] == [3, 1, 4, 2, 5, 6]
    for row, (picture, target) in enumerate(zip(exp.picture.tolist(), exp.target.tolist(), strict=True)):
        one = interp_zoo.explain(tiny_cnn, five[picture], "gradcam", target=target)
        torch.testing.assert_close(exp.saliency[row], one.saliency[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(Explainer(tiny_cnn, "gradcam").maps(five, targets), exp.saliency)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(120, 400), (400, 120), (160, 160)], ids=str)
def test_pain_13_the_map_lies_on_the_original(mode: str, size: tuple[int, int]) -> None:
    """What shines in the overlay is where the bright square is in the picture, for each `crop_mode` of timm."""

    class Bright(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained_cfg = {
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
                "interpolation": "bilinear",
                "input_size": (3, 160, 160),
                "crop_mode": mode,
                "crop_pct": 0.9,
            }
            self.pool = nn.AvgPool2d(8)

        def forward(self, x: Tensor) -> Tensor:
            means: Tensor = self.pool(x).mean((2, 3))
            return means

    height, width = size
    array = np.zeros((height, width, 3), dtype=np.uint8)
    y, x = height // 2 - 5, width // 2 + 15
    array[y : y + 20, x : x + 20] = 255
    exp = interp_zoo.explain(Bright().eval(), Image.fromarray(array), "hirescam", target=0)
    painted = np.asarray(exp.overlay(on="original"), dtype=float)
    assert painted.shape == array.shape
    heat = painted.sum(2) - 0.4 * array.sum(2)
    hottest = np.argwhere(heat >= heat.max() - 1).mean(0)
    assert abs(hottest - [y + 10, x + 10]).max() < 8


def test_pain_22_cost_is_told_and_bounded(tiny_cnn: nn.Module, batch: Tensor) -> None:
    """Ablation-CAM of a linear tail takes a backward pass where peers take one forward pass a channel."""
    ablation = interp_zoo.explain(tiny_cnn, batch, "ablationcam", target=3)
    assert (ablation.cost.forward, ablation.cost.backward) == (1, 1)
    score = interp_zoo.explain(tiny_cnn, batch, "scorecam", target=3)
    copied = 2 / 3  # two passes in all show that a faster copy of the network is right
    assert score.cost.forward == 1 + 96 + copied
    assert score.cost.seconds > 0
    assert str(score.cost).startswith("97.67 forward passes, ")


class Starved:
    """Runs out of memory with more than `most` pictures in the network, and notes how many there were."""

    def __init__(self, model: nn.Module, most: int, error: Callable[[], BaseException]) -> None:
        self.most, self.error, self.seen = most, error, [0]
        model.register_forward_pre_hook(self)

    def __deepcopy__(self, memo: Any) -> Starved:
        return self  # a copy of the network has no more memory

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > self.most:
            raise self.error()
        self.seen.append(len(args[0]))


ERRORS: dict[str, Callable[[], BaseException]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 8 GiB)"),
}


@pytest.mark.parametrize(
    ("method", "error"),
    [("gradcam", "cuda"), ("gradcam", "cpu"), ("gradcam", "mps"), ("xgradcam", "cuda"), ("rise", "cpu")],
)
def test_pain_23_memory_that_runs_out_halves_the_batch(method: str, error: str, batch: Tensor) -> None:
    many = torch.cat([batch, batch.flip(2), batch.flip(3)])  # 9 pictures
    options: dict[str, Any] = {"n": 12} if method == "rise" else {}
    want = interp_zoo.explain(lively("test_resnet", num_classes=10), many, method, target=3, **options)
    model = lively("test_resnet", num_classes=10)
    starved = Starved(model, 2, ERRORS[error])
    with pytest.warns(UserWarning, match=r"memory ran out: at most \d pictures at once from here on") as told:
        exp = interp_zoo.explain(model, many, method, target=3, batch_size=8, **options)
    torch.testing.assert_close(exp.saliency, want.saliency, atol=1e-4, rtol=1e-3)
    assert exp.picture.tolist() == list(range(9))
    assert max(starved.seen) == 2
    assert (
        sum("memory ran out" in str(w.message) for w in told) == 2
    )  # 8, 4, 2: and the rest with as many as there is room for


@BLANK
@pytest.mark.filterwarnings("ignore:memory ran out")
@pytest.mark.parametrize("method", ["opticam", "smoothgrad", "occlusion", "integrated_gradients"])
def test_pain_23_methods_of_many_passes(method: str, batch: Tensor) -> None:
    every: dict[str, dict[str, Any]] = {
        "opticam": {"iterations": 2},
        "smoothgrad": {"n": 5},
        "occlusion": {"window": 0.5, "stride": 0.25},
        "integrated_gradients": {"steps": 5},
    }
    options = every[method]
    targets = [[1, 2], [3, 4], [5, 6]]
    want = interp_zoo.explain(lively("test_resnet", num_classes=10), batch, method, target=targets, **options)
    model = lively("test_resnet", num_classes=10)
    interp_zoo.explain(model, batch[:1], "gradcam")  # finds the cut, with two pictures
    starved = Starved(model, 1, ERRORS["cuda"])
    exp = interp_zoo.explain(model, batch, method, target=targets, batch_size=8, **options)
    torch.testing.assert_close(exp.saliency, want.saliency, atol=1e-3, rtol=1e-2)
    assert exp.target.tolist() == [1, 2, 3, 4, 5, 6]
    assert max(starved.seen) == 1


@BLANK
def test_pain_23_what_fitted_is_remembered(batch: Tensor) -> None:
    model = lively("test_resnet", num_classes=10)
    explainer = Explainer(model, "gradcam", batch_size=8)
    explainer(batch[:1])
    Starved(model, 2, ERRORS["cuda"])
    with pytest.warns(UserWarning, match="memory ran out"):
        explainer(batch, target=1)
    explainer(batch, target=1)  # which is no warning
    stem = model.get_submodule("conv1")
    Starved(stem, 2, ERRORS["cuda"])
    with pytest.warns(UserWarning, match="memory ran out"):
        features = Explainer(model, "gradcam", batch_size=8).features(batch)
    assert features.shape == (3, 96, 5, 5)


def test_pain_23_no_room_for_one(batch: Tensor) -> None:
    model = lively("test_resnet", num_classes=10)
    interp_zoo.explain(model, batch, "gradcam")
    Starved(model, 0, ERRORS["cuda"])
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="at most 1 pictures"):
        interp_zoo.explain(model, batch, "gradcam", batch_size=2)


def test_pain_23_other_errors_are_the_models_own(batch: Tensor) -> None:
    model = lively("test_resnet", num_classes=10)
    interp_zoo.explain(model, batch, "gradcam")
    starved = Starved(model, 1, lambda: RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        interp_zoo.explain(model, batch, "gradcam")
    assert starved.seen == [0]


def test_pain_23_very_large_pictures_take_bounded_memory(tmp_path: Path) -> None:
    """50 megapixels are 150 MB as RGB: no more than a few such copies at a time, with the overlay painted in bands."""
    file, run = tmp_path / "large.jpg", tmp_path / "run.py"
    Image.new("RGB", (10_000, 5_000), (90, 20, 200)).save(file)
    run.write_text(
        "import resource, timm, torch, interp_zoo\n"
        "model = timm.create_model('test_resnet', num_classes=10).eval()\n"
        "interp_zoo.explain(model, torch.randn(1, 3, 160, 160), 'fakecam').save('small.jpg')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "interp_zoo.explain(model, 'large.jpg', 'fakecam').save('map.jpg')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, run], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 1e9
    with Image.open(tmp_path / "map.jpg") as painted:
        assert painted.size == (10_000, 5_000)
