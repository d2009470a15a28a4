"""Maps over pictures: where the model's crop lies in the original, and nowhere else."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import example, given, settings, strategies as st
from PIL import Image
from torch import Tensor, nn

import interp_zoo
from interp_zoo.explain import Explanation
from interp_zoo.explain.inputs import Preprocess
from interp_zoo.explain.render import OPACITY, overlay

Array = np.ndarray[Any, Any]

# The model takes 160 x 160, cut out of 200 x 200 (a crop of 80 %). By hand: how often the original's pixels go into one
# of the model's, along each axis, and how much is cut off or padded.
CASES: list[tuple[str, tuple[int, int], tuple[float, float, float, float]]] = [
    ("center", (300, 200), (70, 20, 230, 180)),  # already 200 high: (300 - 160) / 2 at the sides
    ("center", (200, 300), (20, 70, 180, 230)),
    ("center", (600, 400), (140, 40, 460, 360)),  # twice as large
    ("center", (400, 400), (40, 40, 360, 360)),
    ("center", (100, 100), (10, 10, 90, 90)),  # half as large
    ("squash", (600, 400), (60, 40, 540, 360)),  # 3 in one along x, 2 along y, 20 cut off everywhere
    ("squash", (300, 800), (30, 80, 270, 720)),
    ("squash", (400, 400), (40, 40, 360, 360)),
    ("border", (800, 200), (80, -220, 720, 420)),  # 200 x 50 in 160 x 160: 55 padded above, 4 in one
    ("border", (200, 800), (-220, 80, 420, 720)),
    ("border", (400, 300), (40, -10, 360, 310)),  # 200 x 150: 5 padded above, 2 in one
    ("border", (400, 400), (40, 40, 360, 360)),
]
IDS = [f"{mode}-{w}x{h}" for mode, (w, h), _ in CASES]


def model_with(mode: str = "center", **cfg: Any) -> nn.Module:
    """A model whose transform crops like that, 80 % of the picture."""
    torch.manual_seed(0)
    overlay = {"crop_mode": mode, "crop_pct": 0.8, **cfg}
    return timm.create_model("test_resnet", num_classes=10, pretrained_cfg_overlay=overlay).eval()


def with_map(model: nn.Module, image: Any, saliency: Tensor) -> Explanation:
    """An explanation of `image` whose map is the given one, (H, W)."""
    return dataclasses.replace(interp_zoo.explain(model, image, "fakecam"), saliency=saliency[None])


def spotted(size: tuple[int, int], x: float, y: float) -> Image.Image:
    """A dark picture with one bright spot at (x, y)."""
    width, height = size
    xs, ys = np.arange(width) + 0.5 - x, np.arange(height) + 0.5 - y
    spot = np.exp(-(xs[None] ** 2 + ys[:, None] ** 2) / (2 * (min(size) / 40) ** 2))
    return Image.fromarray(np.repeat((10 + 240 * spot).round().astype(np.uint8)[..., None], 3, 2))


def image_of(over: Image.Image | list[Image.Image]) -> Image.Image:
    assert isinstance(over, Image.Image)
    return over


def centre(heat: Array) -> tuple[float, float]:
    """(x, y) of the hottest region of (H, W)."""
    rows, columns = np.nonzero(heat >= 0.8 * heat.max())
    assert len(rows) < 0.05 * heat.size, "one hot region, not all"
    return columns.mean() + 0.5, rows.mean() + 0.5


def inside(size: tuple[int, int], box: tuple[float, float, float, float], margin: float) -> Array:
    """Which pixels (H, W) lie in the box, by their centres, `margin` away from its edges."""
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    columns = (x > box[0] + margin) & (x < box[2] - margin)
    rows = (y > box[1] + margin) & (y < box[3] - margin)
    found: Array = rows[:, None] & columns[None]
    return found


@pytest.mark.parametrize(("mode", "size", "box"), CASES, ids=IDS)
def test_boxes_computed_by_hand(mode: str, size: tuple[int, int], box: tuple[float, ...]) -> None:
    assert Preprocess(model_with(mode)).box(size) == pytest.approx(box, abs=0.3)


def test_boxes_of_inputs_that_are_not_square() -> None:
    pre = Preprocess(model_with(input_size=(3, 128, 192)))  # cut out of 160 x 240
    assert pre.box((480, 320)) == pytest.approx((48, 32, 432, 288), abs=0.3)
    assert pre.box((640, 320)) == pytest.approx((128, 32, 512, 288), abs=0.3)
    assert pre.box((240, 400)) == pytest.approx((24, 136, 216, 264), abs=0.3)


def test_the_whole_picture_without_a_crop() -> None:
    assert Preprocess(model_with("squash", crop_pct=1.0)).box((333, 77)) == pytest.approx((0, 0, 333, 77), abs=0.3)


@pytest.mark.parametrize("corner", [(-0.3, -0.3), (0.3, -0.2), (-0.1, 0.32), (0.25, 0.3)], ids=str)
@pytest.mark.parametrize(("mode", "size", "box"), CASES, ids=IDS)
def test_the_map_lies_where_it_belongs_in_the_original(
    mode: str, size: tuple[int, int], box: tuple[float, float, float, float], corner: tuple[float, float]
) -> None:
    x, y = (length / 2 + part * min(size) for length, part in zip(size, corner, strict=True))
    image, model = spotted(size, x, y), model_with(mode)
    seen = Preprocess(model).picture(image, "it").pixels.mean(0)  # what the model sees, spot and padding
    bright = (seen - 0.6).clamp_min(0) / (seen - 0.6).amax()  # 0.5 is what the border is filled with
    over = np.array(image_of(with_map(model, image, bright).overlay(on="original")), dtype=np.float64)
    base = np.array(image, dtype=np.float64)
    assert over.shape == base.shape
    outside = ~inside(size, box, -0.6)
    assert (over[outside] == base[outside]).all(), "outside of the crop nothing is painted"
    within = inside(size, box, 0.6)
    assert (over[within] != base[within]).any(-1).all(), "inside of it everything is"
    heat = np.where(within, ((over - (1 - OPACITY) * base) / OPACITY).sum(-1), 0)  # the map's colours alone
    found = centre(heat)
    pixel = max((box[2] - box[0]) / 160, (box[3] - box[1]) / 160)
    assert abs(found[0] - x) <= max(1.0, 0.75 * pixel)
    assert abs(found[1] - y) <= max(1.0, 0.75 * pixel)


def test_over_what_the_model_saw() -> None:
    model, saliency = model_with(), torch.zeros(160, 160)
    saliency[100:104, 30:34] = 1
    image = spotted((600, 400), 300, 200)
    exp = with_map(model, image, saliency)
    over = image_of(exp.overlay())
    assert over.size == (160, 160)
    assert over.tobytes() == image_of(exp.overlay(on="input")).tobytes()
    pixels = Preprocess(model).picture(image, "it").pixels.permute(1, 2, 0).numpy() * 255
    assert centre((np.array(over) - (1 - OPACITY) * pixels).sum(-1)) == pytest.approx((32, 102), abs=1e-6)


def test_one_image_for_one_row_and_a_list_for_several() -> None:
    model, images = model_with(), [spotted((300, 200), 150, 100), spotted((90, 120), 40, 60)]
    exp = interp_zoo.explain(model, images, "fakecam")
    inputs, originals = exp.overlay(), exp.overlay(on="original")
    assert isinstance(inputs, list)
    assert isinstance(originals, list)
    assert [i.size for i in inputs] == [(160, 160), (160, 160)]
    assert [i.size for i in originals] == [(300, 200), (90, 120)]


def test_tensors_have_no_original(tiny_cnn: nn.Module, batch: Tensor) -> None:
    exp = interp_zoo.explain(tiny_cnn, batch, "fakecam")
    with pytest.raises(
        ValueError, match=r'`on` is "original", but there is no original of a tensor or a saved picture: use "input"'
    ):
        exp.overlay(on="original")
    with pytest.raises(ValueError, match=r'`on` is "both", but must be "input" or "original"'):
        exp.overlay(on="both")  # type: ignore[arg-type]
    assert len(exp.overlay()) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_blank_maps_and_other_channels_can_be_painted(channels: int) -> None:
    model = timm.create_model("test_resnet", num_classes=10, in_chans=channels).eval()
    over = image_of(with_map(model, torch.zeros(channels, 160, 160), torch.zeros(160, 160)).overlay())
    assert over.mode == "RGB"
    assert len(over.getcolors() or []) == 1


SIDE = st.integers(1, 400)


@given(width=SIDE, height=SIDE, mode=st.sampled_from(["center", "squash", "border"]))
@example(width=1, height=1, mode="center")
@example(width=1, height=60, mode="squash")
@example(width=2, height=3, mode="border")
@settings(max_examples=25, deadline=None)
def test_originals_of_any_size(width: int, height: int, mode: str) -> None:
    model, image = model_with(mode), Image.new("RGB", (width, height), "red")
    left, top, right, bottom = Preprocess(model).box(image.size)
    assert left < right
    assert top < bottom
    saliency = torch.linspace(0, 1, 160).expand(160, 160)
    assert image_of(with_map(model, image, saliency).overlay(on="original")).size == (width, height)


def files_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_save_one_row_to_a_file(tmp_path: Path) -> None:
    model, image = model_with(), spotted((300, 200), 150, 100)
    exp = interp_zoo.explain(model, image, "fakecam")
    written = exp.save(tmp_path / "new" / "folder" / "out.png")
    assert written == [tmp_path / "new" / "folder" / "out.png"]
    with Image.open(written[0]) as saved:
        assert saved.tobytes() == image_of(exp.overlay(on="original")).tobytes()
    assert exp.save(str(tmp_path / "out.jpg")) == [tmp_path / "out.jpg"]
    with Image.open(tmp_path / "out.jpg") as saved:
        assert saved.format == "JPEG"


def test_save_several_rows(tmp_path: Path) -> None:
    model = model_with()
    for name in ("cat.png", "big dog.png"):
        spotted((300, 200), 150, 100).save(tmp_path / name)
    exp = interp_zoo.explain(model, [tmp_path / "cat.png", tmp_path / "big dog.png"], "fakecam", target=[[1, 2], 3])
    numbered = exp.save(tmp_path / "a" / "out.png")
    assert [p.name for p in numbered] == ["out_0.png", "out_1.png", "out_2.png"]
    named = exp.save(tmp_path / "b")
    assert [p.name for p in named] == ["cat_fakecam_0.png", "cat_fakecam_1.png", "big_dog_fakecam.png"]
    assert files_of(tmp_path / "a") == sorted(p.name for p in numbered)
    assert files_of(tmp_path / "b") == sorted(p.name for p in named)


def test_save_tensors(tiny_cnn: nn.Module, batch: Tensor, tmp_path: Path) -> None:
    written = interp_zoo.explain(tiny_cnn, batch, "fakecam").save(tmp_path)
    assert [p.name for p in written] == [f"picture_{i}_fakecam.png" for i in range(3)]
    with Image.open(written[0]) as saved:
        assert saved.size == (320, 320)  # 160, enlarged


@pytest.mark.parametrize(("size", "times"), [((32, 20), 7), ((223, 100), 2), ((224, 8), 1), ((300, 40), 1)])
def test_small_pictures_are_saved_larger(size: tuple[int, int], times: int, tmp_path: Path) -> None:
    """As if the picture had been larger, pixel for pixel; the map is not made of pixels."""
    exp = interp_zoo.explain(model_with(), spotted(size, 10, 5), "gradcam")
    exp.save(tmp_path / "saved.png")
    large = spotted(size, 10, 5).resize((times * size[0], times * size[1]), Image.Resampling.NEAREST)
    assert exp._preprocess is not None
    left, top, right, bottom = (times * side for side in exp._preprocess.box(size))
    want = overlay(large, exp.saliency[0], (left, top, right, bottom))
    with Image.open(tmp_path / "saved.png") as saved:
        assert saved.size == large.size
        assert np.array_equal(np.asarray(saved), np.asarray(want))
    assert image_of(exp.overlay("original")).size == size


@pytest.mark.parametrize("names", [("a b.png", "a_b.png"), ("a.png", "a.bmp"), ("a.png", "sub/a.png")], ids=str)
def test_no_row_overwrites_another(names: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in names:
        spotted((30, 20), 15, 10).save(tmp_path / name)
    written = interp_zoo.explain(model_with(), [tmp_path / n for n in names], "fakecam").save(tmp_path / "out")
    assert len(set(written)) == 2
    assert len(files_of(tmp_path / "out")) == 2


def test_save_into_a_folder_with_a_dot_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "run.1"
    folder.mkdir()
    spotted((30, 20), 15, 10).save(tmp_path / "cat.png")
    assert interp_zoo.explain(model_with(), tmp_path / "cat.png", "fakecam").save(folder) == [
        folder / "cat_fakecam.png"
    ]


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_notebooks_get_a_png(rows: int, tiny_cnn: nn.Module, batch: Tensor) -> None:
    exp = interp_zoo.explain(tiny_cnn, batch[0], "fakecam", target=list(range(rows)))
    png = exp._repr_png_()
    assert png is not None
    with Image.open(io.BytesIO(png)) as shown:
        assert shown.format == "PNG"
        assert shown.size == (160 * min(rows, 8) + 8 * (min(rows, 8) - 1), 160)
