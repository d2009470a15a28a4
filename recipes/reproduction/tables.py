"""The tables of docs/reproduction.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from interp_zoo.metrics.statistics import paired_difference
from reproduction.cells import MARKS, by_how_much, change, markdown, measured_metrics, titles
from reproduction.measured import Json, Measured
from reproduction.thesis import of_the_thesis

SEARCHES = {  # runs over variants of a training run, by what their tables' names begin with
    "resnet18, search": "resnet18_search",
    "resnet18, search, undetached": "resnet18_search_undetached",
    "resnet18, start": "resnet18_start",
    "mobilenetv2, search": "mobilenetv2_search",
}
PENALISED = {  # whose penalty was measured, by the pair that they belong to
    "resnet18": ("resnet18_cifar", "gr_resnet18_cifar"),
    "mobilenetv2": ("mobilenetv2_cifar", "mobilenetv2_longer", "gr_mobilenetv2_cifar"),
}
RELEASED = {  # how the pictures held out were evaluated, and the training run
    "resnet18_cifar": ("held_out_resnet18", "resnet18_training/plain"),
    "gr_resnet18_cifar": ("held_out_resnet18", "resnet18_training/penalised"),
    "ca_resnet18_cifar": ("held_out_resnet18", "ca_resnet18_training"),
    "mobilenetv2_cifar": ("held_out_mobilenetv2", "mobilenetv2_training/plain"),
    "gr_mobilenetv2_cifar": ("held_out_mobilenetv2", "mobilenetv2_training/penalised"),
}


def tables(measured: Measured) -> dict[str, Callable[[], str]]:
    """What makes each table of docs/reproduction.md, by the name that its place there has."""
    thesis = measured.summary("thesis")
    gradients, top_1 = thesis["interpretable gradients"], thesis["accuracy"]
    return {
        **of_a_pair(measured, "resnet18", "resnet18", "gr_resnet18_cifar", gradients["resnet18"], top_1["resnet18"]),
        "resnet18, plain": lambda: alone(measured, "resnet18_cifar", "resnet18_cifar", gradients["resnet18"]),
        **{name: make for title, run in SEARCHES.items() for name, make in of_a_search(measured, title, run).items()},
        "mobilenetv2, plain": lambda: alone(measured, "mobilenetv2_cifar", "mobilenetv2_cifar", with_floors=True),
        **of_a_pair(measured, "mobilenetv2", "mobilenetv2", "gr_mobilenetv2_cifar", top_1=top_1["mobilenetv2"]),
        **of_a_pair(measured, "pooling", "ca_resnet18", "ca_resnet18_cifar"),
        **{f"{pair}, penalty": partial(turned, measured, names) for pair, names in PENALISED.items()},
        "weights": lambda: halved(measured),
        **of_the_thesis(thesis),
        **of_a_pair(measured, "few pictures", "ca_efficientnet_lite0", "ca_efficientnet_lite0"),
    }


def of_a_pair(
    measured: Measured, title: str, run: str, model: str, thesis: Json | None = None, top_1: Sequence[float] = ()
) -> dict[str, Callable[[], str]]:
    """The tables of a network beside the one it is compared with.

    Args:
        measured: where the figures are.
        title: what the tables' names begin with.
        run: the run's name, and what those of the pair's further runs begin with, which measure what takes longer.
        model: the network whose figures come second.
        thesis: the thesis' figures by method and metric.
        top_1: the thesis' two accuracies.
    """
    found: dict[str, Callable[[], str]] = {f"{title}, accuracy": partial(accuracies, measured, run, model, top_1)}
    for more in ("", "insertion", "scorecam", "layers"):
        name, its = (f"{title}, {more}", f"{run}_{more}") if more else (title, run)
        found |= {
            name: partial(beside, measured, its, model, thesis or {}),
            f"{name}, floors": partial(floors, measured, its, model),
            f"{name}, beyond": partial(beyond, measured, its, model),
            f"{name}, alone": partial(alone, measured, its, model),
        }
    return found


def floors(measured: Measured, run: str, model: str) -> str:
    """What maps that say nothing get on two networks."""
    lines = [line for line in measured.comparison(run, model)["rows"] if line["floor"]]
    names = measured_metrics(lines[0])
    rows = [[f"`{line['method']}`", *(change(line["metrics"][name]) for name in names)] for line in lines]
    return markdown([["floor", *titles(names)], *rows])


def beyond(measured: Measured, run: str, model: str) -> str:
    """What each CAM gains beyond maps that say nothing: the Gaussian in the middle, and noise."""
    lines = [line for line in measured.comparison(run, model)["rows"] if not line["floor"]]
    rows = [row for line in lines for row in beyond_floors(line["method"], line)]
    return markdown([["CAM", "beyond", *titles(measured_metrics(lines[0]))], *rows])


def beyond_floors(name: str, line: Json) -> list[list[str]]:
    """What a method gains beyond each of two maps that say nothing, by a line of a comparison: two rows that are named.

    Args:
        name: what the rows are about.
        line: the method's line.
    """
    rows = []
    for floor in ("center_gaussian", "random"):
        cells = (line["metrics"][metric]["beyond"][floor] for metric in measured_metrics(line))
        rows.append([f"`{name}`", f"`{floor}`", *(f"{by_how_much(c)} {MARKS[c['better']]}" for c in cells)])
    return rows


def alone(measured: Measured, run: str, model: str, thesis: Json | None = None, *, with_floors: bool = False) -> str:
    """A network's methods with their intervals, beside no other network.

    Args:
        measured: where the figures are.
        run: the run's name.
        model: the network.
        thesis: the thesis' figures of a pair by method and metric, of which the first network's stand here, too.
        with_floors: have the maps that say nothing as well.
    """
    table = measured.table(run, model)
    names = measured_metrics(table["rows"][0])
    rows = [["method", *titles(names)]]
    for line in table["rows"]:
        if line["floor"] and not with_floors:
            continue
        if its := (thesis or {}).get(line["method"]):
            rows.append([f"`{line['method']}`, thesis", *(f"{its[name][0]:.2f}" for name in names)])
        cells = (line["metrics"][name] for name in names)
        rows.append([f"`{line['method']}`", *("{mean:.2f} ({low:.2f} to {high:.2f})".format(**c) for c in cells)])
    return markdown(rows)


def of_a_search(measured: Measured, title: str, run: str) -> dict[str, Callable[[], str]]:
    """The tables of variants of a training run, by Grad-CAM and by a map that says nothing."""
    return {
        title: partial(searched, measured, run, "gradcam"),
        f"{title}, floor": partial(searched, measured, run, "center_gaussian"),
        f"{title}, beyond": partial(searched_beyond, measured, run),
    }


def searched(measured: Measured, run: str, method: str) -> str:
    """Variants of a training run beside the first of them: the penalty, top-1, and a method's figures.

    Args:
        measured: where the figures are.
        run: the evaluation's name, and the folder's with the training runs' summary.csv, each by its variant's name:
            the variants' models are `local-dir:.../VARIANT/best`.
        method: the method.
    """
    summary = measured.summary(run)
    (line,) = (line for line in summary["tables"][0]["rows"] if line["method"] == method)
    names = measured_metrics(line)
    cells = {summary["tables"][0]["model"]: [f"{line['metrics'][name]['mean']:.2f}" for name in names]}
    for found in summary["comparisons"]:
        (line,) = (line for line in found["rows"] if line["method"] == method)
        its = [line["metrics"][name] for name in names]
        cells[found["second"]] = [f"{cell['second']:.2f} {MARKS[cell['better']]}" for cell in its]
    rows = [["variant", "penalty", "top-1 ↑", *titles(names)]]
    for model, figures in cells.items():
        variant = Path(model).parent.name
        top_1, _ = measured.accuracy(run, model)
        rows.append([f"`{variant}`", measured.penalty(f"{run}/{variant}"), f"{top_1:.2f}", *figures])
    return markdown(rows)


def searched_beyond(measured: Measured, run: str) -> str:
    """What Grad-CAM gains beyond maps that say nothing, from the first variant of a training run to each other."""
    rows, names = [], []
    for found in measured.summary(run)["comparisons"]:
        (line,) = (line for line in found["rows"] if line["method"] == "gradcam")
        names = measured_metrics(line)
        rows += beyond_floors(Path(found["second"]).parent.name, line)
    return markdown([["variant", "beyond", *titles(names)], *rows])


def turned(measured: Measured, names: Iterable[str]) -> str:
    """The penalty of networks as they are, and the last one's beside each other's, paired by batch."""
    drawn = {name: measured.penalties(f"penalty/{name}") for name in names}
    *_, last = drawn
    rows = [["network", "1 - cosine", f"`{last}` beside it"]]
    for name, its in drawn.items():
        beside = "{:+.3f} ({:+.3f} to {:+.3f})".format(*paired_difference(drawn[last], its))
        rows.append([f"`{name}`", f"{its.mean():.3f}", "" if name == last else beside])
    return markdown(rows)


def halved(measured: Measured) -> str:
    """Top-1 on the pictures held out: of the weights in float32, as training measured it, and in float16, as released.

    The network computed in the same precision, that of its training.
    """
    rows = [["top-1 ↑", "float32, in training", "float16, as released"]]
    for model, (run, history) in RELEASED.items():
        best = max(float(epoch["eval_top-1"]) for epoch in measured.epochs(history))
        rows.append([f"`{model}`", f"{best:.2f}", f"{measured.accuracy(run, model)[0]:.2f}"])
    return markdown(rows)


def beside(measured: Measured, run: str, model: str, thesis: Json) -> str:
    """The thesis' figures of two networks beside those measured here, CAM by CAM.

    Args:
        measured: where the figures are.
        run: the run's name.
        model: the network whose figures come second.
        thesis: the thesis' figures by method and metric, an empty one where it has none.
    """
    found = measured.comparison(run, model)
    lines = [line for line in found["rows"] if not line["floor"]]
    names = measured_metrics(lines[0])
    rows: list[list[str]] = [["CAM", "", *titles(names), "pictures"]]
    for line in lines:
        cells = [line["metrics"][name] for name in names]
        if its := thesis.get(line["method"]):
            rows.append([f"`{line['method']}`", "thesis", *("{:.2f} → {:.2f}".format(*its[m]) for m in names), ""])
        rows.append([f"`{line['method']}`", "here", *map(change, cells), f"{found['pictures']:,}"])
        rows.append(["", "difference", *map(by_how_much, cells), ""])
    return markdown(rows)


def accuracies(measured: Measured, run: str, model: str, thesis: Sequence[float] = ()) -> str:
    """Top-1 of a network and of what a run compares it with, beside the thesis' two figures, if it has them."""
    first = measured.comparison(run, model)["first"]
    (a, n), (b, _) = measured.accuracy(run, first), measured.accuracy(run, model)
    rows = [["top-1 ↑", f"`{first}`", f"`{model}`", "pictures"]]
    if thesis:
        rows.append(["thesis", *(f"{value:.2f}" for value in thesis), ""])
    return markdown([*rows, ["here", f"{a:.2f}", f"{b:.2f}", f"{n:,}"]])
