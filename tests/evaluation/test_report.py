"""The report: what it says, what it leaves out, and that it is one well-formed file that reaches nowhere."""

from __future__ import annotations

import base64
import builtins
import io
import os
import re
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reports import HOSTILE, MEANS, Page, a_summary, blob, some_rows, some_thumbnails, write

from interp_zoo.evaluation import report
from interp_zoo.evaluation.report import worst_cases, write_report
from interp_zoo.explain.render import overlay


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return write(tmp_path_factory.mktemp("report"), a_summary(charts=True), some_rows(), some_thumbnails())


def test_every_section_is_there(page: Page) -> None:
    wanted = [
        "Protocol",
        "Command",
        "Contents",
        "resnet50 ",
        "Mind, before you read the table",
        "Methods by metrics",
        "Does the order of methods hang on the fill?",
        "Insertion ",
        "Insertion and deletion curves",
        "Cost against quality",
        "Do the metrics agree?",
        "Pictures by methods",
        "Worst cases",
        "Methods left out",
    ]
    assert page.headings == wanted
    assert "17 of 20 right; wrong ones are counted, not dropped" in page.text
    assert "<pre>accelerate launch recipes/evaluate.py --methods &#34;all&#34;</pre>" in page.text
    for text in ("pixels in [0, 1] x map", "torch 2.14.1", "AD: fakecam is better than 3 of 3", "it has no attention"):
        assert text in page.text


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    summary = a_summary({"gradcam": MEANS["gradcam"]})
    table = summary["tables"][0]
    for row in table["rows"]:
        row["metrics"] = {"average_drop": row["metrics"]["average_drop"]}
        row["curves"] = {}
    table |= {"agreement": {"metrics": ["average_drop"], "tau": [[None]]}, "warnings": []}
    summary |= {"metrics": summary["metrics"][:1], "left_out": []}
    page = write(tmp_path, summary)
    assert page.headings == ["Protocol", "Command", "resnet50 ", "Methods by metrics"]
    assert "Floors" not in page.text
    assert "<svg" not in page.text


def test_a_run_of_nothing_is_a_page(tmp_path: Path) -> None:
    summary = a_summary() | {"tables": [], "metrics": [], "left_out": []}
    assert write(tmp_path, summary).headings == ["Protocol", "Command"]


def test_the_table_has_the_summary_s_figures(page: Page) -> None:
    head = [" ".join(cell.split()) for cell in page.tables[0][1]]
    assert head == ["", "AD ↓%", "AG ↑%", "I ↑%", "D ↓%", "SM ↓", "s/picturepasses"]
    assert [cell.strip() for cell in page.tables[0][0]] == ["", "Recognition", "Causal", "Localisation", "Cost"]
    assert page.line("gradcam")[1:] == [
        "13.0 12.0–15.0",
        "14.8 13.8–16.8",
        "61.2 60.2–63.2",
        "9.5 8.5–11.5",
        "0.12 −0.88 to 2.12",
        "0.0301 + 0 + 1.5",
    ]
    assert page.line("scorecam")[0] == "scorecam3 of 20 maps blank"


def test_marks_of_the_best_and_of_noise_are_not_colours_alone(page: Page) -> None:
    assert page.line("opticam")[1] == "2.5★ 1.5–4.5"
    assert page.line("scorecam")[1] == "2.8≈ 1.8–4.8"
    assert page.line("gradcam")[1].startswith("13.0 ")
    behind = 1
    assert page.line("scorecam", behind)[1] == "0.2 (−0.5 to 1.0) ≈"
    assert page.line("gradcam", behind)[1] == "10.5 (8.0–12.0)"
    assert page.line("opticam", behind)[1] == "★"


def test_floors_lie_below_and_their_wins_are_marked(page: Page) -> None:
    first = [row[0].split()[0] for row in page.tables[0][2:]]
    assert first == ["gradcam", "opticam", "scorecam3", "Floors:", "fakecam"]
    assert page.line("fakecam")[1] == "0.0! −1.0 to 2.0"  # AD: at least as good as every method
    assert page.line("fakecam")[3] == "45.0 44.0–47.0"


def test_counts_are_said_where_pictures_are_missing(tmp_path: Path) -> None:
    summary = a_summary()
    for row in summary["tables"][0]["rows"]:
        row["metrics"]["saliency_metric"]["count"] = 12  # the same for all: in the head
    summary["tables"][0]["rows"][0]["metrics"]["deletion"]["count"] = 19  # for one: in its cell
    page = write(tmp_path, summary)
    assert " ".join(page.tables[0][1][5].split()) == "SM ↓ n=12"
    assert page.line("gradcam")[4] == "9.5 8.5–11.5 19 pictures"
    assert "pictures" not in page.line("opticam")[5]


def test_nothing_measured_is_a_dash_and_never_nan(tmp_path: Path) -> None:
    summary, rows = a_summary(charts=True), some_rows()
    gradcam, opticam, *_ = summary["tables"][0]["rows"]
    gradcam["metrics"]["deletion"] = {
        "mean": None,
        "low": None,
        "high": None,
        "count": 0,
        "standing": "",
        "behind": None,
    }
    gradcam["metrics"]["insertion"] |= {"mean": float("nan"), "low": float("nan"), "high": float("inf")}
    gradcam["curves"]["insertion"][3] = None
    opticam["curves"]["insertion"] = [float("nan")] * 29
    opticam |= {"seconds": None, "metrics": opticam["metrics"] | {"average_gain": None}}
    opticam["metrics"]["average_drop"] |= {"behind": {"mean": float("nan"), "low": None, "high": None}}
    summary["tables"][0]["agreement"]["tau"][0][1] = None
    rows[0]["metrics"] |= {"average_drop": float("nan"), "insertion": float("inf")}
    rows[0]["probability"] = None
    page = write(tmp_path, summary, rows, some_thumbnails())
    assert page.line("gradcam")[3:5] == ["–", "–"]
    assert page.line("opticam")[2] == "–"
    seen = re.sub(r"base64,[A-Za-z0-9+/=]+|<style>.*?</style>", "", page.text, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf|infinity)\b", seen, flags=re.IGNORECASE)
    assert not re.search(r"\b(None|null)\b", re.sub(r"<[^>]*>", " ", seen))


def test_fills_give_ranks_and_their_agreement_in_words(page: Page) -> None:
    fills = 2
    assert [cell.strip() for cell in page.tables[fills][0]] == ["", "default", "black", "noise"]
    assert page.line("gradcam", fills) == ["gradcam", "61.2 #1", "50.0 #1", "30.0 #3"]
    assert page.line("opticam", fills) == ["opticam", "55.0 #3", "40.0 #3", "45.0 #1"]
    assert page.line("fakecam", fills) == ["fakecam", "45.0", "30.0", "20.0"]
    # By hand: default and black put the methods in the same order, noise in the opposite one.
    assert "The order of methods hangs strongly on the fill" in page.text
    assert "between −1.00 (default and noise) and 1.00 (default and black), on average −0.33" in page.text
    assert "First are gradcam under default, black; opticam under noise." in page.text


def test_fills_that_agree_say_so(tmp_path: Path) -> None:
    summary = a_summary()
    for row in summary["tables"][0]["rows"]:
        row["metrics"]["insertion_noise"] = row["metrics"]["insertion_black"]
    text = write(tmp_path, summary).text
    assert "The order of methods hardly hangs on the fill" in text
    assert "gradcam is first under each of them." in text


def test_other_fills_are_not_in_the_metrics_agreement(page: Page) -> None:
    heat = page.tables[4]
    assert [cell.strip() for cell in heat[0]] == ["", "AD", "AG", "I", "D", "SM"]
    assert heat[1] == ["AD", "1.00", "−0.33", "−0.33", "−0.33", "−0.33"]


def test_legends_are_in_the_order_of_areas(page: Page) -> None:
    legends = re.findall(r'<ol class="legend">(.*?)</ol>', page.text, flags=re.DOTALL)
    orders = [re.findall(r'title="(\w+)"', legend) for legend in legends]
    assert orders == [["gradcam", "scorecam", "opticam", "fakecam"]] * 2


def test_the_file_reaches_nowhere(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
                assert value is not None
                assert value.startswith(("data:image/", "#"))
    assert "default-src 'none'" in page.text
    assert not re.search(r"@import|url\((?!#)", page.text)


def test_ids_are_unique_and_their_references_meet_one(tmp_path: Path) -> None:
    summary = a_summary(charts=True)
    summary["tables"].append(deepcopy(summary["tables"][0]) | {"target_kind": "label"})
    page = write(tmp_path, summary)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page.text)
    assert len(wanted) > 50
    assert {one or other for one, other in wanted} <= set(ids)


def test_names_are_text_whatever_they_hold(tmp_path: Path) -> None:
    summary = a_summary(charts=True)
    rows = some_rows(pictures=len(HOSTILE), methods=("gradcam",))
    for row, text in zip(rows, HOSTILE, strict=True):
        row |= {"file": text, "label": text}
    for row, text in zip(summary["tables"][0]["rows"], HOSTILE, strict=False):
        row["method"] = text
    summary["tables"][0]["warnings"] = HOSTILE
    summary["tables"][0]["model"] = summary["models"][0]["name"] = HOSTILE[0]
    summary["left_out"] = [{"model": t, "method": t, "why": t} for t in HOSTILE]
    summary["unreadable"] = [{"file": t, "why": t} for t in HOSTILE]
    summary["protocol"] = {t: t for t in HOSTILE}
    summary["versions"] = {t: t for t in HOSTILE}
    summary["command"] = HOSTILE[0]
    for metric in summary["metrics"]:
        metric |= {"title": HOSTILE[0], "about": HOSTILE[1], "unit": HOSTILE[1]}
    for row in rows:
        row["model"] = HOSTILE[0]
    page = write(tmp_path, summary, rows)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all((a["src"] or "").startswith("data:") for tag, a in page.tags if tag == "img")
    assert "Worst cases" in page.headings
    assert HOSTILE[2] in page.text
    assert "a?b" in page.text  # what UTF-8 cannot write


def test_worst_cases_by_hand() -> None:
    def row(index: int, method: str, insertion: float | None, drop: float | None = None) -> dict[str, Any]:
        return {"index": index, "method": method, "metrics": {"insertion": insertion, "average_drop": drop}}

    rows = [
        row(1, "a", 30.0, 5.0),
        row(1, "b", 20.0, 99.0),
        row(2, "a", 10.0, 1.0),
        row(2, "b", 10.0, 1.0),  # a tie: the first name
        row(3, "b", None, None),
        row(3, "floor", 0.0, 100.0),
        row(4, "a", float("nan"), 50.0),
        row(5, "b", 25.0, None),
    ]
    found = worst_cases(rows, ["floor"], ["insertion", "average_drop"])
    assert [(r["index"], r["method"]) for r in found] == [(2, "a"), (1, "b"), (5, "b")]
    found = worst_cases(rows, ["floor"], ["average_drop"])
    assert [(r["index"], r["method"]) for r in found] == [(1, "b"), (4, "a"), (2, "a")]
    assert worst_cases(rows, [], ["average_gain"]) == []
    many = [row(i, "a", 100.0 - i) for i in range(20)]
    assert [r["index"] for r in worst_cases(many, [], ["insertion"])] == list(range(19, 11, -1))


def test_overlays_are_the_maps_over_the_thumbnails(page: Page) -> None:
    images = [a["src"] or "" for tag, a in page.tags if tag == "img"]
    webp = [src.removeprefix("data:image/webp;base64,") for src in images if src.startswith("data:image/webp")]
    # 3 pictures by 4 methods in the grid, then a worst case a picture.
    assert len(webp) == 15
    thumbnail = Image.open(io.BytesIO(base64.b64decode(some_thumbnails()["resnet50", 0]))).convert("RGB")
    want = np.asarray(overlay(thumbnail, torch.from_numpy(blob(0)).float()), dtype=float)
    got = np.asarray(Image.open(io.BytesIO(base64.b64decode(webp[0]))), dtype=float)
    assert got.shape == (112, 112, 3)
    assert np.abs(got - want).mean() < 8
    assert np.abs(got - np.asarray(thumbnail)).mean() > 20


def test_some_of_the_pictures_with_maps_are_in_the_grid(tmp_path: Path) -> None:
    rows = some_rows(pictures=report.GRID + 3, methods=("gradcam", "fakecam"))
    rows[0]["map"] = rows[1]["map"] = None
    rows[3]["map"] = None
    page = write(tmp_path, a_summary(), reversed(rows), some_thumbnails(report.GRID + 3))
    grid = page.tables[-2]
    assert [" ".join(cell.split()) for cell in grid[0]] == ["Picture", "gradcam", "fakecam"]
    evenly = [i * (report.GRID + 2) // report.GRID for i in range(report.GRID)]  # of all but the first one
    assert [row[0].split()[1] for row in grid[1:]] == [str(1 + i) for i in evenly]
    assert " ".join(grid[1][2].split()) == "–"
    assert " ".join(grid[1][1].split()) == "AD7.6I61.0"


def test_pictures_say_what_the_model_made_of_them(tmp_path: Path) -> None:
    rows = some_rows(pictures=3, methods=("gradcam",))
    rows[2]["truth"] = None
    right, wrong, unknown = [row[0] for row in write(tmp_path, a_summary(), rows).tables[-2][1:]]
    assert "✓ model is right" in right
    assert "✗ model is wrong: says label 1, truth label 0" in wrong
    assert "truth not known" in unknown
    assert "probability 90.0\xa0%" in right


def test_the_same_run_gives_the_same_file_and_an_old_one_is_replaced(page: Page, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    assert write(tmp_path, a_summary(charts=True), some_rows(), some_thumbnails()).text == page.text
    assert os.listdir(tmp_path) == ["report.html"]


def test_an_old_report_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, a_summary() | {"tables": []}, [], {})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_without_jinja_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "jinja2":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match=r'extra "recipes": pip install "interp_zoo\[recipes\]"'):
        write_report(tmp_path / "report.html", a_summary() | {"tables": []}, [], {})


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 16 methods on 8 pictures."""
    path = tmp_path_factory.mktemp("large") / "report.html"
    methods = {f"method_number_{i}": tuple(v + i for v in MEANS["gradcam"]) for i in range(15)}
    summary = a_summary(methods | {"fakecam": MEANS["fakecam"]}, charts=True)
    write_report(path, summary, some_rows(8, (*methods, "fakecam")), some_thumbnails(8))
    return path


def test_size(large: Path) -> None:
    assert large.stat().st_size < 900_000


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_no_page_scrolls_sideways_in_a_browser(tmp_path: Path, large: Path) -> None:
    text = large.read_text()
    text = re.sub(r"<meta http-equiv[^>]*>", "", text)
    tell = "const e = document.documentElement; "
    tell += "onload = () => parent.postMessage([innerWidth, e.scrollWidth - e.clientWidth], '*')"
    tell = f"<script>{tell}</script>"
    (tmp_path / "page.html").write_text(
        text.replace("<details>", "<details open>").replace("</body>", tell + "</body>")
    )
    frames = "".join(f'<iframe src="page.html" width="{w}" height="900" frameborder="0"></iframe>' for w in (375, 1280))
    listen = "<script>onmessage = e => document.body.append(`(${e.data})`)</script>"
    (tmp_path / "frames.html").write_text(f"<body>{listen}{frames}</body>")
    command = "chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    command += "--disable-background-networking --disable-component-update --virtual-time-budget=5000 --dump-dom"
    options = [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frames.html").as_uri()]
    done = subprocess.run([*command.split(), *options], capture_output=True, text=True, timeout=120, check=True)
    assert set(re.findall(r"\(\d+,\d+\)", done.stdout)) == {"(375,0)", "(1280,0)"}
