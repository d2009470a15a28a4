"""Model cards in the Hub's format, with figures from a results file and from nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from interp_zoo.models.counting import flops, parameters
from interp_zoo.models.wrapping import input_shape

TASK = "image-classification"
_NAME = re.compile(r"[\w.@%+/() -]+")  # what breaks neither YAML nor a table


@dataclass(frozen=True)
class Results:
    """What was measured on a model.

    A results file holds it as JSON:

        {
          "model": "ca_resnet50",
          "command": "accelerate launch recipes/evaluate.py --model ca_resnet50 ...",
          "results": [
            {"dataset": "imagenet-1k", "split": "validation", "metric": "accuracy", "name": "top-1", "value": 12.5}
          ],
          "base_model": "timm/resnet50.tv_in1k",
          "datasets": ["imagenet-1k"],
          "training": "accelerate launch recipes/train.py --model ca_resnet50 ...",
          "sections": [
            {
              "title": "Limits",
              "text": ["A line of Markdown."],
              "columns": ["method", "AD"],
              "rows": [["gradcam", 12.5]],
              "command": "accelerate launch recipes/evaluate.py ..."
            }
          ]
        }

    The last four, an entry's `name`, and all of a section but its title are there if wanted. A table needs the command
    that made it.

    Attributes:
        model: the architecture that was measured.
        command: what measured it.
        results: the figures.
        base_model: what training started from, or None.
        datasets: what it was trained on.
        training: the command that trained it, or None.
        sections: what else the card says, in this order.
    """

    model: str = ""
    command: str = ""
    results: tuple[dict[str, Any], ...] = ()
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    training: str | None = None
    sections: tuple[dict[str, Any], ...] = ()

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
        except ValueError as error:
            raise ValueError(f'`results` "{path}" is no JSON file: {error}') from None
        wrong = _wrong(found)
        if wrong:
            raise ValueError(f'`results` "{path}": {wrong} (see interp_zoo.cards.Results)')
        known = {k: v for k, v in found.items() if k in cls.__dataclass_fields__}
        return cls(**{**known, **{key: tuple(found.get(key, ())) for key in ("results", "datasets", "sections")}})


def _wrong(found: Any) -> str:
    """What is wrong with the content of a results file, in words; nothing if it is as it should be."""
    if not isinstance(found, dict):
        return "it must hold an object"
    for key in ("model", "command"):
        if not _is_line(found.get(key)):
            return f"`{key}` must be a line of text (a figure needs the command that made it)"
    for key in ("base_model", "training"):
        if key in found and not _is_line(found[key]):
            return f"`{key}` must be a line of text"
    if not all(_is_name(name) for name in _list(found.get("datasets", []))):
        return "`datasets` must be a list of names"
    entries = _list(found.get("results"))
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        return "`results` must be a list of objects, one or more"
    for i, entry in enumerate(entries):
        for key in ("dataset", "split", "metric", *(["name"] if "name" in entry else [])):
            if not _is_name(entry.get(key)):
                return f"entry {i} needs `{key}`, a name"
        if not _is_number(entry.get("value")):
            return f"entry {i} needs `value`, a finite number"
    keys = [f"{entry['dataset']}, {entry['split']}, {entry['metric']}" for entry in entries]
    if len(set(keys)) < len(keys):
        return f"two entries are of {max(keys, key=keys.count)}"
    return next(filter(None, map(_wrong_section, _list(found.get("sections", [])))), "")


def _wrong_section(section: Any) -> str:
    if not isinstance(section, dict) or not _is_name(section.get("title")):
        return "`sections` must be a list of objects, each with a `title`, a name"
    which = f'section "{section["title"]}"'
    if not all(isinstance(line, str) and line.isprintable() for line in _list(section.get("text", []))):
        return f"{which}: `text` must be a list of lines"
    if "command" in section and not _is_line(section["command"]):
        return f"{which}: `command` must be a line of text"
    columns, rows = _list(section.get("columns", [])), _list(section.get("rows", []))
    if bool(columns) != bool(rows) or not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        return f"{which}: `rows` must be a list of rows, each with a cell for each of `columns`"
    if not all(
        (isinstance(cell, str) and cell.isprintable() and "|" not in cell) or _is_number(cell)
        for cell in [*columns, *(cell for row in rows for cell in row)]
    ):
        return f"{which}: a cell must be a finite number, or text without |"
    if rows and "command" not in section:
        return f"{which}: a table needs the `command` that made it"
    return ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable() and "`" not in value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def make_card(
    model: nn.Module, source: str, results: Results, *, license: str | None = None, base_model: str | None = None
) -> str:
    """The card of a model, Markdown after YAML metadata.

    Args:
        model: it, of a registered timm architecture.
        source: from where `timm.create_model` has it: "hf-hub:user/name", or the name of one that the package carries.
        results: what was measured on it.
        license: the licence's name on the Hub; by default that of the model's `pretrained_cfg`.
        base_model: the Hub's name of the model that training started from; by default what the results say.
    """
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    name = source.rpartition("/")[2]
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
    text = [f"# {name}", "", _about(architecture), "", *_details(model, cfg), "", *_use(source)]
    text += ["", "## Figures", "", *_figures(results)]
    if results.training:
        text += ["", "## Training", "", *_block(results.training)]
    for section in results.sections:
        text += _section(section, results.command)
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(text) + "\n"


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
    size = " x ".join(map(str, input_shape(model)))
    lines = [
        f"- {parameters(model) / 1e6:.2f} M parameters, {flops(model) / 1e9:.3f} GFLOPs (2 x multiplications)",
        f"- pictures of {size}, {model.num_classes} classes",
    ]
    if cfg.get("paper_name"):
        lines.append(f"- paper: {cfg['paper_name']}")
    return lines


def _use(source: str) -> list[str]:
    return [
        "## Use",
        "",
        'With `pip install ".[demo]"` in the repository of interp_zoo:',
        "",
        "```python",
        "import timm, interp_zoo",
        "",
        f'model = timm.create_model("{source}", pretrained=True).eval()',
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
    return [
        *lines,
        "",
        "Measured by, in a clone of the repository, with the extra `recipes`",
        "",
        *_block(results.command),
    ]


def _section(section: Mapping[str, Any], told: str) -> list[str]:
    """A section's lines; a command that the card has told already is not repeated."""
    lines = ["", f"## {section['title']}"]
    for line in section.get("text", ()):
        lines += ["", line]
    if columns := section.get("columns"):
        cells = [columns, ["---"] * len(columns), *section["rows"]]
        lines += ["", *("| " + " | ".join(c if isinstance(c, str) else f"{c:g}" for c in row) + " |" for row in cells)]
    if command := section.get("command"):
        lines += ["", *(["Measured by the command under Figures."] if command == told else _block(command))]
    return lines


def _block(command: str) -> list[str]:
    return ["```bash", command.replace(" && ", " &&\n"), "```"]
