"""The network in what users hand over: out of its wrappers, checked, and what it says about its own input.

Wrappers of torch, timm and PEFT's kind forward to the network; a module of the user's around it (a LightningModule, a
normalisation before it) is part of the model, and is asked through the timm network in it.
"""

from __future__ import annotations

import inspect

import torch
from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from interp_zoo import memory
from interp_zoo.told import warn

_TRANSPARENT = (
    nn.DataParallel,
    nn.parallel.DistributedDataParallel,
    ModelEma,
    ModelEmaV2,
    ModelEmaV3,
    AveragedModel,
)
_GATHER = "load its full state dict into a model of its own on one device, and give that"
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.quantizable")


def unwrapped(model: nn.Module) -> nn.Module:
    """The network in torch's and timm's own wrappers; a wrapper of the user's is part of the model."""
    while True:
        if isinstance(model, _TRANSPARENT):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = inner
        else:
            return model


def admitted(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """The network that is explained, out of its wrapper.

    Raises:
        TypeError: if it is no module.
        ValueError: if it is TorchScript, quantised, sharded, without values, spread over devices, on another device
            than the one asked for, or made under inference mode.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch module or a timm model's name, not {type(model).__name__}")
    model = unwrapped(model)
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError("`model` is TorchScript, which cannot be cut: give the Python model that it was made from")
        if type(module).__module__.startswith(_QUANTISED):
            raise ValueError(
                f"`model` is quantised ({type(module).__name__}), which has no gradients: "
                "give the model that it was made from"
            )
        if type(module).__name__ == "FullyShardedDataParallel":  # by name: importing it takes long
            raise ValueError(f"`model` is sharded (FSDP): {_GATHER}")
    tensors = [*model.parameters(), *model.buffers()]
    if any(type(t.data).__name__ == "DTensor" for t in tensors):
        raise ValueError(f"`model` is sharded (DTensor): {_GATHER}")
    if any(t.is_meta for t in tensors):
        raise ValueError("`model` is on the meta device, without values: load its weights first")
    devices = list(dict.fromkeys(str(t.device) for t in tensors))
    if len(devices) > 1:
        raise ValueError(f"`model` is spread over {', '.join(devices)}: move it to one device with model.to(...) first")
    parameter = next(model.parameters(), None)
    if parameter is not None and device is not None and _elsewhere(str(device), parameter.device):
        raise ValueError(
            f"`device` is {device}, but the model is on {parameter.device}: leave it out, or move the model there"
        )
    if parameter is not None and parameter.is_inference():
        raise ValueError(
            "`model` was made under torch.inference_mode, which forbids gradients for good: make it outside"
        )
    return model


def _elsewhere(asked: str, there: torch.device) -> bool:
    kind, _, index = asked.partition(":")
    return kind != there.type or (bool(index) and there.index is not None and index != str(there.index))


def check_size(model: nn.Module, x: Tensor) -> None:
    """Raises ValueError if a model, left alone, cannot take pictures of the size of `x` (B, channels, H, W)."""
    try:
        with torch.no_grad():
            model(x)
    except RuntimeError as error:
        if memory.ran_out(error) or not any(word in str(error) for word in ("size", "shape", "dimension")):
            return  # the model's own trouble
        size = " x ".join(map(str, x.shape[2:]))
        raise ValueError(
            f"`model` cannot take pictures of {size} ({' '.join(str(error).split())}): if it was built for another "
            'size, say so with data_config={"input_size": (channels, H, W)}'
        ) from error


def check_inputs(model: nn.Module) -> None:
    """Raises ValueError if a model takes more than pictures."""
    parameters = inspect.signature(model.forward).parameters
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in rest]
    if "pixel_values" in parameters and next(iter(parameters)) != "pixel_values":  # Hugging Face's of text and pictures
        needed = list(parameters)[:3]
    if len(needed) > 1:
        raise ValueError(
            f"`model` takes several inputs ({', '.join(needed)}), but only pictures are explained: wrap it so that it "
            "takes the pictures alone (captum explains several)"
        )


def networks(model: nn.Module) -> list[nn.Module]:
    """The timm networks in a model, none within another: what has a `pretrained_cfg`, maybe the model itself."""
    model = unwrapped(model)
    if getattr(model, "pretrained_cfg", None):
        return [model]
    return [network for child in model.children() for network in networks(child)]


def hugging_face(model: nn.Module) -> nn.Module | None:
    """The outermost of Hugging Face's classifiers in a model, maybe the model itself."""
    config = getattr(unwrapped(model), "config", None)
    if isinstance(getattr(config, "model_type", None), str) and hasattr(config, "num_labels"):
        return model
    return next((found for child in model.children() if (found := hugging_face(child)) is not None), None)


def warn_of_probabilities(logits: Tensor, *, multi_label: bool) -> None:
    """Warns where what a model returns are probabilities (B, classes), not logits.

    With several labels, values in [0, 1] tell; else the last operation does, where `logits` have their graph: a
    single logit, or ten, may be in [0, 1] by chance.
    """
    if not bool(((logits >= 0) & (logits <= 1)).all()):
        return
    last = logits.grad_fn
    while last is not None and last.name().startswith(("ToCopy", "Alias", "Clone")):
        last = last.next_functions[0][0]
    sigmoid = last is not None and last.name().startswith("Sigmoid")
    if logits.shape[1] > 1 and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
        warn(
            "`model` seems to end in a softmax (its outputs sum to 1): explanations are of logits, which gradients of "
            "probabilities flatten; give the model without its softmax"
        )
    elif sigmoid or (multi_label and logits.shape[1] > 1):
        warn(
            "`model` seems to end in a sigmoid (its outputs are in [0, 1]), but explanations are of logits: the class "
            "and its probability are another's; give the model without its sigmoid"
        )
