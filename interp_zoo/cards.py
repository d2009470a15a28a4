"""Model cards in the Hub's format, with figures from a results file and from nowhere else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from interp_zoo.models.counting import flops, parameters

TASK = "image-classification"
_ENTRY: dict[str, Any] = {"dataset": str, "split": str, "metric": str, "value": (int, float)}


@dataclass(frozen=True)
class Results:
    """What was measured on a model, as a results file holds it.

    The file is JSON: an object with `model` and `command` (text), `results` (a list of objects with `dataset`, `split`,
    `metric` (text), `value` (a number) and, if wanted, `name`, a metric's or its protocol's in words), and, if wanted,
    `base_model` (the Hub's name of the model that training started from), `datasets` (the Hub's names) and `training`
    (the command that trained).

    Attributes:
        model: the architecture that was measured.
        command: what measured it.
        results: the figures.
        base_model: what training started from, or None.
        datasets: what it was trained on.
        training: the command that trained it, or None.
    """

    model: str = ""
    command: str = ""
    results: tuple[dict[str, Any], ...] = ()
    base_model: str | None = None
    datasets: tuple[str, ...] = field(default=())
    training: str | None = None

    @classmethod
    def read(cls, path: str | Path) -> Results:
        """A results file's content.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not as it should be.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'`results` "{path}" does not exist')
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f'`results` "{path}" is no JSON file: {error}') from None
        missing = [key for key in ("model", "command", "results") if not (isinstance(found, dict) and found.get(key))]
        if missing:
            raise ValueError(f'`results` "{path}" has no {", ".join(missing)}: a figure needs the command that made it')
        for i, entry in enumerate(found["results"]):
            wrong = [k for k, kind in _ENTRY.items() if not isinstance(entry.get(k), kind) or entry[k] is True]
            if wrong or not math.isfinite(entry["value"]):
                raise ValueError(
                    f'`results` "{path}": entry {i} needs {", ".join(wrong or ["a finite value"])} '
                    "(dataset, split, metric as text, value as a number)"
                )
        known = {k: v for k, v in found.items() if k in cls.__dataclass_fields__}
        return cls(**{**known, "results": tuple(found["results"]), "datasets": tuple(found.get("datasets", ()))})


def make_card(model: nn.Module, repo_id: str, results: Results, *, license: str | None, base_model: str | None) -> str:
    """The card of a model, Markdown after YAML metadata."""
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    name = repo_id.rpartition("/")[2]
    architecture = cfg["architecture"]
    data = ModelCardData(
        license=license or cfg.get("license"),
        library_name="timm",
        pipeline_tag=TASK,
        tags=[TASK, "timm", "interp_zoo", "interpretability"],
        base_model=base_model or results.base_model,
        datasets=list(results.datasets) or None,
        model_name=name,
        eval_results=[_eval_result(entry) for entry in results.results] or None,
    )
    text = [f"# {name}", "", _about(architecture), "", *_details(model, cfg), "", *_use(repo_id)]
    text += ["", "## Figures", "", *_figures(results)]
    if results.training:
        text += ["", "## Training", "", "```bash", results.training, "```"]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(text) + "\n"


def check_card(text: str, results: Results) -> None:
    """Refuses a card of the user's own that holds a figure which no results file holds, or no valid metadata.

    Raises:
        ValueError: if it does.
    """
    try:
        data: Any = ModelCard(text).data
    except ValueError as error:
        raise ValueError(f"`card` has no valid metadata: {error}") from None
    known = {(r["dataset"], r["split"], r["metric"], float(r["value"])) for r in results.results}
    for result in data.eval_results or ():
        figure = (result.dataset_type, result.dataset_split, result.metric_type, result.metric_value)
        if figure not in known:
            raise ValueError(
                f"`card` says {result.metric_type} {result.metric_value} on {result.dataset_type}, which no results "
                "file holds: give the file as `results`, or leave the figure out"
            )


def _eval_result(entry: Mapping[str, Any]) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        dataset_type=entry["dataset"],
        dataset_name=entry["dataset"],
        dataset_split=entry["split"],
        metric_type=entry["metric"],
        metric_name=entry.get("name") or entry["metric"],
        metric_value=entry["value"],
    )


def _about(architecture: str) -> str:
    doc = timm.models.model_entrypoint(architecture).__doc__ or ""
    return f"`{architecture}`: {doc.strip().partition(chr(10))[0]}"


def _details(model: nn.Module, cfg: Mapping[str, Any]) -> list[str]:
    size = " x ".join(map(str, cfg["input_size"]))
    lines = [
        f"- {parameters(model) / 1e6:.2f} M parameters, {flops(model) / 1e9:.3f} GFLOPs (2 x multiplications)",
        f"- pictures of {size}, {model.num_classes} classes",
    ]
    if cfg.get("paper_name"):
        lines.append(f"- paper: {cfg['paper_name']}")
    return lines


def _use(repo_id: str) -> list[str]:
    return [
        "## Use",
        "",
        "```python",
        "import timm, interp_zoo",
        "",
        f'model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()',
        'interp_zoo.explain(model, "photo.jpg").save("explained.png")',
        "```",
    ]


def _figures(results: Results) -> list[str]:
    if not results.results:
        return ["None: nothing was measured."]
    lines = ["| dataset | split | metric | value |", "|---|---|---|---|"]
    lines += [
        f"| {r['dataset']} | {r['split']} | {r.get('name') or r['metric']} | {r['value']:g} |" for r in results.results
    ]
    return [*lines, "", "Measured by", "", "```bash", results.command, "```"]
