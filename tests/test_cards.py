"""Model cards: the Hub's format, and no figure but those of a results file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_one_line, lively
from huggingface_hub import ModelCard

from interp_zoo.hub import prepare

NAME, REPO = "ca_resnet18_cifar", "me/ca_resnet18_cifar.cifar100"
ENTRY = {"dataset": "cifar100", "split": "test", "metric": "accuracy", "name": "top-1", "value": 61.25}
RESULTS = {
    "model": NAME,
    "command": "accelerate launch recipes/evaluate.py --model ca_resnet18_cifar",
    "training": "accelerate launch recipes/train.py --model ca_resnet18_cifar",
    "base_model": "me/resnet18_cifar.cifar100",
    "datasets": ["cifar100"],
    "results": [
        ENTRY,
        {"dataset": "cifar100", "split": "test", "metric": "average_gain", "value": 12.5},
    ],
}

SECTION = {
    "title": "Explanations",
    "text": ["Of **both** networks.", "By label."],
    "columns": ["method", "AD"],
    "rows": [["gradcam", 12.5], ["cam", "13.0 to 14.0"]],
    "command": "accelerate launch recipes/evaluate.py --methods gradcam,cam",
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(RESULTS))
    return file


def test_the_card(results: Path, tmp_path: Path) -> None:
    prepare(lively(NAME), REPO, tmp_path / "out", results=results, license="mit")
    text = (tmp_path / "out" / "README.md").read_text()
    data: Any = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "timm", "image-classification")
    assert (data.base_model, data.datasets) == (RESULTS["base_model"], RESULTS["datasets"])
    figures = {
        (r.dataset_type, r.dataset_split, r.metric_type, r.metric_name): r.metric_value for r in data.eval_results
    }
    assert figures == {
        ("cifar100", "test", "accuracy", "top-1"): 61.25,
        ("cifar100", "test", "average_gain", "average_gain"): 12.5,
    }
    for part in (RESULTS["command"], RESULTS["training"], "| cifar100 | test | top-1 | 61.25 |", "11.66 M parameters"):
        assert str(part) in text
    code = text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in code


def test_sections(tmp_path: Path) -> None:
    limits = {"title": "Limits", "text": ["Small pictures."]}
    (tmp_path / "results.json").write_text(json.dumps(RESULTS | {"sections": [SECTION, limits]}))
    prepare(lively(NAME), REPO, tmp_path / "out", results=tmp_path / "results.json")
    text = (tmp_path / "out" / "README.md").read_text()
    table = "| method | AD |\n| --- | --- |\n| gradcam | 12.5 |\n| cam | 13.0 to 14.0 |"
    command = f"```bash\n{SECTION['command']}\n```"
    prose = "Of **both** networks.\n\nBy label."
    assert text.endswith(f"## Explanations\n\n{prose}\n\n{table}\n\n{command}\n\n## Limits\n\nSmall pictures.\n")


def test_a_command_is_told_once_and_steps_stand_below_each_other(tmp_path: Path) -> None:
    told = {"sections": [SECTION | {"command": RESULTS["command"]}], "training": "python a.py && python b.py"}
    (tmp_path / "results.json").write_text(json.dumps(RESULTS | told))
    prepare(lively(NAME), REPO, tmp_path / "out", results=tmp_path / "results.json")
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.count(str(RESULTS["command"])) == 1
    assert text.endswith("\n\nMeasured by the command under Figures.\n")
    assert "```bash\npython a.py &&\npython b.py\n```" in text


def test_a_card_without_results_has_no_figures(tmp_path: Path) -> None:
    prepare(lively(NAME), REPO, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    data: Any = ModelCard(text).data
    assert data.eval_results is None
    assert "None: nothing was measured." in text
    assert data.license == "apache-2.0"


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in ENTRY.items() if k != key}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": "ca_resnet50"}, '`results` are of "ca_resnet50", not of "ca_resnet18_cifar"'),
        ({"model": 5}, "`model` must be a line of text"),
        ({"command": ""}, "`command` must be a line of text .a figure needs the command that made it"),
        ({"command": ["a", "b"]}, "`command` must be a line"),
        ({"command": "a\n```\nb"}, "`command` must be a line"),
        ({"training": ["x"]}, "`training` must be a line"),
        ({"base_model": 5}, "`base_model` must be a line"),
        ({"datasets": "cifar100"}, "`datasets` must be a list of names"),
        ({"datasets": [3]}, "`datasets` must be a list of names"),
        ({"results": []}, "`results` must be a list of objects, one or more"),
        ({"results": [1]}, "`results` must be a list of objects"),
        ({"results": {"a": 1}}, "`results` must be a list of objects"),
        ({"results": [without("value")]}, "entry 0 needs `value`, a finite number"),
        ({"results": [ENTRY, ENTRY | {"metric": "f1", "value": "61"}]}, "entry 1 needs `value`"),
        ({"results": [ENTRY | {"value": float("nan")}]}, "entry 0 needs `value`"),
        ({"results": [ENTRY | {"value": 10**400}]}, "entry 0 needs `value`"),
        ({"results": [ENTRY | {"value": False}]}, "entry 0 needs `value`"),
        ({"results": [without("split")]}, "entry 0 needs `split`, a name"),
        ({"results": [ENTRY | {"dataset": "ci|far"}]}, "entry 0 needs `dataset`, a name"),
        ({"results": [ENTRY | {"name": 5}]}, "entry 0 needs `name`, a name"),
        ({"results": [ENTRY, ENTRY | {"value": 3}]}, "two entries are of cifar100, test, accuracy"),
        ({"sections": "Limits"}, "`sections` must be a list of objects, each with a `title`"),
        ({"sections": [{"text": ["no title"]}]}, "`sections` must be a list of objects, each with a `title`"),
        ({"sections": [{"title": "a", "text": "b"}]}, 'section "a": `text` must be a list of lines'),
        ({"sections": [{"title": "a", "text": ["b\nc"]}]}, 'section "a": `text` must be a list of lines'),
        ({"sections": [SECTION | {"command": ""}]}, 'section "Explanations": `command` must be a line'),
        ({"sections": [SECTION | {"rows": []}]}, "`rows` must be a list of rows, each with a cell for each of"),
        ({"sections": [SECTION | {"rows": [["gradcam"]]}]}, "`rows` must be a list of rows, each with a cell for each"),
        ({"sections": [SECTION | {"rows": [["a|b", 1]]}]}, "a cell must be a finite number, or text without"),
        ({"sections": [SECTION | {"rows": [["a", float("inf")]]}]}, "a cell must be a finite number, or text without"),
        ({"sections": [{k: v for k, v in SECTION.items() if k != "command"}]}, "a table needs the `command` that made"),
    ],
)
def test_results_that_are_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(RESULTS | change))
    with pytest.raises(ValueError, match=match) as caught:
        prepare(lively(NAME), REPO, tmp_path / "out", results=file)
    assert_one_line(caught.value)
    assert not (tmp_path / "out").exists()


def test_results_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'`results` ".*nowhere.json" does not exist'):
        prepare(lively(NAME), REPO, tmp_path / "out", results=tmp_path / "nowhere.json")
    for content, match in (
        (b"figures: many", "is no JSON file"),
        (b"\xff\xfe", "is no JSON file"),
        (b"[1]", "hold an object"),
    ):
        (tmp_path / "results.json").write_bytes(content)
        with pytest.raises(ValueError, match=match) as caught:
            prepare(lively(NAME), REPO, tmp_path / "out", results=tmp_path / "results.json")
        assert_one_line(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_card_is_of_the_model_as_it_is(tmp_path: Path) -> None:
    prepare(lively(NAME, in_chans=1, num_classes=7), REPO, tmp_path / "out")
    assert "pictures of 1 x 32 x 32, 7 classes" in (tmp_path / "out" / "README.md").read_text()
