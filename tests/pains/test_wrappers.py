"""Pains 9, 10, 11 and 19: precisions, compilers, wrappers, outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import assert_one_line, lively
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import interp_zoo
from interp_zoo import Explainer


def correlation(one: Tensor, other: Tensor) -> float:
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()


@pytest.mark.parametrize("how", ["bfloat16", "float16", "autocast", "amp", "channels_last", "float64"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_pain_09_the_model_as_it_is(name: str, how: str, batch: Tensor) -> None:
    model = lively(name, num_classes=10)
    want = interp_zoo.explain(model, batch, "gradcam", target=3).saliency
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            got = interp_zoo.explain(model, batch, "gradcam", target=3).saliency
    elif how == "amp":
        got = interp_zoo.explain(model, batch, "gradcam", target=3, amp="bf16").saliency
    elif how == "channels_last":
        got = interp_zoo.explain(model.to(memory_format=torch.channels_last), batch, "gradcam", target=3).saliency
    else:
        dtype = getattr(torch, how)
        got = interp_zoo.explain(model.to(dtype), batch, "gradcam", target=3).saliency
        assert {p.dtype for p in model.parameters()} == {dtype}
    assert got.dtype == torch.float32
    assert got.isfinite().all()
    assert correlation(got, want) > 0.97


@pytest.mark.parametrize("how", ["wrapped", "in place", "compiled after it was explained"])
def test_pain_10_compiled(how: str, tiny_cnn: nn.Module, batch: Tensor) -> None:
    want = interp_zoo.explain(tiny_cnn, batch, "gradcam", target=3).saliency
    compiled: Any = tiny_cnn
    if how == "in place":
        tiny_cnn.compile(backend="eager")
    else:
        compiled = torch.compile(tiny_cnn, backend="eager")
    compiled(batch)
    assert torch.equal(interp_zoo.explain(compiled, batch, "gradcam", target=3).saliency, want)
    torch.testing.assert_close(compiled(batch), copy.deepcopy(tiny_cnn)(batch))  # it still runs


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    module: Any = torch.compile(model, backend="eager")
    assert isinstance(module, nn.Module)
    return module


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "averaged": AveragedModel,
    "compiled and parallel": lambda m: nn.DataParallel(compiled(m)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_pain_11_wrappers(wrapper: str, tiny_cnn: nn.Module, batch: Tensor) -> None:
    want = interp_zoo.explain(tiny_cnn, batch, "gradcam", target=3)
    exp = interp_zoo.explain(WRAPPERS[wrapper](tiny_cnn), batch, "gradcam", target=3)
    assert torch.equal(exp.saliency, want.saliency)
    assert exp.layer == want.layer


@pytest.mark.usefixtures("process_group")
def test_pain_11_distributed_data_parallel(tiny_cnn: nn.Module, batch: Tensor) -> None:
    want = interp_zoo.explain(tiny_cnn, batch, "gradcam", target=3).saliency
    parallel = nn.parallel.DistributedDataParallel(tiny_cnn)
    assert torch.equal(interp_zoo.explain(parallel, batch, "gradcam", target=3).saliency, want)
    parallel(batch).sum().backward()  # and it still trains
    assert all(p.grad is not None for p in tiny_cnn.parameters())


@pytest.mark.usefixtures("process_group")
def test_pain_11_sharded_models_say_so(tiny_cnn: nn.Module, batch: Tensor) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(tiny_cnn, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(ValueError, match="`model` is sharded") as error:
        interp_zoo.explain(tiny_cnn, batch, "gradcam")
    assert_one_line(error.value)


class Lit(nn.Module):
    """What users write around a network: a LightningModule, a normalisation, a teacher beside it."""

    def __init__(self, net: nn.Module, **parts: Any) -> None:
        super().__init__()
        self.net = net
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def test_pain_19_a_users_module_around_it(tiny_vit: nn.Module, picture_file: Path) -> None:
    """Its input and class names are those of the network in it."""
    want = interp_zoo.explain(tiny_vit, picture_file, "gradcam", target=3)
    exp = interp_zoo.explain(Lit(tiny_vit).eval(), picture_file, "gradcam", target=3)
    assert exp.saliency.shape == want.saliency.shape == (1, 160, 160)
    torch.testing.assert_close(exp.saliency, want.saliency)
    assert exp.layer == f"net.{want.layer}"


def test_pain_19_a_normalisation_before_it(tiny_cnn: nn.Module, picture_file: Path) -> None:
    from torchvision.transforms import Normalize

    cfg: Any = tiny_cnn.pretrained_cfg
    want = interp_zoo.explain(tiny_cnn, picture_file, "gradcam", target=3)
    model = nn.Sequential(Normalize(cfg["mean"], cfg["std"]), tiny_cnn).eval()
    exp = interp_zoo.explain(model, picture_file, "gradcam", target=3)
    torch.testing.assert_close(exp.saliency, want.saliency, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(exp.probability, want.probability, atol=1e-5, rtol=1e-4)


class Own(nn.Module):
    """A user's module that normalises in its forward method, by buffers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        cfg: Any = net.pretrained_cfg
        self.register_buffer("pixel_mean", torch.tensor(cfg["mean"]).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(cfg["std"]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net((x - self.pixel_mean) / self.pixel_std)
        return out


def test_pain_19_a_normalisation_of_the_users(tiny_cnn: nn.Module, picture_file: Path) -> None:
    want = interp_zoo.explain(tiny_cnn, picture_file, "gradcam", target=3)
    exp = interp_zoo.explain(Own(tiny_cnn).eval(), picture_file, "gradcam", target=3)
    torch.testing.assert_close(exp.saliency, want.saliency, atol=1e-4, rtol=1e-4)


def test_pain_19_two_networks_that_take_the_same(tiny_cnn: nn.Module, picture_file: Path) -> None:
    both = Lit(tiny_cnn, teacher=lively("test_resnet", seed=3, num_classes=10)).eval()
    want = interp_zoo.explain(tiny_cnn, picture_file, "gradcam", target=3)
    assert torch.equal(interp_zoo.explain(both, picture_file, "gradcam", target=3).saliency, want.saliency)


def test_pain_19_two_networks_that_do_not(tiny_cnn: nn.Module, picture_file: Path) -> None:
    teacher = lively("test_vit", num_classes=10)
    its: Any = teacher.pretrained_cfg
    its["mean"] = (0.1, 0.1, 0.1)
    both = Lit(tiny_cnn, teacher=teacher).eval()
    with pytest.raises(ValueError, match=r"2 timm networks with different inputs.*`data_config`") as error:
        interp_zoo.explain(both, picture_file, "gradcam", target=3)
    assert_one_line(error.value)
    cfg: Any = tiny_cnn.pretrained_cfg
    told = {key: cfg[key] for key in ("input_size", "mean", "std", "crop_pct", "interpolation")}
    exp = interp_zoo.explain(both, picture_file, "gradcam", target=3, data_config=told)
    assert torch.equal(exp.saliency, interp_zoo.explain(tiny_cnn, picture_file, "gradcam", target=3).saliency)


def test_pain_19_a_head_of_the_users_has_no_names_of_the_backbones(picture_file: Path) -> None:
    backbone = lively("test_resnet", num_classes=1000)

    class Headed(Lit):
        def forward(self, x: Tensor) -> Tensor:
            net, head = cast(Any, self.net), cast(Any, self.head)
            out: Tensor = head(net.forward_features(x).mean((2, 3)))
            return out

    model = Headed(backbone, head=nn.Linear(96, 3)).eval()
    assert interp_zoo.explain(model, picture_file, "gradcam", target=2).label == ["class 2"]
    assert interp_zoo.explain(backbone, picture_file, "gradcam", target=2).label == ["great white shark"]


def test_pain_19_what_is_without_values_or_gradients(tiny_vit: nn.Module, batch: Tensor) -> None:
    apart = copy.deepcopy(tiny_vit)
    apart.get_submodule("head").to("meta")
    for model in (copy.deepcopy(tiny_vit).to("meta"), apart):
        with pytest.raises(ValueError, match=r"`model` is on the meta device.*load its weights") as error:
            Explainer(model, "gradcam")
        assert_one_line(error.value)
    with pytest.warns(Warning, match=r"quantiz|torch.ao"):
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(tiny_vit), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"`model` is quantised.*made from") as error:
        Explainer(quantised, "gradcam")
    assert_one_line(error.value)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"meen": (0.5,)}, 'no "meen" .*mean'),
        ({"mean": (0.5, 0.5)}, "2 values of mean, but the model takes 3 channels"),
        ({"std": (0.0,)}, "std .* above 0"),
        ({"mean": 0.5}, "mean 0.5, but it must be a number for each channel"),
        ({"input_size": (224, 224)}, "input_size .* must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_data_config_that_cannot_be(
    told: dict[str, Any], message: str, tiny_cnn: nn.Module, picture_file: Path
) -> None:
    with pytest.raises(ValueError, match=f"`data_config` has {message}") as error:
        interp_zoo.explain(tiny_cnn, picture_file, "gradcam", data_config=told)
    assert_one_line(error.value)
