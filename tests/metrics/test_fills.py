"""ROAD's linear fill against its definition, written out as a dense system, and against pytorch-grad-cam's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from torch import Tensor, nn

from interp_zoo.metrics.functional import deletion_curve
from interp_zoo.metrics.functional.fills import LINEAR_NOISE, linear, painter

MEAN = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64)


def slow_linear(picture: Tensor, gone: Tensor) -> Tensor:
    """Each missing pixel is the mean of its neighbours inside the picture, direct ones twice as heavy as diagonal."""
    height, width = gone.shape
    places = [(y, x) for y in range(height) for x in range(width) if gone[y, x]]
    system, right = torch.zeros(len(places), len(places), dtype=torch.float64), torch.zeros(len(places), 3).double()
    for row, (y, x) in enumerate(places):
        around = [(y + a, x + b, 1.0 if a and b else 2.0) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
        around = [(v, u, w) for v, u, w in around if 0 <= v < height and 0 <= u < width]
        total = sum(w for _, _, w in around)
        system[row, row] = 1
        for v, u, w in around:
            if gone[v, u]:
                system[row, places.index((v, u))] -= w / total
            else:
                right[row] += w / total * picture[:, v, u]
    out = picture.clone()
    for (y, x), value in zip(places, torch.linalg.solve(system, right), strict=True):
        out[:, y, x] = value
    return out


def pictures(height: int, width: int, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two pictures and the pixels of each that are gone."""
    generator = torch.Generator().manual_seed(seed)
    gone = torch.rand(2, height, width, generator=generator) < share
    gone[:, seed % height, seed % width] = False  # one is left
    return torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64), gone


@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from([0.0, 0.3, 0.8, 1.0]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_equals_its_twin(height: int, width: int, share: float, seed: int) -> None:
    pixels, gone = pictures(height, width, share, seed)
    found = linear(pixels, gone, MEAN)
    for picture, missing, new in zip(pixels, gone, found, strict=True):
        torch.testing.assert_close(new, slow_linear(picture, missing))


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # theirs
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_equals_pytorch_grad_cams(share: float) -> None:
    pixels, gone = pictures(30, 40, share)
    found = linear(pixels.float(), gone, MEAN)
    for picture, missing, new in zip(pixels.float(), gone, found, strict=True):
        peer = NoisyLinearImputer(noise=0)(picture, (~missing).float())
        torch.testing.assert_close(new, peer, atol=1e-5, rtol=1e-4)


def test_with_no_pixel_left_it_is_the_mean_colour() -> None:
    pixels, _ = pictures(5, 4, 0.5)
    found = linear(pixels, torch.ones(2, 5, 4, dtype=torch.bool), MEAN)
    torch.testing.assert_close(found, MEAN[:, None, None].expand_as(pixels))


def test_a_slope_is_continued_exactly() -> None:
    slope = torch.linspace(0, 1, 12, dtype=torch.float64).expand(1, 3, 9, 12)
    gone = torch.zeros(1, 9, 12, dtype=torch.bool)
    gone[0, 2:7, 3:9] = True
    torch.testing.assert_close(linear(slope, gone, MEAN), slope)


def test_noise_lies_on_what_is_gone_alone_and_is_the_seeds() -> None:
    pixels, gone = pictures(40, 50, 0.5)
    which = torch.tensor([1, 0, 1])
    one, again, other = (painter(pixels, mean=MEAN, fill="linear", seed=s)(which, gone[which]) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert torch.equal(one[0], one[2])
    noise = one - linear(pixels[which], gone[which], MEAN)
    assert (noise.permute(0, 2, 3, 1)[~gone[which]] == 0).all()
    assert noise.permute(0, 2, 3, 1)[gone[which]].std().item() == pytest.approx(LINEAR_NOISE, rel=0.1)
    assert not torch.allclose(one, other)


class Mean(nn.Module):
    """Two classes: how bright, and how dark, the picture is."""

    def forward(self, pixels: Tensor) -> Tensor:
        bright = pixels.mean((1, 2, 3))
        return torch.stack([bright, 1 - bright], 1)


def test_a_curve_of_it() -> None:
    pixels, maps = torch.full((1, 3, 10, 8), 0.75).double(), torch.rand(1, 10, 8, generator=torch.Generator())
    found = deletion_curve(Mean(), pixels, maps, torch.tensor([0]), mean=MEAN, fill="linear", step=20)
    want = torch.tensor([[0.75, 0.75, 0.75, 0.75, 0.4]]).double()  # of a plain picture nothing is lost, but all of it
    torch.testing.assert_close(found, want, atol=LINEAR_NOISE, rtol=0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_several_pictures_at_a_time_are_what_each_is(threads: int) -> None:
    """Whole, gone and holed ones stand in their own places."""
    generator, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    pixels = torch.rand(5, 3, 9, 8, dtype=torch.float64, generator=generator)
    gone = torch.rand(5, 9, 8, generator=generator) < torch.tensor([0.3, 0.0, 0.8, 1.1, 0.5])[:, None, None]
    torch.set_num_threads(threads)
    try:
        found = linear(pixels, gone, MEAN)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[1], pixels[1])
    assert torch.equal(found[3], MEAN.to(pixels)[:, None, None].expand_as(found[3]))
    for i in (0, 2, 4):
        torch.testing.assert_close(found[i], slow_linear(pixels[i], gone[i]))
        assert torch.equal(found[i], linear(pixels[i : i + 1], gone[i : i + 1], MEAN)[0])
