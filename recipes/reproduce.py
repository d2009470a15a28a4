"""Write the tables of docs/reproduction.md, and model_cards/, from what recipes/evaluate.py measured.

    python recipes/reproduce.py

Every figure in a table comes from a summary.json that lies in docs/reproduction/ under the name of its run, or from the
summary.csv of a training run, or, where the page has the thesis' own, from docs/reproduction/thesis.json.
Written by hand are the page's prose and model_cards/cards.toml.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm

from interp_zoo.cards import Results, make_card
from interp_zoo.evaluation.measures import MEASURES

ROOT = Path(__file__).parents[1]
METRICS = ("average_drop", "average_gain", "average_increase", "insertion", "deletion")
MARKS = {"second": "▲", "first": "▼", "": "≈"}
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
TABLE = re.compile(r"<!-- table: (.+?) -->\n.*?<!-- end -->", re.DOTALL)

Json = Mapping[str, Any]


class Measured:
    """The summaries in a folder, by name.

    Whoever asks for a file that is not there gets a FileNotFoundError; for a model that a run does not have, or has for
    several targets, a ValueError.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def summary(self, name: str) -> Any:
        """A run's summary.json, or other figures that lie there."""
        return json.loads(self._read(f"{name}.json"))

    def comparison(self, name: str, model: str) -> Json:
        """What a run says of a model beside the first of its models."""
        return self._one(name, "comparisons", "second", model)

    def table(self, name: str, model: str) -> Json:
        """What a run says of a model by itself."""
        return self._one(name, "tables", "model", model)

    def accuracy(self, name: str, model: str) -> tuple[float, int]:
        """Top-1 in percent on the pictures of a run, and their number."""
        facts = self._one(name, "models", "name", model)
        return 100 * facts["correct"] / facts["labelled"], facts["labelled"]

    def epochs(self, run: str) -> list[dict[str, str]]:
        """The summary.csv of a training run."""
        return [*csv.DictReader(self._read(f"{run}.csv").splitlines())]

    def penalty(self, run: str) -> str:
        """The mean penalty in the last epoch of a training run, "" if it had none."""
        last = self.epochs(run)[-1]
        return f"{float(last['penalty']):.3f}" if last.get("penalty") else ""

    def _one(self, name: str, part: str, key: str, model: str) -> Json:
        found: list[Json] = [its for its in self.summary(name)[part] if its[key] == model]
        if len(found) != 1:
            raise ValueError(f'"{name}.json" has "{model}" {len(found)} times among its {part}, but must have it once')
        return found[0]

    def _read(self, name: str) -> str:
        file = self._folder / name
        if not file.is_file():
            raise FileNotFoundError(f'there is no "{file}": copy the summary{file.suffix} of the run there')
        return file.read_text(encoding="utf-8")


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A table; its first row is its head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))


def titles(names: Iterable[str] = METRICS) -> list[str]:
    """Of metrics, with the better side."""
    return [MEASURES[name].title + (" ↑" if MEASURES[name].higher_is_better else " ↓") for name in names]


def measured_metrics(line: Json) -> list[str]:
    """Which metrics a method's line has; a run need not have measured all of them."""
    return [name for name in METRICS if name in line["metrics"]]


def change(cell: Json) -> str:
    """What a metric is on the first and on the second model, and whether the run tells them apart."""
    return f"{cell['first']:.2f} → {cell['second']:.2f} {MARKS[cell['better']]}"


def by_how_much(cell: Json) -> str:
    """The difference with its interval."""
    return f"{cell['difference']:+.2f} ({cell['low']:+.2f} to {cell['high']:+.2f})"


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


def tables(measured: Measured) -> dict[str, Callable[[], str]]:
    """What makes each table of docs/reproduction.md, by the name that its place there has."""
    thesis = measured.summary("thesis")
    gradients, top_1 = thesis["interpretable gradients"], thesis["accuracy"]
    return {
        **of_a_pair(measured, "resnet18", "resnet18", "gr_resnet18_cifar", gradients["resnet18"], top_1["resnet18"]),
        "resnet18, plain": lambda: alone(measured, "resnet18_cifar", "resnet18_cifar", gradients["resnet18"]),
        "resnet18, search": lambda: searched(measured, "resnet18_search", "gradcam"),
        "resnet18, search, floor": lambda: searched(measured, "resnet18_search", "center_gaussian"),
        "mobilenetv2, plain": lambda: alone(measured, "mobilenetv2_cifar", "mobilenetv2_cifar", with_floors=True),
        **of_a_pair(measured, "mobilenetv2", "mobilenetv2", "gr_mobilenetv2_cifar", top_1=top_1["mobilenetv2"]),
        **of_a_pair(measured, "pooling", "ca_resnet18", "ca_resnet18_cifar"),
        **{f"{pair}, penalty": partial(turned, measured, names) for pair, names in PENALISED.items()},
        "weights": lambda: halved(measured),
        "pooling, thesis": lambda: as_the_thesis(thesis["pooling"]),
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
            f"{name}, alone": partial(alone, measured, its, model),
        }
    return found


def floors(measured: Measured, run: str, model: str) -> str:
    """What maps that say nothing get on two networks."""
    lines = [line for line in measured.comparison(run, model)["rows"] if line["floor"]]
    names = measured_metrics(lines[0])
    rows = [[f"`{line['method']}`", *(change(line["metrics"][name]) for name in names)] for line in lines]
    return markdown([["floor", *titles(names)], *rows])


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


def turned(measured: Measured, names: Iterable[str]) -> str:
    """The penalty of networks as they are."""
    rows = ([f"`{name}`", measured.penalty(f"penalty/{name}")] for name in names)
    return markdown([["network", "1 - cosine"], *rows])


def halved(measured: Measured) -> str:
    """Top-1 on the pictures held out: of the weights in float32, as training measured it, and in float16, as released.

    The network computed in the same precision, that of its training.
    """
    rows = [["top-1 ↑", "float32, in training", "float16, as released"]]
    for model, (run, history) in RELEASED.items():
        best = max(float(epoch["eval_top-1"]) for epoch in measured.epochs(history))
        rows.append([f"`{model}`", f"{best:.2f}", f"{measured.accuracy(run, model)[0]:.2f}"])
    return markdown(rows)


def as_the_thesis(networks: Json) -> str:
    """Its figures alone."""
    rows = [["network", "CAM", *titles()]]
    for network, methods in networks.items():
        rows += [
            [f"`{network}`", f"`{method}`", *("{:.2f} → {:.2f}".format(*its[m]) for m in METRICS)]
            for method, its in methods.items()
        ]
    return markdown(rows)


def fill(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The page with those tables anew that it has a place for.

    Raises:
        ValueError: if it asks for a table that there is not.
        FileNotFoundError: if what one of them is made of is not there.
    """
    if odd := set(TABLE.findall(page)) - set(tables):
        raise ValueError(f"docs/reproduction.md asks for tables that there are not: {', '.join(sorted(odd))}")
    return TABLE.sub(lambda m: f"<!-- table: {m[1]} -->\n{tables[m[1]]()}\n<!-- end -->", page)


def results(measured: Measured, name: str, told: Json) -> dict[str, Any]:
    """A card's results file.

    Args:
        measured: where the figures are.
        name: the model's.
        told: its part of cards.toml: `runs`, of which the first gives the accuracy, and each that compares it with
            another network a section, with `titles` by run; `dataset`, and its `split` if that is not the test split;
            `training`; `sections`.

    Raises:
        ValueError: if a run does not have the model.
    """
    first = measured.summary(told["runs"][0])
    accuracy, _ = measured.accuracy(told["runs"][0], name)
    found: dict[str, Any] = {
        "model": name,
        "command": first["command"],
        "results": [
            {
                "dataset": told["dataset"],
                "split": told.get("split", "test"),
                "metric": "accuracy",
                "name": "top-1",
                "value": round(accuracy, 2),
            }
        ],
        "datasets": [told["dataset"]],
        "training": told["training"],
        "sections": list(told["sections"]),
    }
    for run in told["runs"]:
        title = told.get("titles", {}).get(run, "Explanations")
        compared = any(its["second"] == name for its in measured.summary(run)["comparisons"])
        found["sections"].append((section if compared else section_alone)(measured, run, name, title))
    return found


def section(measured: Measured, run: str, name: str, title: str) -> dict[str, Any]:
    """What a card says of a model beside what a run compares it with."""
    found = measured.comparison(run, name)
    lines = found["rows"]
    names = measured_metrics(lines[0])
    (first, _), (second, _) = measured.accuracy(run, found["first"]), measured.accuracy(run, name)
    return {
        "title": title,
        "text": [
            f"`{found['first']}` → `{name}`: means over {found['pictures']:,} pictures, percent; "
            "▲ better, ▼ worse, ≈ not told apart (paired by picture, 95 %). "
            f"Top-1 on these pictures: {first:.2f} → {second:.2f}. The last rows are maps that say nothing.",
        ],
        "columns": ["method", *titles(names)],
        "rows": [[f"`{line['method']}`", *(change(line["metrics"][m]) for m in names)] for line in lines],
        "command": measured.summary(run)["command"],
    }


def section_alone(measured: Measured, run: str, name: str, title: str) -> dict[str, Any]:
    """What a card says of a model that a run compares with no other: methods, and maps that say nothing."""
    found = measured.table(run, name)
    lines = found["rows"]
    names = measured_metrics(lines[0])
    return {
        "title": title,
        "text": [
            f"Means over {found['pictures']:,} pictures, percent. "
            "The last rows are maps that are the same for every network.",
        ],
        "columns": ["method", *titles(names)],
        "rows": [[f"`{line['method']}`", *(f"{line['metrics'][m]['mean']:.2f}" for m in names)] for line in lines],
        "command": measured.summary(run)["command"],
    }


def write_page(measured: Measured, page: Path) -> None:
    """Its tables anew."""
    page.write_text(fill(page.read_text(encoding="utf-8"), tables(measured)), "utf-8")


def write_cards(measured: Measured, cards: Json, folder: Path) -> None:
    """Each model's results file and card."""
    for name, told in cards.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(results(measured, name, told), indent=1, ensure_ascii=False) + "\n", "utf-8")
        model = timm.create_model(name, pretrained=True)
        (folder / f"{name}.md").write_text(make_card(model, name, Results.read(file)), "utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Writes page and cards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="where docs/ and model_cards/ are (this repository)")
    root = parser.parse_args(argv).root
    try:
        measured = Measured(root / "docs" / "reproduction")
        write_page(measured, root / "docs" / "reproduction.md")
        cards = tomllib.loads((root / "model_cards" / "cards.toml").read_text(encoding="utf-8"))
        write_cards(measured, cards, root / "model_cards")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
