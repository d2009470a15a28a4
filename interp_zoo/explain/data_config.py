"""What a model takes: number of channels, size, crop, mean and std of its pictures.

A network of timm says so itself. A module of the user's around one may normalise pictures before it, and in many ways,
so that one pass is made as far as the network's first layer: what arrives there tells what the module does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.data.transforms import str_to_interp_mode
from torch import Tensor, nn

from interp_zoo.explain.wrappers import hugging_face, networks
from interp_zoo.told import warn
from interp_zoo.untouched import untouched
from interp_zoo.words import nearest

KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
_CROP_MODES = ("center", "squash", "border")


def input_of(model: nn.Module, data_config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A model's input, in timm's words: what of `KEYS`.

    The timm network in it is asked, then its layers, then the config of Hugging Face's models; what none of them says
    is as for most ImageNet models. Mean and std are such that the network in it gets what it was trained with: where
    the model normalises by itself, it gets pixels in [0, 1].

    Args:
        model: the network.
        data_config: what is to be otherwise.

    Raises:
        TypeError: if `data_config` is no mapping.
        ValueError: if it has unknown keys, or values that cannot be; or if the model holds networks that take
            different pictures.
    """
    given = _checked(data_config)
    found = networks(model)
    config = _agreed(found or [model], given)
    network = found[0] if found else model
    channels = config["input_size"][0] if "input_size" in given else _channels(network, config["input_size"][0])
    if "input_size" not in given:
        config["input_size"] = (
            channels,
            *_size(network, None if found else hugging_face(model), config["input_size"][1:]),
        )
    takes = f"but the model takes {_channels(network, channels)} channels"
    if channels != _channels(network, channels):
        raise ValueError(f"`data_config` has {channels} channel{'s' * (channels != 1)}, {takes}")
    for key in ("mean", "std"):
        if key in given and len(given[key]) not in (1, channels):
            raise ValueError(f"`data_config` has {len(given[key])} values of {key}, {takes}")
    if network is not model or not found:
        _reach_the_network(config, model, found, given)
    return config


def _agreed(found: Sequence[nn.Module], given: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the first of several networks (a student and its teacher), where the others take the same."""
    configs: list[dict[str, Any]] = [resolve_model_data_config(network) | given for network in found]
    first, *others = configs
    if any(other[key] != first[key] for other in others for key in ("input_size", "mean", "std")):
        raise ValueError(
            f"`model` holds {len(found)} timm networks with different inputs: say which input it takes with "
            "`data_config`, or give the network itself"
        )
    return first


def _reach_the_network(
    config: dict[str, Any], model: nn.Module, found: Sequence[nn.Module], given: Mapping[str, Any]
) -> None:
    """Changes mean and std so that what a model makes of its pictures is what the network in it wants."""
    if "mean" in given or "std" in given:
        return
    first = [m for network in found for m in network.modules()] or [
        m for m in model.modules() if isinstance(m, nn.Conv2d)
    ]
    change = _change_before(first, model, config["input_size"])
    if change is None:
        warn(
            "`model` changes its pictures in ways that cannot be told before its network gets them: say by which mean "
            "and std they are normalised for it with `data_config`"
        )
    elif (change[0] - 1).abs().max() > 1e-4 or change[1].abs().max() > 1e-4:
        factor, shift = change
        if found:
            mean, std = (torch.tensor(config[key], dtype=torch.float64) for key in ("mean", "std"))
            config["mean"], config["std"] = tuple((mean + shift * std).tolist()), tuple((std * factor).tolist())
        else:
            config["mean"], config["std"] = (0.0,), (1.0,)
    elif not found and (its := hugging_face(model)) is not None:
        warn(
            f"`model` ({type(its).__name__}) does not say by which mean and std its pictures are normalised, and "
            "ImageNet's are taken: give its image processor's, "
            "data_config={'mean': processor.image_mean, 'std': processor.image_std}"
        )


class _ArrivedError(Exception):
    """The pictures are where they were wanted."""


def _change_before(
    layers: Iterable[nn.Module], model: nn.Module, size: tuple[int, int, int]
) -> tuple[Tensor, Tensor] | None:
    """The factor and the shift, one a channel, that pictures have got when the first of some layers sees them.

    Neither (1 and 0) where no layer sees any; None where it is no such change.
    """
    parameter = next(model.parameters(), torch.empty(0))
    x = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)).to(parameter.device, parameter.dtype)
    seen: list[Tensor] = []

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pictures = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.ndim == 4]
        if pictures:
            seen.append(pictures[0].detach())
            raise _ArrivedError

    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        stack.enter_context(torch.no_grad())
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(note, prepend=True, with_kwargs=True).remove)
        stack.enter_context(suppress(Exception))  # arrived, or the model cannot take it: told where it is explained
        model(x)
    if not seen:
        return torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    if seen[0].shape != x.shape:
        return None
    before, after = (t.cpu().double().transpose(0, 1).flatten(1) for t in (x, seen[0]))
    middle, spread = before.mean(1, keepdim=True), before.var(1, keepdim=True, correction=0)
    factor = ((before - middle) * after).mean(1, keepdim=True) / spread
    shift = after.mean(1, keepdim=True) - factor * middle
    tolerance = (1e-3 if x.dtype.itemsize > 2 else 3e-2) * after.std()
    if bool((factor <= 0).any()) or bool(((after - factor * before - shift).abs() > tolerance).any()):
        return None
    return factor[:, 0], shift[:, 0]


def _checked(data_config: Any) -> dict[str, Any]:
    if data_config is None:
        return {}
    if not isinstance(data_config, Mapping):
        raise TypeError(f"`data_config` must be a dict, not {type(data_config).__name__}")
    for key in data_config:
        if key not in KEYS:
            raise ValueError(f'`data_config` has no "{key}"{nearest(str(key), KEYS)}; it takes {", ".join(KEYS)}')
    found = dict(data_config)
    for key, value in found.items():
        wanted = _REFUSES[key](value)
        if wanted:
            raise ValueError(f"`data_config` has {key} {value!r}, but it must be {wanted}")
        if key in ("mean", "std"):
            found[key] = tuple(float(v) for v in value)
    return found


def _numbers(value: Any) -> list[float]:
    """The finite numbers in a sequence, none if anything else is in it."""
    try:
        found = [float(v) for v in value]
    except (TypeError, ValueError):
        return []
    return found if all(map(math.isfinite, found)) and not isinstance(value, str) else []


def _refuses_size(value: Any) -> str:
    right = isinstance(value, tuple | list) and len(value) == 3 and all(type(v) is int and v > 0 for v in value)
    return "" if right else "(channels, height, width)"


def _refuses_std(value: Any) -> str:
    return "" if (found := _numbers(value)) and min(found) > 0 else "a number above 0 for each channel"


def _refuses_interpolation(value: Any) -> str:
    try:
        str_to_interp_mode(value)
    except (KeyError, TypeError):
        return "nearest, bilinear, bicubic, box, hamming or lanczos"
    return ""


def _refuses_crop(value: Any) -> str:
    right = isinstance(value, int | float) and not isinstance(value, bool) and 0.01 <= value <= 2
    return "" if right else "a share of the picture, such as 0.875"


_REFUSES: dict[str, Callable[[Any], str]] = {
    "input_size": _refuses_size,
    "mean": lambda value: "" if _numbers(value) else "a number for each channel",
    "std": _refuses_std,
    "interpolation": _refuses_interpolation,
    "crop_pct": _refuses_crop,
    "crop_mode": lambda value: "" if value in _CROP_MODES else "center, squash or border",
}


def _channels(model: nn.Module, default: int) -> int:
    """How many channels the model takes: its own word, else its first convolution's, else its cfg's."""
    told = getattr(model, "in_chans", None)
    if isinstance(told, int):
        return told
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.groups == 1 and first.in_channels <= 4:
        return first.in_channels
    return int(default)


def _size(network: nn.Module, other: nn.Module | None, default: Sequence[int]) -> tuple[int, int]:
    """The height and width that a network was built for, where it or Hugging Face's config says so, else its cfg's."""
    told = (
        getattr(getattr(network, "patch_embed", None), "img_size", None),
        getattr(network, "img_size", None),
        getattr(getattr(other, "config", None), "image_size", None),
    )
    for size in told:
        if isinstance(size, int) and size > 0:
            return size, size
        if isinstance(size, tuple | list) and len(size) == 2:
            return int(size[0]), int(size[1])
    return int(default[0]), int(default[1])
