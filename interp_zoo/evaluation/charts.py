"""What a report shows of figures: charts as inline SVG, shades of heat tables, maps over pictures, numbers as text."""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from PIL import Image

from interp_zoo.evaluation.records import finite
from interp_zoo.explain.render import overlay

# Okabe and Ito's palette, made for the colour-blind, without its yellow, which white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
DASHES: tuple[tuple[float, ...], ...] = ((), (4.5, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5))
FLOOR_COLOUR = "#808080"
FLOOR_DASHES: tuple[tuple[float, ...], ...] = ((2.5, 1.5), (1, 1.5), (5, 1.5, 1, 1.5))
# Five shapes and seven colours share no divisor: colour, dash and shape repeat together only after 140 methods.
SHAPES: dict[str, tuple[tuple[float, float], ...]] = {  # corners in half-widths, y pointing down
    "o": (),
    "s": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "^": ((0, -1.1), (1.1, 0.9), (-1.1, 0.9)),
    "D": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
    "v": ((0, 1.1), (1.1, -0.9), (-1.1, -0.9)),
}
SIDE = 112  # pixels: the size of maps whose picture is not there
QUALITY = 62  # of WebP
NONE = "–"  # where there is no figure
CURVES = {
    "insertion": ("Insertion", "pixels brought back, the most salient first (%)"),
    "deletion": ("Deletion", "pixels removed, the most salient first (%)"),
}

WIDTH = 400.0  # points; text of 10 points is still read where a phone shrinks it to 330
INK = "#24292f"
RC: Any = {
    "svg.fonttype": "none",  # text stays text: small, and found by a search
    "svg.hashsalt": "interp_zoo",  # the same chart has the same ids, on any day
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8c959f",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7ea",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a name with $ is a name
}

Json = dict[str, Any]
Box = tuple[float, float, float, float]  # left, bottom, right, top


def number(value: float | None, digits: int = 1) -> str:
    """A figure with a true minus sign; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def seconds(value: float | None) -> str:
    """Seconds with about three digits."""
    if value is None or not math.isfinite(value):
        return NONE
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def mean_of(row: Json, name: str) -> float | None:
    """A method's mean by a metric in the summary, None where nothing was measured."""
    return finite((row["metrics"].get(name) or {}).get("mean"))


@dataclass(frozen=True)
class Style:
    """How a method is drawn, in every chart of a report alike."""

    colour: str
    dashes: tuple[float, ...]  # lengths in line widths, on and off in turn; () for a solid line
    shape: str  # one of SHAPES; "" for none

    def swatch(self) -> str:
        """A piece of the line, for legends outside of charts."""
        dash = f' stroke-dasharray="{" ".join(f"{2 * d:g}" for d in self.dashes)}"' if self.dashes else ""
        line = f'<line x1="1" y1="6" x2="35" y2="6" stroke="{self.colour}" stroke-width="2"{dash}/>'
        corners = " ".join(f"{18 + 4 * x:g},{6 + 4 * y:g}" for x, y in SHAPES.get(self.shape, ()))
        mark = f'<polygon points="{corners}" fill="{self.colour}"/>' if corners else ""
        if self.shape == "o":
            mark = f'<circle cx="18" cy="6" r="4" fill="{self.colour}"/>'
        return f'<svg class="swatch" viewBox="0 0 36 12" width="36" height="12" aria-hidden="true">{line}{mark}</svg>'


def styles(methods: Sequence[str], floors: Sequence[str]) -> dict[str, Style]:
    """A style for each method: told apart by colour and dash and shape, floors dashed in grey."""
    shapes = tuple(SHAPES)
    drawn = {}
    for i, name in enumerate(methods):
        dashes = DASHES[i // len(COLOURS) % len(DASHES)]
        drawn[name] = Style(COLOURS[i % len(COLOURS)], dashes, shapes[i % len(shapes)])
    for i, name in enumerate(floors):
        drawn[name] = Style(FLOOR_COLOUR, FLOOR_DASHES[i % len(FLOOR_DASHES)], "")
    return drawn


def curves_section(kind: str, rows: Sequence[Json], look: Mapping[str, Style], prefix: str) -> Json | None:
    """A chart of the methods' mean curves, and its legend in the order of their areas."""
    lines = {row["method"]: [finite(v) for v in (row.get("curves") or {}).get(kind) or []] for row in rows}
    lines = {name: line for name, line in lines.items() if sum(v is not None for v in line) > 1}
    if not lines:
        return None
    figures = {}
    for row in rows:
        if line := lines.get(row["method"]):
            between = [(a + b) / 2 for a, b in pairwise(line) if a is not None and b is not None]
            mean = mean_of(row, kind)
            figures[row["method"]] = 100 * float(np.mean(between or [0.0])) if mean is None else mean
    order = sorted(lines, key=lambda name: -figures[name] if kind == "insertion" else figures[name])
    return {
        "title": CURVES[kind][0],
        "higher": kind == "insertion",
        "svg": curves(lines, look, x=CURVES[kind][1], prefix=f"{prefix}-{kind}"),
        "legend": [(name, number(figures[name]), look[name].swatch(), look[name].shape == "") for name in order],
    }


def cost_section(rows: Sequence[Json], metrics: Sequence[Json], look: Mapping[str, Style], prefix: str) -> list[Json]:
    """Charts of quality against seconds, for at most two metrics."""
    found = []
    for metric in metrics[:2]:
        points = {
            row["method"]: (time, mean)
            for row in rows
            if (time := finite(row.get("seconds"))) and time > 0 and (mean := mean_of(row, metric["name"])) is not None
        }
        if len(points) < 2:
            continue
        better = "high is good" if metric["higher_is_better"] else "low is good"
        y = f"{metric['title']} ({', '.join(filter(None, (metric.get('unit'), better)))})"
        found.append(
            {"title": metric["title"], "svg": scatter(points, look, y=y, prefix=f"{prefix}-cost-{metric['name']}")}
        )
    return found


def curves(lines: Mapping[str, Sequence[float | None]], look: Mapping[str, Style], *, x: str, prefix: str) -> str:
    """Mean curves of probability against the share of pixels that changed, as SVG.

    Args:
        lines: by method, probabilities in [0, 1] at evenly spaced shares from 0 to 1; None leaves a gap.
        look: the methods' styles.
        x: the horizontal axis' label.
        prefix: begins every id in the SVG: unique in the page.
    """
    with matplotlib.rc_context(RC):
        figure, axes = _figure(264)
        # Floors first, so that methods lie over them.
        for place, name in enumerate(sorted(lines, key=lambda n: look[n].shape != "")):
            style, values = look[name], [math.nan if v is None else 100 * v for v in lines[name]]
            share = [100 * i / max(1, len(values) - 1) for i in range(len(values))]
            axes.plot(
                share,
                values,
                color=style.colour,
                linestyle=(0, style.dashes) if style.dashes else "-",
                linewidth=1.4,
                marker=style.shape,
                markersize=4,
                # Shapes of neighbouring lines lie at other places, or they would hide each other.
                markevery=(place % 7, 7),
            )
        axes.set(xlim=(0, 100), ylim=(0, None), xlabel=x, ylabel="target’s probability (%)")
        return _svg(figure, prefix)


def scatter(points: Mapping[str, tuple[float, float]], look: Mapping[str, Style], *, y: str, prefix: str) -> str:
    """Quality against seconds a picture on a logarithmic axis, each point with its method's name, as SVG.

    Args:
        points: by method, (seconds > 0, quality), both finite.
        look: the methods' styles.
        y: the vertical axis' label.
        prefix: begins every id in the SVG: unique in the page.
    """
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's browser has other fonts than this machine
        figure, axes = _figure(320)
        seconds, quality = zip(*points.values(), strict=True)
        axes.set_xscale("log")
        axes.set(xlim=(min(seconds) / 2.2, max(seconds) * 2.2), xlabel="seconds a picture (log scale)", ylabel=y)
        room = 0.1 * (max(quality) - min(quality)) or 1.0
        axes.set_ylim(min(quality) - 1.5 * room, max(quality) + room)
        low, high = (math.floor(math.log10(v)) for v in axes.get_xlim())
        decades = [10.0**e * m for e in range(low, high + 1) for m in ((1, 3) if high - low < 3 else (1,))]
        axes.xaxis.set_major_locator(FixedLocator(decades))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        for name, (second, value) in points.items():
            style = look[name]
            axes.plot(
                [second],
                [value],
                marker=style.shape or "o",
                markersize=6,
                markerfacecolor=style.colour if style.shape else "white",
                markeredgecolor=style.colour,
            )
        figure.canvas.draw()  # only then is it known where things lie
        figure.set_layout_engine("none")  # and there they stay
        _label(figure, axes, points, look)
        return _svg(figure, prefix)


def shade(tau: float) -> tuple[str, str]:
    """Background and ink of a cell that holds a value in [-1, 1]: the higher the darker, so that grey tells as much."""
    share = ((min(1.0, max(-1.0, tau)) + 1) / 2) ** 1.6
    light, dark = (250, 251, 253), (16, 66, 128)
    colour = [round(a + (b - a) * share) for a, b in zip(light, dark, strict=True)]
    luminance = sum(w * (c / 255) ** 2.2 for w, c in zip((0.2126, 0.7152, 0.0722), colour, strict=True))
    # Where white and black are equally far from a colour, by WCAG's measure of contrast.
    return "#" + bytes(colour).hex(), "#ffffff" if luminance < 0.18 else "#000000"


def shaded(matrix: Sequence[Sequence[float | None]]) -> list[list[tuple[str, str, str]]]:
    """Text, background and ink of each cell."""
    return [[(NONE, "", "") if v is None else (number(v, 2), *shade(v)) for v in row] for row in matrix]


def overlaid(row: Json, thumbnails: Mapping[tuple[str, int], str]) -> str | None:
    """A row's map over its picture, or on black where that is not there, as a data URI."""
    if not row.get("map"):
        return None
    grey = Image.open(io.BytesIO(base64.b64decode(row["map"]))).convert("L")
    saliency = torch.from_numpy(np.asarray(grey, dtype=np.float32) / 255)
    image = Image.new("RGB", (SIDE, SIDE))
    if thumbnail := thumbnails.get((row["model"], row["index"])):
        image = Image.open(io.BytesIO(base64.b64decode(thumbnail)))
    buffer = io.BytesIO()
    overlay(image.convert("RGB"), saliency).save(buffer, format="WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(height: float) -> tuple[Figure, Axes]:
    """A figure of WIDTH x `height` points, whose pixels are points, and its axes."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure: Figure, prefix: str) -> str:
    """The figure as an svg element without size, with own ids and no fonts, nothing in it that reaches beyond it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Styles would hold for the whole page.
    text = re.sub(r"<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    # Names in texts may hold anything, escaped; only what stands within tags is changed.
    used = set(re.findall(r'href="#([^"]+)|url\(#([^)]+)', text))
    ids = {one or other for one, other in used}
    return re.sub(r"\s*(<[^>]*>)\s*", lambda tag: _tag(tag[1], ids, prefix), text)


def _tag(tag: str, ids: set[str], prefix: str) -> str:
    """A tag of an SVG with ids that are used and begin with `prefix`, hundredths of points, and no fonts."""
    tag = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in ids else "", tag)
    tag = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    tag = re.sub(r' font-family: [^;"]*;?| transform="rotate\(-0 [^"]*"', "", tag)
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), " ".join(tag.split()))


def _label(figure: Figure, axes: Axes, points: Mapping[str, tuple[float, float]], look: Mapping[str, Style]) -> None:
    """Writes names beside points where no other name or point is, with a thin line where that is further away."""
    where = {name: tuple(axes.transData.transform(p)) for name, p in points.items()}
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in where.values()]
    frame = axes.get_window_extent()
    frame_box = (frame.x0 + 2, frame.y0 + 2, frame.x1 + 6, frame.y1 + 4)
    for name in sorted(points, key=lambda n: (where[n], n)):
        x, y = where[name]
        colour = INK if look[name].shape else "#6e7781"
        text = figure.text(0, 0, shortened(name), fontsize=8.5, color=colour, ha="center", va="center", transform=None)
        half = text.get_window_extent().width / 2
        best, line, fewest = (x + 7 + half, y), None, math.inf
        for dx, dy in _offsets():
            # From the point to the nearest edge of the name, then half of the name.
            centre = (x + dx + math.copysign(half, dx) * (dx != 0), y + dy)
            box = (centre[0] - half, centre[1] - 5, centre[0] + half, centre[1] + 5)
            if not (
                frame_box[0] < box[0] and frame_box[1] < box[1] and box[2] < frame_box[2] and box[3] < frame_box[3]
            ):
                continue
            reach = math.hypot(dx, dy)
            # Points on the line, but for its beginning: other methods' points may lie under it.
            steps = [*(np.arange(8, reach, 3) / reach), 1.0] if reach > 13 else []
            leader = [(x + dx * t, y + dy * t) for t in steps]
            crossed = [(a, b, a, b) for a, b in leader]
            # A name that lies on another is worse than a line that crosses one.
            hits = 5 * _meet([box], taken) + _meet(crossed, taken)
            if hits < fewest:
                best, line, fewest = centre, leader, hits
                if hits == 0:
                    break
        text.set_position(best)
        taken.append((best[0] - half, best[1] - 5, best[0] + half, best[1] + 5))
        if line:
            ends = [(x, line[-1][0]), (y, line[-1][1])]
            figure.add_artist(Line2D(*ends, color="#8c959f", linewidth=0.6, transform=None))
            taken += [(a - 1, b - 1, a + 1, b + 1) for a, b in line]


def _meet(boxes: Sequence[Box], others: Sequence[Box]) -> int:
    """How many pairs of boxes overlap."""
    return sum(a < s and p < c and b < t and q < d for a, b, c, d in boxes for p, q, s, t in others)


def _offsets() -> list[tuple[float, float]]:
    """Where a name may begin beside its point, in points, the nearest and the right first."""
    turns = (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90)
    near = [(r * math.cos(math.radians(a)), r * math.sin(math.radians(a))) for r in (7, 12) for a in turns]
    more = (*turns, 15, -15, 165, -165, 45, -45, 135, -135, 75, -75, 105, -105)
    far = [(r * math.cos(math.radians(a)), r * math.sin(math.radians(a))) for r in range(18, 200, 8) for a in more]
    return [(0.0 if abs(x) < 1e-9 else x, y) for x, y in near + far]


def shortened(text: str, length: int = 22) -> str:
    """The text, its end cut off if it is longer than `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"
