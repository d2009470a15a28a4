"""Convolutions and batch norms for gradients of gradients: torch's own are the oracle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional as F

from interp_zoo.training.gradients import Penalty
from interp_zoo.training.twice import TwiceDifferentiated

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "one by one": lambda: nn.Conv2d(4, 6, 1, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False),
    "grouped": lambda: nn.Conv2d(4, 8, (3, 2), padding=(1, 0), groups=2),
    "dilated": lambda: nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4),
    "padded by name": lambda: nn.Conv2d(4, 4, 3, padding="same"),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "batch norm, steep": lambda: nn.BatchNorm2d(4, eps=0.5),
    "batch norm, not tracked": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "batch norm, no weight": lambda: nn.BatchNorm2d(4, affine=False),
    "batch norm, of what it has seen": lambda: nn.BatchNorm2d(4).eval(),
}


def layer_and_input(name: str) -> tuple[nn.Module, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    parameters = [p.detach() + 0.3 * torch.randn_like(p) for p in layer.parameters()]
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64) + 1
    return layer, x.requires_grad_(), [p.requires_grad_() for p in parameters]


def run(layer: nn.Module, x: Tensor, *parameters: Tensor) -> Any:
    names = (name for name, _ in layer.named_parameters())
    return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_equal_finite_differences(name: str) -> None:
    layer, x, parameters = layer_and_input(name)

    def ours(*its: Tensor) -> Any:
        with TwiceDifferentiated():
            return run(layer, *its)

    assert gradcheck(ours, (x, *parameters))
    if "no weight" not in name:  # which is left to torch, and takes long there
        assert gradgradcheck(ours, (x, *parameters))


@pytest.mark.parametrize("name", LAYERS)
def test_what_comes_out_and_what_is_kept_is_torchs(name: str) -> None:
    (ours, x, parameters), (torchs, *_) = layer_and_input(name), layer_and_input(name)
    with TwiceDifferentiated():
        found = run(ours, x, *parameters)
    torch.testing.assert_close(found, run(torchs, x, *parameters))
    for a, b in zip(ours.buffers(), torchs.buffers(), strict=True):
        torch.testing.assert_close(a, b)


class Network(nn.Module):
    """What a convolution and a batch norm may stand beside."""

    def __init__(self, width: int, groups: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, stride, 1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, groups=groups, bias=False)
        self.last = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        y = self.last(self.second(x))
        return (F.relu6(y) + x).mean((2, 3))


def second_gradients(network: nn.Module, x: Tensor, twice: bool, spare: bool) -> list[Tensor]:
    """Of a function of the gradient at the pictures, at pictures and parameters, beside one of the logits."""
    x = x.clone().requires_grad_()
    mode = TwiceDifferentiated()
    if twice:
        with mode:
            y = network(x)
    else:
        y = network(x)
    score = y.softmax(1)[:, 0].log().sum()
    if spare:
        with mode.sparing_weights():
            (g,) = torch.autograd.grad(score, x, create_graph=True)
    else:
        (g,) = torch.autograd.grad(score, x, create_graph=True)
    total = (g.square().sum((1, 2, 3)) + 0.1 * g.sum((1, 2, 3)).sin()).mean() - score
    return [g.detach(), *torch.autograd.grad(total, [x, *network.parameters()])]


@given(
    st.integers(1, 3).flatmap(lambda n: st.tuples(st.just(2 * n), st.sampled_from([1, 2, 2 * n]))),
    st.sampled_from([1, 2]),
    st.integers(2, 4),
    st.integers(3, 8),
    st.booleans(),
    st.booleans(),
)
def test_second_gradients_of_a_network_are_torchs(
    shape: tuple[int, int], stride: int, pictures: int, size: int, channels_last: bool, spare: bool
) -> None:
    torch.manual_seed(size)
    network = Network(*shape, stride).double()
    x = torch.randn(pictures, 3, size, size + 1, dtype=torch.float64)
    if channels_last:
        network.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    for a, b in zip(second_gradients(network, x, True, spare), second_gradients(network, x, False, False), strict=True):
        torch.testing.assert_close(a, b)


def test_sparing_weights_ends_with_its_block() -> None:
    layer, x, parameters = layer_and_input("strided")
    mode = TwiceDifferentiated()
    with mode:
        y = run(layer, x, *parameters).square().sum()
    with mode.sparing_weights():
        spared = torch.autograd.grad(y, [x, parameters[0]], retain_graph=True, allow_unused=True)
    assert [g is None for g in spared] == [False, True]
    with pytest.raises(KeyError), mode.sparing_weights():
        raise KeyError
    assert all(g is not None for g in torch.autograd.grad(y, [x, *parameters]))


def test_autocast() -> None:
    torch.manual_seed(0)
    network, x = Network(4, 4, 1), torch.randn(4, 3, 8, 8)
    expected = second_gradients(network, x, False, False)
    with torch.autocast("cpu", torch.bfloat16):
        found = second_gradients(network, x, True, True)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        if b.norm() > 1e-3:
            assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98
        else:  # what a batch norm takes off again
            assert a.norm() < 0.1


def test_nothing_outside_is_changed() -> None:
    convolve, normalise = F.conv2d, F.batch_norm
    convolution, x = nn.Conv2d(3, 2, 3, bias=False), torch.ones(1, 3, 4, 4)
    with TwiceDifferentiated():
        inside = convolution(x)
    assert "_Convolution" in str(inside.grad_fn)
    assert "ConvolutionBackward0" in str(convolution(x).grad_fn)
    assert (F.conv2d, F.batch_norm) == (convolve, normalise)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_mean_far_from_zero_costs_no_digits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, first, second = torch.randn(3, 8, 3, 6, 6, dtype=torch.float64)
    x = (2 * x).round() / 2 + 64  # in halves, which bfloat16 has up to 127.5
    assert_close_to_exact(x, first, second, dtype)


def test_products_may_be_larger_than_float16() -> None:
    torch.manual_seed(0)
    x, first, second = torch.randn(3, 8, 3, 6, 6, dtype=torch.float64).half().double()
    assert_close_to_exact(64 * x, 1024 * first, 256 * second, torch.float16)


def assert_close_to_exact(x: Tensor, first: Tensor, second: Tensor, dtype: torch.dtype) -> None:
    """The second gradient of a batch norm beside the same in float64."""

    def gradient(dtype: torch.dtype) -> Tensor:
        norm, its = nn.BatchNorm2d(3), x.to(dtype).requires_grad_()
        with TwiceDifferentiated():
            y = norm.to(torch.promote_types(dtype, torch.float32))(its)
        (g,) = torch.autograd.grad(y, its, first.to(dtype), create_graph=True)
        found: Tensor = torch.autograd.grad(g, its, second.to(dtype))[0]
        return found.double()

    exact = gradient(torch.float64)
    assert (gradient(dtype) - exact).abs().max() < 0.03 * exact.abs().max()


def test_arguments_by_name_and_what_is_frozen() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3)
    norm = nn.BatchNorm2d(4).requires_grad_(False)

    def ends(twice: bool) -> tuple[Tensor, Tensor]:
        with TwiceDifferentiated() if twice else contextlib.nullcontext():
            y = F.batch_norm(
                input=F.conv2d(input=x, weight=w, padding=1),
                running_mean=None,
                running_var=None,
                weight=norm.weight,
                bias=norm.bias,
                training=True,
            )
        (g,) = torch.autograd.grad(y.square().sum() + y.exp().sum(), x, create_graph=True)
        return g, torch.autograd.grad(g.square().sum(), x)[0]

    for a, b in zip(ends(True), ends(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_penalties_are_differentiated_so() -> None:
    names: set[str] = set()
    network, x = Network(4, 2, 1), torch.randn(3, 3, 6, 6)
    _, penalty = Penalty(1.0).losses(network, x, torch.tensor([0, 1, 2]), nn.CrossEntropyLoss())
    seen, left = set(), [penalty.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(node.name())
            left += [following for following, _ in node.next_functions]
    assert {"_InputGradientBackward", "_NormGradientBackward"} <= names
    assert not {"ConvolutionBackwardBackward0", "NativeBatchNormBackwardBackward0"} & names
