"""How maps become masks: values, and gradients of what is optimised through them."""

from __future__ import annotations

import torch
from torch import Tensor

from interp_zoo.explain import masking


def slowly(one: Tensor) -> Tensor:
    """As the formula has it, for a map (H, W) that is not constant."""
    return (one - one.amin()) / (one.amax() - one.amin())


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_gradients_of_min_max() -> None:
    x, way = maps(3, 5, 4), maps(3, 5, 4).detach().flip(0)
    assert torch.autograd.gradcheck(masking.minmax, x)
    wanted = torch.autograd.grad(sum((slowly(one) * w).sum() for one, w in zip(x, way, strict=True)), x)[0]
    torch.testing.assert_close(torch.autograd.grad((masking.minmax(x) * way).sum(), x)[0], wanted)


def test_places_that_share_the_largest_value_share_its_gradient() -> None:
    x = torch.tensor([[[0.0, 0.0, 1.0], [2.0, 2.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    way = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]], dtype=torch.float64)
    found, wanted = (
        torch.autograd.grad((scaled * way).sum(), x)[0] for scaled in (masking.minmax(x), slowly(x[0])[None])
    )
    torch.testing.assert_close(found, wanted)


def test_a_constant_map_is_nothing_and_leads_nowhere() -> None:
    x = torch.full((1, 3, 3), 2.5, requires_grad=True)
    y = masking.minmax(x)
    assert not y.any()
    assert not torch.autograd.grad(y.sum(), x)[0].any()
    assert masking.minmax(torch.tensor([[[1.0, torch.nan]]])).isnan().all()


def test_a_map_has_one_gradient_alone_and_beside_others() -> None:
    x = torch.rand(5, 224, 224, generator=torch.Generator().manual_seed(0), requires_grad=True)
    way = torch.rand(5, 224, 224, generator=torch.Generator().manual_seed(1))
    (all_of_them,) = torch.autograd.grad((masking.minmax(x) * way).sum(), x)
    for i in range(5):
        alone = x[i : i + 1].detach().requires_grad_()
        (of_one,) = torch.autograd.grad((masking.minmax(alone) * way[i : i + 1]).sum(), alone)
        assert torch.equal(of_one[0], all_of_them[i])
