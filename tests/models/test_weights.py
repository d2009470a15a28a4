"""Weights: from where they should come, all of them or a one-line error, and never a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import assert_one_line, lively, saved, weights_at
from hubserver import Hub
from safetensors.torch import load_file, save_file
from torch import Tensor

import interp_zoo
from interp_zoo.hub import prepare, publish
from interp_zoo.models.pretrained import carried

NAME, REPO = "ca_resnet18_cifar", "me/ca_resnet18_cifar.cifar100"


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_weights_of_the_backbone_come_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    """`backbone_pretrained=True` takes timm's own weights, from safetensors."""
    weights = saved("mobilenetv2_100", tmp_path)
    hub.put("timm/mobilenetv2_100.ra_in1k", model__safetensors=weights.read_bytes())
    model: Any = timm.create_model("ca_mobilenetv2_100", backbone_pretrained=True).eval()
    want = timm.create_model("mobilenetv2_100", checkpoint_path=str(weights)).eval()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(pictures), want(pictures), rtol=1e-5, atol=1e-5)
    assert model.pretrained_cfg["crop_pct"] == want.pretrained_cfg["crop_pct"]  # type: ignore[index]
    assert model.pretrained_cfg["architecture"] == "ca_mobilenetv2_100"
    hub.repos["timm/mobilenetv2_100.ra_in1k"].append({"pytorch_model.bin": b"a pickle"})
    with pytest.raises(
        OSError, match=r'`backbone_pretrained` is "mobilenetv2_100.ra_in1k", whose weights cannot be'
    ) as caught:
        timm.create_model("ca_mobilenetv2_100", backbone_pretrained=True)
    assert_one_line(caught.value)
    assert not any("pytorch_model.bin" in request for request in hub.requests)


def test_weights_that_are_damaged(hub: Hub, tmp_path: Path) -> None:
    publish(lively(NAME), REPO)
    config = hub.repos[REPO][-1]["config.json"]
    whole = hub.repos[REPO][-1]["model.safetensors"]
    other = saved("resnet18_cifar", tmp_path).read_bytes()
    fewer = {}
    for name in ("stream.query", "backbone.conv1.weight"):
        state = load_file(saved(NAME, tmp_path))
        state.pop(name)
        save_file(state, tmp_path / "fewer.safetensors")
        fewer[name] = (tmp_path / "fewer.safetensors").read_bytes()
    loose = json.loads(config)
    loose["pretrained_cfg"]["classifier"] = "backbone.conv1"  # which timm would leave out with other classes
    for i, (content, match) in enumerate(
        (
            (whole[: len(whole) // 2], ""),
            (b"\x80\x04 a pickle", ""),
            (other, r"\d+ tensors differ"),
            (fewer["stream.query"], "1 tensor differs, stream.query first"),
            (fewer["backbone.conv1.weight"], "1 tensor differs, backbone.conv1.weight first"),
        )
    ):
        repo = f"me/damaged{i}"
        hub.put(repo, config__json=json.dumps(loose).encode(), model__safetensors=content)
        for classes in (None, 5):  # with other classes timm would let missing weights pass
            with pytest.raises(
                ValueError, match=f'"{NAME}": the weights from {repo} cannot be loaded: {match}'
            ) as caught:
                timm.create_model(f"hf-hub:{repo}", pretrained=True, num_classes=classes)
            assert_one_line(caught.value)
        with pytest.raises(OSError, match=f'`model` "hf-hub:{repo}": its pretrained weights cannot be had'):
            interp_zoo.explain(f"hf-hub:{repo}", torch.zeros(3, 32, 32))


def test_a_config_that_names_other_layers(hub: Hub, x: Tensor) -> None:
    """A config cannot say what is left out: with other classes, all but the classifier is what was published."""
    model: Any = lively(NAME)
    publish(model, REPO)
    loose = json.loads(hub.repos[REPO][-1]["config.json"])
    loose["pretrained_cfg"] |= {"classifier": "backbone.layer1.0.conv1", "first_conv": "backbone.layer2.0.conv1"}
    hub.put(REPO, config__json=json.dumps(loose).encode())
    other: Any = timm.create_model(f"hf-hub:{REPO}", pretrained=True, num_classes=5).eval()
    assert torch.equal(other.forward_features(x), model.forward_features(x))


def test_models_that_timm_has_as_pickles_only() -> None:
    with pytest.raises(OSError, match=r"are pickled, at https://.*pth: give what timm.create_model makes of them"):
        interp_zoo.explain("gcvit_tiny", torch.zeros(3, 224, 224))


def test_a_download_that_breaks_off(hub: Hub, x: Tensor) -> None:
    publish(lively(NAME), REPO)
    hub.fault = "truncate"
    with pytest.raises(OSError, match=f'"{NAME}": its weights cannot be had from {REPO}: peer closed') as caught:
        timm.create_model(f"hf-hub:{REPO}", pretrained=True)
    assert_one_line(caught.value)
    with pytest.raises(OSError, match="its pretrained weights cannot be had") as caught:
        interp_zoo.explain(f"hf-hub:{REPO}", x)
    assert_one_line(caught.value)
    hub.fault = ""
    assert torch.equal(timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()(x), lively(NAME)(x))


def test_pickled_weights_are_refused(hub: Hub, tmp_path: Path) -> None:
    model = lively(NAME)
    prepare(model, REPO, tmp_path / "folder")
    torch.save(model.state_dict(), tmp_path / "folder" / "pytorch_model.bin")
    (tmp_path / "folder" / "model.safetensors").unlink()
    pickle = (tmp_path / "folder" / "pytorch_model.bin").read_bytes()
    hub.put("me/pickled", config__json=(tmp_path / "folder" / "config.json").read_bytes(), pytorch_model__bin=pickle)
    for name, overlay in (
        (f"local-dir:{tmp_path / 'folder'}", {}),
        (NAME, {"file": str(tmp_path / "folder" / "pytorch_model.bin")}),
        (NAME, {"url": "https://example.com/weights.pth"}),
    ):
        with pytest.raises(
            ValueError, match=r"convert them with save_file\(torch.load\(path, weights_only=True\), new"
        ) as caught:
            timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        assert_one_line(caught.value)
    with pytest.raises(OSError, match=r"its weights cannot be had from me/pickled: .*model.safetensors"):
        timm.create_model("hf-hub:me/pickled", pretrained=True)
    assert not any("GET" in request and ".bin" in request for request in hub.requests)


@pytest.mark.parametrize("name", [n for n in interp_zoo.list_models() if not n.startswith("demo") and not carried(n)])
def test_no_random_weights_for_trained_ones(name: str) -> None:
    """Where none are released yet, `pretrained=True` says how they come about."""
    with pytest.raises(
        OSError, match=f'"{name}" has no trained weights yet: train it with "accelerate launch '
    ) as caught:
        timm.create_model(name, pretrained=True)
    assert_one_line(caught.value)
    assert f'publish it with "interp-zoo push local-dir:RUN/best --repo-id YOU/{name}"' in str(caught.value)
    backbone_known = name.startswith("ca_") and ("cifar" not in name or bool(carried("resnet18_cifar")))
    assert ("backbone_pretrained=True" in str(caught.value)) == backbone_known
    with pytest.raises(OSError, match=r"^`model` .* its pretrained weights cannot be had ") as told:
        interp_zoo.models.create(name)
    assert_one_line(told.value)
    assert str(caught.value) in str(told.value)  # with the whole of the fix


def test_backbones_of_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(lively("mobilenetv2_cifar"), "me/other", tmp_path / "other")
    with pytest.raises(
        ValueError, match=r'`backbone_pretrained` is "local-dir:.*", which is no resnet18_cifar as '
    ) as caught:
        timm.create_model(NAME, backbone_pretrained=f"local-dir:{tmp_path / 'other'}")
    assert_one_line(caught.value)
    with pytest.raises(OSError, match=r'`backbone_pretrained` is "local-dir:.*", .*there is no model.safetensors in'):
        timm.create_model(NAME, backbone_pretrained=f"local-dir:{tmp_path}")
    with monkeypatch.context() as without:
        weights_at(without, "resnet18_cifar", None)
        with pytest.raises(OSError, match='whose weights cannot be had: "resnet18_cifar" has no trained weights yet'):
            timm.create_model(NAME, backbone_pretrained=True)
    prepare(lively("resnet18", output_stride=8), "me/dilated", tmp_path / "dilated")
    with pytest.raises(ValueError, match=r"which is no resnet18 as .* has it: .*stride=") as caught:
        timm.create_model("ca_resnet18", backbone_pretrained=f"local-dir:{tmp_path / 'dilated'}")
    assert_one_line(caught.value)
    prepare(lively("efficientnet_lite0"), "me/symmetric", tmp_path / "symmetric")
    with pytest.raises(ValueError, match=r"which is no tf_efficientnet_lite0 .* has it: .*Conv2dSame") as caught:
        timm.create_model("ca_efficientnet_lite0", backbone_pretrained=f"local-dir:{tmp_path / 'symmetric'}")
    assert_one_line(caught.value)
    with pytest.raises(OSError, match=r'`backbone_pretrained` is "resnet18\.zz", whose weights cannot be had: Invalid'):
        timm.create_model("ca_resnet18", backbone_pretrained="resnet18.zz")


def test_a_backbone_that_is_not_whole(tmp_path: Path) -> None:
    """Not with other classes either, with which timm lets any weights be missing."""
    folder = tmp_path / "body"
    prepare(lively("mobilenetv2_100"), "me/body", folder)
    state = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("blocks.3")}
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for classes in (None, 10):
        with pytest.raises(OSError, match=r"whose weights cannot be had: .*blocks\.3"):
            timm.create_model("ca_mobilenetv2_100", backbone_pretrained=f"local-dir:{folder}", num_classes=classes)
    config["model_args"] = {"num_classes": 10}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match="they are of 1000 classes, but their config makes 10 of it"):
        interp_zoo.explain(f"local-dir:{folder}", torch.zeros(3, 224, 224))


def test_asked_for_settings_outlast_the_backbones(tmp_path: Path) -> None:
    prepare(lively("resnet18_cifar"), "me/body", tmp_path / "body")
    arguments: dict[str, Any] = {"backbone_pretrained": f"local-dir:{tmp_path / 'body'}"}
    plain: Any = timm.create_model(NAME, **arguments)
    assert plain.pretrained_cfg["crop_pct"] == 1.0
    other: Any = timm.create_model(NAME, **arguments, pretrained_cfg_overlay={"crop_pct": 0.5})
    assert other.pretrained_cfg["crop_pct"] == 0.5


def test_no_part_of_the_first_layer_may_be_missing(tmp_path: Path) -> None:
    state = lively("ca_convnext_tiny").state_dict()
    del state["backbone.stem.0.bias"]
    save_file(state, tmp_path / "fewer.safetensors")
    overlay = {"file": str(tmp_path / "fewer.safetensors")}
    with pytest.raises(ValueError, match=r"1 tensor differs, backbone\.stem\.0\.bias first"):
        timm.create_model("ca_convnext_tiny", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5)
    with pytest.raises(OSError, match=r"its weights cannot be had from .*gone\.safetensors: \w+"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "gone.safetensors")})


def test_features_come_by_the_getter() -> None:
    with pytest.raises(ValueError, match='`feature_cls` is "fx", but "ca_resnet18" has its features by "getter"'):
        timm.create_model("ca_resnet18", features_only=True, feature_cls="fx")
