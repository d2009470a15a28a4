"""How sure a mean over pictures is, and whether two methods can be told apart on them."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 2**24  # numbers drawn at once: bounds memory


def interval(values: Tensor, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Tensor:
    """The bootstrap interval of a mean over pictures, by percentiles (Efron, 1979).

    Args:
        values: a figure a picture, (N,), or of several metrics or methods (N, K); NaN where there is none, which does
            not count.
        confidence: how often the interval is to hold the mean of all pictures like these, in (0, 1).
        resamples: how many samples of N pictures are drawn, with replacement, the same for all columns.
        seed: of the drawing.

    Returns:
        Low and high, (2,) or (2, K), float64, on the CPU; NaN where there are fewer than two figures, which say nothing
        of how much others would differ.

    Raises:
        ValueError: for another shape, or a confidence outside of (0, 1).
    """
    if values.ndim not in (1, 2):
        raise ValueError(f"`values` has shape {tuple(values.shape)}, but must be (N,) or (N, K), a figure a picture")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` is {confidence}, but must be between 0 and 1, such as 0.95")
    table = values.detach().double().cpu()
    table = table[:, None] if values.ndim == 1 else table
    table = table[~table.isnan().all(1)]
    n = len(table)
    if not n:
        return torch.full((2, *values.shape[1:]), torch.nan, dtype=torch.float64)
    there = (~table.isnan()).double()
    known = table.nan_to_num(nan=0)
    generator = torch.Generator().manual_seed(seed)
    means = []
    for chunk in torch.arange(resamples).split(max(1, _AT_ONCE // n)):
        drawn = torch.randint(n, (len(chunk), n), generator=generator)
        often = torch.zeros(len(chunk), n, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(1).double().expand(drawn.shape)
        )
        means.append((often @ known) / (often @ there))  # NaN where a sample has no figure
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    found = torch.cat(means).nanquantile(tails, dim=0).masked_fill(there.sum(0) < 2, torch.nan)
    return found.reshape(2, *values.shape[1:])


def paired_difference(first: Tensor, second: Tensor, *, confidence: float = 0.95, seed: int = 0) -> Tensor:
    """The mean of `first - second` over the pictures that have both, with its interval: mean, low and high.

    Paired, because pictures differ much more than methods do: what is hard for one method is so for another. Arguments
    as in `interval`, for figures of the same pictures; returns (3,) or (3, K).

    Raises:
        ValueError: if the two are not of the same pictures.
    """
    if first.shape != second.shape:
        raise ValueError(f"`second` has shape {tuple(second.shape)}, but must be {tuple(first.shape)} as `first`")
    difference = (first - second).detach().double().cpu()
    return torch.cat([difference.nanmean(0)[None], interval(difference, confidence=confidence, seed=seed)])


def kendall_tau(first: Tensor, second: Tensor) -> float:
    """How alike two orders are: Kendall's tau-b, 1 for the same, -1 for the reverse; NaN where one has no order.

    Args:
        first: a figure a method, (M,).
        second: another figure of the same methods, (M,). Methods that lack one of the two do not count.
    """
    both = ~(first.isnan() | second.isnan())
    one, other = (x[both].double()[:, None].sub(x[both].double()[None]).sign() for x in (first, second))
    size = one.square().sum() * other.square().sum()
    return float((one * other).sum() / size.sqrt()) if size > 0 else float("nan")
