"""The private copy of a network with folded BatchNorms: the same logits, and the network itself as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from conftest import lively, shaken
from timm.layers import Conv2dSame
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain import folding
from interp_zoo.explain.folding import folded

CHANNELS_LAST = torch.channels_last


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


# timm's ResNets and EfficientNets (BatchNorm with its activation, SAME padding),
# grouped and depthwise convolutions, squeeze and excitation
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("test_resnet", 0),
        ("test_efficientnet", 0),
        ("resnet18_cifar", 0),
        ("mobilenetv2_cifar", 0),
        ("tf_efficientnet_lite0", 0),
        ("seresnext26d_32x4d", 0),
    ],
)
def test_the_same_logits(name: str, left: int) -> None:
    model = lively(name)
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kinds = [type(m) for m in model.modules()]
    twin = folded(model.double(), x[:1].double(), CHANNELS_LAST)
    assert twin is not None
    assert norms(model) > 0
    assert norms(twin) == left
    with torch.no_grad():
        torch.testing.assert_close(twin(x.double()), model(x.double()), rtol=1e-8, atol=1e-8)
    assert not any(p.requires_grad for p in twin.parameters())
    for weight in (p for p in twin.parameters() if p.ndim == 4):  # 1 x 1 kernels, too: else twice the time
        assert weight.stride() == torch.empty(weight.shape, memory_format=CHANNELS_LAST).stride()
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(v.double(), model.state_dict()[k]) for k, v in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_gradients_go_through_the_copy() -> None:
    model = lively("test_resnet").double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    twin = folded(model, x, CHANNELS_LAST)
    assert twin is not None
    for_twin, for_model = (torch.autograd.grad(net(x)[:, 3].sum(), x)[0] for net in (twin, model))
    torch.testing.assert_close(for_twin, for_model, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_nothing_to_fold(name: str) -> None:
    assert folded(lively(name), torch.zeros(1, 3, 160, 160), CHANNELS_LAST) is None


class Shared(nn.Module):
    """A convolution whose output goes to its BatchNorm and elsewhere, too; one that is run twice; a loose BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.twice, self.after = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.loose, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv(x)
        a = self.bn(a) + a
        a = self.after(self.twice(self.twice(a)))
        logits: Tensor = self.head(self.loose(a.relu()).mean((2, 3)))
        return logits


def shared() -> nn.Module:
    torch.manual_seed(0)
    return shaken(Shared()).eval()


def test_a_convolution_that_is_run_twice_is_left() -> None:
    twin: Any = folded(shared(), torch.randn(1, 3, 16, 16), CHANNELS_LAST)
    assert isinstance(twin.after, nn.BatchNorm2d)
    assert isinstance(twin.loose, nn.BatchNorm2d)


def test_a_copy_with_other_logits_is_not_used() -> None:
    """`Shared` cannot be folded, and only its logits tell."""
    model = shared()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        wrong = folded(model, x, CHANNELS_LAST)
        assert wrong is not None
        assert (wrong(x) - model(x)).abs().max() > 1e-2
    explainer = interp_zoo.Explainer(model, "scorecam", layer="after")
    got = explainer(x, target=[1, 2]).raw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp_zoo.explain.anatomy.folded", lambda *_: None)
        torch.testing.assert_close(got, explainer(x, target=[1, 2]).raw)


class NoCopy(nn.Module):
    """A network that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model("test_resnet", num_classes=10).eval()

    def __deepcopy__(self, _memo: Any) -> nn.Module:
        raise RuntimeError("not me")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


def test_a_network_that_cannot_be_copied_is_explained_as_it_is(batch: Tensor) -> None:
    model = NoCopy().eval()
    assert folded(model, batch, CHANNELS_LAST) is None
    exp = interp_zoo.Explainer(model, "scorecam", layer="body.layer4")(batch[:1, :, :64, :64], target=1)
    assert exp.saliency.max() <= 1


@pytest.mark.parametrize("method", ["scorecam", "opticam"])
def test_methods_give_the_same_maps_with_the_copy(method: str, tiny_cnn: nn.Module, batch: Tensor) -> None:
    x, model = batch[:2, :, :64, :96].double(), copy.deepcopy(tiny_cnn).double()
    explainer = interp_zoo.Explainer(model, method)
    made: list[nn.Module | None] = []

    def noted(*args: Any) -> nn.Module | None:
        made.append(folded(*args))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp_zoo.explain.anatomy.folded", noted)
        got = explainer(x, target=[2, 9])
        assert len(made) == 1
        assert made[0] is not None
        patch.setattr("interp_zoo.explain.anatomy.folded", lambda *_: None)
        want = explainer(x, target=[2, 9])
    torch.testing.assert_close(got.raw, want.raw, rtol=1e-5, atol=1e-6)
    assert got.cost.forward == want.cost.forward + 2 / 2  # the copy takes two, of two pictures


def run_by(module: nn.Module, how: Any) -> nn.Module:
    twin = copy.deepcopy(module)
    folding._run_by(twin, how)
    return twin


@pytest.mark.parametrize("size", [(15, 16), (16, 15), (17, 18)])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), (2, 2)), ((5, 5), (2, 2)), ((3, 5), (2, 1)), ((2, 2), (1, 1))])
@pytest.mark.parametrize("groups", [1, 4])
def test_padding_as_tensorflow_has_it(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], groups: int
) -> None:
    """The same outputs, and the same gradients, though nothing is copied into a larger tensor."""
    torch.manual_seed(0)
    plain: Any = Conv2dSame(4, 8, kernel, stride, groups=groups).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    faster = run_by(plain, folding._same)
    found, wanted = faster(x), plain(x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    way = torch.randn_like(wanted)
    of_found, of_wanted = (torch.autograd.grad((y * way).sum(), x)[0] for y in (found, wanted))
    torch.testing.assert_close(of_found, of_wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("ends", [(0.0, 6.0), (-1.0, 1.0)])
def test_clipping_keeps_its_output_alone(inplace: bool, ends: tuple[float, float]) -> None:
    plain = nn.ReLU6(inplace) if ends[1] == 6 else nn.Hardtanh(*ends, inplace=inplace)
    faster = run_by(plain, folding._clip)
    x = torch.tensor([-2.0, *ends, 0.5, 3.0, 9.0], requires_grad=True)
    kept: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        inner = x * 1
        kept.clear()
        y = faster(inner)
    assert len(kept) == 1
    assert kept[0].data_ptr() == y.data_ptr()
    assert (inner.data_ptr() == y.data_ptr()) == inplace
    assert torch.equal(y, plain(x * 1))
    assert torch.equal(torch.autograd.grad((y * y).sum(), x)[0], torch.autograd.grad(plain(x * 1).square().sum(), x)[0])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9])
def test_layers_that_a_picture_is_not_alone_in(n: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(n, 6, 5, 4, dtype=torch.float64)
    for convolution in (
        nn.Conv2d(6, 3, 1),
        nn.Conv2d(6, 3, 1, padding=1),
        nn.Conv2d(6, 3, 1, stride=2),
        nn.Conv2d(6, 3, 3),
    ):
        convolution.double()
        torch.testing.assert_close(run_by(convolution, folding._not_alone)(x), convolution(x), rtol=1e-12, atol=1e-12)
    linear, rows = nn.Linear(4, 7).double(), x[:, 0, 0]
    torch.testing.assert_close(run_by(linear, folding._in_fours)(rows), linear(rows), rtol=1e-12, atol=1e-12)
