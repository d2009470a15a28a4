"""Networks that do what a copy with other layers may not stand: each is explained, with the copy or without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from conftest import shaken
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, weight_norm

import interp_zoo
from interp_zoo.explain.folding import folded


class Net(nn.Module):
    """Two convolutions with BatchNorms, ReLU6 in place, a linear classifier; a test overrides what it is about."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)
        self.conv2, self.bn2, self.head = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def body(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y

    def top(self, y: Tensor) -> Tensor:
        z: Tensor = self.act(self.bn2(self.conv2(y)))
        return z

    def classify(self, z: Tensor) -> Tensor:
        logits: Tensor = self.head(z.mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.top(self.body(x)))


class ChangesTheClipped(Net):
    """Adds in place to what a ReLU6 gave, which torch's own allows."""

    def top(self, y: Tensor) -> Tensor:
        y += 0.5
        return super().top(y)


class ByName(Net):
    """Calls its layers by the name of their argument."""

    def top(self, y: Tensor) -> Tensor:
        return self.head_of(self.bn2(input=self.conv2(input=y)))

    def head_of(self, z: Tensor) -> Tensor:
        y: Tensor = self.act(input=z)
        return y


class ReadsItsLayers(Net):
    """Reads weights and widths off its layers."""

    def classify(self, z: Tensor) -> Tensor:
        z = z.mean((2, 3)) / self.conv2.out_channels * self.act.max_val
        return F.linear(z, self.head.weight, self.head.bias)


class OneRow(Net):
    """Runs its classifier's layer on a vector that it has learned, too."""

    def __init__(self) -> None:
        super().__init__()
        self.learned, self.gate = nn.Parameter(torch.randn(8)), nn.Linear(8, 8)

    def classify(self, z: Tensor) -> Tensor:
        return super().classify(z * self.gate(self.learned)[:, None, None])


class Tokens(Net):
    """Runs its classifier on every place, as rows of one matrix."""

    def classify(self, z: Tensor) -> Tensor:
        n = len(z)
        rows: Tensor = self.head(z.flatten(2).transpose(1, 2).reshape(-1, 8))
        return rows.reshape(n, -1, 5).mean(1)


class Between(Net):
    """A ReLU in place between a convolution and its BatchNorm."""

    def body(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x).relu_()))
        return y


class Shortcut(Net):
    """What a convolution gives is read by a shortcut, too, but not by the second convolution's."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut = nn.Identity()

    def body(self, x: Tensor) -> Tensor:
        a = self.conv(x)
        y: Tensor = self.act(self.bn(a)) + self.shortcut(a)
        return y


class FiveDimensions(Net):
    """Has a convolution of three dimensions: channels last is of four."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0))

    def body(self, x: Tensor) -> Tensor:
        y: Tensor = super().body(x) + self.deep(super().body(x)[:, None])[:, 0]
        return y


def made(kind: type[Net], change: Callable[[Any], Any] = lambda net: None) -> Any:
    torch.manual_seed(0)
    model = shaken(kind())
    change(model)
    return model.eval()


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def old_weight_norm(net: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        weight_norm(net.conv)
    net.requires_grad_(False)
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 8, 8))  # the weight is made anew, as one that can be copied


# Each with the number of BatchNorms that are left in the copy.
CASES: list[tuple[type[Net], Callable[[Any], Any], int]] = [
    (Net, lambda net: None, 0),
    (ChangesTheClipped, lambda net: None, 0),
    (ByName, lambda net: None, 0),
    (ReadsItsLayers, lambda net: None, 0),
    (OneRow, lambda net: None, 0),
    (Tokens, lambda net: None, 0),
    (FiveDimensions, lambda net: None, 1),
    (Between, lambda net: None, 1),
    (Shortcut, lambda net: None, 1),
    (Net, lambda net: parametrizations.weight_norm(net.conv), 1),
    (Net, lambda net: parametrizations.spectral_norm(net.conv).eval(), 1),
    (Net, lambda net: parametrize.register_parametrization(net.conv, "weight", Doubled()), 1),
    (Net, old_weight_norm, 1),
]


@pytest.mark.parametrize(("kind", "change", "left"), CASES)
@pytest.mark.parametrize("method", ["opticam", "rise"])
def test_networks_of_all_sorts(kind: type[Net], change: Callable[[Any], Any], left: int, method: str) -> None:
    model = made(kind, change).double()
    x = torch.randn(2, 3, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    twin = folded(model, x[:1], torch.channels_last)
    assert twin is not None
    assert sum(isinstance(module, nn.BatchNorm2d) for module in twin.modules()) == left
    leaf = x.clone().requires_grad_()
    for_twin, for_model = (torch.autograd.grad(net(leaf)[:, 2].sum(), leaf)[0] for net in (twin, model))
    torch.testing.assert_close(for_twin, for_model, rtol=1e-9, atol=1e-11)
    options: dict[str, Any] = {"iterations": 4, "layer": "conv2"} if method == "opticam" else {"n": 30}
    explainer = interp_zoo.Explainer(model, method, **options)
    got = explainer.maps(x, [1, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp_zoo.explain.anatomy.folded", lambda *_: None)
        torch.testing.assert_close(got, explainer.maps(x, [1, 2]), rtol=1e-6, atol=1e-6)


class Raises(Net):
    """Asks what its layers are: a copy's are others."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.bn, nn.BatchNorm2d):
            raise RuntimeError("where is my BatchNorm?")
        return super().forward(x)


def test_a_network_whose_copy_fails_is_explained_as_it_is() -> None:
    x = torch.randn(1, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    exp = interp_zoo.Explainer(made(Raises), "rise", n=30)(x, target=1)
    want = interp_zoo.Explainer(made(Net), "rise", n=30)(x, target=1)
    torch.testing.assert_close(exp.saliency, want.saliency)


def test_memory_that_runs_out_on_the_way_is_told() -> None:
    def out(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    x = torch.randn(1, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    want = interp_zoo.Explainer(made(Net), "rise", n=30)(x, target=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp_zoo.explain.anatomy.folded", out)
        with pytest.warns(UserWarning, match="memory ran out: at most 8 pictures"):
            exp = interp_zoo.Explainer(made(Net), "rise", n=30)(x, target=1)
    torch.testing.assert_close(exp.saliency, want.saliency)  # without a copy


def test_logits_that_are_not_numbers_are_no_proof_of_a_copy() -> None:
    """The first picture's logits overflow, with the copy and without: whether they agree is not known."""

    class Wrong(Net):
        def body(self, x: Tensor) -> Tensor:
            a = self.conv(x)
            y: Tensor = self.bn(a) + a  # which cannot be seen, and so is folded wrongly
            return y

    model = made(Wrong)
    x = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    alone = interp_zoo.Explainer(model, "rise", n=30, score="logit").maps(x[1:], [2])
    x[0] = torch.where(x[0] > 0.5, 3e38, -3e38)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        beside = interp_zoo.Explainer(model, "rise", n=30, score="logit").maps(x, [2, 2])[1:]
    torch.testing.assert_close(beside, alone)


def test_16_bit_have_no_copy() -> None:
    assert folded(made(Net).half(), torch.rand(1, 3, 12, 10).half(), torch.channels_last) is None


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "lambda_resnet26t", "test_coatnet"])
def test_networks_of_timm_that_read_their_layers(name: str) -> None:
    """XCiT reads its convolutions' weights, LambdaResNets have weights of five dimensions, CoAtNets shortcuts."""
    model: Any = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(1, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    assert folded(model, x, torch.channels_last) is not None
    exp = interp_zoo.Explainer(model, "opticam", iterations=2)(x, target=1)
    assert exp.cost.backward >= 2
