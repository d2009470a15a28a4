"""From files, addresses and arrays to upright RGB images. What is wrong with one of them is an OSError of one line."""

from __future__ import annotations

import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from interp_zoo.told import warn

_SCHEMES = ("http://", "https://")
_URL_TIMEOUT_S, _URL_TOTAL_S = 20, 120
_URL_LIMIT_BYTES = 64 * 2**20

_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def _readable() -> Iterator[None]:
    """Turns whatever Pillow and its plugins raise on broken pictures, which are not of one mind, into an OSError."""
    try:
        yield
    except FileNotFoundError:
        raise OSError("does not exist") from None
    except UnidentifiedImageError:
        raise OSError("no picture format that Pillow knows") from None
    except Exception as error:
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


def decode(image: Image.Image) -> Image.Image:
    """An image with its pixels read (a truncated file fails here, not later), upright and RGB.

    Raises:
        OSError: if it is broken.
    """
    with _readable():
        image.load()
    return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """An image as RGB, turned as its EXIF says; transparency on white, 16 bit scaled to 8.

    Raises:
        OSError: if it cannot be converted.
    """
    with _readable():
        turn = _TURNS.get(_orientation(image))
        if turn is not None:
            image = image.transpose(turn)
        if image.mode == "F":
            values = np.asarray(image)
            values = values * (255 if values.max(initial=0) <= 1 else 1)
            image = Image.fromarray(np.nan_to_num(values).clip(0, 255).astype(np.uint8))
        if image.mode.startswith("I"):
            values = np.asarray(image).astype(np.float64)
            peak = 65535 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255
            image = Image.fromarray(np.clip(values / peak * 255, 0, 255).round().astype(np.uint8))
        if image.mode in ("La", "RGBa"):  # premultiplied
            image = image.convert(image.mode.upper())
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        image = image.convert("RGB")
        image.info = {}  # it is upright now, whatever its EXIF said
        return image


def _orientation(image: Image.Image) -> Any:
    """What the EXIF says of how the picture was taken. The rest of it is not read: much of it is broken in the wild."""
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow's reader is as trusting as its plugins: a picture is none the worse for that
        return None


def open_picture(file: Any, name: str) -> Image.Image:
    """A file as an upright RGB image; of several frames the first, with a warning.

    Raises:
        OSError: if there is none, or it is broken.
    """
    with opened(file) as image:
        with _readable():
            frames = getattr(image, "n_frames", 1)
        if frames > 1:
            warn(f'`img` "{name}" has {frames} frames: the first is explained')
        return decode(image)


@contextmanager
def opened(file: Any) -> Iterator[Image.Image]:
    """A file as an image whose pixels are not read yet, until the end of the block.

    Raises:
        OSError: if there is none.
    """
    with _readable():
        image = Image.open(file)
    with image:
        yield image


def from_array(array: np.ndarray[Any, Any], name: str) -> Image.Image:
    """An RGB or grey array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) as an image.

    Args:
        array: uint8, or float in [0, 1].
        name: by which errors call it.

    Raises:
        TypeError: if it is of another type.
        ValueError: if it is of another shape, or has values that cannot be.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not array.size or (array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4))):
        turned = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = ": give img.transpose(1, 2, 0)" if turned else ""
        raise ValueError(f"`img` {name} is an array of shape {array.shape}, but must be (H, W) or (H, W, 3), RGB{hint}")
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.dtype == np.bool_:
        return Image.fromarray(array.astype(np.uint8) * 255)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError(f"`img` {name} holds NaN or infinite values: clean it before it is explained")
        if array.min() < 0 or array.max() > 1:
            raise ValueError(
                f"`img` {name} is a float array from {array.min():.3g} to {array.max():.3g}, but must be in [0, 1] "
                "(give uint8 for 0 to 255, or a float tensor for what is already normalised)"
            )
        return Image.fromarray((array * 255).round().astype(np.uint8))
    raise TypeError(f"`img` {name} is an array of {array.dtype}, but must be uint8, or float in [0, 1]")


def is_url(text: str) -> bool:
    """Whether a text is a URL, of whatever scheme, not a path."""
    return "://" in text


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone: the handler that comes with Python follows those to ftp, too."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.lower().startswith(_SCHEMES):
            raise urllib.error.URLError("it redirects to what is no http or https URL")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def download(url: str) -> io.BytesIO:
    """What is at an http or https URL.

    Raises:
        ValueError: if it is another URL.
        OSError: if there is no answer, or one that is too large or takes too long.
    """
    if not url.lower().startswith(_SCHEMES):
        raise ValueError(f'`img` "{url}" is no http or https URL')
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "interp_zoo"})
        with _OPENER.open(request, timeout=_URL_TIMEOUT_S) as answer:
            data = _read(answer)
    except urllib.error.URLError as error:
        raise OSError(f"no answer ({error.reason})") from None
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"no answer ({error})") from None
    if len(data) > _URL_LIMIT_BYTES:
        raise OSError(f"larger than {_URL_LIMIT_BYTES // 2**20} MiB")
    return io.BytesIO(data)


def _read(answer: Any) -> bytes:
    """What comes within the limits of size and time (a server may send a byte a second, each within its timeout)."""
    data, end = bytearray(), time.monotonic() + _URL_TOTAL_S
    while len(data) <= _URL_LIMIT_BYTES and (part := answer.read1(2**16)):
        data += part
        if time.monotonic() > end:
            raise OSError(f"no whole answer in {_URL_TOTAL_S} s")
    return bytes(data)
