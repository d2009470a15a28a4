"""Interpretable gradients: a penalty that draws a network's input gradient near its guided one.

Torres, Zhang, Sicre, Ayache and Avrithis, "A learning paradigm for interpretable gradients", VISAPP 2024:

    L = L_C + lambda L_R        L_R = 1/n sum_i E(dx_i, d_G x_i)

where dx_i is the gradient at picture i, and d_G x_i the same by guided backpropagation, which lets only positive
gradients through each ReLU. The network itself is not changed: what listens to its ReLUs is a mode of torch's function
calls around the forward pass, and hooks on the tensors of that one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interp_zoo.models.rectifiers import Rectifiers
from interp_zoo.training.twice import TwiceDifferentiated


def cosine_error(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos(a, b) a picture, (N,) in [0, 2], of gradients (N, ...); 1, a constant, where one of them is zero."""
    # Pictures that are known well have gradients near zero: only their direction counts.
    sizes = [g.detach().abs().amax(1, keepdim=True) for g in _flat(a, b)]
    a, b = (g / size.where(size > 0, 1) for g, size in zip(_flat(a, b), sizes, strict=True))
    defined = torch.cat(sizes, 1).amin(1) > 0
    return 1 - F.cosine_similarity(a, b, dim=1, eps=1e-12).where(defined, 0)


def mae_error(a: Tensor, b: Tensor) -> Tensor:
    """The mean absolute difference a picture, (N,), of gradients (N, ...)."""
    a, b = _flat(a, b)
    return (a - b).abs().mean(1)


def mse_error(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared difference a picture, (N,), of gradients (N, ...)."""
    a, b = _flat(a, b)
    return (a - b).square().mean(1)


def histogram_error(a: Tensor, b: Tensor) -> Tensor:
    """1 - the intersection of |a| and |b| as histograms, (N,) in [0, 1], of gradients (N, ...); each sums to 1."""
    a, b = (g.abs() / g.abs().sum(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny) for g in _flat(a, b))
    return 1 - torch.minimum(a, b).sum(1)


def _flat(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a.flatten(1), b.flatten(1)


ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_error,
    "mae": mae_error,
    "mse": mse_error,
    "histogram": histogram_error,
}


@dataclass(frozen=True)
class Penalty:
    """How far the input gradient is from the guided one, and what that costs.

    The paper's figures are of "cosine". What it leaves open is an option: which gradient, and whether the guided one is
    a constant.

    Args:
        weight: lambda. The paper has 7.5e-3 for ResNet-18, and 1e-3 for MobileNet-V2.
        error: E: "cosine", "mae", "mse" or "histogram" (intersection).
        of: what is differentiated: the "loss" or the target's "logit". Not the same when guided: the loss' gradient at
            the target's logit is negative, the logit's own is positive.
        detached: whether the guided gradient is a constant, so that the plain one alone is drawn.
        every: penalise each so-manieth step alone, so many times as much (lazy regularisation).

    Raises:
        ValueError: if an argument is not one of these.
    """

    weight: float
    error: str = "cosine"
    of: str = "loss"
    detached: bool = True
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"`penalty` is {self.weight}, but must be 0 or more")
        if self.error not in ERRORS:
            raise ValueError(f'`penalty_error` is "{self.error}", but must be one of {", ".join(ERRORS)}')
        if self.of not in ("loss", "logit"):
            raise ValueError(f'`penalty_of` is "{self.of}", but must be "loss" or "logit"')
        if self.every < 1:
            raise ValueError(f"`penalty_every` is {self.every}, but must be at least 1")

    def weight_at(self, step: int) -> float:
        """The penalty's weight in a step of training: 0 where it need not be computed."""
        return self.weight * self.every if step % self.every == 0 else 0.0

    def losses(
        self,
        network: Callable[[Tensor], Tensor],
        x: Tensor,
        target: Tensor,
        criterion: Callable[[Tensor, Tensor], Tensor],
        *,
        scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """L_C and L_R, from one forward pass and two backward passes to the pictures.

        Args:
            network: gives logits (B, classes).
            x: pictures (B, channels, H, W), as the network takes them.
            target: classes (B,), or their shares (B, classes).
            criterion: L_C, the mean over the batch.
            scale: multiplies what is differentiated, so that gradients in float16 do not vanish; the result is without.

        Raises:
            ValueError: if the network has activations other than ReLU and ReLU6.
        """
        x = x.detach().requires_grad_()
        listening, twice = Rectifiers(), TwiceDifferentiated()
        with torch.enable_grad(), twice, listening:
            logits = _wide(network(x))
        loss = criterion(logits, target)
        # Each picture's own gradient, whatever the size of the batch.
        score = loss * len(x) if self.of == "loss" else _logit(logits, target)
        with listening.guiding(), twice.sparing_weights():
            (guided,) = torch.autograd.grad(score * scale, x, retain_graph=True, create_graph=not self.detached)
        with twice.sparing_weights():
            (plain,) = torch.autograd.grad(score * scale, x, create_graph=True)
        with torch.autocast(x.device.type, enabled=False):
            return loss, ERRORS[self.error](_wide(plain) / scale, _wide(guided) / scale).mean()


def _logit(logits: Tensor, target: Tensor) -> Tensor:
    """The targets' logits, summed over the batch; of shares, weighted by them."""
    if target.ndim == 1:
        return logits.gather(1, target[:, None]).sum()
    return (logits * target).sum()


def _wide(x: Tensor) -> Tensor:
    """In float32, if it is in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
