"""Pains 9, 10, 11 and 19: precisions, compilers, wrappers, outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_one_line, lively
from timm.utils import ModelEmaV3
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
    "timm's average": ModelEmaV3,
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


@pytest.mark.filterwarnings("ignore:FSDP is switching")  # for want of a second process
@pytest.mark.usefixtures("process_group")
def test_pain_11_sharded_models_say_so(tiny_cnn: nn.Module, batch: Tensor) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    wrapped = FullyShardedDataParallel(copy.deepcopy(tiny_cnn), device_id=torch.device("cpu"))
    fully_shard(tiny_cnn, mesh=init_device_mesh("cpu", (1,)))
    for model in (wrapped, tiny_cnn):
        with pytest.raises(ValueError, match=r"`model` is sharded .*load its full state dict") as error:
            interp_zoo.explain(model, batch, "gradcam")
        assert_one_line(error.value)


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
