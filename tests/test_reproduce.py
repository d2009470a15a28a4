"""The page on reproduction and the cards: every figure comes from a results file."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recipemodules import recipe_module
from reproduction.tables import PENALISED, RELEASED, SEARCHES
from reproduction.thesis import BOXES
from torch import nn

from interp_zoo.models.pretrained import CARRIED

PAGE = Path(__file__).parents[1] / "docs" / "reproduction.md"
CARDS = Path(__file__).parents[1] / "model_cards"
RUNS = {
    "resnet18_cifar": "resnet18_cifar",
    "resnet18": "gr_resnet18_cifar",
    "resnet18_insertion": "gr_resnet18_cifar",
    "resnet18_scorecam": "gr_resnet18_cifar",
    "resnet18_layers": "gr_resnet18_cifar",
    "mobilenetv2": "gr_mobilenetv2_cifar",
    "mobilenetv2_cifar": "mobilenetv2_cifar",
    "ca_resnet18": "ca_resnet18_cifar",
    "ca_efficientnet_lite0": "ca_efficientnet_lite0",
}
METRICS = ["average_drop", "average_gain", "average_increase", "insertion", "deletion"]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return recipe_module("reproduce")


def line(method: str, first: float, difference: float, floor: bool = False) -> dict[str, Any]:
    cells = {
        name: {
            "first": first + i,
            "second": first + i + difference,
            "difference": difference,
            "low": difference - 0.25,
            "high": difference + 0.25,
            "better": ("second", "", "first")[i % 3],
            "beyond": {
                name: {"difference": by, "low": by - 0.25, "high": by + 0.25, "better": side}
                for name, by, side in (("center_gaussian", 0.5, "first"), ("random", -0.5, ""))
            },
        }
        for i, name in enumerate(METRICS)
    }
    return {"method": method, "floor": floor, "metrics": cells}


def alone(method: str, floor: bool = False) -> dict[str, Any]:
    cells = {name: {"mean": 10.0 + i, "low": 9.0 + i, "high": 11.0 + i} for i, name in enumerate(METRICS)}
    return {"method": method, "floor": floor, "metrics": cells}


def a_summary(model: str, methods: list[str], pictures: int) -> dict[str, Any]:
    first = {"gr_mobilenetv2_cifar": "mobilenetv2_cifar"}.get(model, "resnet18_cifar")
    return {
        "command": f"accelerate launch recipes/evaluate.py --model {first} {model} --methods {','.join(methods)}",
        "models": [
            {"name": first, "labelled": 400, "correct": 300},
            {"name": model, "labelled": 400, "correct": 301},
        ],
        "tables": [{"model": model, "pictures": pictures, "rows": [alone("gradcam"), alone("fakecam", floor=True)]}],
        "comparisons": [
            {
                "first": first,
                "second": model,
                "target_kind": "label",
                "pictures": pictures,
                "rows": [*(line(m, 10.0, -1.5) for m in methods), line("fakecam", 0.0, 0.0, floor=True)],
            }
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for run, model in RUNS.items():
        methods = ["scorecam"] if run.endswith("scorecam") else ["gradcam", "xgradcam"]
        summary = a_summary(model, methods, 50 if methods == ["scorecam"] else 400)
        (tmp_path / f"{run}.json").write_text(json.dumps(summary))
    plain, drawn = "local-dir:runs/search/plain/best", "local-dir:runs/search/loss_0.1/best"
    summary = a_summary(drawn, ["gradcam", "xgradcam"], 400)
    summary["models"][0]["name"] = summary["tables"][0]["model"] = summary["comparisons"][0]["first"] = plain
    summary["tables"][0]["rows"].append(alone("center_gaussian", floor=True))
    summary["comparisons"][0]["rows"].append(line("center_gaussian", 40.0, -1.5, floor=True))
    (tmp_path / "resnet18_search.json").write_text(json.dumps(summary))
    (tmp_path / "resnet18_search").mkdir()
    (tmp_path / "resnet18_search" / "plain.csv").write_text("epoch,loss\n1,0.75\n2,0.5\n")
    (tmp_path / "resnet18_search" / "loss_0.1.csv").write_text("epoch,loss,penalty\n1,0.75,0.875\n2,0.5,0.625\n")
    thesis = {m: [30.16, 28.09] for m in METRICS}
    told = {
        "accuracy": {"resnet18": [73.42, 72.86], "mobilenetv2": [59.43, 62.36]},
        "interpretable gradients": {"resnet18": {"gradcam": thesis}},
        "pooling": {"resnet50": {"gradcam": thesis}},
        "pooling accuracy": {"resnet18": [67.28, 67.54]},
        "opticam": {"vgg16": {"opticam": {"seconds": 3.94} | dict.fromkeys([*METRICS, *BOXES], 1.25)}},
    }
    (tmp_path / "thesis.json").write_text(json.dumps(told))
    return tmp_path


def test_the_tables(recipe: ModuleType, folder: Path) -> None:
    made = recipe.tables(recipe.Measured(folder))
    lines = made["resnet18, accuracy"]().splitlines()
    assert lines[0] == "| top-1 ↑ | `resnet18_cifar` | `gr_resnet18_cifar` | pictures |"
    assert lines[2:] == ["| thesis | 73.42 | 72.86 |  |", "| here | 75.00 | 75.25 | 400 |"]
    assert made["mobilenetv2, accuracy"]().splitlines()[0].startswith("| top-1 ↑ | `mobilenetv2_cifar` | `gr_mob")
    assert made["pooling, accuracy"]().splitlines()[2:] == ["| here | 75.00 | 75.25 | 400 |"]
    lines = made["resnet18"]().splitlines()
    assert lines[0] == "| CAM |  | AD ↓ | AG ↑ | AI ↑ | I ↑ | D ↓ | pictures |"
    assert lines[2].startswith("| `gradcam` | thesis | 30.16 → 28.09 |")
    assert lines[3].startswith("| `gradcam` | here | 10.00 → 8.50 ▲ | 11.00 → 9.50 ≈ | 12.00 → 10.50 ▼ |")
    assert lines[3].endswith("| 400 |")
    assert lines[4].startswith("|  | difference | -1.50 (-1.75 to -1.25) |")
    assert lines[5].startswith("| `xgradcam` | here |")  # of which the thesis' file says nothing here
    scorecam = made["resnet18, scorecam"]().splitlines()
    assert scorecam[2].startswith("| `scorecam` | here |")
    assert scorecam[2].endswith("| 50 |")
    assert "fakecam" not in made["resnet18"]()
    assert made["pooling, thesis"]().splitlines()[2].startswith("| `resnet50` | `gradcam` | 30.16 → 28.09 |")
    assert made["pooling, thesis, accuracy"]().splitlines()[2:] == ["| `resnet18` | 67.28 | 67.54 |"]
    lines = made["Opti-CAM, thesis"]().splitlines()
    assert lines[0] == "| network | method | AD ↓ | AG ↑ | AI ↑ | I ↑ | D ↓ | seconds ↓ |"
    assert lines[2] == f"| `vgg16` | `opticam` |{' 1.2 |' * 5} 3.94 |"
    lines = made["Opti-CAM, thesis, boxes"]().splitlines()
    assert lines[0] == "| network | method | OM ↓ | LE ↓ | F1 ↑ | BA ↑ | SP ↑ | EP ↑ | SM ↓ |"
    assert lines[2] == f"| `vgg16` | `opticam` |{' 1.2 |' * 6} 1.25 |"
    assert made["resnet18, floors"]().splitlines()[2].startswith("| `fakecam` | 0.00 → 0.00 ▲ |")
    lines = made["pooling, beyond"]().splitlines()
    assert lines[0] == "| CAM | beyond | AD ↓ | AG ↑ | AI ↑ | I ↑ | D ↓ |"
    assert lines[2].startswith("| `gradcam` | `center_gaussian` | +0.50 (+0.25 to +0.75) ▼ |")
    assert lines[3].startswith("| `gradcam` | `random` | -0.50 (-0.75 to -0.25) ≈ |")
    assert len(lines) == 6
    assert made["pooling, floors"]().splitlines()[2].startswith("| `fakecam` | 0.00 → 0.00 ▲ |")
    assert made["pooling, alone"]().splitlines()[2].startswith("| `gradcam` | 10.00 (9.00 to 11.00) |")
    assert made["few pictures, floors"]().splitlines()[2].startswith("| `fakecam` | 0.00 → 0.00 ▲ |")
    assert made["few pictures, alone"]().splitlines()[2].startswith("| `gradcam` | 10.00 (9.00 to 11.00) |")
    assert "fakecam" not in made["few pictures, alone"]()
    plain = made["resnet18, plain"]().splitlines()
    assert plain[2] == "| `gradcam`, thesis | 30.16 | 30.16 | 30.16 | 30.16 | 30.16 |"
    assert plain[3].startswith("| `gradcam` | 10.00 (9.00 to 11.00) |")
    plain = made["mobilenetv2, plain"]().splitlines()
    assert [row.split(" | ")[0] for row in plain[2:]] == ["| `gradcam`", "| `fakecam`"]
    for longer, method in (("insertion", "xgradcam"), ("layers", "xgradcam"), ("scorecam", "scorecam")):
        assert f"| `{method}` | here |" in made[f"resnet18, {longer}"]()
        assert made[f"resnet18, {longer}, floors"]().splitlines()[2].startswith("| `fakecam` | 0.00 → 0.00 ▲ |")


def test_the_table_of_a_search(recipe: ModuleType, folder: Path) -> None:
    made = recipe.tables(recipe.Measured(folder))
    lines = made["resnet18, search"]().splitlines()
    assert lines[0] == "| variant | penalty | top-1 ↑ | AD ↓ | AG ↑ | AI ↑ | I ↑ | D ↓ |"
    assert lines[2] == "| `plain` |  | 75.00 | 10.00 | 11.00 | 12.00 | 13.00 | 14.00 |"
    assert lines[3] == "| `loss_0.1` | 0.625 | 75.25 | 8.50 ▲ | 9.50 ≈ | 10.50 ▼ | 11.50 ▲ | 12.50 ≈ |"
    assert len(lines) == 4
    assert made["resnet18, search, floor"]().splitlines()[3].startswith("| `loss_0.1` | 0.625 | 75.25 | 38.50 ▲ |")
    lines = made["resnet18, search, beyond"]().splitlines()
    assert lines[0] == "| variant | beyond | AD ↓ | AG ↑ | AI ↑ | I ↑ | D ↓ |"
    assert lines[2].startswith("| `loss_0.1` | `center_gaussian` | +0.50 (+0.25 to +0.75) ▼ |")
    assert lines[3].startswith("| `loss_0.1` | `random` | -0.50 (-0.75 to -0.25) ≈ |")
    assert len(lines) == 4
    (folder / "resnet18_search" / "plain.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"plain\.csv\": copy the summary\.csv"):
        made["resnet18, search"]()


def test_the_tables_of_every_network(recipe: ModuleType, folder: Path) -> None:
    """The penalty that each has, and what 16 bit cost: the best epoch on the left, whichever it was."""
    (folder / "penalty").mkdir()
    for i, name in enumerate(name for pair in PENALISED.values() for name in pair):
        (folder / "penalty" / f"{name}.csv").write_text(f"step,extra\n1,0.{90 + i}0\n2,0.{90 + i}6\n")
    for run, history in RELEASED.values():
        held_out = {"models": [{"name": name, "labelled": 400, "correct": 290} for name in RELEASED]}
        (folder / f"{run}.json").write_text(json.dumps(held_out))
        (folder / history).parent.mkdir(exist_ok=True)
        (folder / f"{history}.csv").write_text("epoch,eval_top-1\n1,50.5\n2,72.75\n3,72.5\n")
    made = recipe.tables(recipe.Measured(folder))
    lines = made["mobilenetv2, penalty"]().splitlines()
    assert lines[0] == "| network | 1 - cosine | `gr_mobilenetv2_cifar` beside it |"
    assert lines[3] == "| `mobilenetv2_longer` | 0.933 | +0.010 (+0.010 to +0.010) |"
    assert lines[4] == "| `gr_mobilenetv2_cifar` | 0.943 |  |"
    assert made["resnet18, penalty"]().splitlines()[2] == "| `resnet18_cifar` | 0.903 | +0.010 (+0.010 to +0.010) |"
    lines = made["weights"]().splitlines()
    assert lines[2] == "| `resnet18_cifar` | 72.75 | 72.50 |"
    assert len(lines) == 2 + len(RELEASED)


def test_a_run_without_every_metric(recipe: ModuleType, folder: Path) -> None:
    summary = json.loads((folder / "resnet18_cifar.json").read_text())
    for row in summary["tables"][0]["rows"]:
        del row["metrics"]["insertion"], row["metrics"]["deletion"]
    (folder / "resnet18_cifar.json").write_text(json.dumps(summary))
    made = recipe.tables(recipe.Measured(folder))
    lines = made["resnet18, plain"]().splitlines()
    assert lines[0] == "| method | AD ↓ | AG ↑ | AI ↑ |"
    assert lines[2] == "| `gradcam`, thesis | 30.16 | 30.16 | 30.16 |"
    assert len(lines) == 4
    summary = json.loads((folder / "resnet18_insertion.json").read_text())
    for row in summary["comparisons"][0]["rows"]:
        row["metrics"] = {name: row["metrics"][name] for name in METRICS[3:]}
    (folder / "resnet18_insertion.json").write_text(json.dumps(summary))
    lines = made["resnet18, insertion"]().splitlines()
    assert lines[0] == "| CAM |  | I ↑ | D ↓ | pictures |"
    assert lines[2] == "| `gradcam` | thesis | 30.16 → 28.09 | 30.16 → 28.09 |  |"
    assert lines[3] == "| `gradcam` | here | 13.00 → 11.50 ▲ | 14.00 → 12.50 ≈ | 400 |"
    told = {
        "runs": ["resnet18_insertion"],
        "dataset": "d",
        "training": "",
        "sections": [],
    }
    _, section = recipe.results(recipe.Measured(folder), "gr_resnet18_cifar", told)["sections"]
    assert section["columns"] == ["method", "I ↑", "D ↓"]
    assert section["rows"][0] == ["`gradcam`", "13.00 → 11.50 ▲", "14.00 → 12.50 ≈"]


def test_the_page_is_filled(recipe: ModuleType) -> None:
    page = "# A\n<!-- table: x -->\nold\nold\n<!-- end -->\ntext\n<!-- table: y -->\n<!-- end -->\n"
    made = {"x": lambda: "| 1 |", "y": lambda: "| 2 |", "z": lambda: pytest.fail("nobody asked for it")}
    once = recipe.fill(page, made)
    assert once == ("# A\n<!-- table: x -->\n| 1 |\n<!-- end -->\ntext\n<!-- table: y -->\n| 2 |\n<!-- end -->\n")
    assert recipe.fill(once, made) == once
    with pytest.raises(ValueError, match=r"asks for tables that there are not: y$"):
        recipe.fill(page, {"x": made["x"]})


def test_a_run_that_is_missing_is_told(recipe: ModuleType, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"resnet18_cifar\.csv\": copy the steps\.csv of the run there"):
        recipe.tables(recipe.Measured(folder))["resnet18, penalty"]()
    (folder / "mobilenetv2.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"mobilenetv2\.json\": copy the summary\.json"):
        recipe.tables(recipe.Measured(folder))["mobilenetv2"]()
    measured = recipe.Measured(folder)
    for part, ask in (
        ("comparisons", measured.comparison),
        ("tables", measured.table),
        ("models", measured.accuracy),
    ):
        with pytest.raises(ValueError, match=rf'^"resnet18\.json" has "other" 0 times among its {part}, but must'):
            ask("resnet18", "other")


def test_what_is_missing_ends_in_one_line(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copy(PAGE, tmp_path / "docs")
    with pytest.raises(
        SystemExit, match=r'^error: there is no ".*thesis.json": copy the summary.json of the run there$'
    ):
        recipe.main(["--root", str(tmp_path)])


def test_a_cards_results(recipe: ModuleType, folder: Path, tmp_path: Path) -> None:
    from interp_zoo.cards import Results

    told = {
        "runs": ["resnet18", "resnet18_scorecam"],
        "dataset": "cifar100",
        "training": "accelerate launch recipes/train.py",
        "sections": [{"title": "Limits", "text": ["Small pictures."]}],
    }
    found = recipe.results(recipe.Measured(folder), "gr_resnet18_cifar", told)
    (tmp_path / "results.json").write_text(json.dumps(found))
    read = Results.read(tmp_path / "results.json")
    assert read.results[0]["value"] == 75.25
    assert read.command.endswith("--methods gradcam,xgradcam")
    limits, reading, cams, scorecam = read.sections
    assert reading["title"] == "How to read the tables"
    assert "Top-1 on these pictures: 75.00 → 75.25." in cams["text"][0]
    assert limits == told["sections"][0]
    assert cams["rows"][0] == [
        "`gradcam`",
        "10.00 → 8.50 ▲",
        "11.00 → 9.50 ≈",
        "12.00 → 10.50 ▼",
        "13.00 → 11.50 ▲",
        "14.00 → 12.50 ≈",
    ]
    assert "over 400 pictures" in cams["text"][0]
    assert (scorecam["command"].split()[-1], scorecam["rows"][0][0]) == ("scorecam", "`scorecam`")
    assert scorecam["rows"][1] == ["`gradcam`", "→ 10.00", "→ 11.00", "→ 12.00", "→ 13.00", "→ 14.00"]  # by itself
    assert scorecam["rows"][2][0] == "`fakecam`"


def test_a_card_of_a_network_alone(recipe: ModuleType, folder: Path) -> None:
    """What a run does not compare has its table, the floors with it, so that a reader can tell what is good."""
    told = {"runs": ["resnet18_cifar"], "dataset": "d", "training": "", "sections": []}
    summary = json.loads((folder / "resnet18_cifar.json").read_text())
    summary["models"] = summary["models"][:1]
    summary["comparisons"] = []
    (folder / "resnet18_cifar.json").write_text(json.dumps(summary))
    _, section = recipe.results(recipe.Measured(folder), "resnet18_cifar", told)["sections"]
    assert section["columns"] == ["method", "AD ↓", "AG ↑", "AI ↑", "I ↑", "D ↓"]
    assert section["rows"] == [[f"`{m}`", "10.00", "11.00", "12.00", "13.00", "14.00"] for m in ("gradcam", "fakecam")]
    assert section["text"][0].startswith("Means over 400 pictures")


def test_the_committed_page_is_what_the_files_say(recipe: ModuleType, tmp_path: Path) -> None:
    """Written anew from the results files, it is the same; and no table of figures stands outside its marks."""
    page = tmp_path / "page.md"
    shutil.copy(PAGE, page)
    recipe.write_page(recipe.Measured(PAGE.with_suffix("")), page)
    assert page.read_text("utf-8") == PAGE.read_text("utf-8")
    outside = recipe.TABLE.sub("", PAGE.read_text("utf-8"))
    assert not re.findall(r"^\| .*(?:→|\d\.\d\d \().*$", outside, re.MULTILINE)
    summaries = {file.stem for file in PAGE.with_suffix("").glob("*.json")} - {"thesis"}
    told = tomllib.loads((CARDS / "cards.toml").read_text(encoding="utf-8"))
    used = {run for card in told.values() for run in card["runs"]} | {*SEARCHES.values()}
    used |= {run for run, _ in RELEASED.values()}
    assert summaries == used  # nothing measured is left out


def test_the_committed_page_and_cards_are_what_the_files_say(
    recipe: ModuleType, demo: nn.Module, tmp_path: Path
) -> None:
    """Written anew from the results files, every figure of page and cards comes out as it is."""
    root = CARDS.parent
    for part in ("docs/reproduction", "model_cards"):
        shutil.copytree(root / part, tmp_path / part)
    shutil.copy(root / "docs" / "reproduction.md", tmp_path / "docs")
    told = tomllib.loads((root / "model_cards" / "cards.toml").read_text(encoding="utf-8"))
    for name in told:
        (tmp_path / "model_cards" / f"{name}.md").write_text("another card")
    recipe.main(["--root", str(tmp_path)])
    page = (tmp_path / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert page == (root / "docs" / "reproduction.md").read_text(encoding="utf-8")
    for file in (root / "model_cards").iterdir():
        assert (tmp_path / "model_cards" / file.name).read_text("utf-8") == file.read_text("utf-8"), file.name
    released = {file.name.partition(".")[0] for file in CARRIED.glob("*.safetensors")}
    assert set(told) == released  # a card for each, and none without weights
    assert {file.stem for file in (root / "model_cards").glob("*.md")} == released
