"""Pictures of maps: overlays, rows of them, and the figure that compares methods."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Perceptually uniform: reads the same in grey and for the colour-blind.
COLOURS = "inferno"
OPACITY = 0.6
_PAINTED_AT_ONCE = 2**20  # pixels: very large pictures take no more memory than they must
_GAP = 8  # pixels between pictures in a row
_ACROSS = 8  # pictures in a line of a table


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels (channels, H, W) in [0, 1] as an RGB image; other than three channels as their mean in grey."""
    if pixels.shape[0] != 3:
        pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
    array = (pixels.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def overlay(
    image: Image.Image, saliency: Tensor, box: tuple[float, float, float, float] | None = None, least: int = 0
) -> Image.Image:
    """A map (H, W) in [0, 1] in colour over an RGB image.

    Args:
        image: what is painted on.
        saliency: the map.
        box: where the map lies, (left, top, right, bottom) in the image's pixels; the whole image if None. What is
            outside of it stays as it is, and what of the map is outside of the image is cut off.
        least: how many pixels the longer side has at least: a smaller image is enlarged by a whole number.
    """
    image = image.convert("RGB")
    box = box or (0.0, 0.0, float(image.width), float(image.height))
    times = max(1, math.ceil(least / max(image.size)))
    if times > 1:
        image = image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
        box = (times * box[0], times * box[1], times * box[2], times * box[3])
    source = Image.fromarray(np.ascontiguousarray(saliency.detach().cpu().float().numpy()))
    painted = Image.new("RGB", image.size)
    rows = max(1, _PAINTED_AT_ONCE // image.width)
    for start in range(0, image.height, rows):
        painted.paste(_band(image, source, box, start, min(start + rows, image.height)), (0, start))
    return painted


def _band(
    image: Image.Image, source: Image.Image, box: tuple[float, float, float, float], start: int, stop: int
) -> Image.Image:
    """The overlay's rows from `start` to `stop`."""
    import matplotlib

    left, top, right, bottom = box
    across, down = source.width / (right - left), source.height / (bottom - top)
    # Image.transform asks, for each pixel of the result, where it lies in the map.
    back = (across, 0.0, -left * across, 0.0, down, (start - top) * down)
    size = (image.width, stop - start)
    values = np.asarray(source.transform(size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR))
    x, y = np.arange(image.width) + 0.5, np.arange(start, stop) + 0.5
    inside = ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))[None]
    colour = matplotlib.colormaps[COLOURS](values)[..., :3] * 255
    base = np.asarray(image.crop((0, start, image.width, stop)), dtype=np.float64)
    alpha = OPACITY * inside[..., None]
    return Image.fromarray((base * (1 - alpha) + colour * alpha).round().clip(0, 255).astype(np.uint8))


def format_of(path: Path) -> str | None:
    """Pillow's name of the picture format that a file's ending stands for, None if it writes none such."""
    Image.init()
    found = Image.registered_extensions().get(path.suffix.lower())
    if found not in Image.SAVE:
        return None
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), found)
    except (OSError, ValueError):  # it has no colours, or needs what is not installed
        return None
    return found


def row(images: Sequence[Image.Image]) -> Image.Image:
    """Images side by side, at the height of the lowest, on white."""
    height = min(image.height for image in images)
    scaled = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    whole = Image.new("RGB", (sum(i.width for i in scaled) + _GAP * (len(scaled) - 1), height), "white")
    left = 0
    for image in scaled:
        whole.paste(image, (left, 0))
        left += image.width + _GAP
    return whole


def png(image: Image.Image) -> bytes:
    """An image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def table(rows: Sequence[Sequence[tuple[Image.Image, str]]], titles: Sequence[str]) -> Figure:
    """A matplotlib figure of images with captions under them, a title over each column.

    Rows of more than eight images are broken into lines of about equal length, each with its titles, so that the
    figure has the shape of a page.
    """
    from matplotlib.figure import Figure

    count = len(titles)
    broken = -(-count // _ACROSS)  # lines that a row takes
    across = -(-count // broken)
    figure = Figure(figsize=(2.3 * across, 2.95 * broken * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots(broken * len(rows), across, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for r, cells in enumerate(rows):
        for c, (image, caption) in enumerate(cells):
            axis = axes[r * broken + c // across, c % across]
            axis.imshow(image)
            axis.text(0.5, -0.03, caption, transform=axis.transAxes, ha="center", va="top", fontsize=8)
            if r == 0 or broken > 1:
                axis.set_title(titles[c], fontsize=10)
    return figure
