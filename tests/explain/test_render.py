"""The figure that compares methods."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from interp_zoo.explain.render import table


@pytest.mark.parametrize(
    ("count", "lines", "across"), [(2, 1, 2), (8, 1, 8), (9, 2, 5), (16, 2, 8), (23, 3, 8), (25, 4, 7)]
)
@pytest.mark.parametrize("pictures", [1, 2])
def test_long_rows_are_broken(count: int, lines: int, across: int, pictures: int) -> None:
    cells = [(Image.new("RGB", (8, 8), (i, 0, 0)), f"caption {i}") for i in range(count)]
    titles = [f"title {i}" for i in range(count)]
    figure = table([cells] * pictures, titles)
    axes = np.array(figure.axes).reshape(lines * pictures, across)
    assert tuple(figure.get_size_inches()) == pytest.approx((2.3 * across, 2.95 * lines * pictures))
    for picture in range(pictures):
        for i, axis in enumerate(axes[picture * lines : (picture + 1) * lines].flat):
            if i >= count:
                assert not axis.images
                continue
            assert axis.images[0].get_array()[0, 0, 0] == i
            assert [text.get_text() for text in axis.texts] == [f"caption {i}"]
            assert axis.get_title() == (titles[i] if picture == 0 or lines > 1 else "")
    figure.savefig(io.BytesIO())
