"""What users ask an evaluation for: methods with options, metrics by name or group."""

from __future__ import annotations

import pytest
from conftest import assert_one_line

from interp_zoo import metrics
from interp_zoo.evaluation.measures import GROUPS, MEASURES, chosen
from interp_zoo.evaluation.specs import parse_methods
from interp_zoo.explain.methods import get_method, list_methods

FLOORS = ["center_gaussian", "fakecam", "random"]


def test_the_floors_are_those_of_the_registry() -> None:
    assert [name for name in list_methods() if get_method(name).floor] == FLOORS


def test_floors_are_always_there() -> None:
    assert [spec.text for spec in parse_methods("gradcam")] == ["gradcam", *FLOORS]
    assert [spec.text for spec in parse_methods(" random, Grad-CAM ,")] == ["random", "gradcam", *FLOORS[:2]]
    assert [spec.text for spec in parse_methods("all")] == list_methods()
    assert [spec.text for spec in parse_methods("quick")] == [m for m in list_methods() if not get_method(m).slow]


def test_options() -> None:
    early, *_ = parse_methods("gradcam:layer=layer3")
    assert (early.text, early.name, early.options) == ("gradcam:layer=layer3", "gradcam", {"layer": "layer3"})
    fast, margin, *_ = parse_methods("opti-cam:iterations=10:lr=0.5,opticam:objective=margin")
    assert (fast.text, fast.name, fast.options) == (
        "opticam:iterations=10:lr=0.5",
        "opticam",
        {"iterations": 10, "lr": 0.5},
    )
    assert (margin.text, margin.options) == ("opticam:objective=margin", {"objective": "margin"})
    both, other, *_ = parse_methods("extremal:areas=(0.05, 0.1):iterations=9, rise:n=5")
    assert (both.name, both.options) == ("extremal_perturbation", {"areas": (0.05, 0.1), "iterations": 9})
    assert other.options == {"n": 5}


@pytest.mark.parametrize(
    ("text", "kind", "match"),
    [
        ("", ValueError, "`methods` is empty: name some with commas between, or quick, or all"),
        ("gradcan", ValueError, r'`method` "gradcan" is unknown \(did you mean gradcam.*\?\); known: '),
        ("gradcamp", ValueError, r"\(did you mean gradcam_plusplus, gradcam, xgradcam\?\)"),  # names, not aliases
        ("opticam:iteration=3", TypeError, r'method "opticam" has no option `iteration` \(did you mean iterations'),
        (
            "gradcam:layer=4",
            TypeError,
            '`layer` of method "gradcam" must be the name of a layer, of a method that takes',
        ),
        (
            "rise:layer=layer3",
            TypeError,
            '`layer` of method "rise" must be the name of a layer, of a method that takes',
        ),
        ("opticam:iterations", ValueError, '`methods` has the option "iterations", but it must be name=value'),
    ],
)
def test_methods_that_are_refused(text: str, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match) as error:
        parse_methods(text)
    assert_one_line(error.value)


def test_each_class_of_metrics_is_measured() -> None:
    """By its functional name: AverageDrop is average_drop."""
    names = {"".join("_" + c.lower() if c.isupper() else c for c in word).lstrip("_") for word in metrics.__all__}
    assert names == {n for n, m in MEASURES.items() if m.group != "fills"}
    assert len({m.title for m in MEASURES.values()}) == len(MEASURES)


@pytest.mark.parametrize("word", metrics.__all__)
def test_directions_are_the_classes(word: str) -> None:
    name = "".join("_" + c.lower() if c.isupper() else c for c in word).lstrip("_")
    assert MEASURES[name].higher_is_better == getattr(metrics, word).higher_is_better


def test_groups_and_names() -> None:
    found, missing = chosen(["recognition", "insertion"], boxes=False, labels=False)
    assert (found, missing) == (["average_drop", "average_gain", "average_increase", "insertion"], [])
    everything, missing = chosen(["all"], boxes=True, labels=True)
    assert (everything, missing) == (list(MEASURES), [])
    assert {MEASURES[name].group for name in everything} == set(GROUPS)
    assert len(everything) == 22


def test_what_the_data_cannot_have_is_told() -> None:
    found, missing = chosen(["all"], boxes=False, labels=True)
    assert missing == [n for n, m in MEASURES.items() if m.needs_boxes]
    assert "saliency_metric" in found  # looks at the crop alone
    _, missing = chosen(["localization"], boxes=True, labels=False)
    assert missing == ["official_metric"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "`metrics` is empty: name some of all, recognition"),
        (["insertions"], r'`metrics` "insertions" is unknown \(did you mean insertion'),
        (["pixel_f1"], '`metrics` "pixel_f1" needs `boxes`: give it, or leave the metric out'),
    ],
)
def test_metrics_that_are_refused(words: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match) as error:
        chosen(words, boxes=False, labels=False)
    assert_one_line(error.value)


def test_other_protocols_have_no_gain() -> None:
    found, missing = chosen(["recognition"], boxes=False, labels=False, protocol="torchcam")
    assert (found, missing) == (["average_drop", "average_increase"], ["average_gain"])
    with pytest.raises(ValueError, match='`metrics` "average_gain" needs the papers\' `protocol`'):
        chosen(["average_gain"], boxes=False, labels=False, protocol="torchcam")


def test_labels_are_asked_for_where_boxes_are_there() -> None:
    with pytest.raises(ValueError, match='`metrics` "official_metric" needs labels'):
        chosen(["official_metric"], boxes=True, labels=False)
