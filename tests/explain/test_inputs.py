"""Whatever users call a picture: the same picture gives the same map, and what cannot be read is named."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hubserver import listening
from hypothesis import given, settings, strategies as st
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain import Explanation
from interp_zoo.explain.inputs import Preprocess, load

METHOD = "layercam"  # one forward pass, and seldom blank

Array = np.ndarray[Any, Any]


def textured(size: tuple[int, int] = (200, 150), seed: int = 0) -> Image.Image:
    """A picture of `size` (width, height) with coarse structure, no two places alike."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def explained(model: nn.Module, img: Any, **arguments: Any) -> Explanation:
    """The maps of `img`, and a check that they are maps."""
    exp = interp_zoo.explain(model, img, METHOD, **arguments)
    assert exp.saliency.dtype == torch.float32
    assert exp.saliency.isfinite().all()
    assert exp.saliency.amin() >= 0
    assert exp.saliency.amax() <= 1
    return exp


def assert_same(got: Explanation, want: Explanation) -> None:
    """Equal up to rounding, row by row."""
    assert len(got) == len(want)
    torch.testing.assert_close(got.saliency, want.saliency, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.probability, want.probability, atol=1e-5, rtol=0)
    assert got.target.tolist() == want.target.tolist()
    assert want.saliency.amax() == 1, "a blank map tells nothing"


def transformed(model: nn.Module, image: Image.Image) -> Tensor:
    """What timm's own evaluation transform makes of a picture, (3, H, W), normalised."""
    x = create_transform(**resolve_model_data_config(model))(image)
    assert isinstance(x, Tensor)
    return x


def channels_first(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def in_folder(path: Path) -> Path:
    folder = path.parent / "pictures"
    folder.mkdir()
    (folder / "notes.txt").write_text("no picture")
    (folder / "sub").mkdir()
    path.rename(folder / "PICTURE.PNG")
    return folder


KINDS: dict[str, Callable[[nn.Module, Image.Image, Path], Any]] = {
    "str": lambda _, __, path: str(path),
    "path": lambda _, __, path: path,
    "folder": lambda _, __, path: in_folder(path),
    "folder_str_in_list": lambda _, __, path: [str(in_folder(path))],
    "list": lambda _, __, path: [path],
    "tuple": lambda _, image, __: (image,),
    "nested_list": lambda _, __, path: [[path]],
    "numpy_uint8": lambda _, image, __: np.array(image),
    "numpy_uint8_batch": lambda _, image, __: np.array(image)[None],
    "numpy_float32": lambda _, image, __: np.array(image, dtype=np.float32) / np.float32(255),
    "numpy_float64": lambda _, image, __: np.array(image) / 255,
    "numpy_not_contiguous": lambda _, image, __: np.array(image)[:, ::-1][:, ::-1],
    "numpy_opaque_alpha": lambda _, image, __: np.array(image.convert("RGBA")),
    "uint8_tensor": lambda _, image, __: channels_first(image),
    "uint8_tensor_batch": lambda _, image, __: channels_first(image)[None],
    "float_tensor": lambda model, image, _: transformed(model, image),
    "float_tensor_batch": lambda model, image, _: transformed(model, image)[None],
    "double_tensor": lambda model, image, _: transformed(model, image).double(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_map(kind: str, tiny_cnn: nn.Module, tmp_path: Path) -> None:
    image = textured()
    path = tmp_path / "picture.png"
    image.save(path)
    want = explained(tiny_cnn, image)
    assert_same(explained(tiny_cnn, KINDS[kind](tiny_cnn, image, path)), want)


def test_kinds_and_sizes_mix_in_one_list(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    images = [textured((w, h), seed) for seed, (w, h) in enumerate([(200, 150), (90, 300), (50, 50), (400, 160)])]
    images[0].save(tmp_path / "a.png")
    mixed = [tmp_path / "a.png", np.array(images[1]), channels_first(images[2]), transformed(tiny_cnn, images[3])]
    exp = explained(tiny_cnn, mixed)
    assert exp.picture.tolist() == [0, 1, 2, 3]
    assert exp.name == [str(tmp_path / "a.png"), "picture 1", "picture 2", "picture 3"]
    for row, image in enumerate(images):
        alone = explained(tiny_cnn, image)
        torch.testing.assert_close(exp.saliency[row], alone.saliency[0], atol=1e-4, rtol=0)
        assert exp.target[row] == alone.target[0]
    assert len({tuple(s.flatten()[::997].tolist()) for s in exp.saliency}) == 4, "four pictures, four maps"


def test_a_folder_goes_in_alphabetical_order(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    for seed, name in enumerate(["c.png", "a.bmp", "b.JPG"]):
        textured(seed=seed).save(tmp_path / name)
    exp = explained(tiny_cnn, tmp_path, target=[3, 4, 5])
    assert [Path(n).name for n in exp.name] == ["a.bmp", "b.JPG", "c.png"]
    assert exp.target.tolist() == [3, 4, 5]


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.bool_])
def test_grey_is_rgb_with_three_equal_channels(dtype: type, tiny_cnn: nn.Module) -> None:
    grey = np.array(textured().convert("L"))
    if dtype is np.bool_:
        grey = np.where(grey > 128, 255, 0).astype(np.uint8)
    want = explained(tiny_cnn, np.repeat(grey[..., None], 3, 2))
    given_grey = {np.uint8: grey, np.float64: grey / 255, np.bool_: grey > 128}[dtype]
    assert_same(explained(tiny_cnn, given_grey), want)
    assert_same(explained(tiny_cnn, given_grey[..., None]), want)
    if dtype is np.uint8:
        assert_same(explained(tiny_cnn, torch.from_numpy(grey)[None]), want)
        assert_same(explained(tiny_cnn, Image.fromarray(grey)), want)
        assert_same(explained(tiny_cnn, Image.fromarray(grey.astype(np.uint16) * 257)), want)  # 16 bit


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(200, 150), (90, 300), (160, 160), (31, 17)], ids=str)
def test_pixels_are_those_of_timms_own_transform(size: tuple[int, int], mode: str) -> None:
    cfg = {"crop_mode": mode, "crop_pct": 0.8, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    model = timm.create_model("test_vit", num_classes=10, pretrained_cfg_overlay=cfg).eval()
    pre, image = Preprocess(model), textured(size)
    pixels = pre.picture(image, "it").pixels
    normalised = (pixels - pre.mean[:, None, None]) / pre.std[:, None, None]
    torch.testing.assert_close(normalised, transformed(model, image), atol=1e-5, rtol=0)


def test_exif_rotation_is_undone(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    image, exif = textured((200, 150)), Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    exp = explained(tiny_cnn, tmp_path / "turned.png")
    assert_same(exp, explained(tiny_cnn, upright))
    assert_same(explained(tiny_cnn, Image.open(tmp_path / "turned.png")), explained(tiny_cnn, upright))
    over = exp.overlay(on="original")
    assert isinstance(over, Image.Image)
    assert over.size == (150, 200)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(mode: str, tiny_cnn: nn.Module) -> None:
    solid = textured()
    if mode == "LA":
        solid = solid.convert("L").convert("RGB")
    alpha = np.full((150, 200), 255, np.uint8)
    alpha[:70, :90] = 0
    seen = np.where(alpha[..., None] > 0, np.array(solid), 255).astype(np.uint8)
    if mode == "P":
        image = Image.fromarray(np.where(alpha > 0, np.array(solid.convert("L")) // 2, 200).astype(np.uint8), mode="L")
        image = image.convert("P")
        image.info["transparency"] = 200
        opaque = np.repeat((np.array(solid.convert("L")) // 2)[..., None], 3, 2)
        seen = np.where(alpha[..., None] > 0, opaque, 255).astype(np.uint8)
    else:
        image = solid.copy()
        image.putalpha(Image.fromarray(alpha))
        image = image.convert(mode)
    assert image.mode == mode
    assert_same(explained(tiny_cnn, image), explained(tiny_cnn, seen))


def test_a_model_of_one_channel_sees_grey() -> None:
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1).eval()
    image, pre = textured((160, 160)), Preprocess(model)
    pixels = pre.picture(image, "it").pixels
    assert pixels.shape == (1, 160, 160)
    want = pre.picture(image.convert("L"), "it").pixels
    torch.testing.assert_close(pixels, want, atol=2 / 255, rtol=0)  # PIL rounds before resizing and after it
    exp = explained(model, image)
    normalised = (pixels - pre.mean[:, None, None]) / pre.std[:, None, None]
    assert_same(explained(model, normalised), exp)
    with pytest.raises(ValueError, match=r"`img` picture 0 has 3 channels, but the model takes 1"):
        explained(model, torch.zeros(3, 160, 160))


def test_float_tensors_are_taken_as_they_are(tiny_cnn: nn.Module) -> None:
    x = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0)).mul_(3).requires_grad_()
    before = x.detach().clone()
    exp = explained(tiny_cnn, x)
    assert exp.saliency.shape == (2, 96, 128), "not resized"
    with torch.no_grad():
        want = tiny_cnn(before).softmax(1).amax(1)
    torch.testing.assert_close(exp.probability, want, atol=1e-5, rtol=0)
    assert torch.equal(x.detach(), before), "the caller's tensor stays as it was"
    assert x.requires_grad
    assert x.grad is None


def test_the_callers_arrays_and_images_stay_as_they_were(tiny_cnn: nn.Module) -> None:
    image = textured()
    array = np.array(image)
    given_array, given_image = array.copy(), image.copy()
    explained(tiny_cnn, [given_array, given_image])
    assert (given_array == array).all()
    assert given_image.size == image.size
    assert given_image.tobytes() == image.tobytes()


class _Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        file = io.BytesIO()
        textured().save(file, "PNG")
        pages = {"/cat.png?size=1": file.getvalue(), "/page": b"<html>no picture</html>"}
        if self.path not in pages:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(pages[self.path])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a small web server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with listening(_Site) as address:
        yield address


def test_urls(site: str, tiny_cnn: nn.Module) -> None:
    url = f"{site}/cat.png?size=1"
    exp = explained(tiny_cnn, url)
    assert_same(exp, explained(tiny_cnn, textured()))
    assert exp.name == [url]
    with pytest.warns(UserWarning, match=r"`img` .* is skipped") as caught:
        exp = explained(tiny_cnn, [f"{site}/none.png", url, f"{site}/page"], target=[1, 2, 3])
    assert len(caught) == 2
    assert exp.picture.tolist() == [1]
    assert exp.target.tolist() == [2]
    assert exp.skipped.keys() == {f"{site}/none.png", f"{site}/page"}


def test_urls_that_give_no_picture(site: str, tiny_cnn: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"`img` .*none\.png\" cannot be read: no answer \(Not Found\)"):
        explained(tiny_cnn, f"{site}/none.png")
    with pytest.raises(ValueError, match=r"`img` .*/page\" cannot be read: no picture format"):
        explained(tiny_cnn, f"{site}/page")


@pytest.mark.parametrize("url", ["file:///etc/hosts", "ftp://127.0.0.1/a.png", "data://image"])
def test_only_http_urls_are_opened(url: str, tiny_cnn: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf'`img` "{re.escape(url)}" is no http or https URL'):
        explained(tiny_cnn, url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a b.png", "http://127.0.0.1:port/a.png", "http://[::1/a.png"])
def test_malformed_urls_are_named(url: str, tiny_cnn: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf'`img` "{re.escape(url)}" ') as caught:
        explained(tiny_cnn, url)
    assert "\n" not in str(caught.value)


SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(size=SIZES, mode=st.sampled_from(["center", "squash", "border"]), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_pictures_of_any_size(size: tuple[int, int], mode: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=10, pretrained_cfg_overlay={"crop_mode": mode}).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"map 0 of the batch is blank")
        exp = explained(model, textured(size, seed), target=seed % 10)
    assert exp.saliency.shape == (1, 160, 160)
    assert 0 <= exp.masked_probability.item() <= 1


@pytest.fixture(scope="module")
def preprocess() -> Preprocess:
    return Preprocess(timm.create_model("test_resnet", num_classes=10).eval())


@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM"]), cut=st.floats(0, 0.99))
@settings(max_examples=40, deadline=None)
def test_truncated_files_are_skipped_and_named(
    kind: str, cut: float, preprocess: Preprocess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = io.BytesIO()
    textured((40, 30)).save(file, kind)
    path = tmp_path_factory.mktemp("cut") / f"cut.{kind.lower()}"
    path.write_bytes(file.getvalue()[: int(cut * len(file.getvalue()))])
    pictures, skipped = load([textured((40, 30)), path], preprocess)
    assert pictures[0] is not None
    assert len(pictures) == 2
    assert (pictures[1] is None) == (list(skipped) == [str(path)])
