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
RESULTS = {
    "model": NAME,
    "command": "accelerate launch recipes/evaluate.py --model ca_resnet18_cifar",
    "training": "accelerate launch recipes/train.py --model ca_resnet18_cifar",
    "base_model": "me/resnet18_cifar.cifar100",
    "datasets": ["cifar100"],
    "results": [
        {"dataset": "cifar100", "split": "test", "metric": "accuracy", "name": "top-1", "value": 61.25},
        {"dataset": "cifar100", "split": "test", "metric": "average_gain", "value": 12.5},
    ],
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


def test_a_card_without_results_has_no_figures(tmp_path: Path) -> None:
    prepare(lively(NAME), REPO, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    data: Any = ModelCard(text).data
    assert data.eval_results is None
    assert "None: nothing was measured." in text
    assert data.license == "apache-2.0"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": "ca_resnet50"}, '`results` are of "ca_resnet50", not of "ca_resnet18_cifar"'),
        ({"command": ""}, "has no command: a figure needs the command that made it"),
        ({"results": []}, "has no results"),
        ({"results": [{"dataset": "cifar100", "split": "test", "metric": "accuracy"}]}, "entry 0 needs value"),
        ({"results": [{**RESULTS["results"][0], "value": "61"}]}, "entry 0 needs value"),  # type: ignore[dict-item]
        ({"results": [{**RESULTS["results"][0], "value": float("nan")}]}, "entry 0 needs a finite value"),  # type: ignore[dict-item]
    ],
)
def test_results_that_are_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(RESULTS | change))
    with pytest.raises(ValueError, match=match) as caught:
        prepare(lively(NAME), REPO, tmp_path / "out", results=file)
    assert_one_line(caught.value)
    assert not (tmp_path / "out").exists()


def test_figures_that_no_results_file_holds(results: Path, tmp_path: Path) -> None:
    prepare(lively(NAME), REPO, tmp_path / "out", results=results)
    card = tmp_path / "card.md"
    card.write_text((tmp_path / "out" / "README.md").read_text())
    prepare(lively(NAME), REPO, tmp_path / "out", results=results, card=card)
    with pytest.raises(
        ValueError, match=r"`card` says accuracy 61.25 on cifar100, which no results file holds"
    ) as caught:
        prepare(lively(NAME), REPO, tmp_path / "none", card=card)
    assert_one_line(caught.value)
    card.write_text(card.read_text().replace("61.25", "71.25"))
    with pytest.raises(ValueError, match=r"`card` says accuracy 71.25"):
        prepare(lively(NAME), REPO, tmp_path / "none", results=results, card=card)
    with pytest.raises(FileNotFoundError, match=r'`card` ".*nowhere.md" does not exist'):
        prepare(lively(NAME), REPO, tmp_path / "none", card=tmp_path / "nowhere.md")
    with pytest.raises(FileNotFoundError, match=r'`results` ".*nowhere.json" does not exist'):
        prepare(lively(NAME), REPO, tmp_path / "none", results=tmp_path / "nowhere.json")
    results.write_text("figures: many")
    with pytest.raises(ValueError, match="is no JSON file"):
        prepare(lively(NAME), REPO, tmp_path / "none", results=results)
    assert not (tmp_path / "none").exists()
