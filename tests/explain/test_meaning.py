"""What maps mean, on real pictures with real ImageNet weights: the papers' pattern must come out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import interp_zoo
from interp_zoo.metrics.functional import average_drop, average_gain

# Some 800 ImageNet pictures, one a class, where present; a newcomer has none of them.
DATA = Path(os.environ.get("INTERP_ZOO_DATA", Path(__file__).parents[3] / "shared" / "data")) / "imagenet800"


def drop_and_gain(model: nn.Module, pictures: list[Any], method: str, **options: Any) -> tuple[float, float]:
    exp = interp_zoo.explain(model, pictures, method, **options)
    before, after = exp.probability, exp.masked_probability
    return average_drop(before, after).mean().item(), average_gain(before, after).mean().item()


def package_pictures() -> list[Any]:
    data = pytest.importorskip("skimage.data")
    sample = pytest.importorskip("sklearn.datasets").load_sample_image
    return [
        data.astronaut(),
        data.chelsea(),
        data.coffee(),
        data.rocket(),
        sample("china.jpg"),
        sample("flower.jpg"),
    ]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", ["imagenet", "packages"])
def test_opticam_keeps_and_gains_what_gradcam_loses(demo: nn.Module, source: str) -> None:
    """Opti-CAM's AD at most 2, its AG at least 3 times Grad-CAM's, target = predicted class (Opti-CAM, table 1)."""
    pictures: list[Any] = package_pictures()
    if source == "imagenet":
        pictures = [str(p) for p in sorted(DATA.glob("*.jpg"))[10::100]]
        if not pictures:
            pytest.skip("needs the ImageNet pictures")
    drop, gain = drop_and_gain(demo, pictures, "gradcam")
    best_drop, best_gain = drop_and_gain(demo, pictures, "opticam")
    assert best_drop <= 2 < drop
    assert best_gain >= 3 * gain


def test_fakecam_keeps_everything_and_gains_nothing(demo: nn.Module) -> None:
    """The papers' sanity check: Fake-CAM's AD is near 0, its AG far below Opti-CAM's."""
    drop, gain = drop_and_gain(demo, package_pictures(), "fakecam")
    assert drop < 2
    assert gain < 5


def test_the_maps_of_two_classes_lie_where_they_are(demo: nn.Module) -> None:
    """Two pictures side by side: each class' map lies on its own half."""
    Image = pytest.importorskip("PIL.Image")
    data = pytest.importorskip("skimage.data")
    both = Image.new("RGB", (448, 448))
    both.paste(Image.fromarray(data.coffee()).resize((224, 448)), (0, 0))
    both.paste(Image.fromarray(data.chelsea()).resize((224, 448)), (224, 0))
    exp = interp_zoo.explain(demo, both, "gradcam", target=["espresso", "Egyptian cat"])
    left, right = exp.saliency[:, :, :112].sum((1, 2)), exp.saliency[:, :, 112:].sum((1, 2))
    assert left[0] > 2 * right[0]
    assert right[1] > 2 * left[1]
