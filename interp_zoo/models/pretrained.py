"""Weights for this package's architectures: safetensors only, and all of them or an error."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import timm
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from safetensors import SafetensorError
from timm.models import build_model_with_cfg, get_pretrained_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

WEIGHTS_FILE = "model.safetensors"
CARRIED = Path(__file__).parent / "weights"  # of the package itself; some of its tensors are of 16 bit
CONVERT = "pickled weights are not loaded, convert them with save_file(torch.load(path, weights_only=True), new_path)"


def carried(variant: str, folder: Path | None = None) -> dict[str, str]:
    """A cfg's entry for weights that the package itself (or a folder) carries; an empty one where it has none."""
    file = (folder or CARRIED) / f"{variant}.safetensors"
    return {"file": str(file)} if file.is_file() else {}


def build(
    make: Callable[..., M],
    variant: str,
    pretrained: bool,
    *,
    otherwise: str = "",
    rest: Callable[[], Mapping[str, Tensor]] | None = None,
    **kwargs: Any,
) -> M:
    """A model by timm's `build_model_with_cfg`, whose pretrained weights are all there or an error.

    Timm itself leaves weights random where a checkpoint of another architecture comes with another number of classes,
    falls back on pickled weights, and takes a file that the package carries before those that the caller names.

    Args:
        make: makes the model, from what timm's entry points are given.
        variant: the model's name.
        pretrained: whether trained weights are loaded.
        otherwise: what to do where there are none, for the error.
        rest: gives what the package's own file leaves out because it is at hand anyway: a backbone's weights.
        kwargs: as for `build_model_with_cfg`.

    Raises:
        OSError: if there are no trained weights, or they cannot be had.
        ValueError: if they are no safetensors, or not this architecture's.
    """
    kwargs["feature_cfg"] = {"feature_cls": "getter", **kwargs.get("feature_cfg", {})}
    if not pretrained:
        return build_model_with_cfg(make, variant, False, **kwargs)
    overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
    if overlay.get("hf_hub_id") or overlay.get("url"):
        overlay = {"file": None, **overlay}
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay).to_dict()
    source = _source(cfg)
    if not source:
        raise OSError(
            f'"{variant}" has no trained weights yet: train it with "accelerate launch recipes/train.py --model '
            f'{variant} --data-dir PICTURES --output RUN" and publish it with "interp-zoo push local-dir:RUN/best '
            f'--repo-id YOU/{variant}"{otherwise}'
        )
    _refuse_pickles(variant, cfg)
    own: Any = get_pretrained_cfg(variant)
    # Which layers timm may leave out or adapt is the architecture's word, not that of a cfg that came with weights.
    overlay = {**overlay, "first_conv": own.first_conv, "classifier": own.classifier, "custom_load": False}
    if cfg.get("hf_hub_id") == source:
        overlay["hf_hub_filename"] = WEIGHTS_FILE
    own_file = source == carried(variant).get("file")

    def filtered(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        lacks = rest is not None and own_file and not any(name.startswith("backbone.") for name in state)
        theirs = {f"backbone.{name}": value for name, value in rest().items()} if lacks and rest else {}
        return fitting(theirs | state, model)

    try:
        return build_model_with_cfg(
            make, variant, True, pretrained_filter_fn=filtered, pretrained_cfg_overlay=overlay, **kwargs
        )
    except (OSError, HTTPError) as error:
        raise OSError(f'"{variant}": its weights cannot be had from {source}: {one_line(error)}') from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(f'"{variant}": the weights from {source} cannot be loaded: {one_line(error)}') from error


def trained(name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model(name, pretrained=True)` of any of timm's models, from safetensors only.

    Raises:
        OSError: if the weights cannot be had, or cannot be loaded.
    """
    folder = name.removeprefix("local-dir:")
    if folder != name and not (Path(folder) / WEIGHTS_FILE).is_file():
        raise OSError(f'there is no {WEIGHTS_FILE} in "{folder}" ({CONVERT})')
    try:
        cfg = None if ":" in name else get_pretrained_cfg(name)
        at = str(cfg.file or cfg.hf_hub_id or cfg.url or "") if cfg else ""
        if at.endswith((".pth", ".pt", ".bin", ".tar")):
            raise ValueError(f"they are pickled, at {at}: give what timm.create_model makes of them")
        model: nn.Module = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={"hf_hub_filename": WEIGHTS_FILE}, **kwargs
        )
    except (OSError, HTTPError, SafetensorError, RuntimeError, ValueError) as error:
        raise OSError(one_line(error)) from error
    told: Any = model.pretrained_cfg
    if model.num_classes != told.get("num_classes") and "num_classes" not in kwargs:  # then timm leaves weights out
        raise OSError(
            f"they are of {told.get('num_classes')} classes, but their config makes {model.num_classes} of it"
        )
    return model


def _source(cfg: Mapping[str, Any]) -> str:
    """Where timm looks for a cfg's weights, in its order; nothing where there are none."""
    if cfg.get("source") == "hf-hub":
        return str(cfg["hf_hub_id"])
    if cfg.get("state_dict"):
        return "the given state dict"
    return str(cfg.get("file") or cfg.get("hf_hub_id") or cfg.get("url") or "")


def _refuse_pickles(variant: str, cfg: Mapping[str, Any]) -> None:
    source = _source(cfg)
    if cfg.get("source") == "local-dir":
        if not (Path(source) / WEIGHTS_FILE).is_file():
            raise ValueError(f'"{variant}": there is no {WEIGHTS_FILE} in "{source}" ({CONVERT})')
    elif source in (cfg.get("file"), cfg.get("url")) and not source.endswith(".safetensors"):
        raise ValueError(f'"{variant}": "{source}" is no safetensors file ({CONVERT})')


def fitting(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights as they are, if they are a model's, or timm can make them so.

    What timm does is adapting the first convolution to other channels, which it checks itself, and leaving out a
    classifier of another number of classes.

    Raises:
        ValueError: if they are not.
    """
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    free = {f"{name}.weight" for name in names_in(cfg["first_conv"])} & state.keys()
    if model.num_classes != cfg["num_classes"]:
        free |= {f"{name}.{part}" for name in names_in(cfg["classifier"]) for part in ("weight", "bias")}
    wrong = differences(state, model, free=free)
    if wrong:
        raise ValueError(wrong)
    return state


def differences(state: Mapping[str, Tensor], model: nn.Module, *, free: Collection[str] = ()) -> str:
    """What tells weights from a model's own, in a line; nothing if they fit.

    Args:
        state: the weights.
        model: the model.
        free: tensors that need not fit.
    """
    want = {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in free}
    have = {k: tuple(v.shape) for k, v in state.items() if k not in free}
    wrong = [k for k in want if want[k] != have.get(k)] + [k for k in have if k not in want]
    if not wrong:
        return ""
    first, many = wrong[0], "1 tensor differs" if len(wrong) == 1 else f"{len(wrong)} tensors differ"
    return f"{many}, {first} first ({have.get(first, 'missing')} for {want.get(first, 'none')})"


def difference_in_form(one: nn.Module, other: nn.Module) -> str:
    """The first line in which two networks' modules differ (strides, paddings, activations); nothing if they agree."""
    lines = zip(str(one).splitlines(), str(other).splitlines(), strict=False)
    return next((f"{a.strip()} for {b.strip()}" for a, b in lines if a != b), "")


def names_in(names: Any) -> tuple[str, ...]:
    """A cfg's entry of one layer or several, as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def one_line(error: Exception) -> str:
    """An error's text on one line, and no more of it than its reader needs."""
    return textwrap.shorten(str(error) or type(error).__name__, width=400, placeholder=" ...")
