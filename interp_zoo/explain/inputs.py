"""From whatever users call a picture to pixels in [0, 1] at the model's input size, and the way back to the picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

from interp_zoo.explain.anatomy import model_dtype
from interp_zoo.explain.data_config import input_of
from interp_zoo.explain.decoding import decode, download, from_array, is_url, open_picture, upright
from interp_zoo.told import warn

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif")


@dataclass
class Picture:
    """One picture as the model takes it.

    Attributes:
        pixels: (channels, H, W), float, in [0, 1] for pictures (whatever mean and std make of it for float tensors).
        name: file name, URL or "picture 3".
        original: the picture before resizing and cropping, or None for float tensors.
    """

    pixels: Tensor
    name: str
    original: Image.Image | None = None


class _Geometry:
    """The resizing and cropping of timm's evaluation transform, without its conversion to a tensor."""

    def __init__(self, **config: Any) -> None:
        self._steps = create_transform(**config, use_prefetcher=True).transforms[:-1]

    def __call__(self, image: Image.Image) -> Image.Image:
        for step in self._steps:
            image = step(image)
        return image


class Preprocess:
    """A model's own input: size, crop, mean and std, as timm's `pretrained_cfg` states them.

    Args:
        model: the network.
        data_config: what of it is otherwise, see `interp_zoo.explain.data_config.input_of`.

    Attributes:
        channels: how many channels the model takes.
        size: the height and width of pictures after the transform.
        mean: (channels,).
        std: (channels,).
    """

    def __init__(self, model: nn.Module, data_config: Mapping[str, Any] | None = None) -> None:
        config = input_of(model, data_config)
        self.channels = int(config["input_size"][0])
        self.size = (int(config["input_size"][1]), int(config["input_size"][2]))
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with torch.inference_mode(False):  # what is made under it cannot take part in gradients
            self.mean = _per_channel(config["mean"], self.channels).to(device)
            self.std = _per_channel(config["std"], self.channels).to(device)
        self.dtype = torch.float64 if model_dtype(model) == torch.float64 else torch.float32
        keys = ("interpolation", "crop_pct", "crop_mode", "mean")
        self._transform = {"input_size": (3, *self.size), **{k: config[k] for k in keys}}
        self._geometry = _Geometry(**self._transform)

    def picture(self, image: Image.Image, name: str) -> Picture:
        """A PIL image, resized and cropped as the model's transform does it."""
        original = image if image.mode == "RGB" and not image.info else upright(image)
        self.check_size(original.size)
        cropped = self._geometry(original)
        array = torch.from_numpy(np.array(cropped)).permute(2, 0, 1)
        pixels = array.to(self.dtype) / 255
        return Picture(self._as_channels(pixels), name, original)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises OSError for what is so long that, resized by its shorter side, it would have too many pixels."""
        limit = Image.MAX_IMAGE_PIXELS
        if limit is None or self._transform["crop_mode"] == "squash":
            return
        short, long = min(size), max(size)
        resized = max(self.size) / self._transform["crop_pct"]
        if resized**2 * long / short > limit:
            raise OSError(f"{size[0]} x {size[1]} pixels are too long to be resized: cut the picture")

    def tensor(self, x: Tensor, name: str) -> Picture:
        """A float tensor (channels, H, W), already normalised: taken as it is, no resizing."""
        if x.shape[0] != self.channels:
            raise ValueError(f"`img` {name} has {x.shape[0]} channels, but the model takes {self.channels}")
        if not bool(x.isfinite().all()):
            raise ValueError(f"`img` {name} holds NaN or infinite values: clean it before it is explained")
        x = x.detach().to(self.mean.device, self.dtype)
        self._warn_of_scale(x, name)
        return Picture(x * self.std[:, None, None] + self.mean[:, None, None], name)

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Where the model's input lies in an original of `size` (width, height): left, top, right, bottom, in pixels.

        The transform itself is asked: pictures whose values are their own coordinates go through it.
        """
        geometry = _Geometry(**(self._transform | {"mean": (0.0,)}))  # the mean is what some pad with: one channel here
        edges: list[tuple[float, float]] = []
        for axis, length in enumerate(size):
            ramp = np.arange(length, dtype=np.float32) + 0.5
            plane = np.broadcast_to(ramp if axis == 0 else ramp[:, None], size[::-1])
            seen = np.asarray(geometry(Image.fromarray(np.ascontiguousarray(plane))))
            line = seen[seen.shape[0] // 2] if axis == 0 else seen[:, seen.shape[1] // 2]
            # Two places inside the picture, away from its edge, where resampling is linear, tell scale and offset.
            inside = np.flatnonzero((line > 0.25 * length) & (line < 0.75 * length))
            if len(inside) < 2 or line[inside[0]] == line[inside[-1]]:
                edges.append((0.0, float(length)))  # a line of pixels: all of it
                continue
            first, last = int(inside[0]), int(inside[-1])
            scale = float(line[last] - line[first]) / (last - first)
            start = float(line[first]) - (first + 0.5) * scale
            edges.append((start, start + scale * len(line)))
        (left, right), (top, bottom) = edges
        return left, top, right, bottom

    def _warn_of_scale(self, x: Tensor, name: str) -> None:
        """Tells who gives pixels where normalised values are expected.

        Of a picture that is normalised some values are below the mean, and so below 0. What is drawn by hand, of zeros
        and ones, and normal noise are left alone.
        """
        low, high = float(x.min()), float(x.max())
        shares = 0 <= low < high - 0.5 and high <= 1 and bool(self.mean.all())
        shares = shares and float(((x > 0) & (x < 1)).float().mean()) > 0.5
        if shares or (high - low) * float(self.std.mean()) > 20:  # 0 to 255 has about 60, pixels in [0, 1] have 1
            warn(
                f"`img` {name} has values from {low:.3g} to {high:.3g}, as pixels have before the model's mean and std "
                "are applied: give it as a PIL image or uint8, or through timm's transform; or, where the model takes "
                "it so, say by `data_config` what its mean and std are"
            )

    def _as_channels(self, pixels: Tensor) -> Tensor:
        """RGB (3, H, W) as the model's number of channels: grey for one, repeated for others, with a warning."""
        if self.channels == 3:
            return pixels
        if self.channels != 1:
            warn(
                f"`model` takes {self.channels} channels: `img` is given to it in grey, the same in each; give float "
                f"tensors ({self.channels}, H, W), normalised, for what it was trained on"
            )
        grey = (pixels * pixels.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
        return grey.repeat(self.channels, 1, 1)


def is_many(img: Any) -> bool:
    """Whether the user gave several pictures (a list, a batch, a folder), not one."""
    if isinstance(img, str | os.PathLike):
        return not is_url(str(img)) and os.path.isdir(img)
    if isinstance(img, Tensor | np.ndarray):
        return img.ndim == 4
    return isinstance(img, Sequence) and not isinstance(img, bytes | bytearray)


def load(img: Any, preprocess: Preprocess) -> tuple[list[Picture | None], dict[str, str]]:
    """All pictures that `img` names, None for what could not be read, and why not, by name.

    Raises:
        TypeError: if `img`, or a part of it, is of no known kind.
        ValueError: if there is no picture at all, or a tensor or array does not fit the model.
        FileNotFoundError: if the only picture does not exist.
    """
    parts = list(_parts(img))
    if not parts:
        raise ValueError(f"`img` holds no picture: {_no_picture(img)}")
    pictures: list[Picture | None] = []
    failed: dict[str, str] = {}
    path = parts[0] if len(parts) == 1 and isinstance(parts[0], str | os.PathLike) else None
    if path is not None and not is_url(str(path)) and not os.path.exists(path):
        raise not_there(path)
    for number, part in enumerate(parts):
        try:
            pictures.append(_load_one(part, number, preprocess))
        except OSError as error:
            pictures.append(None)
            failed[_name(part, number)] = str(error)
    if not any(pictures):
        name, why = next(iter(failed.items()))
        more = f" (and {len(parts) - 1} more)" if len(parts) > 1 else ""
        raise ValueError(f'`img` "{name}" cannot be read: {why}{more}')
    return pictures, failed


def not_there(path: str | os.PathLike[str]) -> FileNotFoundError:
    """The error for a picture that does not exist."""
    return FileNotFoundError(f'`img` "{path}" does not exist: give a picture, a folder or a URL')


def _parts(img: Any) -> Sequence[Any]:
    if isinstance(img, str | os.PathLike) and is_many(img):
        return sorted(p for p in Path(img).iterdir() if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not is_many(img):
        return [img]
    if isinstance(img, Sequence):
        return [one for part in img for one in (_parts(part) if is_many(part) else [part])]
    return list(img)


def _no_picture(img: Any) -> str:
    if isinstance(img, Sequence) and not isinstance(img, str) and img:
        img = img[0]  # an empty folder in a list
    if isinstance(img, str | os.PathLike):
        return f'the folder "{img}" has no file that ends in {", ".join(EXTENSIONS)}'
    return "give at least one"


def _load_one(part: Any, number: int, preprocess: Preprocess) -> Picture:
    name = _name(part, number)
    if isinstance(part, Tensor) and part.is_floating_point():
        if part.ndim != 3 or not part.numel():
            raise ValueError(
                f"`img` {name} is a tensor of shape {tuple(part.shape)}, but must be (C, H, W) or (B, C, H, W)"
            )
        return preprocess.tensor(part, name)
    if isinstance(part, Tensor):
        return preprocess.picture(from_array(_channels_last(part.detach().cpu().numpy(), name), name), name)
    if isinstance(part, np.ndarray):
        return preprocess.picture(from_array(part, name), name)
    if isinstance(part, Image.Image):
        if not all(part.size):
            raise ValueError(f"`img` {name} is an image of size {part.size}, without pixels")
        return preprocess.picture(decode(part), name)
    if isinstance(part, str) and is_url(part):
        return preprocess.picture(open_picture(download(part), name), name)
    if isinstance(part, str | os.PathLike):
        return preprocess.picture(open_picture(part, name), name)
    raise TypeError(
        "`img` must be a path, URL, PIL image, numpy array, tensor, folder or a list of these, "
        f"not {type(part).__name__}"
    )


def _name(part: Any, number: int) -> str:
    """A file's name, a URL, or "picture 3"."""
    if isinstance(part, str | os.PathLike):
        return os.fspath(part)
    return str(getattr(part, "filename", "") or f"picture {number}")


def _channels_last(array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    if array.ndim != 3 or array.shape[0] not in (1, 3, 4):
        raise ValueError(f"`img` {name} is an integer tensor of shape {array.shape}, but must be (C, H, W), RGB, uint8")
    return array.transpose(1, 2, 0)


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    """One value a channel; where the model takes another number of channels, their mean for each."""
    given = torch.tensor(tuple(values))
    return given if len(given) == channels else given.mean().expand(channels).clone()
