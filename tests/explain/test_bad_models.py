"""Models, methods, layers and options that do not do: one line that names the argument and what to do instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import lively
from safetensors.torch import save_file
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain import Explainer, Explanation, list_methods
from interp_zoo.explain.wrappers import _elsewhere
from interp_zoo.models import create

Reply = Callable[[Tensor], Any]


class Wrapped(nn.Module):
    """A classifier whose logits are handed out by `reply`; its layer `spare` is never run."""

    def __init__(self, net: nn.Module, reply: Reply = lambda logits: logits) -> None:
        super().__init__()
        self.net, self.spare, self.reply = net, nn.Conv2d(3, 3, 1), reply

    def forward(self, x: Tensor) -> Any:
        return self.reply(self.net(x))


class TwoInputs(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return self.net(x * mask)


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


@pytest.fixture
def picture(batch: Tensor) -> Tensor:
    """One normalised picture (3, 160, 160)."""
    return batch[0]


def explained(model: Any, img: Tensor, method: str = "layercam", **arguments: Any) -> Explanation:
    return interp_zoo.explain(model, img, method, **arguments)


def refused(kind: type[Exception], message: str, model: Any, img: Tensor, method: str = "layercam", **kw: Any) -> None:
    """Explaining raises that error, in one line."""
    with pytest.raises(kind, match=message) as caught:
        explained(model, img, method, **kw)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


# --- methods and options ---


def test_an_unknown_method(tiny_cnn: nn.Module, picture: Tensor) -> None:
    refused(ValueError, r'`method` "gradcan" is unknown \(did you mean gradcam,', tiny_cnn, picture, "gradcan")
    with pytest.raises(ValueError, match=r'`method` "zzz" is unknown; known: ') as caught:
        Explainer(tiny_cnn, "zzz")
    for name in list_methods():
        assert name in str(caught.value)


@pytest.mark.parametrize("alias", ["gradcam++", "Grad-CAM", "GRADCAM", "grad_cam"])
def test_other_spellings_that_are_known(alias: str, tiny_cnn: nn.Module) -> None:
    want = "gradcam_plusplus" if "++" in alias else "gradcam"
    assert Explainer(tiny_cnn, alias).method == want


def test_an_unknown_option(tiny_cnn: nn.Module, picture: Tensor) -> None:
    nearest = r'method "layercam" has no option `positiv` \(did you mean positive\?\); it has: positive=True'
    refused(TypeError, nearest, tiny_cnn, picture, positiv=False)
    refused(
        TypeError, r'"gradcam" has no option `iterations`; it has: none', tiny_cnn, picture, "gradcam", iterations=3
    )
    refused(TypeError, r"it has: objective=.*, iterations=None, lr=", tiny_cnn, picture, "opticam", steps=3)


@pytest.mark.parametrize("value", [0, -1, 2.5, "8"])
def test_a_batch_size_that_is_none(value: Any, tiny_cnn: nn.Module, picture: Tensor) -> None:
    refused(ValueError, rf"`batch_size` is {value}, but must be an integer of at", tiny_cnn, picture, batch_size=value)


def test_an_unknown_amp(tiny_cnn: nn.Module, picture: Tensor) -> None:
    refused(ValueError, r'`amp` is "int8", but must be None, "bf16" or "fp16"', tiny_cnn, picture, amp="int8")


def test_a_device_that_is_unknown_or_not_the_models(tiny_cnn: nn.Module, picture: Tensor) -> None:
    refused(ValueError, r"`device` is cuda, but the model is on cpu: leave it out,", tiny_cnn, picture, device="cuda")
    refused(ValueError, r"`device` .*cudaa", tiny_cnn, picture, device="cudaa")


@pytest.mark.parametrize(
    ("asked", "there", "elsewhere"),
    [("cuda:1", "cuda:0", True), ("cuda", "cuda:1", False), ("cuda:1", "cuda:1", False), ("cpu", "cuda:0", True)],
)
def test_the_same_device(asked: str, there: str, elsewhere: bool) -> None:
    assert _elsewhere(asked, torch.device(there)) == elsewhere


# --- models ---


def test_an_unknown_model(picture: Tensor) -> None:
    refused(ValueError, r'`model` "resnet5" is unknown to timm \(did you mean resnet50,', "resnet5", picture)
    refused(ValueError, r'`model` "" is unknown to timm; timm.list_models', "", picture)


@pytest.mark.parametrize("model", [None, 3, object(), nn.Conv2d, ["resnet50"]], ids=lambda m: type(m).__name__)
def test_models_of_another_kind(model: Any, picture: Tensor) -> None:
    name = type(model).__name__
    refused(TypeError, rf"`model` must be a torch module or a timm model's name, not {name}$", model, picture)


REPLIES: dict[str, tuple[Reply, str]] = {
    "tuple": (lambda s: (s, s), "returns a tuple of 2"),
    "list of dicts, as detectors": (lambda s: [{"boxes": one, "scores": one} for one in s], "returns a list of 2"),
    "dict": (lambda s: {"out": s, "aux": s}, "returns a dict of out, aux"),
    "object": (lambda s: Output(None), "returns an? Output"),  # type: ignore[arg-type]
    "none": (lambda _: None, "returns a NoneType"),
    "4-D, as segmenters": (lambda s: s[..., None, None].expand(-1, -1, 4, 4), r"shape \(2, 10, 4, 4\)"),
    "3-D": (lambda s: s[:, None], r"shape \(2, 1, 10\)"),
    "1-D": (lambda s: s[:, 0], r"shape \(2,\)"),
    "3-D in an object": (lambda s: Output(s[:, None]), r"shape \(2, 1, 10\)"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_outputs_that_are_no_logits(name: str, tiny_cnn: nn.Module, picture: Tensor) -> None:
    reply, message = REPLIES[name]
    model = Wrapped(tiny_cnn, reply).eval()
    refused(ValueError, rf"`model` .*({message}).*, not logits \(B, classes\): wrap it", model, picture)


@pytest.mark.parametrize("reply", [Output, lambda s: {"logits": s, "loss": None}], ids=["object", "dict"])
def test_outputs_that_hold_logits(reply: Reply, tiny_cnn: nn.Module, picture: Tensor) -> None:
    want = explained(Wrapped(tiny_cnn).eval(), picture, target=3)
    exp = explained(Wrapped(tiny_cnn, reply).eval(), picture, target=3)
    torch.testing.assert_close(exp.saliency, want.saliency)
    torch.testing.assert_close(exp.probability, tiny_cnn(picture[None]).detach().softmax(1)[:, 3])


def test_a_model_of_several_inputs(tiny_cnn: nn.Module, picture: Tensor) -> None:
    refused(ValueError, r"`model` .*inputs?.*wrap it", TwoInputs(tiny_cnn).eval(), picture)


def test_a_model_without_maps(picture: Tensor) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 160 * 160, 10)).eval()
    refused(ValueError, r"`model` has no layer whose output is a map of the picture.*`layer=`", flat, picture)
    refused(ValueError, r"`model` has no layer whose output is a map of the picture", nn.Flatten(), picture)


def test_logits_that_do_not_depend_on_the_picture(tiny_cnn: nn.Module, picture: Tensor) -> None:
    model = Wrapped(tiny_cnn, lambda s: torch.zeros_like(s)).eval()
    refused(ValueError, r"`model` has no layer .* acts on its logits", model, picture)


def test_what_the_model_itself_raises_comes_through(tiny_cnn: nn.Module, picture: Tensor) -> None:
    def fail(_: Tensor) -> Any:
        raise RuntimeError("the model's own trouble")

    with pytest.raises(RuntimeError, match=r"^the model's own trouble$"):
        explained(Wrapped(tiny_cnn, fail).eval(), picture)


# --- layers ---


def test_a_layer_that_does_not_exist(tiny_cnn: nn.Module, picture: Tensor) -> None:
    message = r'`layer` "layer9" does not exist in the model \(did you mean layer\d, .*its outermost are: conv1, .*fc'
    refused(ValueError, message, tiny_cnn, picture, layer="layer9")
    refused(ValueError, r'`layer` "" does not exist', tiny_cnn, picture, layer="")
    refused(TypeError, r"`layer` must be a layer's name or a module, not int", tiny_cnn, picture, layer=4)


@pytest.mark.parametrize(("layer", "shape"), [("fc", r"\(2, 10\)"), ("global_pool", r"\(2, 96\)")])
def test_a_layer_that_gives_no_map(layer: str, shape: str, tiny_cnn: nn.Module, picture: Tensor) -> None:
    message = rf'`layer` "{layer}" gives no map of the picture \(its output is {shape}\): name a layer whose output'
    refused(ValueError, message, tiny_cnn, picture, layer=layer)
    refused(ValueError, message, tiny_cnn, picture, layer=tiny_cnn.get_submodule(layer))


def test_a_layer_as_a_module(tiny_cnn: nn.Module, tiny_vit: nn.Module, picture: Tensor) -> None:
    by_name = explained(tiny_cnn, picture, layer="layer3")
    by_module = explained(tiny_cnn, picture, layer=tiny_cnn.get_submodule("layer3"))
    assert by_module.layer == by_name.layer == "layer3"
    assert by_name.raw.shape[-1] == 2 * explained(tiny_cnn, picture).raw.shape[-1]
    torch.testing.assert_close(by_module.saliency, by_name.saliency)
    foreign = tiny_vit.get_submodule("blocks.0")
    refused(ValueError, r"`layer` is a Block that is no part of the model: give one", tiny_cnn, picture, layer=foreign)


def test_a_layer_that_is_never_run(tiny_cnn: nn.Module, picture: Tensor) -> None:
    model = Wrapped(tiny_cnn).eval()
    message = r'`layer` "spare" is not run in the forward pass of this model: name one that is'
    refused(ValueError, message, model, picture, layer="spare")
    refused(ValueError, message, model, picture, layer=model.spare)


# --- blank maps ---


def classifier(model: nn.Module) -> nn.Linear:
    found = model.get_submodule("fc")
    assert isinstance(found, nn.Linear)
    return found


def assert_blank(exp: Explanation) -> None:
    assert (exp.saliency == 0).all()
    assert exp.saliency.isfinite().all()


@pytest.mark.parametrize(
    "method", ["cam", "gradcam", "gradcam_plusplus", "xgradcam", "layercam", "hirescam", "reciprocam", "shapleycam"]
)
def test_a_target_that_depends_on_nothing(method: str, tiny_cnn: nn.Module, picture: Tensor) -> None:
    nn.init.zeros_(classifier(tiny_cnn).weight)
    with pytest.warns(
        UserWarning, match=r"^map 0 of the batch is blank \(all zeros\): the method gave .* everywhere"
    ) as w:
        exp = explained(tiny_cnn, picture, method)
    assert len(w) == 1
    assert_blank(exp)
    assert exp.probability.isfinite().all()


def test_nothing_speaks_for_the_target(tiny_cnn: nn.Module, picture: Tensor) -> None:
    nn.init.constant_(classifier(tiny_cnn).weight, -1.0)  # A is never negative after its ReLU
    with pytest.warns(UserWarning, match=r"map 0 of the batch is blank .*: the method gave no value above 0"):
        exp = explained(tiny_cnn, picture, "gradcam")
    assert_blank(exp)
    assert (exp.raw <= 0).all()
    assert exp.raw.std() > 0, "the raw map is kept for comparing"


@pytest.mark.parametrize("method", ["gradcam", "layercam", "hirescam", "eigencam", "reciprocam", "ablationcam"])
def test_logits_that_are_nan(method: str, tiny_cnn: nn.Module, picture: Tensor) -> None:
    if method == "eigencam":  # looks at the maps alone
        nn.init.constant_(tiny_cnn.get_parameter("layer4.0.conv1.weight"), torch.nan)
    nn.init.constant_(classifier(tiny_cnn).weight, torch.nan)
    with pytest.warns(UserWarning, match=r"map 0 of the batch is blank .*: the method gave values that are not finite"):
        assert_blank(explained(tiny_cnn, picture, method))


def test_opticam_on_logits_that_are_nan_says_so(tiny_cnn: nn.Module, picture: Tensor) -> None:
    nn.init.constant_(classifier(tiny_cnn).weight, torch.nan)
    with pytest.warns(UserWarning, match=r"map 0 of the batch is blank .* not finite"):
        assert_blank(explained(tiny_cnn, picture, "opticam", iterations=2))


def test_only_the_blank_map_of_a_batch_is_named(tiny_cnn: nn.Module, batch: Tensor) -> None:
    nn.init.zeros_(classifier(tiny_cnn).weight[4])
    with pytest.warns(UserWarning, match=r"^map 1 of the batch is blank") as caught:
        exp = explained(tiny_cnn, batch, target=[3, 4, 5])
    assert len(caught) == 1
    assert [bool((s == 0).all()) for s in exp.saliency] == [False, True, False]


def test_rows_are_counted_over_the_whole_call(tiny_cnn: nn.Module, batch: Tensor) -> None:
    nn.init.zeros_(classifier(tiny_cnn).weight[4])
    with pytest.warns(UserWarning, match=r"^map 2 of the batch is blank"):
        explained(tiny_cnn, batch, target=[3, 5, 4], batch_size=1)


# --- models by name, and checkpoints ---


def saved(model: nn.Module, path: Path) -> Path:
    save_file(model.state_dict(), path)
    return path


def test_a_checkpoint(batch: Tensor, tiny_cnn: nn.Module, tmp_path: Path) -> None:
    model = create("test_resnet", checkpoint=str(saved(tiny_cnn, tmp_path / "model.safetensors")))
    assert not model.training
    assert model.num_classes == 10, "read off the checkpoint"
    torch.testing.assert_close(model(batch), tiny_cnn(batch))


def test_checkpoints_that_do_not_fit(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    file = saved(tiny_cnn, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r'`checkpoint` ".*" does not fit the model "test_vit": \d+ tensors differ'):
        create("test_vit", checkpoint=file)
    grey = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    assert create("test_resnet", checkpoint=saved(grey, tmp_path / "grey.safetensors"))(torch.zeros(1, 1, 64, 64)).any()
    state = tiny_cnn.state_dict()
    save_file({k: v for k, v in state.items() if k != "bn1.weight"}, file)
    with pytest.raises(ValueError, match=r"1 tensor differs, bn1.weight first \(missing for"):
        create("test_resnet", checkpoint=file)
    save_file(state | {"extra": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"1 tensor differs, extra first \(\(1,\) for none\)"):
        create("test_resnet", checkpoint=file)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("tresnet_m", {}),  # whose first convolution sees 4 x 4 pixels as 48 channels
        ("tresnet_m", {"in_chans": 1, "num_classes": 7}),
        ("deit_tiny_distilled_patch16_224", {"num_classes": 5}),  # two classifiers
        ("test_vit", {"in_chans": 4}),
    ],
)
def test_sizes_are_read_off_a_checkpoint(name: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    model = timm.create_model(name, **sizes)
    found: Any = create(name, checkpoint=saved(model, tmp_path / "model.safetensors"))
    assert found.num_classes == sizes.get("num_classes", 1000)
    assert all(torch.equal(tensor, found.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_pickled_checkpoints_are_not_loaded(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    torch.save(tiny_cnn.state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"`checkpoint` .*pickled weights are not loaded, convert them") as caught:
        create("test_resnet", checkpoint=tmp_path / "model.pth")
    assert "\n" not in str(caught.value)
    assert "save_file(torch.load(path, weights_only=True)" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all"])
def test_other_files_are_no_checkpoints(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r'`checkpoint` ".*" is no safetensors file'):
        create("test_resnet", checkpoint=tmp_path / "model.safetensors")


def test_a_checkpoint_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'`checkpoint` ".*gone" does not exist'):
        create("test_resnet", checkpoint=tmp_path / "gone")
    with pytest.raises(ValueError, match=r'`model` "resnet5" is unknown to timm'):
        create("resnet5", checkpoint=tmp_path / "gone")


@pytest.mark.parametrize("error", [OSError, RuntimeError, ValueError])
def test_no_network(error: type[Exception], picture: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> nn.Module:
        raise error("We cannot reach the hub.\nPlease check\nyour connection")

    monkeypatch.setattr(timm, "create_model", offline)
    message = r'`model` "test_resnet": its pretrained weights cannot be had \(We cannot reach the hub\. .*\); give'
    refused(OSError, message, "test_resnet", picture)


@pytest.mark.parametrize("checkpoint", [False, True], ids=["pretrained", "checkpoint"])
def test_a_tag_that_the_model_does_not_have(checkpoint: bool, tiny_cnn: nn.Module, tmp_path: Path) -> None:
    file = saved(tiny_cnn, tmp_path / "model.safetensors") if checkpoint else None
    with pytest.raises(ValueError, match=r'`model` "test_resnet\.nope" .*r160_in1k'):
        create("test_resnet.nope", checkpoint=file)


def test_a_model_without_pretrained_weights() -> None:
    name = next(n for n in timm.list_models("cs3*") if not timm.is_model_pretrained(n))
    with pytest.raises(ValueError, match=rf'`model` "{name}" has no pretrained weights in timm: give `checkpoint`'):
        create(name)


def test_torchscript_is_refused(tiny_cnn: nn.Module, picture: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        traced = torch.jit.trace(tiny_cnn, picture[None], check_trace=False)
    with pytest.raises(ValueError, match="`model` is TorchScript"):
        interp_zoo.explain(traced, picture, "gradcam")


def test_memory_that_runs_out_does_not_choose_the_cut(tiny_cnn: nn.Module, picture: Tensor) -> None:
    want = interp_zoo.explain(lively("test_resnet", num_classes=10), picture, "gradcam").layer

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = tiny_cnn.get_submodule("global_pool").register_forward_hook(out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        interp_zoo.explain(tiny_cnn, picture, "gradcam")
    handle.remove()
    assert interp_zoo.explain(tiny_cnn, picture, "gradcam").layer == want
