"""What timm asks of its own models, asked of this package's: heads, features, groups, weights, exports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import lively
from safetensors.torch import save_file
from timm.models import FeatureInfo, get_pretrained_cfg, group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import interp_zoo

NAMES = interp_zoo.list_models()
STREAMED = [name for name in NAMES if name.startswith("ca_")]
# Those of one kind differ in how often a block is repeated.
KINDS = [name for name in NAMES if name not in ("ca_resnet101", "ca_convnext_small", "ca_convnext_base")]
SMALL = ["ca_resnet18_cifar", "ca_mobilenetv2_100", "gr_mobilenetv2_cifar"]
FEATURES = {name: 4 if "convnext" in name else 5 for name in NAMES}


def test_there_are_enough() -> None:
    assert len(STREAMED) >= 10
    assert {"gr_resnet18_cifar", "gr_mobilenetv2_cifar", "demo_efficientnet_lite0"} <= set(NAMES)


def test_no_name_is_timms() -> None:
    """Whoever registers a name anew takes timm's model from its users; timm only warns."""
    code = (
        "import warnings; warnings.simplefilter('error', UserWarning); import timm; theirs = set(timm.list_models()); "
        "import interp_zoo; print(len(theirs), sorted(theirs & set(interp_zoo.list_models())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, shared = done.stdout.split(maxsplit=1)
    assert int(count) > 1000
    assert shared.strip() == "[]"


def size(name: str, most: int = 64) -> tuple[int, int, int]:
    cfg: Any = get_pretrained_cfg(name)
    channels, height, width = cfg.input_size
    return channels, min(height, most), min(width, most)


def pictures(name: str, n: int = 2, most: int = 64) -> Tensor:
    return torch.randn(n, *size(name, most), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_heads_and_cfgs(name: str) -> None:
    model: Any = timm.create_model(name).eval()
    cfg, state, x = model.default_cfg, model.state_dict(), torch.randn(1, *size(name, 224))
    for key in ("first_conv", "classifier"):
        assert f"{cfg[key]}.weight" in state
    assert cfg["architecture"] == name
    assert model.num_classes == cfg["num_classes"]
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
    with torch.no_grad():
        features = model.forward_features(x)
        logits = model.forward_head(features)
        pooled = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(logits, model(x))
        assert logits.shape == (1, cfg["num_classes"])
        assert features.shape[-1 if features.ndim == 3 else 1] == model.num_features
        height, width = cfg["pool_size"]
        assert features.shape[1 if features.ndim == 3 else 2 :].numel() in (
            height * width,
            (1 + height * width) * model.num_features,
        )
        assert pooled.shape == (1, model.head_hidden_size)
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model(x), pooled)
        model.reset_classifier(11)
        assert model.num_classes == 11
        assert model(x).shape == (1, 11)
        bare = timm.create_model(name, num_classes=0).eval()
        assert bare(x).shape == (1, model.num_features)


@pytest.mark.parametrize("name", KINDS)
def test_backward_reaches_every_parameter(name: str) -> None:
    model = timm.create_model(name, num_classes=42, in_chans=1, drop_rate=0.1).train()
    logits = model(pictures(name)[:, :1])
    assert logits.shape == (2, 42)
    assert logits.isfinite().all()
    logits.mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", KINDS)
def test_features(name: str) -> None:
    model: Any = timm.create_model(name).eval()
    x = pictures(name)
    infos = FeatureInfo(model.feature_info, len(model.feature_info))
    with torch.no_grad():
        last, intermediates = model.forward_intermediates(x, output_fmt="NCHW")
        torch.testing.assert_close(last, model.forward_features(x))
        assert len(intermediates) == FEATURES[name]
        for channels, reduction, a in zip(infos.channels(), infos.reduction(), intermediates, strict=True):
            assert a.shape == (2, channels, x.shape[2] // reduction, x.shape[3] // reduction)
        model.set_grad_checkpointing()
        torch.testing.assert_close(model.forward_intermediates(x)[0], last, rtol=1e-4, atol=1e-5)
        only = timm.create_model(name, features_only=True, out_indices=(1, 3)).eval()
        assert [a.shape for a in only(x)] == [intermediates[i].shape for i in (1, 3)]
        early = model.forward_intermediates(x, indices=[0], intermediates_only=True, stop_early=True)
    torch.testing.assert_close(early[0], intermediates[0])
    if name in STREAMED:
        assert not [n for n, _ in only.named_parameters() if "stream" in n or model.pretrained_cfg["classifier"] in n]
    else:
        assert model.feature_info[0]["module"] in dict(model.named_modules())


@pytest.mark.parametrize("name", STREAMED)
def test_parameter_groups(name: str) -> None:
    model: Any = timm.create_model(name)
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    backbone = group_parameters(model.backbone, model.backbone.group_matcher(coarse=False), reverse=True)
    assert {n.removeprefix("backbone."): g for n, g in layers.items() if n.startswith("backbone.")} == backbone
    last = max(backbone.values())
    assert {layers[n] for n in layers if n.startswith("stream.")} == {last}
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert len(set(coarse.values())) < len(set(layers.values()))
    assert "stream.query" in model.no_weight_decay()
    optimizer: Any = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    query, weight = groups[id(model.stream.query)], groups[id(model.stream.blocks[0].proj.weight)]
    assert query["weight_decay"] == 0
    assert weight["weight_decay"] == 0.1
    assert query["lr_scale"] == weight["lr_scale"] == 1


@pytest.mark.parametrize("name", SMALL)
def test_weights_come_back(name: str, tmp_path: Path) -> None:
    model: Any = lively(name)
    file, x = tmp_path / "model.safetensors", pictures(name)
    save_file(model.state_dict(), file)
    twin = timm.create_model(name)
    assert twin.load_state_dict(model.state_dict(), strict=True).missing_keys == []
    for other in (
        twin,
        timm.create_model(name, checkpoint_path=str(file)),
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}),
    ):
        assert torch.equal(other.eval()(x), model(x))
    own: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    grey = timm.create_model(name, in_chans=1, num_classes=5, **own).eval()
    assert grey(x[:, :1]).shape == (2, 5)
    first = model.pretrained_cfg["first_conv"]
    summed = model.get_submodule(first).weight.sum(1, keepdim=True)
    torch.testing.assert_close(grey.get_submodule(first).weight, summed)
    bare = timm.create_model(name, num_classes=0, **own).eval()
    torch.testing.assert_close(bare(x), model.forward_head(model.forward_features(x), pre_logits=True))
    features = timm.create_model(name, features_only=True, **own).eval()
    torch.testing.assert_close(features(x)[2], model.forward_intermediates(x)[1][2])


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.parametrize("name", ["ca_resnet18_cifar", "ca_mobilenetv2_100"])
def test_exports(name: str) -> None:
    model, x = lively(name), pictures(name)
    with torch.no_grad():
        want = model(x)
        exported: nn.Module = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), want)
        torch.testing.assert_close(exported(2 * x), model(2 * x))
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), want)
        torch.testing.assert_close(compiled(2 * x), model(2 * x))
        torch.testing.assert_close(torch.jit.trace(model, x)(2 * x), model(2 * x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_torchscript_is_refused() -> None:
    with pytest.raises(
        RuntimeError, match=r"cannot be scripted, .*: use torch\.export, torch\.compile or torch\.jit\.trace"
    ):
        torch.jit.script(lively("ca_resnet18_cifar"))


@pytest.mark.parametrize("width", ["gr_resnet18_cifar", "gr_mobilenetv2_cifar"])
def test_networks_with_interpretable_gradients_are_the_plain_ones(width: str) -> None:
    """One is the other, tensor by tensor and module by module: weights go from one into the other."""
    one, other = lively(width), timm.create_model(width.removeprefix("gr_")).eval()
    assert str(one) == str(other)
    other.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(one(pictures(width)), other(pictures(width)))


def test_cifar_networks_keep_the_pictures_size_at_first() -> None:
    for name, last in (("resnet18_cifar", 4), ("mobilenetv2_cifar", 2)):
        model: Any = timm.create_model(name).eval()
        assert [i["reduction"] for i in model.feature_info][:2] == [1, 1 if "resnet" in name else 2]
        assert model.forward_features(torch.randn(1, 3, 32, 32)).shape[2:] == (last, last)
        assert model.get_submodule(model.pretrained_cfg["first_conv"])(torch.randn(1, 3, 32, 32)).shape[2:] == (32, 32)
        exp = interp_zoo.explain(model, torch.randn(1, 3, 32, 32), method="layercam", target="aquarium fish")
        assert exp.label == ["aquarium fish"]
