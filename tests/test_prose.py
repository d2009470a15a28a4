"""The figures in the prose of the page on reproduction and of the cards: each is worked out anew from its files.

Figures are those with two decimals or more. A part of the text may state those alone that are named for it here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipemodules import recipe_module

ROOT = Path(__file__).parents[1]
RECIPE = recipe_module("reproduce")
MEASURED = RECIPE.Measured(ROOT / "docs" / "reproduction")
THESIS = MEASURED.summary("thesis")["accuracy"]
MOBILE = "mobilenetv2_search"
NUMBER = re.compile(r"(?<![\w.])\d+\.\d{2,}(?!\w|\.\d)")

Stated = dict[str, Callable[[], float] | str]  # a figure, and what gives it; or an option's value, as it is written


def top_1(run: str, model: str) -> float:
    value: float = MEASURED.accuracy(run, model)[0]
    return round(value, 2)


def best(history: str) -> float:
    return max(float(epoch["eval_top-1"]) for epoch in MEASURED.epochs(history))


def penalty(history: str, epoch: int = -1) -> float:
    return float(MEASURED.epochs(history)[epoch]["penalty"])


def as_it_is(network: str) -> float:
    """The penalty of a network that is not trained any further."""
    return float(MEASURED.penalties(f"penalty/{network}").mean())


def gain(run: str, model: str, method: str, metric: str = "average_drop") -> float:
    """By how much a network's figure is lower than the one it is compared with."""
    (row,) = (row for row in MEASURED.comparison(run, model)["rows"] if row["method"] == method)
    return -float(row["metrics"][metric]["difference"])


def thesis_change(method: str, metric: str) -> float:
    """By how much the thesis' figure differs with the penalty, on ResNet-18."""
    first, second = MEASURED.summary("thesis")["interpretable gradients"]["resnet18"][method][metric]
    return float(second - first)


def variant(name: str) -> str:
    return f"local-dir:runs/search/{name}/best"


def cell(page: str, race: str, column: int) -> float:
    """The number that a cell of a page of races begins with."""
    (line,) = (line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith(f"| {race}"))
    return float(line.split("|")[column].split()[0])


def milliseconds(page: str, race: str) -> float:
    return cell(page, race, 2)


def heavier(race: str) -> float:
    """How many times as long a penalised step takes as a plain one."""
    return cell("benchmark_training.md", f"Penalised step of {race}", 5)


def seconds(history: str) -> float:
    """What the last epoch of a training run took."""
    return float(MEASURED.epochs(history)[-1]["seconds"])


def few_pictures(epoch: int) -> float:
    """The AG of Grad-CAM after an epoch on few pictures."""
    return float(MEASURED.epochs("ca_efficientnet_lite0_training")[epoch - 1]["AG"])


def searched_accuracy() -> float:
    return top_1("resnet18_search", variant("plain")) - top_1("resnet18_search", variant("loss_0.1"))


def started(name: str) -> float:
    """Top-1 of a network by when its penalty starts."""
    return top_1("resnet18_start", f"local-dir:runs/start/{name}/best")


PAGE: dict[str, Stated] = {
    "ResNet-18 with interpretable gradients": {
        "72.80": lambda: top_1("resnet18_cifar", "resnet18_cifar"),
        "72.75": lambda: top_1("resnet18", "resnet18_cifar"),
        "72.77": lambda: top_1("resnet18_layers", "resnet18_cifar"),  # and in ca_resnet18, below
        "0.06": searched_accuracy,  # and on the pictures held out, test_a_figure_that_stands_for_two
        "0.933": lambda: penalty("resnet18_training/penalised", 0),
        "0.940": lambda: penalty("resnet18_training/penalised"),
        "0.015": lambda: as_it_is("resnet18_cifar") - as_it_is("gr_resnet18_cifar"),
        "0.18": lambda: top_1("resnet18", "resnet18_cifar") - top_1("resnet18", "gr_resnet18_cifar"),
        "0.56": lambda: THESIS["resnet18"][0] - THESIS["resnet18"][1],
        "0.67": lambda: THESIS["resnet18"][0] - top_1("resnet18", "resnet18_cifar"),
        "0.29": lambda: THESIS["resnet18"][1] - top_1("resnet18", "gr_resnet18_cifar"),
        "0.34": lambda: thesis_change("ablationcam", "insertion"),
        "0.10": lambda: thesis_change("gradcam", "deletion"),
        "0.23": lambda: thesis_change("ablationcam", "deletion"),
        "1.67": lambda: thesis_change("scorecam", "average_drop"),
        "0.87": lambda: thesis_change("scorecam", "average_gain"),
        "0.69": lambda: thesis_change("scorecam", "insertion"),
    },
    "Interpretable gradients: a search": {
        "0.01": "--lr 0.01",
        "0.29": lambda: gain("resnet18_search", variant("loss_0.1"), "gradcam"),
        "0.27": lambda: gain("resnet18_search", variant("loss_0.1"), "center_gaussian"),
        "0.95": lambda: penalty("resnet18_search/loss_0.0075_4_epochs"),
        "0.08": lambda: started("plain") - started("from_the_last_epoch"),
        "0.46": lambda: started("from_the_first_epoch") - started("plain"),
        "0.77": lambda: penalty("resnet18_start/from_the_first_epoch"),
        "0.94": lambda: penalty("resnet18_training/penalised"),
    },
    "MobileNet-V2 on CIFAR-100": {
        "63.73": lambda: top_1("mobilenetv2_cifar", "mobilenetv2_cifar"),
        "59.43": lambda: THESIS["mobilenetv2"][0],
        "62.36": lambda: THESIS["mobilenetv2"][1],
    },
    "MobileNet-V2 with interpretable gradients": {
        "0.03": "--lr 0.03",
        "2.93": lambda: THESIS["mobilenetv2"][1] - THESIS["mobilenetv2"][0],
        "0.002": lambda: as_it_is("mobilenetv2_longer") - as_it_is("gr_mobilenetv2_cifar"),
        "0.986": lambda: penalty("mobilenetv2_training/penalised", 0),
        "0.01": "--lr 0.01",
        "0.001": "loss_0.001",
        "0.40": lambda: top_1(MOBILE, variant("mobilenetv2_plain")) - top_1(MOBILE, variant("mobilenetv2_loss_1")),
        "0.32": lambda: gain(MOBILE, variant("mobilenetv2_loss_1"), "gradcam", "average_gain"),
    },
    "What 16 bit cost": {
        "0.06": lambda: best("resnet18_training/plain") - top_1("held_out_resnet18", "resnet18_cifar"),
        "0.05": "no more than 0.05",
    },
    "A CA-Stream on few pictures": {
        "11.53": lambda: few_pictures(1),
        "13.79": lambda: few_pictures(2),
        "14.09": lambda: few_pictures(3),
    },
    "What was not run here, and what it would take": {
        "2.85": lambda: heavier("resnet18_cifar, bf16"),
        "2.93": lambda: heavier("mobilenetv2_cifar, float32, 64"),
        "1.06": lambda: milliseconds("benchmark_opticam.md", "Opti-CAM (adam), 32 pictures") / 32 / 1000,
        "0.63": lambda: milliseconds("benchmark.md", "Insertion and deletion, 8 pictures") / 8 / 1000,
    },
}
CARDS: dict[str, Stated] = {
    "gr_resnet18_cifar": {
        "0.18": lambda: top_1("resnet18", "resnet18_cifar") - top_1("resnet18", "gr_resnet18_cifar"),
        "0.29": lambda: THESIS["resnet18"][1] - top_1("resnet18", "gr_resnet18_cifar"),
        "0.930": lambda: as_it_is("gr_resnet18_cifar"),
        "0.945": lambda: as_it_is("resnet18_cifar"),
    },
    "gr_mobilenetv2_cifar": {
        "0.03": "--lr 0.03",
        "0.991": lambda: as_it_is("gr_mobilenetv2_cifar"),
        "0.994": lambda: as_it_is("mobilenetv2_longer"),
        "0.992": lambda: as_it_is("mobilenetv2_cifar"),
    },
}


def parts() -> dict[str, tuple[str, Stated]]:
    """Each section of the page without its tables, and what each card says by hand, with what they may state."""
    page = RECIPE.TABLE.sub("", (ROOT / "docs" / "reproduction.md").read_text("utf-8"))
    found = {}
    for section in page.split("\n## "):
        title = section.partition("\n")[0]
        found[title] = section, PAGE.get(title, {})
    for name, card in tomllib.loads((ROOT / "model_cards" / "cards.toml").read_text("utf-8")).items():
        text = "\n".join(line for part in card["sections"] for line in part["text"])
        found[name] = f"{text}\n`{card['training']}`", CARDS.get(name, {})
    return found


@pytest.mark.parametrize("part", parts())
def test_figures_in_prose_are_those_of_their_files(part: str) -> None:
    text, stated = parts()[part]
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)  # options of commands are no figures
    assert set(NUMBER.findall(prose)) == set(stated)
    for figure, made in stated.items():
        if isinstance(made, str):
            assert made in text
        else:
            assert f"{abs(made()):.{len(figure.partition('.')[2])}f}" == figure


def test_figures_that_stand_for_several() -> None:
    """0.06: what the penalty cost in the search, what it gained on the pictures held out, and in deletion at most.

    0.29: what the thesis' top-1 is missed by, and its least difference in insertion. 0.10: what noise gains there.
    """
    gained = best("resnet18_training/penalised") - best("resnet18_training/plain")
    rows = MEASURED.comparison("resnet18_insertion", "gr_resnet18_cifar")["rows"]
    deletion = max(-row["metrics"]["deletion"]["difference"] for row in rows if not row["floor"])
    assert f"{searched_accuracy():.2f}" == f"{gained:.2f}" == f"{deletion:.2f}" == "0.06"
    insertion = [thesis_change(row["method"], "insertion") for row in rows if not row["floor"]]
    assert f"{min(insertion):.2f}" == "0.29"
    assert f"{max(insertion):.2f}" == "0.34"
    assert f"{gain('resnet18_insertion', 'gr_resnet18_cifar', 'random', 'deletion'):.2f}" == "0.10"


def test_how_many_maps_are_blank_at_most() -> None:
    files = [file for file in (ROOT / "docs" / "reproduction").glob("*.json") if file.stem != "thesis"]
    tables = [table for file in files for table in MEASURED.summary(file.stem)["tables"]]
    blank = max(row["blank"] for table in tables for row in table["rows"])
    assert f"Of 10,000 maps at most {blank} are blank" in (ROOT / "docs" / "reproduction.md").read_text("utf-8")


def test_what_would_take_days_starts_from_what_was_measured() -> None:
    page = " ".join((ROOT / "docs" / "reproduction.md").read_text("utf-8").split())
    step = milliseconds("benchmark_training.md", "Step of ca_resnet18, 64")
    assert f"a step of `ca_resnet18` on 64 pictures {step:.0f} ms" in page
    days = 90 * 1_281_167 / 64 * step / 1000 / 86_400  # epochs of ImageNet
    assert f"--output runs/ca_resnet18_in1k` | {days:.0f} days |" in page
    first, second = (seconds(f"{network}_training/plain") for network in ("resnet18", "mobilenetv2"))
    assert (
        f"plain.csv) {first:.0f} s, of [the second](reproduction/mobilenetv2_training/plain.csv) {second:.0f};" in page
    )
    days, hours = 200 * first / 86_400, 200 * second / 3600
    assert f"| {days:.0f} day, with the penalty {days * heavier('resnet18_cifar, bf16'):.0f} |" in page
    assert f"| {hours:.0f} hours, with the penalty {hours * heavier('mobilenetv2_cifar, float32, 64'):.0f} |" in page


def test_no_part_is_named_in_vain() -> None:
    named: set[Any] = {*PAGE, *CARDS}
    assert named <= set(parts())
