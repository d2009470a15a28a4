"""The metrics that an evaluation can ask for, by their functional names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from interp_zoo.metrics.functional.fills import FILLS, Fill
from interp_zoo.metrics.functional.recognition import Protocol
from interp_zoo.words import nearest

INSERTION_FILL: Fill = "blur"
DELETION_FILL: Fill = "mean"


@dataclass(frozen=True)
class Measure:
    """One metric of the table.

    Attributes:
        name: its functional name, and its column's in the results.
        title: its short name, as papers print it.
        about: what it says, in a sentence.
        higher_is_better: its direction.
        group: "recognition", "causal", "fills", "localization" or "sanity".
        unit: "%" or "".
        needs_boxes: whether it needs to know where the object is.
        needs_labels: whether it needs to know what the picture shows.
    """

    name: str
    title: str
    about: str
    _: KW_ONLY
    higher_is_better: bool
    group: str
    unit: str = "%"
    needs_boxes: bool = False
    needs_labels: bool = False


def _recognition(name: str, title: str, about: str, *, higher_is_better: bool) -> Measure:
    return Measure(name, title, about, higher_is_better=higher_is_better, group="recognition")


def _causal(name: str, title: str, about: str, *, higher_is_better: bool) -> Measure:
    return Measure(name, title, about, higher_is_better=higher_is_better, group="causal")


def _filled(name: str, fill: Fill, *, higher_is_better: bool) -> Measure:
    about = f"{name.capitalize()} with another fill ({fill}), in fewer steps"
    title = f"{name[0].upper()} {fill}"
    return Measure(f"{name}_{fill}", title, about, higher_is_better=higher_is_better, group="fills")


def _box(name: str, title: str, about: str, *, higher_is_better: bool, needs_labels: bool = False) -> Measure:
    return Measure(
        name,
        title,
        about,
        higher_is_better=higher_is_better,
        group="localization",
        needs_boxes=True,
        needs_labels=needs_labels,
    )


def _sanity(name: str, title: str, about: str, *, higher_is_better: bool) -> Measure:
    return Measure(name, title, about, higher_is_better=higher_is_better, group="sanity")


_ALL = [
    _recognition(
        "average_drop",
        "AD",
        "Average drop: the share of the probability that the mask loses",
        higher_is_better=False,
    ),
    _recognition(
        "average_gain",
        "AG",
        "Average gain: the share of what was missing that the mask gains",
        higher_is_better=True,
    ),
    _recognition(
        "average_increase", "AI", "Average increase: how many pictures gain under the mask", higher_is_better=True
    ),
    _causal(
        "insertion",
        "I",
        "Insertion: area under the probability as the map's best pixels come",
        higher_is_better=True,
    ),
    _causal(
        "deletion", "D", "Deletion: area under the probability as the map's best pixels go", higher_is_better=False
    ),
    *(_filled("insertion", f, higher_is_better=True) for f in FILLS if f != INSERTION_FILL),
    *(_filled("deletion", f, higher_is_better=False) for f in FILLS if f != DELETION_FILL),
    _box(
        "official_metric",
        "OM",
        "Official metric: maps whose box misses the object, or pictures that the model gets wrong",
        higher_is_better=False,
        needs_labels=True,
    ),
    _box("localization_error", "LE", "Localisation error: maps whose box misses the object", higher_is_better=False),
    _box("pixel_f1", "F1", "Pixel-wise F1 of the map and the object", higher_is_better=True),
    _box("box_accuracy", "BA", "Box accuracy (MaxBoxAcc), at the best threshold", higher_is_better=True),
    _box("pointing_game", "SP", "Standard pointing game: maps with their maximum in the object", higher_is_better=True),
    _box("energy_pointing_game", "EP", "Energy pointing game: the map's share in the object", higher_is_better=True),
    Measure(
        "saliency_metric",
        "SM",
        "Saliency metric: log area - log probability of the crop to the map's box",
        higher_is_better=False,
        group="localization",
        unit="",
    ),
    _sanity(
        "class_sensitivity",
        "CS",
        "Class sensitivity: how unlike the maps of two classes are, 100 (1 - rank correlation)",
        higher_is_better=True,
    ),
    _sanity(
        "randomization",
        "CR",
        "Cascading randomisation: what is left of the map as the weights are lost, 100 |rank correlation|",
        higher_is_better=False,
    ),
]
MEASURES = {measure.name: measure for measure in _ALL}
GROUPS = tuple(dict.fromkeys(measure.group for measure in _ALL))


def chosen(
    words: Sequence[str], *, boxes: bool, labels: bool, protocol: Protocol = "papers"
) -> tuple[list[str], list[str]]:
    """The metrics that some words ask for, in the table's order, and those of them that this data cannot have.

    Args:
        words: names of metrics, of groups, or "all".
        boxes: whether boxes are given.
        labels: whether labels are given.
        protocol: whose average drop and increase; the others' have no average gain.

    Raises:
        ValueError: for an unknown word, and where a metric that was asked for by its name cannot be measured.
    """
    known = ("all", *GROUPS, *MEASURES)
    for word in words:
        if word not in known:
            raise ValueError(f'`metrics` "{word}" is unknown{nearest(word, known)}; known: {", ".join(known)}')
    if not words:
        raise ValueError(f"`metrics` is empty: name some of {', '.join(known)}")
    wanted = [m for m in _ALL if {"all", m.group, m.name} & set(words)]
    lacks = {m.name: _lacks(m, boxes=boxes, labels=labels, protocol=protocol) for m in wanted}
    for name, what in lacks.items():
        if what and name in words:
            raise ValueError(f'`metrics` "{name}" needs {what}: give it, or leave the metric out')
    missing = [m for m in wanted if lacks[m.name]]
    found = [m.name for m in wanted if m not in missing]
    if not found:
        raise ValueError(f"`metrics` {', '.join(words)} all need boxes or labels, which this data has not")
    return found, [m.name for m in missing]


def _lacks(measure: Measure, *, boxes: bool, labels: bool, protocol: Protocol) -> str:
    """What a metric needs and is not there, in words."""
    if measure.needs_boxes and not boxes:
        return "`boxes`"
    if measure.needs_labels and not labels:
        return "labels"
    return "the papers' `protocol`" if measure.name == "average_gain" and protocol != "papers" else ""
