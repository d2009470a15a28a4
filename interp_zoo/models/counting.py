"""What a network costs: its parameters, and the operations of a forward pass."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from interp_zoo.models.wrapping import input_shape
from interp_zoo.untouched import untouched


def parameters(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module) -> int:
    """Floating point operations of one picture's forward pass, a multiplication and an addition counted as two.

    Matrix products and convolutions are counted, by torch's own counter; activations and norms are not.
    """
    parameter = next(model.parameters())
    x = torch.zeros(1, *input_shape(model), device=parameter.device, dtype=parameter.dtype)
    with untouched(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops())


def architecture(name: str, **kwargs: Any) -> nn.Module:
    """A timm architecture by name, without memory for its weights."""
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, **kwargs)
    return model
