"""Put a trained network's weights into the package, where `timm.create_model(NAME, pretrained=True)` finds them.

    python recipes/release.py runs/gr_resnet18/best

writes interp_zoo/models/weights/NAME.safetensors, NAME being the architecture, its floating-point tensors of 16 bit;
and beside it NAME.example.safetensors, a picture and what the network makes of it, by which a test tells whether it is
still the same network. A CA-Stream's backbone is left out where the package, or the demo's, has the very same
weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from interp_zoo.models import CAStream
from interp_zoo.models.ca_zoo import shared_weights
from interp_zoo.models.pretrained import CARRIED, WEIGHTS_FILE, differences


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors as float16.

    Raises:
        ValueError: if a number is too large for it.
    """
    small = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    lost = [k for k, v in small.items() if not bool(v.isfinite().all())]
    if lost:
        raise ValueError(f"{lost[0]} holds numbers that are not finite in 16 bit: release it with 32")
    return small


def shared(name: str, state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors of a stream's backbone that are at hand anyway, by the folder or by the demo's package; else none.

    Raises:
        ValueError: if what is at hand are other weights.
    """
    try:
        theirs = shared_weights(name, folder)
    except ImportError:
        return {}
    for k, v in halved(theirs).items():
        if not torch.equal(state[f"backbone.{k}"], v):
            raise ValueError(
                f"backbone.{k} is not that of the backbone which the stream is to share: release that first"
            )
    return {f"backbone.{k}": v for k, v in theirs.items()}


def picture(model: nn.Module) -> Tensor:
    """A made-up picture as the network takes it, in 16 bit: smooth colours, seeded."""
    cfg: Any = model.pretrained_cfg
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
    return ((interpolate(coarse, cfg["input_size"][1:], mode="bicubic").clamp(0, 1) - mean) / std).half()


def release(run: Path, folder: Path) -> list[Path]:
    """Writes both files, and returns where they are.

    Args:
        run: a folder with weights and config, such as a training run's `best`.
        folder: where to.
    """
    model: Any = timm.create_model(f"local-dir:{run}", pretrained=True)
    name = model.pretrained_cfg["architecture"]
    state = halved(load_file(run / WEIGHTS_FILE))
    if wrong := differences(state, model):
        raise ValueError(f'"{run}" is no "{name}": {wrong}')
    theirs = shared(name, state, folder) if isinstance(model, CAStream) else {}
    model.load_state_dict(state | theirs)  # as its users will have it
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.safetensors", folder / f"{name}.example.safetensors"]
    save_file({k: v for k, v in state.items() if k not in theirs}, files[0])
    x = picture(model)
    with torch.no_grad():
        save_file({"input": x, "logits": model.eval()(x.float())}, files[1])
    return files


def main(argv: list[str] | None = None) -> None:
    """Releases, and says what it wrote."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a training run's folder best, or any other that is a local-dir: name")
    parser.add_argument("--folder", type=Path, default=CARRIED, help="where to (the package's)")
    args = parser.parse_args(argv)
    try:
        files = release(args.run, args.folder)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    for file in files:
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
