"""The picture as it is: channels, depths, rotations, palettes, frames, sizes; what the model gets of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_one_line, lively, texture
from PIL import Image, ImageOps
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain.decoding import open_picture
from interp_zoo.explain.inputs import Preprocess, load

pytestmark = pytest.mark.filterwarnings("ignore:map .* is blank")  # what an untrained network says of some pictures


def pixels(model: nn.Module, picture: object) -> Tensor:
    (found,), skipped = load(picture, Preprocess(model))
    assert not skipped
    assert found is not None
    return found.pixels


def as_16_bit(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def turned(image: Image.Image, file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)


# How a picture is written, and how far it may then be from itself, in 255ths on average.
WRITTEN: dict[str, tuple[str, Callable[[Image.Image, Path], None], float]] = {
    "EXIF": ("it.png", turned, 0),
    "palette": ("it.gif", lambda i, f: i.quantize(256).save(f), 8),
    "CMYK": ("it.jpg", lambda i, f: i.convert("CMYK").save(f, quality=95), 6),
    "alpha": ("it.webp", lambda i, f: i.convert("RGBA").save(f, lossless=True), 0),
    "YCbCr": ("it.tif", lambda i, f: i.convert("YCbCr").save(f), 3),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_the_same_picture(how: str, tiny_cnn: nn.Module, tmp_path: Path) -> None:
    name, write, far = WRITTEN[how]
    write(texture(), tmp_path / name)
    want, got = pixels(tiny_cnn, texture()), pixels(tiny_cnn, tmp_path / name)
    assert (got - want).abs().mean() * 255 <= far
    exp = interp_zoo.explain(tiny_cnn, tmp_path / name, "gradcam")
    assert exp.overlay(on="original").size == texture().size  # type: ignore[union-attr]


def test_16_bit(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    as_16_bit(texture()).save(tmp_path / "it.png")
    want = pixels(tiny_cnn, texture().convert("L"))
    assert (pixels(tiny_cnn, tmp_path / "it.png") - want).abs().max() * 255 <= 1


def test_animations(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "it.gif"
    first, *others = (texture(seed=seed).quantize(256) for seed in range(3))
    first.save(file, save_all=True, append_images=others)
    with pytest.warns(UserWarning, match=r'`img` ".*it\.gif" has 3 frames: the first is explained'):
        exp = interp_zoo.explain(tiny_cnn, file, "gradcam")
    assert torch.equal(exp._pictures[0].pixels, pixels(tiny_cnn, first))


@pytest.mark.parametrize("channels", [1, 4])
def test_models_of_other_channels(channels: int) -> None:
    """Of one channel: the picture in grey; of four: a tensor, for only its owner knows what the fourth is."""
    model = lively("test_resnet", num_classes=10, in_chans=channels)
    x = torch.randn(1, channels, 160, 160, generator=torch.Generator().manual_seed(0))
    exp = interp_zoo.explain(model, x, "gradcam")
    assert exp.saliency.shape == (1, 160, 160)
    assert exp.overlay().size == (160, 160)  # type: ignore[union-attr]
    with nullcontext() if channels == 1 else pytest.warns(UserWarning, match="takes 4 channels: `img` .* in grey"):
        grey = interp_zoo.explain(model, texture(), "gradcam")
    assert grey._pictures[0].pixels.shape == (channels, 160, 160)


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_exif_turns(ending: str, orientation: int, tmp_path: Path) -> None:
    """As Pillow turns it; and 9, which is none, not at all."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"it.{ending}"
    texture((24, 40)).save(file, exif=exif)
    with Image.open(file) as image:
        want = ImageOps.exif_transpose(image).convert("RGB")
    got = open_picture(file, "it")
    assert np.array_equal(np.asarray(got), np.asarray(want))
    assert not got.info  # or it would be turned again
    assert got.size == ((24, 40) if 5 <= orientation <= 8 else (40, 24))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "LAB", "HSV", "I", "F"]
)
def test_modes(mode: str, tiny_cnn: nn.Module) -> None:
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P", "LAB": None}.get(mode, "RGB")
    image = Image.new("LAB", (30, 20)) if through is None else texture((20, 30)).convert(through).convert(mode)
    exp = interp_zoo.explain(tiny_cnn, image, "fakecam")
    assert exp.saliency.shape == (1, 160, 160)


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)], ids=str)
def test_too_long(size: tuple[int, int], tiny_cnn: nn.Module) -> None:
    """By its shorter side resized to the model's, it would have thousands of megapixels: the others are explained."""
    with pytest.warns(UserWarning, match=rf"skipped: {size[0]} x {size[1]} pixels are too long to be resized: cut"):
        exp = interp_zoo.explain(tiny_cnn, [Image.new("RGB", size), texture()], "fakecam")
    assert exp.picture.tolist() == [1]


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3), (3000, 40)], ids=str)
def test_very_small_and_very_long(size: tuple[int, int], tiny_cnn: nn.Module) -> None:
    exp = interp_zoo.explain(tiny_cnn, texture(size), "gradcam")
    assert exp.saliency.shape == (1, 160, 160)
    assert exp.overlay(on="original").size == size[::-1]  # type: ignore[union-attr]


def test_sizes_that_change() -> None:
    """A network of dynamic size takes tensors as they come, one size a call."""
    model = lively("test_vit", num_classes=10, dynamic_img_size=True)
    for height, width in ((96, 96), (160, 96), (224, 160)):
        exp = interp_zoo.explain(model, torch.randn(1, 3, height, width), "gradcam")
        assert exp.saliency.shape == (1, height, width)
        assert exp.raw.shape == (1, height // 16, width // 16)


def test_sizes_that_the_model_cannot_take() -> None:
    """Said of the size, with what to do, where the model by itself would say something of its matrices."""
    flat = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.ReLU(), nn.Flatten(), nn.Linear(800, 10)).eval()
    with pytest.raises(ValueError, match=r"`model` cannot take pictures of 224 x 224 \(.*data_config=") as error:
        interp_zoo.explain(flat, texture(), "gradcam")
    assert_one_line(error.value)
    exp = interp_zoo.explain(flat, texture(), "gradcam", data_config={"input_size": (3, 160, 160)})
    assert exp.saliency.shape == (1, 160, 160)


def test_channels_first(tiny_cnn: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"of shape \(3, 20, 20\).*give img\.transpose\(1, 2, 0\)") as error:
        interp_zoo.explain(tiny_cnn, np.zeros((3, 20, 20), np.uint8), "gradcam")
    assert_one_line(error.value)


def test_red_is_red(tiny_cnn: nn.Module) -> None:
    """RGB in and out, with no OpenCV."""
    red = Image.new("RGB", (200, 200), (255, 0, 0))
    seen = pixels(tiny_cnn, red)
    assert torch.equal(seen, torch.tensor([1.0, 0, 0])[:, None, None].expand(-1, 160, 160))
    assert torch.equal(pixels(tiny_cnn, np.asarray(red)), seen)
    painted = np.asarray(interp_zoo.explain(tiny_cnn, red, "center_gaussian").overlay(), dtype=int)
    assert painted[0, 0, 0] > painted[0, 0, 2] + 50  # a corner, where the map is dark, is still red
    sources = Path(interp_zoo.__file__).parent.rglob("*.py")
    assert not [file for file in sources if "cv2" in file.read_text(encoding="utf-8")]


def test_colours_print_in_grey() -> None:
    """The colour map's lightness rises throughout, so that it reads in grey and without telling red from green."""
    from interp_zoo.explain.render import overlay

    ramp = torch.linspace(0, 1, 64).repeat(8, 1)
    painted = np.asarray(overlay(Image.new("RGB", (64, 8)), ramp).convert("L"), dtype=int)[4]
    assert (np.diff(painted) >= 0).all()
    assert painted[-1] - painted[0] > 100
