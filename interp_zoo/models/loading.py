"""Models by name, with weights from safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import is_model, list_models as _timm_models, split_model_name_tag
from torch import nn

from interp_zoo.models.pretrained import CONVERT, differences, names_in, trained
from interp_zoo.words import nearest

_OURS = "interp_zoo.models"


def list_models() -> list[str]:
    """The names of this package's own timm architectures, in alphabetical order."""
    return sorted(name for name in _timm_models() if timm.models.model_entrypoint(name).__module__.startswith(_OURS))


def whereabouts(name: str) -> tuple[str, str]:
    """The default tag of one of this package's architectures, and where its weights are."""
    cfg = _cfg(name)
    if cfg.file:
        return cfg.tag or "", "in this package"
    return cfg.tag or "", cfg.hf_hub_id or cfg.origin_url or "none yet"


def create(name: str, *, checkpoint: str | Path | None = None, **kwargs: Any) -> nn.Module:
    """A timm model by name, in eval mode: its pretrained weights, or those of a checkpoint.

    Args:
        name: as `timm.create_model` takes it, "hf-hub:..." and "local-dir:..." included.
        checkpoint: a safetensors file with the model's state dict; the numbers of classes and of channels are
            read off it.
        kwargs: more for `timm.create_model`.

    Raises:
        ValueError: if timm knows no such model, it has no pretrained weights, or the checkpoint is no safetensors file
            or one of another architecture.
        FileNotFoundError: if the checkpoint does not exist.
        OSError: if the pretrained weights cannot be downloaded.
    """
    check_name(name)
    cfg = None if ":" in name else _cfg(name)
    if checkpoint is None and cfg is not None and not cfg.has_weights and not _is_ours(name):
        raise ValueError(f'`model` "{name}" has no pretrained weights in timm: give `checkpoint`, or a model instance')
    if checkpoint is None:
        return _pretrained(name, **kwargs).eval()
    return _from_checkpoint(name, Path(checkpoint), **kwargs).eval()


def check_name(name: str) -> None:
    """Refuses a name that timm does not know, and tells the nearest ones."""
    if ":" not in name and not is_model(split_model_name_tag(name)[0]):
        raise ValueError(
            f'`model` "{name}" is unknown to timm{nearest(name, _timm_models())}; timm.list_models() lists all'
        )


def _is_ours(name: str) -> bool:
    return timm.models.model_entrypoint(split_model_name_tag(name)[0]).__module__.startswith(_OURS)


def _cfg(name: str) -> Any:
    """The pretrained_cfg of a name whose architecture exists, None if it has none."""
    try:
        return timm.models.get_pretrained_cfg(name)
    except RuntimeError:
        found = ", ".join(_timm_models(f"{split_model_name_tag(name)[0]}.*", pretrained=True)) or "none"
        raise ValueError(f'`model` "{name}" has a tag that timm does not know; it has: {found}') from None


def place(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """Puts a model on a device, by default the CPU.

    Raises:
        ValueError: if there is no such device.
    """
    try:
        return model.to(device or "cpu")
    except (RuntimeError, AssertionError) as error:  # unknown, or torch is built without it
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f'`device` is "{device}", which torch cannot use: {why}') from None


def _pretrained(name: str, **kwargs: Any) -> nn.Module:
    try:
        return trained(name, **kwargs)
    except OSError as error:
        raise OSError(
            f'`model` "{name}": its pretrained weights cannot be had ({error}); give `checkpoint`, a local-dir: name, '
            'or a model instance; "demo_efficientnet_lite0" needs no network'
        ) from error


def _from_checkpoint(name: str, path: Path, **kwargs: Any) -> nn.Module:
    state = _read(path)
    cfg: Any = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    sizes: dict[str, Any] = {}
    for layer in names_in(cfg.classifier)[:1]:
        if f"{layer}.weight" in state:
            sizes["num_classes"] = len(state[f"{layer}.weight"])
    model: nn.Module = timm.create_model(name, pretrained=False, **kwargs | sizes)
    for layer in names_in(cfg.first_conv)[:1]:
        own, given = model.state_dict().get(f"{layer}.weight"), state.get(f"{layer}.weight")
        if own is not None and given is not None and own.ndim == given.ndim == 4 and own.shape[1] != given.shape[1]:
            # not the shape alone: some stems fold a patch of pixels into their channels before they convolve
            sizes["in_chans"] = max(1, given.shape[1] * cfg.input_size[0] // own.shape[1])
            model = timm.create_model(name, pretrained=False, **kwargs | sizes)
    wrong = differences(state, model)
    if wrong:
        raise ValueError(f'`checkpoint` "{path}" does not fit the model "{name}": {wrong}')
    model.load_state_dict(state)
    return model


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f'`checkpoint` "{path}" does not exist')
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'`checkpoint` "{path}" is no safetensors file: {error} ({CONVERT})') from None
