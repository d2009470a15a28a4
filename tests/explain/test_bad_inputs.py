"""Pictures that cannot be explained: which one, why, and the others are explained all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import interp_zoo
from interp_zoo.explain import Explanation


def explained(model: nn.Module, img: Any, **arguments: Any) -> Explanation:
    return interp_zoo.explain(model, img, "layercam", **arguments)


def textured(seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good pictures, a truncated one, a text with a picture's ending: good, bad, bad, good in order."""
    textured(0).save(tmp_path / "a_good.png")
    textured(1).save(tmp_path / "d_good.png")
    (tmp_path / "b_cut.png").write_bytes((tmp_path / "a_good.png").read_bytes()[:700])
    (tmp_path / "c_text.png").write_text("no picture")
    return tmp_path


def assert_one_line(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert 10 < len(str(error)) < 1000


def test_the_others_of_a_folder_are_explained(folder: Path, tiny_cnn: nn.Module) -> None:
    with pytest.warns(UserWarning, match=r"`img` .* cannot be read and is skipped: ") as caught:
        exp = explained(tiny_cnn, folder, target=[1, 2, 3, 4])
    messages = sorted(str(w.message) for w in caught)
    assert len(messages) == 2
    assert "b_cut.png" in messages[0]
    assert "truncated" in messages[0]
    assert "c_text.png" in messages[1]
    assert list(exp.skipped) == [str(folder / "b_cut.png"), str(folder / "c_text.png")]
    assert exp.picture.tolist() == [0, 3]
    assert exp.target.tolist() == [1, 4], "targets stay with their pictures"
    assert exp.name == [str(folder / "a_good.png"), str(folder / "d_good.png")]
    alone = explained(tiny_cnn, folder / "d_good.png", target=4)
    torch.testing.assert_close(exp.saliency[1], alone.saliency[0], atol=1e-5, rtol=0)


def test_several_targets_stay_aligned(folder: Path, tiny_cnn: nn.Module) -> None:
    gone = folder / "gone.png"
    with pytest.warns(UserWarning, match=r"gone\.png\" cannot be read and is skipped: does not exist"):
        exp = explained(tiny_cnn, [gone, folder / "a_good.png", textured(2)], target=[[9, 8], [1, 2], 5])
    assert exp.picture.tolist() == [1, 1, 2]
    assert exp.target.tolist() == [1, 2, 5]
    assert list(exp.skipped) == [str(gone)]


def test_the_same_broken_picture_twice(folder: Path, tiny_cnn: nn.Module) -> None:
    broken = folder / "b_cut.png"
    with pytest.warns(UserWarning, match=r"b_cut\.png"):
        exp = explained(tiny_cnn, [broken, folder / "a_good.png", broken], target=[1, 2, 3])
    assert exp.target.tolist() == [2]
    with pytest.raises(ValueError, match=r"`img` .*b_cut\.png\" cannot be read: .*truncated"):
        explained(tiny_cnn, [broken, broken])


def test_a_truncated_image_that_pil_opened_is_named_by_its_file(folder: Path, tiny_cnn: nn.Module) -> None:
    with (
        Image.open(folder / "b_cut.png") as lazy,
        pytest.warns(UserWarning, match=r"b_cut\.png\" cannot be read and is skipped"),
    ):
        exp = explained(tiny_cnn, [textured(), lazy])
    assert list(exp.skipped) == [str(folder / "b_cut.png")]


def test_files_that_make_pillow_raise_other_errors_are_skipped(folder: Path, tiny_cnn: nn.Module) -> None:
    (folder / "e_header.ppm").write_bytes(b"P6\n8x 6\n255\n" + bytes(144))  # a ValueError of Pillow
    with pytest.warns(UserWarning, match=r"e_header\.ppm\" cannot be read and is skipped"):
        exp = explained(tiny_cnn, [folder / "a_good.png", folder / "e_header.ppm"])
    assert exp.picture.tolist() == [0]


def test_nothing_readable(folder: Path, tiny_cnn: nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r'`img` ".*b_cut\.png" cannot be read: .*truncated.* \(and 1 more\)'
    ) as caught:
        explained(tiny_cnn, [folder / "b_cut.png", folder / "c_text.png"])
    assert_one_line(caught.value)
    with pytest.raises(ValueError, match=r'`img` ".*c_text\.png" cannot be read: no picture format that Pillow knows$'):
        explained(tiny_cnn, folder / "c_text.png")


def test_a_missing_file(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'`img` ".*gone\.png" does not exist: give a picture, a folder'):
        explained(tiny_cnn, tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r'`img` ".*gone\.png" does not exist'):
        explained(tiny_cnn, [str(tmp_path / "gone.png")])


def test_an_empty_folder(tiny_cnn: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(
        ValueError, match=r"`img` holds no picture: the folder .* has no file that ends in \.png"
    ) as caught:
        explained(tiny_cnn, tmp_path)
    assert_one_line(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["tensor", "array", "batch"])
def test_pixels_that_are_not_finite(kind: str, value: float, tiny_cnn: nn.Module) -> None:
    tensor = torch.zeros(3, 160, 160)
    tensor[1, 7, 9] = value
    img: Any = {"tensor": tensor, "array": tensor.permute(1, 2, 0).numpy(), "batch": [textured(), tensor]}[kind]
    number = 1 if kind == "batch" else 0
    with pytest.raises(ValueError, match=rf"`img` picture {number} holds NaN or infinite values") as caught:
        explained(tiny_cnn, img)
    assert_one_line(caught.value)


WRONG_TYPES: dict[str, Callable[[], Any]] = {
    "NoneType": lambda: None,
    "int": lambda: 3,
    "float": lambda: 2.5,
    "set": lambda: {"a.png"},
    "dict": lambda: {"image": "a.png"},
    "generator": lambda: (p for p in ["a.png"]),
    "bytes": lambda: b"\x89PNG",
    "object": object,
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_wrong_types(name: str, tiny_cnn: nn.Module) -> None:
    wanted = rf"`img` must be a path, URL, PIL image, .* not {name}$"
    with pytest.raises(TypeError, match=wanted) as caught:
        explained(tiny_cnn, WRONG_TYPES[name]())
    assert_one_line(caught.value)
    with pytest.raises(TypeError, match=wanted):
        explained(tiny_cnn, [textured(), WRONG_TYPES[name]()])


WRONG_VALUES: dict[str, tuple[Callable[[], Any], str]] = {
    "empty_list": (list, "holds no picture: give at least one"),
    "empty_batch": (lambda: torch.zeros(0, 3, 160, 160), "holds no picture"),
    "empty_array_batch": (lambda: np.zeros((0, 8, 8, 3), np.uint8), "holds no picture"),
    "tensor_2d": (lambda: torch.zeros(160, 160), r"picture 0 is a tensor of shape \(160, 160\).*\(C, H, W\)"),
    "tensor_5d": (lambda: torch.zeros(1, 1, 3, 160, 160), r"picture 0 is a tensor of shape"),
    "tensor_4_channels": (lambda: torch.zeros(4, 160, 160), "has 4 channels, but the model takes 3"),
    "tensor_hwc_uint8": (lambda: torch.zeros(16, 16, 3, dtype=torch.uint8), r"shape \(16, 16, 3\).*\(C, H, W\)"),
    "array_chw": (lambda: np.zeros((3, 16, 16), np.uint8), r"shape \(3, 16, 16\).*\(H, W, 3\)"),
    "array_5_channels": (lambda: np.zeros((16, 16, 5), np.uint8), r"shape \(16, 16, 5\)"),
    "array_1d": (lambda: np.zeros(16, np.uint8), r"shape \(16,\)"),
    "array_0_to_255": (lambda: np.full((16, 16, 3), 255.0), r"from 255 to 255, but must be in \[0, 1\]"),
    "array_below_0": (lambda: np.full((16, 16, 3), -0.5), r"from -0.5 to -0.5, but must be in \[0, 1\]"),
    "array_no_pixels": (lambda: np.zeros((0, 16, 3), np.uint8), r"shape \(0, 16, 3\)"),
    "image_no_pixels": (lambda: Image.new("RGB", (16, 0)), "."),
    "tensor_no_pixels": (lambda: torch.zeros(3, 0, 16), r"shape \(3, 0, 16\)"),
    "tensors_of_two_shapes": (
        lambda: [torch.zeros(3, 160, 160), torch.zeros(3, 128, 160)],
        r"tensors of different shapes \[\(3, 128, 160\), \(3, 160, 160\)\]",
    ),
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_values(name: str, tiny_cnn: nn.Module) -> None:
    make, message = WRONG_VALUES[name]
    with pytest.raises(ValueError, match=rf"`img` .*{message}") as caught:
        explained(tiny_cnn, make())
    assert_one_line(caught.value)


@pytest.mark.parametrize("img", [np.zeros((16, 16, 3), np.int64), torch.zeros(3, 16, 16, dtype=torch.int64)], ids=type)
def test_integers_other_than_uint8(img: Any, tiny_cnn: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"`img` picture 0 is an array of int64, but must be uint8"):
        explained(tiny_cnn, img)


def test_a_tensor_of_a_size_that_the_model_does_not_take() -> None:
    model = timm.create_model("test_vit", num_classes=10, dynamic_img_size=False).eval()
    with pytest.raises(ValueError, match=r"`img` .*\b128\b.*\b160\b") as caught:
        explained(model, torch.zeros(3, 128, 128))
    assert_one_line(caught.value)


def test_compare_reads_each_picture_once(tiny_cnn: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (50, 40), "red").save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    opened: list[str] = []
    really = Image.open

    def noting(file: Path) -> Image.Image:
        opened.append(Path(file).name)
        return really(file)

    monkeypatch.setattr(Image, "open", noting)
    with pytest.warns(UserWarning, match=r"broken\.png.* is skipped") as caught:
        found = interp_zoo.compare(tiny_cnn, tmp_path, ["gradcam", "layercam", "hirescam"])
    assert sorted(opened) == ["broken.png", "good.png"]
    assert sum("skipped" in str(w.message) for w in caught) == 1
    assert [len(exp) for exp in found.explanations.values()] == [1, 1, 1]


@pytest.mark.parametrize(("scale", "said"), [(1, "0 to 1"), (255, "0 to 255")], ids=["shares", "bytes"])
def test_pixels_where_normalised_values_are_expected(scale: float, said: str, tiny_cnn: nn.Module) -> None:
    """Told, and explained as they are; who says that the model takes them so is told nothing."""
    pixels = torch.from_numpy(np.asarray(textured()).copy()).permute(2, 0, 1).float() / 255 * scale
    with pytest.warns(UserWarning, match=rf"^`img` picture 0 has values from {said}, as pixels have before the mo"):
        exp = explained(tiny_cnn, pixels)
    assert exp.saliency.shape == (1, 60, 80)
    config = {"mean": (0.0, 0.0, 0.0), "std": (1 / scale,) * 3}
    explained(tiny_cnn, pixels, data_config=config)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_drawings_and_blank_pictures_are_no_such_pixels(value: float, tiny_cnn: nn.Module) -> None:
    picture = torch.full((3, 32, 32), value)
    explained(tiny_cnn, picture)
    picture[:, :16] = 0.0
    explained(tiny_cnn, picture)
