"""Grids, branches and cuts: what is read from a layer is written back to the digit, and the tail alone is the network.

The last part checks `Anatomy.tail` against the plain way of doing the same, a forward hook on the whole network.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from conftest import lively
from hypothesis import assume, given, settings, strategies as st
from torch import Tensor, nn

from interp_zoo import Explainer
from interp_zoo.explain.branches import Branches, Path, tensors
from interp_zoo.explain.grid import MAX_PREFIX_TOKENS, GridView, Layout, find_view

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
quick = settings(max_examples=100, deadline=None, derandomize=True)
sides = st.integers(1, 6)
prefixes = st.integers(0, MAX_PREFIX_TOKENS)


def shape_of(layout: Layout, batch: int, channels: int, h: int, w: int, prefix: int) -> tuple[int, ...]:
    """The shape in which a network hands a grid on."""
    shapes = {
        "NCHW": (batch, channels, h, w),
        "NHWC": (batch, h, w, channels),
        "NLC": (batch, prefix + h * w, channels),
    }
    return shapes[layout]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[GridView, Tensor]:
    """A view and a tensor that it fits."""
    layout = draw(st.sampled_from(LAYOUTS))
    h, w, prefix = draw(sides), draw(sides), draw(prefixes) if layout == "NLC" else 0
    shape = shape_of(layout, 2, draw(st.integers(1, 5)), h, w, prefix)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    return GridView(layout, h, w, prefix), torch.randn(shape, generator=generator).to(dtype)


@quick
@given(layouts())
def test_what_is_read_is_written_back(case: tuple[GridView, Tensor]) -> None:
    view, tensor = case
    maps = view.maps(tensor)
    assert maps.shape[2:] == (view.h, view.w)
    again = view.write(tensor, maps)
    assert again.dtype == tensor.dtype
    assert torch.equal(again, tensor)
    assert again.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@quick
@given(layouts())
def test_what_is_written_is_read_again(case: tuple[GridView, Tensor]) -> None:
    view, tensor = case
    new = torch.randn(view.maps(tensor).shape, generator=torch.Generator().manual_seed(0)).to(tensor.dtype)
    before = new.clone()
    written = view.write(tensor, new)
    assert written.shape == tensor.shape
    assert torch.equal(view.maps(written), new)
    if view.layout == "NLC":
        assert torch.equal(written[:, : view.prefix], tensor[:, : view.prefix])
    written.zero_()  # as an activation in place would
    assert torch.equal(new, before)


@quick
@given(layouts(), st.data())
def test_places_stand_where_the_network_has_them(case: tuple[GridView, Tensor], data: st.DataObject) -> None:
    view, tensor = case
    i, j = data.draw(st.integers(0, view.h - 1)), data.draw(st.integers(0, view.w - 1))
    place = view.prefix + i * view.w + j
    by_layout = {
        "NCHW": lambda: tensor[:, :, i, j],
        "NHWC": lambda: tensor[:, i, j],
        "NLC": lambda: tensor[:, place],
        "NCL": lambda: tensor[:, :, place],
    }
    assert torch.equal(view.maps(tensor)[:, :, i, j], by_layout[view.layout]())


@st.composite
def pictures(draw: st.DrawFn, *, whole: bool = False) -> tuple[tuple[int, int], int, tuple[int, int]]:
    """A picture's size, square or not, a network's stride, and the grid that it gives: `whole` without remainders."""
    stride = draw(st.sampled_from([4, 8, 14, 16, 32]))
    if whole:
        h, w = draw(st.integers(2, 12)), draw(st.integers(2, 12))
        return (h * stride, w * stride), stride, (h, w)
    size = (draw(st.integers(2 * stride, 300)), draw(st.integers(2 * stride, 300)))
    rounded = draw(st.sampled_from([math.ceil, math.floor]))
    return size, stride, (int(rounded(size[0] / stride)), int(rounded(size[1] / stride)))


def known_grids(size: tuple[int, int], stride: int) -> set[tuple[int, int]]:
    return {(math.ceil(size[0] / stride), math.ceil(size[1] / stride)), (size[0] // stride, size[1] // stride)}


@quick
@given(pictures(), st.integers(1, 64), st.sampled_from(["NCHW", "NHWC"]))
def test_convolutional_grids_are_found(
    picture: tuple[tuple[int, int], int, tuple[int, int]], channels: int, layout: Layout
) -> None:
    size, stride, (h, w) = picture
    other = (channels, h) if layout == "NCHW" else (w, channels)
    assume(other not in known_grids(size, stride))  # else both layouts fit: see the next test but one
    shape = shape_of(layout, 2, channels, h, w, 0)
    assert find_view(shape, size, strides=[stride]) == GridView(layout, h, w)


@quick
@given(pictures(whole=True), st.sampled_from(["NCHW", "NHWC"]))
def test_without_strides_the_aspect_ratio_decides(
    picture: tuple[tuple[int, int], int, tuple[int, int]], layout: Layout
) -> None:
    size, _, (h, w) = picture
    channels = 2 * max(size)  # more than a picture has rows or columns: no side of a grid
    assert find_view(shape_of(layout, 2, channels, h, w, 0), size) == GridView(layout, h, w)


@pytest.mark.parametrize("channels_last", [False, True])
@given(side=st.integers(2, 12), stride=st.sampled_from([4, 16, 32]))
@quick
def test_where_both_layouts_fit_the_network_says_which(channels_last: bool, side: int, stride: int) -> None:
    size = (side * stride, side * stride)
    view = find_view((2, side, side, side), size, strides=[stride], channels_last=channels_last)
    assert view == GridView("NHWC" if channels_last else "NCHW", side, side)


@pytest.mark.parametrize(
    ("shape", "size", "strides", "want"),
    [
        ((2, 7, 7, 6), (224, 224), (), GridView("NHWC", 7, 7)),  # nearer to the picture's ratio than 7 x 6
        ((2, 6, 7, 7), (224, 224), (), GridView("NCHW", 7, 7)),
        ((2, 14, 14, 7), (224, 224), (), GridView("NHWC", 14, 14)),
        ((2, 8, 7, 7), (224, 224), (4, 8, 16, 32), GridView("NCHW", 7, 7)),
        ((2, 8, 7, 7), (224, 200), (), GridView("NHWC", 8, 7)),
        ((2, 8, 7, 7), (224, 200), (32,), GridView("NCHW", 7, 7)),  # the stride is the better witness
    ],
)
def test_ambiguous_shapes(
    shape: tuple[int, ...], size: tuple[int, int], strides: tuple[int, ...], want: GridView
) -> None:
    assert find_view(shape, size, strides=strides) == want


@quick
@given(pictures(), prefixes, st.integers(1, 400), st.booleans())
def test_tokens_are_found(
    picture: tuple[tuple[int, int], int, tuple[int, int]], prefix: int, channels: int, deep: bool
) -> None:
    size, stride, (h, w) = picture
    strides = [stride, 2 * stride, 4 * stride] if deep else [stride]
    view = find_view((2, prefix + h * w, channels), size, strides=strides, prefix=prefix)
    assert view == GridView("NLC", h, w, prefix)


@quick
@given(pictures(whole=True), prefixes)
def test_the_number_of_prefix_tokens_is_found(
    picture: tuple[tuple[int, int], int, tuple[int, int]], prefix: int
) -> None:
    size, stride, (h, w) = picture
    assert find_view((2, prefix + h * w, 64), size, strides=[stride]) == GridView("NLC", h, w, prefix)


@quick
@given(pictures(whole=True), prefixes)
def test_tokens_without_strides(picture: tuple[tuple[int, int], int, tuple[int, int]], prefix: int) -> None:
    size, _, (h, w) = picture
    assert find_view((2, prefix + h * w, 64), size, prefix=prefix) == GridView("NLC", h, w, prefix)


@pytest.mark.parametrize("shape", [(2, 64), (2, 64, 1, 1), (2, 1, 1, 64), (2, 1, 64), (2, 3, 2, 8, 8), (2, 4, 64, 9)])
def test_no_grid(shape: tuple[int, ...]) -> None:
    assert find_view(shape, (64, 64), strides=[4, 8, 16, 32]) is None


Pair = namedtuple("Pair", ["maps", "rest"])
STRUCTURES = ["alone", "list", "tuple", "dict", "named"]


@st.composite
def outputs(draw: st.DrawFn) -> tuple[Branches, Any]:
    """A layer's output of one to three branches of different sizes, among other things, and its view."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    structure = draw(st.sampled_from(STRUCTURES))
    parts: list[Tensor] = []
    views: list[GridView] = []
    for _ in range(1 if structure == "alone" else draw(st.integers(1, 3))):
        layout = draw(st.sampled_from(LAYOUTS))
        h, w, prefix = draw(sides), draw(sides), draw(prefixes) if layout == "NLC" else 0
        shape = shape_of(layout, 2, draw(st.integers(1, 4)), h, w, prefix)
        parts.append(torch.randn(shape, generator=generator, dtype=dtype))
        views.append(GridView(layout, h, w, prefix))
    output: Any
    paths: list[Path]
    if structure == "alone":
        output, paths = parts[0], [()]
    elif structure == "list":
        output, paths = [*parts, torch.ones(2, 3), "x"], [(i,) for i in range(len(parts))]
    elif structure == "tuple":
        output, paths = (None, *parts), [(i + 1,) for i in range(len(parts))]
    elif structure == "dict":
        output, paths = {"x": parts, "y": torch.ones(2)}, [("x", i) for i in range(len(parts))]
    else:
        output, paths = Pair(tuple(parts), 3.0), [(0, i) for i in range(len(parts))]
    return Branches(tuple(zip(paths, views, strict=True))), output


def assert_same(one: Any, other: Any) -> None:
    """The same structure, types, and tensors to the digit."""
    assert type(one) is type(other)
    mine, theirs = dict(tensors(one)), dict(tensors(other))
    assert list(mine) == list(theirs)
    for path, tensor in mine.items():
        assert tensor.dtype == theirs[path].dtype
        assert torch.equal(tensor, theirs[path])


@quick
@given(outputs())
def test_branches_are_written_back_to_the_digit(case: tuple[Branches, Any]) -> None:
    branches, output = case
    maps = branches.read(output)
    assert maps.shape[2:] == branches.grid
    assert_same(branches.write(output, maps), output)


@quick
@given(outputs())
def test_gradients_flow_through_branches(case: tuple[Branches, Any]) -> None:
    branches, output = case
    read_from = [tensor.requires_grad_() for path, tensor in tensors(output) if path in dict(branches.views)]
    gradients = torch.autograd.grad(branches.read(output).square().sum(), read_from)
    for (_, view), gradient in zip(branches.views, gradients, strict=True):
        rows, columns = min(view.h, branches.grid[0]), min(view.w, branches.grid[1])  # what a finer grid leaves out
        assert (view.maps(gradient) != 0).any(1).sum() >= 2 * rows * columns
    maps = branches.read(output).detach().requires_grad_()
    written = dict(tensors(branches.write(output, maps)))
    score = torch.stack([written[path].sum() for path, _ in branches.views]).sum()
    (gradient,) = torch.autograd.grad(score, maps)
    assert (gradient > 0).all()


def test_a_coarse_branch_takes_the_mean_of_the_places_it_covers() -> None:
    fine, coarse = torch.randn(2, 3, 4, 6), torch.randn(2, 1 + 6, 5)
    branches = Branches((((0,), GridView("NCHW", 4, 6)), ((1,), GridView("NLC", 2, 3, 1))))
    change = torch.randn(2, 8, 4, 6)
    new_fine, new_coarse = branches.write([fine, coarse], branches.read([fine, coarse]) + change)
    torch.testing.assert_close(new_fine, fine + change[:, :3])
    means = change[:, 3:].unflatten(2, (2, 2)).unflatten(4, (3, 2)).mean((3, 5))
    torch.testing.assert_close(new_coarse[:, 1:], coarse[:, 1:] + means.flatten(2).transpose(1, 2))
    assert torch.equal(new_coarse[:, 0], coarse[:, 0])


class FromTheSide(nn.Module):
    """Two things get around the cuts: a bias (3, 16, 16), without a batch axis, of an early module, and the picture."""

    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.randn(3, 16, 16))

        def forward(self) -> Tensor:
            return self.values.clone()

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 10
        self.stem, self.block = nn.Conv2d(3, 3, 4, 4), nn.Conv2d(3, 3, 3, padding=1)
        self.bias, self.fc = self.Bias(), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias()
        maps = self.block(self.stem(x).relu())
        logits: Tensor = self.fc((maps + bias).relu().mean((2, 3)) + x.mean((2, 3)))
        return logits


# Cuts before the head, at whole stages, and inside blocks, with skip connections and in-place sums around them.
CUTS = {
    "test_resnet": [
        *("layer1", "layer2", "layer3", "layer4", "forward_features"),
        *("layer3.0.conv1", "layer3.0.bn1", "layer3.0.conv2", "layer3.0.downsample", "layer4.0.act2"),
    ],
    "test_vit": ["blocks.0", "blocks.2", "blocks.4", "blocks.2.attn", "blocks.3.norm2", "blocks.4.mlp.fc1"],
    "test_convnext": ["stem", "stages.1.blocks.0", "stages.1.blocks.0.conv_dw", "norm_pre"],
    "test_efficientnet": ["conv_stem", "blocks.1.0.conv_pwl", "blocks.2", "bn2"],
    "side": ["stem", "block"],
}


def built(name: str) -> nn.Module:
    """In float64, so that a layer that counts little is still told from rounding."""
    torch.manual_seed(0)
    options = {"img_size": 64} if name == "test_vit" else {}
    model: nn.Module = FromTheSide() if name == "side" else lively(name, num_classes=10, **options)
    return model.double().eval()


def laid_out(maps: Tensor, output: Tensor) -> Tensor:
    """Maps (n, C, h, w) in the layout of a layer's output, whose prefix tokens stay."""
    if output.ndim == 4:
        return maps if output.shape[1] == maps.shape[1] else maps.permute(0, 2, 3, 1)
    tokens = maps.flatten(2).transpose(1, 2)
    return torch.cat([output[:, : output.shape[1] - tokens.shape[1]], tokens], 1)


def by_hook(model: nn.Module, layer: str, x: Tensor, maps: Tensor) -> Tensor:
    """The logits of x (n, 3, H, W) with `maps` (n, C, h, w) put in place of a layer's output."""
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, output: laid_out(maps, output))
    try:
        logits: Tensor = model(x)
        return logits
    finally:
        handle.remove()


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, layers in CUTS.items() for layer in layers])
def test_the_tail_is_the_network(name: str, layer: str) -> None:
    model, generator = built(name), torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, 64, 64, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        logits = model(x)
    with Explainer(model, "gradcam", layer=layer).anatomy(x) as (anatomy, pixels), torch.no_grad():
        split = anatomy.split(pixels)
        torch.testing.assert_close(split.logits, logits, rtol=1e-8, atol=1e-10)
        where = "layer4" if layer == "forward_features" else layer
        for picture in (0, 1, 2):
            for copies in (1, 5):
                own = split.maps.detach()[picture : picture + 1].expand(copies, -1, -1, -1)
                same = anatomy.tail(pixels, picture, own)
                assert same.shape == (copies, 10)
                torch.testing.assert_close(same, logits[[picture] * copies], rtol=1e-8, atol=1e-10)
                other = own * (0.5 + torch.rand(own.shape, generator=generator, dtype=own.dtype))
                want = by_hook(model, where, x[[picture] * copies], other)
                torch.testing.assert_close(anatomy.tail(pixels, picture, other), want, rtol=1e-8, atol=1e-10)
                assert (want - logits[picture]).abs().max() > 1e-6  # the layer counts, or this says nothing


@pytest.mark.parametrize("layer", ["layer3", "layer3.0.conv2", "layer4"])
def test_nothing_before_the_cut_runs_again(layer: str) -> None:
    model, x = built("test_resnet"), torch.randn(3, 3, 64, 64, dtype=torch.float64)
    runs: list[str] = []

    def counted(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any) -> Any:
            runs.append(name)
            return run(*args)

        return forward

    for name, module in model.named_modules():
        if not list(module.children()):
            module.__dict__["forward"] = counted(name, module.forward)
    with Explainer(model, "gradcam", layer=layer).anatomy(x) as (anatomy, pixels), torch.no_grad():
        maps = anatomy.split(pixels).maps.detach()[:1]
        everything = set(runs)
        runs.clear()
        anatomy.tail(pixels, 0, maps)
    assert "fc" in runs
    assert not any(name.startswith(("conv1", "bn1", "layer1", "layer2")) for name in runs)
    assert not any(name.startswith(layer) for name in runs)
    assert len(runs) < len(everything) / 2


@pytest.mark.parametrize("layer", ["layer3", "layer3.0.conv2", "layer3.0.downsample"])
def test_gradients_at_the_cut_are_those_of_the_network(layer: str) -> None:
    model = built("test_resnet")
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with Explainer(model, "gradcam", layer=layer).anatomy(x) as (anatomy, pixels):
        split = anatomy.split(pixels)
        (gradient,) = torch.autograd.grad(split.logits[:, 3].sum(), split.maps)
    leaf = split.maps.detach().clone().requires_grad_()
    (want,) = torch.autograd.grad(by_hook(model, layer, x, leaf.clone())[:, 3].sum(), leaf)
    torch.testing.assert_close(gradient, want, rtol=1e-8, atol=1e-10)
