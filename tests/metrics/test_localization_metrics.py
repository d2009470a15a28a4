"""Localisation metrics against their definitions, written out in plain Python over sets of pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from interp_zoo.metrics.functional.localization import (
    Regions,
    box_accuracy,
    box_of,
    energy_pointing_game,
    localization_error,
    official_metric,
    pixel_f1,
    pointing_game,
)

H, W = 6, 7
LEVELS = 9  # thresholds of box accuracy
Pixel = tuple[int, int]  # row, column
Grid = list[list[float]]
Quad = tuple[float, float, float, float]  # left, top, right, bottom
Metric = Callable[[Tensor, Regions], Tensor]
NAN = float("nan")


def everywhere() -> Iterable[Pixel]:
    return ((y, x) for y in range(H) for x in range(W))


def pixels_of(region: Any) -> set[Pixel]:
    """Those with their centres in a box, or those of a mask."""
    if isinstance(region, set):
        return region
    left, top, right, bottom = region
    return {(y, x) for y, x in everywhere() if left <= x + 0.5 < right and top <= y + 0.5 < bottom}


def cells_of(region: Any) -> set[Pixel]:
    """The sixteenths of pixels that a box covers within the picture, or a mask's tight box."""
    left, top, right, bottom = tight(region) if isinstance(region, set) else region
    return {(i, j) for i in range(4 * H) for j in range(4 * W) if left <= j / 4 < right and top <= i / 4 < bottom}


def tight(pixels: set[Pixel]) -> Quad:
    rows, columns = [y for y, _ in pixels], [x for _, x in pixels]
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def iou(a: set[Pixel], b: set[Pixel]) -> float:
    return len(a & b) / len(a | b)


def components(mask: set[Pixel], diagonal: bool) -> list[set[Pixel]]:
    """By flooding from each pixel that is not yet wet, in reading order."""
    found: list[set[Pixel]] = []
    for start in sorted(mask):
        if any(start in component for component in found):
            continue
        wet, edge = {start}, [start]
        while edge:
            y, x = edge.pop()
            for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))[
                : 8 if diagonal else 4
            ]:
                if (y + dy, x + dx) in mask - wet:
                    wet.add((y + dy, x + dx))
                    edge.append((y + dy, x + dx))
        found.append(wet)
    return found


def slow_box(mask: set[Pixel], diagonal: bool) -> Quad | None:
    """`max` keeps the first of equal ones."""
    return tight(max(components(mask, diagonal), key=len)) if mask else None


def slow_hit(grid: Grid, regions: list[Any]) -> bool:
    mean = sum((Fraction(v) for row in grid for v in row), Fraction()) / (H * W)
    box = slow_box({(y, x) for y, x in everywhere() if grid[y][x] > mean}, diagonal=False)
    return box is not None and any(iou(cells_of(box), cells_of(r)) > 0.5 for r in regions)


def slow_error(grid: Grid, regions: list[Any]) -> float:
    return 0.0 if slow_hit(grid, regions) else 100.0


def slow_official(grid: Grid, regions: list[Any], correct: bool) -> float:
    return 0.0 if correct and slow_hit(grid, regions) else 100.0


def slow_f1(grid: Grid, regions: list[Any]) -> float:
    best = 0.0
    for pixels in map(pixels_of, regions):
        inside, total = sum(grid[y][x] for y, x in pixels), sum(map(sum, grid))
        if inside:
            precision, recall = inside / total, inside / len(pixels)
            best = max(best, 100 * 2 * precision * recall / (precision + recall))
    return best


def slow_accuracy(grid: Grid, regions: list[Any]) -> list[float]:
    hits = []
    for t in range(LEVELS):
        threshold = Fraction(max(map(max, grid))) * t / LEVELS
        box = slow_box({(y, x) for y, x in everywhere() if grid[y][x] > threshold}, diagonal=True)
        hit = box is not None and any(iou(cells_of(box), cells_of(r)) >= 0.5 for r in regions)
        hits.append(100.0 if hit else 0.0)
    return hits


def slow_pointing(grid: Grid, regions: list[Any]) -> float:
    top = {(y, x) for y, x in everywhere() if grid[y][x] == max(map(max, grid)) > 0}  # zeros point nowhere
    return 100.0 if any(top & pixels_of(r) for r in regions) else 0.0


def slow_energy(grid: Grid, regions: list[Any]) -> float:
    inside, total = sum(grid[y][x] for y, x in set[Pixel]().union(*map(pixels_of, regions))), sum(map(sum, grid))
    return 100 * inside / total if total else 0.0


def slow_legacy_pointing(grid: Grid, boxes: list[Quad]) -> float:
    for y, x in everywhere():
        for left, top, right, bottom in boxes:
            hit = int(left) <= y <= int(right) and int(top) <= x <= int(bottom)
            if hit and grid[y][x] == max(map(max, grid)):
                return 100.0
    return 0.0


def slow_legacy_energy(grid: Grid, boxes: list[Quad]) -> float:
    marked = set()
    for left, top, right, bottom in boxes:
        for y in range(H)[int(left) : int(right)]:
            marked |= {(y, x) for x in range(W)[int(top) : int(bottom)]}
    total = sum(map(sum, grid))
    return 100 * sum(grid[y][x] for y, x in marked) / total if total else 0.0


def accuracy(saliency: Tensor, regions: Regions) -> Tensor:
    return box_accuracy(saliency, regions, thresholds=LEVELS)


def right(saliency: Tensor, regions: Regions) -> Tensor:
    return official_metric(saliency, regions, torch.ones(len(saliency), dtype=torch.bool))


def wrong(saliency: Tensor, regions: Regions) -> Tensor:
    return official_metric(saliency, regions, torch.zeros(len(saliency), dtype=torch.bool))


Twin = Callable[[Grid, list[Any]], Any]
TWINS: dict[str, tuple[Metric, Twin]] = {
    "error": (localization_error, slow_error),
    "right": (right, partial(slow_official, correct=True)),
    "wrong": (wrong, partial(slow_official, correct=False)),
    "f1": (pixel_f1, slow_f1),
    "accuracy": (accuracy, slow_accuracy),
    "pointing": (pointing_game, slow_pointing),
    "energy": (energy_pointing_game, slow_energy),
}
LEGACY: dict[str, tuple[Metric, Twin]] = {
    "pointing": (partial(pointing_game, legacy=True), slow_legacy_pointing),
    "energy": (partial(energy_pointing_game, legacy=True), slow_legacy_energy),
}


def grids() -> st.SearchStrategy[Grid]:
    """Maps in [0, 1] whose sums are exact: all zero, constant, one pixel, with ties, blocks, all but one, and any."""
    flat = [[[value] * W for _ in range(H)] for value in (0.0, 0.25, 1.0)]
    one = st.integers(0, H * W - 1).map(lambda k: [[float(y * W + x == k) for x in range(W)] for y in range(H)])
    fake = one.map(lambda grid: [[1 - v for v in row] for row in grid])
    block = st.tuples(st.integers(0, W), st.integers(0, H), st.integers(0, W), st.integers(0, H)).map(
        lambda b: [
            [0.75 * (b[0] <= x < b[2] and b[1] <= y < b[3]) + 0.25 * (x > y) for x in range(W)] for y in range(H)
        ]
    )

    def of(most: int) -> st.SearchStrategy[Grid]:
        value = st.integers(0, most).map(lambda k: k / most)
        return st.lists(st.lists(value, min_size=W, max_size=W), min_size=H, max_size=H)

    return st.one_of(st.sampled_from(flat), one, fake, block, of(1), of(4), of(1024))


def boxes(whole: bool = False) -> st.SearchStrategy[list[Any]]:
    """Boxes that leave the picture on each side, lie outside, or are empty; their edges at quarters of pixels."""

    def sides(size: int) -> st.SearchStrategy[list[float]]:
        edge = st.integers(-4, size + 4).map(float) if whole else st.integers(-16, 4 * size + 16).map(lambda k: k / 4)
        return st.lists(edge, min_size=2, max_size=2).map(sorted)

    box = st.tuples(sides(W), sides(H)).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))
    return st.lists(box, max_size=4)


def masks() -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sets(st.sampled_from(list(everywhere()))), max_size=3)


def as_tensor(region: list[Any], kind: str) -> Tensor:
    if kind == "boxes":
        return torch.tensor(region, dtype=torch.float64).view(-1, 4)
    return torch.tensor([[[(y, x) in m for x in range(W)] for y in range(H)] for m in region]).bool().view(-1, H, W)


def batches(region: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[list[tuple[Grid, list[Any]]]]:
    return st.lists(st.tuples(grids(), region), min_size=1, max_size=3)


def assert_equals_twin(metric: Metric, twin: Twin, batch: list[tuple[Grid, list[Any]]], kind: str) -> None:
    maps = torch.tensor([grid for grid, _ in batch], dtype=torch.float64)
    regions = [as_tensor(region, kind) for _, region in batch]
    copies = maps.clone(), [r.clone() for r in regions]
    found = metric(maps, regions)
    for figure, (grid, region) in zip(found, batch, strict=True):
        there = [r for r in region if pixels_of(r)]
        if there:
            torch.testing.assert_close(figure, torch.tensor(twin(grid, there), dtype=torch.float64))
        else:
            assert figure.isnan().all(), "there is nothing to find"
    assert found.dtype == torch.float64
    assert torch.equal(maps, copies[0])
    assert all(map(torch.equal, regions, copies[1]))


@pytest.mark.parametrize(("metric", "twin"), TWINS.values(), ids=TWINS)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_boxes_equal_their_twin(metric: Metric, twin: Twin, data: st.DataObject) -> None:
    assert_equals_twin(metric, twin, data.draw(batches(boxes())), "boxes")


@pytest.mark.parametrize(("metric", "twin"), TWINS.values(), ids=TWINS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_masks_equal_their_twin(metric: Metric, twin: Twin, data: st.DataObject) -> None:
    assert_equals_twin(metric, twin, data.draw(batches(masks())), "masks")


@pytest.mark.parametrize(("metric", "twin"), LEGACY.values(), ids=LEGACY)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_authors_way_equals_its_twin(metric: Metric, twin: Twin, data: st.DataObject) -> None:
    batch = data.draw(batches(boxes()))
    maps, regions = torch.tensor([g for g, _ in batch], dtype=torch.float64), [as_tensor(r, "boxes") for _, r in batch]
    want = [twin(grid, region) if region else NAN for grid, region in batch]
    torch.testing.assert_close(metric(maps, regions), torch.tensor(want, dtype=torch.float64), equal_nan=True)


@pytest.mark.parametrize("metric", [metric for metric, _ in TWINS.values()], ids=TWINS)
@given(batch=batches(boxes(whole=True)))
@settings(max_examples=30, deadline=None)
def test_boxes_and_the_same_masks_are_one(metric: Metric, batch: list[tuple[Grid, list[Any]]]) -> None:
    maps = torch.tensor([grid for grid, _ in batch], dtype=torch.float64)
    as_boxes = [as_tensor(region, "boxes") for _, region in batch]
    as_masks = [as_tensor([pixels_of(box) for box in region], "masks") for _, region in batch]
    assert torch.equal(metric(maps, as_boxes).nan_to_num(-1), metric(maps, as_masks).nan_to_num(-1))


@pytest.mark.parametrize("metric", [metric for metric, _ in TWINS.values()], ids=TWINS)
@given(batch=st.lists(st.tuples(grids(), boxes()), min_size=4, max_size=4), order=st.permutations(range(4)))
@settings(max_examples=25, deadline=None)
def test_batches_and_order_change_nothing(metric: Metric, batch: list[Any], order: list[int]) -> None:
    maps = torch.tensor([grid for grid, _ in batch], dtype=torch.float64)
    regions = [as_tensor(region, "boxes") for _, region in batch]
    want = metric(maps, regions).nan_to_num(-1)
    singles = [metric(maps[i : i + 1], regions[i : i + 1]) for i in range(4)]
    assert torch.equal(torch.cat(singles).nan_to_num(-1), want)
    turned = [regions[i].flip(0) for i in order]
    assert torch.equal(metric(maps[order], turned).nan_to_num(-1), want[order])


@given(mask=st.sets(st.sampled_from(list(everywhere()))), diagonal=st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_largest_components_box(mask: set[Pixel], diagonal: bool) -> None:
    found = box_of(as_tensor([mask], "masks")[0], diagonal=diagonal)
    assert (None if found is None else tuple(found.tolist())) == slow_box(mask, diagonal)
