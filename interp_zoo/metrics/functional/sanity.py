"""Whether a map depends on what it is to explain: on the network's weights, and on the class."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

# A network to maps (N, H, W).
Explain = Callable[[nn.Module], Tensor]


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of two maps each, (N,) in [-1, 1]; NaN where one of them is constant.

    Args:
        first: maps (N, H, W).
        second: maps (N, H, W).
    """
    if first.ndim != 3 or first.shape != second.shape:
        raise ValueError(
            f"`second` has shape {tuple(second.shape)} and `first` {tuple(first.shape)}, but both must be (N, H, W)"
        )
    centred = []
    for maps in (first, second):
        ranks = torch.stack([_mean_ranks(m.flatten()) for m in maps]) if len(maps) else maps.flatten(1).double()
        centred.append(ranks - ranks.mean(1, keepdim=True))
    size = (centred[0].square().sum(1) * centred[1].square().sum(1)).sqrt()
    return (centred[0] * centred[1]).sum(1) / size.masked_fill(size == 0, torch.nan)


def class_sensitivity(saliency: Tensor, other: Tensor) -> Tensor:
    """How unlike the maps of two classes of one picture are, (N,) in percent: 100 (1 - rank correlation).

    0 for the same map, 100 for maps that have nothing to do with each other, up to 200 for opposite ones. High is good:
    a map that is the same whatever is asked explains no class. Where the other class' map is constant (blank: nothing
    speaks for it), the two have nothing to do with each other; NaN where the first one is constant.

    Args:
        saliency: the maps of one class, (N, H, W).
        other: the maps of another, (N, H, W).
    """
    return 100 * (1 - _left(saliency, other))


def randomization(model: nn.Module, explain: Explain, *, stages: int = 4, seed: int = 0) -> Tensor:
    """How much of the map is left as the weights are lost, (N,) in percent: the mean of `randomization_curve`.

    Low is good: a map that stays the same shows the picture, not the network.
    """
    return randomization_curve(model, explain, stages=stages, seed=seed).mean(1)


def randomization_curve(model: nn.Module, explain: Explain, *, stages: int = 4, seed: int = 0) -> Tensor:
    """The same, stage by stage of `cascade`: 100 |rank correlation| with the trained network's map, (N, stages).

    Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018. The correlation's sign is left out: a map that is
    turned into its negative was not forgotten. A constant (blank) map of a random network has nothing left of the
    trained one's, 0; NaN where the trained network's map is constant.

    Args:
        model: the trained network; stays as it is.
        explain: a network to maps (N, H, W), of the same pictures and classes whatever the network, such as
            `lambda network: Explainer(network, "gradcam").maps(x, classes)`.
        stages: see `cascade`.
        seed: see `cascade`.
    """
    saliency = explain(model)
    lost = [_left(saliency, explain(network)).abs() for _, network in cascade(model, stages, seed=seed)]
    return 100 * torch.stack(lost, 1)


def cascade(model: nn.Module, stages: int = 4, *, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """Copies of the model whose weights are lost from the output on: cascading randomisation (Adebayo et al., 2018).

    Parameters are redrawn from a normal distribution of their own mean and standard deviation, so that activations
    keep their size, and normalisation its statistics. What has the same value throughout stays. First goes the last
    module with parameters alone (the classifier), then equal numbers of modules up to the first.

    Args:
        model: stays as it is.
        stages: how many copies, the last of which has lost everything.
        seed: of the drawing.

    Yields:
        The first module, in the network's order, that is random by now, and the network: one copy, ever more random.

    Raises:
        ValueError: for fewer than one stage.
    """
    if stages < 1:
        raise ValueError(f"`stages` is {stages}, but must be at least 1")
    model = copy.deepcopy(model)
    owners = [(name, m) for name, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None]
    owners.reverse()
    ends = [1 + round(stage * (len(owners) - 1) / max(1, stages - 1)) for stage in range(stages)]
    if stages == 1:
        ends = [len(owners)]
    generator, done = torch.Generator().manual_seed(seed), 0
    for end in ends:
        for _, module in owners[done:end]:
            for parameter in module.parameters(recurse=False):
                _redraw(parameter, generator)
        done = max(done, end)
        yield owners[done - 1][0] if owners else "", model


def _left(saliency: Tensor, other: Tensor) -> Tensor:
    """The rank correlation, (N,); 0 where the other map is constant, NaN where the first one is."""
    constant = (saliency == saliency[:, :1, :1]).all((1, 2))
    return rank_correlation(saliency, other).nan_to_num(nan=0).masked_fill(constant, torch.nan)


def _redraw(parameter: Tensor, generator: torch.Generator) -> None:
    values = parameter.detach().float()
    if values.numel() > 1 and values.std() > 0:
        noise = torch.randn(values.shape, generator=generator).to(values.device)
        with torch.no_grad():
            parameter.copy_(values.mean() + values.std() * noise)


def _mean_ranks(values: Tensor) -> Tensor:
    """Ranks from 0, equal values sharing the mean of theirs, (n,) float64."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(0).double() - (counts.double() + 1) / 2
    return ranks[inverse]
