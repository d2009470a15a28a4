"""What a network is worth while it is trained, counted by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import lively, texture
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from interp_zoo.evaluation.data import Data, Item, open_data
from interp_zoo.explain import Explainer
from interp_zoo.training.watching import accuracy, recognition_by_gradcam


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """In float32, whatever other tests of this process asked for."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="no")
    AcceleratorState._reset_state(reset_partial_state=True)


def by_hand(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Picture by picture, in float64."""
    top1, top5, losses = [], [], []
    for z, label in zip(logits.double().numpy(), labels.tolist(), strict=True):
        if label >= 0:
            better = int((z > z[label]).sum())
            top1.append(better < 1)
            top5.append(better < 5)
            losses.append(float(np.log(np.exp(z - z.max()).sum()) + z.max() - z[label]))
    found = {"loss": float(np.mean(losses)), "top-1": 100 * float(np.mean(top1))}
    return found | ({"top-5": 100 * float(np.mean(top5))} if logits.shape[1] > 5 else {})


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("classes", [2, 5, 6, 9])
@pytest.mark.parametrize("left_out", [False, True])
def test_accuracy_is_that_counted_by_hand(
    classes: int, batch_size: int, left_out: bool, accelerator: Accelerator
) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(37, classes, generator=generator)
    labels = torch.randint(classes, (37,), generator=generator)
    if left_out:
        labels[[0, 5, 6, 7, 8, 36]] = -1  # of batches some, one, or (of 1 or 4) all
    loader = DataLoader(TensorDataset(logits, labels), batch_size=batch_size)
    found = accuracy(nn.Identity(), loader, classes, accelerator)
    want = by_hand(logits, labels)
    assert found == pytest.approx(want, abs=1e-4)
    assert list(found) == list(want)
    assert 0 < want["top-1"] < 100


def test_a_prepared_loader_counts_each_picture_once(accelerator: Accelerator) -> None:
    """The last batch is not filled up; what comes of the network may be bfloat16."""
    logits = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(7)
    loader = accelerator.prepare(DataLoader(TensorDataset(logits, labels), batch_size=3))
    assert accuracy(nn.Identity(), loader, 8, accelerator) == pytest.approx(by_hand(logits.float(), labels), abs=1e-4)


def test_accuracy_keeps_no_graph(accelerator: Accelerator) -> None:
    seen = []

    def network(x: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return x @ weights

    weights = torch.ones(3, 4, requires_grad=True)
    loader = DataLoader(TensorDataset(torch.ones(5, 3), torch.zeros(5, dtype=torch.long)), batch_size=2)
    accuracy(network, loader, 4, accelerator)
    assert seen == [False] * 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Seven pictures of four classes, of which the third cannot be decoded."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(7):
        texture((72, 90), seed=i).save(root / f"{i}.png")
    (root / "2.png").write_bytes(b"nothing")
    (root / "labels.csv").write_text("file,class_index\n" + "".join(f"{i}.png,{i % 4}\n" for i in range(7)))
    return open_data(root)


@pytest.fixture
def model() -> nn.Module:
    return lively("test_resnet", num_classes=4, pretrained_cfg_overlay={"input_size": (3, 64, 64)})


@pytest.mark.filterwarnings("ignore:map . of the batch is blank")
@pytest.mark.parametrize("batch_size", [2, 16])
def test_recognition_is_that_of_an_explainer(
    model: nn.Module, data: Data, batch_size: int, accelerator: Accelerator
) -> None:
    some = [0, 1, 2, 3, 5, 6]
    found = recognition_by_gradcam(model, data, some, accelerator, batch_size)
    drop, gain, increase = [], [], []
    for index in (0, 1, 3, 5, 6):
        item = data[index]
        exp = Explainer(model, "gradcam")(item.image, target=item.label)
        before, after = float(exp.probability), float(exp.masked_probability)
        drop.append(max(0.0, before - after) / before)
        gain.append(max(0.0, after - before) / (1 - before))
        increase.append(after > before)
    want = {name: 100 * float(np.mean(values)) for name, values in (("AD", drop), ("AG", gain), ("AI", increase))}
    assert found == pytest.approx(want, rel=1e-3)
    assert 0 < want["AI"] < 100
    assert want["AD"] > 0.01
    assert want["AG"] > 0.01


@pytest.mark.parametrize("training", [False, True])
def test_the_network_stays_as_it_is(model: nn.Module, data: Data, training: bool, accelerator: Accelerator) -> None:
    model.train(training)
    layer1: Any = model.get_submodule("layer1")
    layer1.eval()
    layer1.requires_grad_(False)
    next(model.parameters()).grad = torch.full_like(next(model.parameters()), 3.0)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    recognition_by_gradcam(model, data, [0, 1], accelerator, 2)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    first, *others = (parameter.grad for parameter in model.parameters())
    assert first is not None
    assert (first == 3).all()
    assert all(grad is None for grad in others)


def test_a_network_in_training_is_measured_in_eval_mode(model: nn.Module, data: Data, accelerator: Accelerator) -> None:
    want = recognition_by_gradcam(model.eval(), data, [0, 1, 3], accelerator, 3)
    assert recognition_by_gradcam(model.train(), data, [0, 1, 3], accelerator, 3) == want


def test_blank_maps_are_no_warning(data: Data, accelerator: Accelerator) -> None:
    """As early epochs give them."""
    model: Any = lively("test_resnet", num_classes=4)
    nn.init.zeros_(model.fc.weight)
    found = recognition_by_gradcam(model, data, [0], accelerator, 1)
    assert found["AI"] in (0.0, 100.0)


def test_pictures_without_labels_are_refused(model: nn.Module, tmp_path: Path, accelerator: Accelerator) -> None:
    texture((72, 90)).save(tmp_path / "a.png")
    item = open_data(tmp_path)[0]
    assert isinstance(item, Item)
    with pytest.raises(ValueError, match=r'^picture "a\.png" has no label: give class folders'):
        recognition_by_gradcam(model, open_data(tmp_path), [0], accelerator, 1)
