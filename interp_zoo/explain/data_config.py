"""What a model says about the pictures that it takes: number of channels, size, crop, mean and std."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.data import resolve_model_data_config
from torch import nn

from interp_zoo.explain.wrappers import networks, normalises
from interp_zoo.told import warn
from interp_zoo.words import nearest

KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def input_of(model: nn.Module, data_config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A model's input, in timm's words: `input_size` (channels, H, W), `interpolation`, `mean`, `std`, `crop_pct`,
    `crop_mode`.

    The timm network in it is asked, then its layers, then the config of Hugging Face's models; what none of them says
    is as for most ImageNet models. A model that normalises in a module of its own gets pixels in [0, 1].

    Args:
        model: the network.
        data_config: what is to be otherwise.

    Raises:
        TypeError: if `data_config` is no mapping, or a value of another kind.
        ValueError: if it has unknown keys, or values that cannot be.
    """
    given = _checked(data_config)
    found = networks(model)
    configs: list[dict[str, Any]] = [resolve_model_data_config(network) | given for network in found or [model]]
    config = configs[0]
    for other in configs[1:]:  # as a student and its teacher are
        if any(other[key] != config[key] for key in ("input_size", "mean", "std")):
            raise ValueError(
                f"`model` holds {len(found)} timm networks with different inputs: say which input it takes with "
                "`data_config`, or give the network itself"
            )
    network = found[0] if found else model
    channels = config["input_size"][0] if "input_size" in given else _channels(network, config["input_size"][0])
    if "input_size" not in given:
        config["input_size"] = (channels, *_size(network, config["input_size"][1:]))
    if "mean" not in given and "std" not in given:
        if normalises(model):
            config["mean"], config["std"] = (0.0,), (1.0,)
        elif _is_hugging_face(network):
            warn(
                f"`model` ({type(network).__name__}) does not say by which mean and std its pictures are normalised, "
                "and ImageNet's are taken: give its image processor's, "
                "data_config={'mean': processor.image_mean, 'std': processor.image_std}"
            )
    for key in ("mean", "std"):
        if key in given and len(given[key]) not in (1, channels):
            raise ValueError(
                f"`data_config` has {len(given[key])} values of {key}, but the model takes {channels} channels"
            )
    return config


def _checked(data_config: Any) -> dict[str, Any]:
    if data_config is None:
        return {}
    if not isinstance(data_config, Mapping):
        raise TypeError(f"`data_config` must be a dict, not {type(data_config).__name__}")
    for key in data_config:
        if key not in KEYS:
            raise ValueError(f'`data_config` has no "{key}"{nearest(str(key), KEYS)}; it takes {", ".join(KEYS)}')
    found = dict(data_config)
    size = found.get("input_size")
    if size is not None and not (_is_numbers(size, int) and len(size) == 3 and min(size) > 0):
        raise ValueError(f"`data_config` has input_size {size}, but it must be (channels, height, width)")
    for key in ("mean", "std"):
        if key in found and not (_is_numbers(found[key], int | float) and len(found[key])):
            raise ValueError(f"`data_config` has {key} {found[key]}, but it must be a number for each channel")
    if min(found.get("std", [1.0])) <= 0:
        raise ValueError(f"`data_config` has std {found['std']}, but each must be above 0")
    return found


def _is_numbers(value: Any, kind: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)


def _is_hugging_face(model: nn.Module) -> bool:
    return hasattr(getattr(model, "config", None), "model_type")


def _channels(model: nn.Module, default: int) -> int:
    """How many channels the model takes: its own word, else its first convolution's, else its cfg's."""
    told = getattr(model, "in_chans", None)
    if isinstance(told, int):
        return told
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.groups == 1 and first.in_channels <= 4:
        return first.in_channels
    return int(default)


def _size(model: nn.Module, default: Sequence[int]) -> tuple[int, int]:
    """The height and width that the model was built for, where it says so, else its cfg's."""
    config = getattr(model, "config", None) if _is_hugging_face(model) else None
    told = (
        getattr(getattr(model, "patch_embed", None), "img_size", None),
        getattr(model, "img_size", None),
        getattr(config, "image_size", None),
    )
    for size in told:
        if isinstance(size, int) and size > 0:
            return size, size
        if isinstance(size, tuple | list) and len(size) == 2:
            return int(size[0]), int(size[1])
    return int(default[0]), int(default[1])
