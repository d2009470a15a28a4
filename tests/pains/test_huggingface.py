"""Pain 19 with the libraries themselves: Hugging Face's models and timm's in their wrapper, PEFT's, Lightning's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import lively
from torch import Tensor, nn

import interp_zoo

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SMALL: dict[str, dict[str, Any]] = {
    "ViT": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 64,
    },
    "Dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14},
    "Swin": {"image_size": 64, "embed_dim": 24, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "ConvNext": {"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1], "image_size": 64},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "Segformer": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64},
}
LAYERS = {
    "ViT": ("vit.layers.1", (4, 4)),
    "Dinov2": ("dinov2", (4, 4)),
    "Swin": ("swin.layernorm", (8, 8)),
    "ConvNext": ("convnext.encoder", (2, 2)),
    "ResNet": ("resnet.encoder", (28, 28)),
    "Segformer": ("segformer", (2, 2)),
}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def small(kind: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(num_labels=5, **SMALL[kind], **arguments)
    model: nn.Module = getattr(transformers, f"{kind}ForImageClassification")(config)
    with torch.no_grad():  # away from where each class has the same logit
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("kind", SMALL)
def test_pain_19_hugging_faces_models(kind: str, picture_file: Path) -> None:
    model = small(kind)
    exp = interp_zoo.explain(model, picture_file, "gradcam", data_config=HALF)
    assert (exp.layer, tuple(exp.raw.shape[1:])) == LAYERS[kind]
    assert exp.saliency.std() > 0.01
    x = exp._pictures[0].pixels[None] * 2 - 1
    with torch.no_grad():
        logits: Tensor = model(pixel_values=x).logits
    torch.testing.assert_close(exp.probability, logits.softmax(1)[0, exp.target])


@pytest.mark.parametrize("method", ["opticam", "scorecam", "hirescam", "saliency", "rise"])
def test_pain_19_by_other_methods(method: str, picture_file: Path) -> None:
    options: dict[str, Any] = {"opticam": {"iterations": 2}, "rise": {"n": 20}}.get(method, {})
    exp = interp_zoo.explain(small("Swin"), picture_file, method, data_config=HALF, **options)
    assert exp.saliency.shape == (1, 64, 64)
    assert exp.saliency.max() == 1


def test_their_size_and_names_are_in_their_config(picture_file: Path) -> None:
    names = dict(enumerate(["ant", "bee", "cat", "dog", "eel"]))
    model = small("ViT", id2label=names, label2id={v: k for k, v in names.items()})
    exp = interp_zoo.explain(model, picture_file, "gradcam", target="cat", data_config=HALF)
    assert exp.label == ["cat"]
    assert exp.target.tolist() == [2]
    assert exp.saliency.shape == (1, 64, 64)


def test_that_their_mean_and_std_are_not_known_is_said(picture_file: Path) -> None:
    with pytest.warns(UserWarning, match=r"ViTForImageClassification.*mean.*processor\.image_mean"):
        interp_zoo.explain(small("ViT"), picture_file, "gradcam")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_pain_19_timm_in_hugging_faces_wrapper(name: str, picture_file: Path) -> None:
    config = transformers.TimmWrapperConfig(architecture=name, num_labels=5)
    wrapped = transformers.TimmWrapperForImageClassification(config).eval()
    model = lively(name, num_classes=5)
    wrapped.timm_model.load_state_dict(model.state_dict())
    want = interp_zoo.explain(model, picture_file, "gradcam")
    exp = interp_zoo.explain(wrapped, picture_file, "gradcam")
    torch.testing.assert_close(exp.saliency, want.saliency, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(exp.probability, want.probability)
    assert exp.layer == f"timm_model.{want.layer}"


@pytest.mark.parametrize("method", ["gradcam", "attention_rollout", "opticam"])
def test_pain_19_adapters(method: str, picture_file: Path) -> None:
    """A LoRA that has learned nothing explains as its base does; one that has, does not."""
    options: dict[str, Any] = {"iterations": 3} if method == "opticam" else {}
    base = lively("test_vit", num_classes=5)
    want = interp_zoo.explain(base, picture_file, method, target=2, **options)
    tuned = peft.get_peft_model(lively("test_vit", num_classes=5), peft.LoraConfig(target_modules=["qkv"])).eval()
    exp = interp_zoo.explain(tuned, picture_file, method, target=2, **options)
    torch.testing.assert_close(exp.saliency, want.saliency, atol=1e-3, rtol=1e-3)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    other = interp_zoo.explain(tuned, picture_file, method, target=2, **options)
    assert (other.saliency - want.saliency).abs().max() > 0.01
    trained = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert all("lora" in name for name in trained)  # and what is frozen stays so
    assert trained


def test_pain_19_lightning_modules(picture_file: Path) -> None:
    lightning: Any = pytest.importorskip("lightning")

    class Lit(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = lively("test_resnet", num_classes=5)

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

    want = interp_zoo.explain(lively("test_resnet", num_classes=5), picture_file, "gradcam")
    exp = interp_zoo.explain(Lit().eval(), picture_file, "gradcam")
    assert torch.equal(exp.saliency, want.saliency)


def test_models_out_of_timm_need_nothing_said(picture_file: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=5).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interp_zoo.explain(model, picture_file, "gradcam")
