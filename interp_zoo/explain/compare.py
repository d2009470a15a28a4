"""Several methods on the same pictures, side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from interp_zoo.explain import render
from interp_zoo.explain.api import Explainer, Loaded
from interp_zoo.explain.explanation import Explanation
from interp_zoo.explain.methods import UnsuitableModel, get_method, list_methods
from interp_zoo.metrics.functional import average_drop, average_gain
from interp_zoo.models.loading import create, place

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ALL = "all"  # what users say for all methods, slow ones as well
ROWS = 8  # of a figure, where no other number is asked for
_FORMATS = (".png", ".pdf", ".svg")


def check_figure(path: str | Path) -> Path:
    """The file of a figure, .png where it has no ending; raises ValueError if it ends in something else."""
    path = Path(path)
    if path.suffix and path.suffix.lower() not in _FORMATS:
        raise ValueError(f'`path` "{path}" must end in {", ".join(_FORMATS)}')
    return path if path.suffix else path.with_suffix(".png")


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """Explanations of the same rows by several methods.

    Attributes:
        explanations: by method's name, in the order asked for.
        left_out: methods that the model does not admit or that are slow, and why.
    """

    explanations: dict[str, Explanation]
    left_out: dict[str, str]

    def figure(self, rows: int = ROWS) -> Figure:
        """A matplotlib figure: a row a map's target (the first `rows`), a column a method, with AD, AG and cost."""
        first = next(iter(self.explanations.values()))
        table = []
        for row in range(min(len(first), rows)):
            image = render.to_image(first._pictures[row].pixels)
            p = first.probability[row].item()
            cells = [(image, first.label[row] + (f"\n{100 * p:.1f} %" if math.isfinite(p) else ""))]
            cells += [(exp._overlay(row, "input"), self._caption(exp, row)) for exp in self.explanations.values()]
            table.append(cells)
        return render.table(table, ["picture", *self.explanations])

    def save(self, path: str | Path, rows: int = ROWS) -> Path:
        """Writes the figure and returns its file; the ending decides the format: .png (also if none), .pdf, .svg."""
        path = check_figure(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.figure(rows).savefig(path)
        return path

    def __repr__(self) -> str:
        return "Comparison(" + "; ".join(map(repr, self.explanations.values())) + ")"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png")
        return buffer.getvalue()

    @staticmethod
    def _caption(exp: Explanation, row: int) -> str:
        before, after = exp.probability[row : row + 1], exp.masked_probability[row : row + 1]
        cost = str(exp.cost).replace(" passes, ", "\n")
        if not math.isfinite(before.item()):  # a function of the output has no probability
            return cost
        drop, gain = average_drop(before, after).item(), average_gain(before, after).item()
        return f"AD {drop:.1f}   AG {gain:.1f}\n{cost}"


def compare(
    model: nn.Module | str,
    img: Any,
    methods: Sequence[str] | str | None = None,
    *,
    target: Any = None,
    **arguments: Any,
) -> Comparison:
    """Explains the same pictures by several methods, for one figure.

    Every method gets the same targets: "predicted" is what the model predicts on the whole picture.

    Args:
        model: as in `explain`.
        img: as in `explain`.
        methods: their names; "all" for all that the model admits; None for those of them that are not slow, as RISE
            with its thousands of passes is. What is not shown is in `left_out`.
        target: as in `explain`.
        **arguments: `layer`, `batch_size`, `device`, `amp`, `progress`, `multi_label`, `data_config` as in `explain`;
            no options of methods. Methods that look at no layer, or at layers of their own, do without `layer`.

    Raises:
        ValueError: as in `explain`; also if a method that was asked for by name cannot explain this model.
    """
    known = {"layer", "batch_size", "device", "amp", "progress", "multi_label", "data_config"}
    for name in arguments:
        if name not in known:
            raise TypeError(f"compare has no argument `{name}`; it takes {', '.join(sorted(known))}")
    every = methods is None or methods in (ALL, [ALL])
    asked = [methods] if isinstance(methods, str) else methods
    chosen = list(map(get_method, list_methods() if every or asked is None else dict.fromkeys(asked)))
    if not chosen:
        raise ValueError(f'`methods` is empty: name at least one, or None for all that are not slow, or "{ALL}"')
    left_out = {
        m.name: f'`method` "{m.name}" is slow ({m.cost}): ask for it by name'
        for m in chosen
        if methods is None and m.slow
    }
    if isinstance(model, str):
        model = place(create(model), arguments.pop("device", None))
    layer = arguments.pop("layer", None)
    explainers = [
        Explainer(model, m.name, layer=layer if m.takes_layer else None, **arguments)
        for m in dict.fromkeys(chosen)
        if m.name not in left_out
    ]
    loaded = Loaded(img, explainers[0].model, arguments.get("data_config"))
    explanations: dict[str, Explanation] = {}
    for explainer in explainers:
        try:
            explanations[explainer.method] = explainer.explain_loaded(loaded, target)
        except UnsuitableModel as error:
            if not every:
                raise
            left_out[explainer.method] = str(error)
    return Comparison(explanations, left_out)
