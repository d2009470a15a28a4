"""ReLUs that are listened to: guided backpropagation without a change to the network.

Springenberg, Dosovitskiy, Brox and Riedmiller, "Striving for simplicity", ICLR workshop 2015, arXiv 1412.6806: in the
backward pass a ReLU lets through what is positive, where its input was positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from interp_zoo.models.wrapping import input_shape
from interp_zoo.untouched import untouched

_RELU = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6}
_NAMES = """
elu celu selu gelu silu mish hardswish leaky_relu prelu rrelu softplus glu softsign logsigmoid hardshrink softshrink
tanhshrink threshold tanh
"""
_OTHERS = {
    getattr(owner, name + ending)
    for owner in (F, torch, Tensor)
    for name in _NAMES.split()
    for ending in ("", "_")
    if hasattr(owner, name + ending)
}
_BY_HAND = {"Swish", "QuickGELU", "QuickGELU2"}  # timm's that are written with a sigmoid, which gates may use, too


class Unguided(ValueError):
    """A network for which guided backpropagation is not defined.

    Attributes:
        found: what it has in place of ReLUs.
    """

    def __init__(self, found: str) -> None:
        super().__init__(_refusal(found))
        self.found = found


class Rectifiers(TorchFunctionMode):
    """Listens to the ReLUs and ReLU6s of the forward passes that are run inside it.

    Raises:
        Unguided: in such a pass, at another activation (gates by sigmoid or softmax are none).
    """

    def __init__(self) -> None:
        super().__init__()
        self._guiding = False
        self.heard = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs a function of torch's, and puts a hook on what a rectifier returns."""
        kwargs = kwargs or {}
        rectifies = func in _RELU
        if func in (F.hardtanh, F.hardtanh_):
            ends = dict(zip(("min_val", "max_val"), args[1:3], strict=False)) | kwargs
            rectifies = (ends.get("min_val", -1.0), ends.get("max_val", 1.0)) == (0.0, 6.0)
            if not rectifies:
                raise Unguided("hardtanh")
        if func in _OTHERS:
            raise Unguided(func.__name__)
        result = func(*args, **kwargs)
        if rectifies:
            self.heard += 1
            if result.requires_grad:
                result.register_hook(self._clip)
        return result

    def _clip(self, gradient: Tensor) -> Tensor | None:
        return gradient.relu() if self._guiding else None

    def check(self, model: nn.Module) -> None:
        """Whether guided backpropagation is defined for a network that was run inside.

        Raises:
            Unguided: if it has no ReLU, or activations that cannot be heard.
        """
        for module in model.modules():
            if type(module).__name__ in _BY_HAND:
                raise Unguided(type(module).__name__)
        if not self.heard:
            raise Unguided("no ReLU at all")

    @contextmanager
    def guiding(self) -> Iterator[None]:
        """Backward passes in here are guided ones."""
        self._guiding = True
        try:
            yield
        finally:
            self._guiding = False


def check_activations(model: nn.Module) -> None:
    """Whether guided backpropagation is defined for a network; it is run once, on one picture.

    Raises:
        Unguided: if it has activations other than ReLU and ReLU6, or none of these.
    """
    parameter = next(model.parameters())
    listening = Rectifiers()
    with untouched(model), torch.no_grad(), listening:
        model.eval()(torch.zeros(1, *input_shape(model), device=parameter.device, dtype=parameter.dtype))
    listening.check(model)


def _refusal(found: str) -> str:
    return (
        f"`model` has {found}, but guided backpropagation is defined for ReLU and ReLU6 alone: take another "
        'network, such as "resnet18" or "mobilenetv2_100"'
    )
