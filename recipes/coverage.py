"""Explain the smallest model of each of timm's modules, and this package's own, check it, and write the table.

    python recipes/coverage.py --output docs/coverage.md
    python recipes/coverage.py --all --output docs/coverage_all.md

`--all` takes every architecture of timm with up to 400 M parameters (hours). The table is written after each of them; a
run that was stopped goes on from there, and tries what failed again.

Networks are untrained (no download), their weights drawn with a fixed seed. What starts at zero and would hide the rest
(some classifiers, last norms of blocks, LeViT's biases by distance) starts at something else. Where the signal fades
out all the same, all checks are made again, on the network with BatchNorm statistics of four random pictures. The
smallest model of a module is the one with the fewest parameters. Networks made for more than 320 pixels get 224; those
bound to a size are built for that where timm can. For each model:

- logits: the tail on the unchanged map gives the model's own logits;
- map: Grad-CAM's raw map is finite and not constant, from one forward and one tail backward pass for each picture;
- alone: a picture alone gives the map that it gives in a batch of two;
- align: texture in a corner of the picture changes the features there more than elsewhere, or more there than texture
  elsewhere does, for all four corners;
- trace: the model is as before, module by module: modes, attributes, hooks, parameters, buffers.
"""

from __future__ import annotations

import argparse
import gc
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import list_models, list_modules
from torch import Tensor, nn
from torch.nn import functional as F

import interp_zoo
from interp_zoo.files import write_whole

MAX_PIXELS, SMALL_PIXELS = 320, 224  # networks made for larger pictures than the first get the second
LARGEST = 400_000_000  # parameters of a model that --all takes
CHECKS = ("logits", "map", "alone", "align", "trace")
MARKS = {True: "pass", False: "**fail**", None: ""}
BEGUN, AGAIN, DIED = "begun", "begun again", "the process died twice"  # notes on models that never came to an end


@dataclass
class Row:
    """One line of the table; checks are True, False, or None where they could not be made."""

    module: str
    model: str
    cut: str = ""
    shape: str = ""
    passes: str = ""
    seconds: float = 0.0
    logits: bool | None = None
    map: bool | None = None
    alone: bool | None = None
    align: bool | None = None
    trace: bool | None = None
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(getattr(self, check) for check in CHECKS)


def timm_modules() -> list[str]:
    """The modules of timm's own models, without those that others (this package too) have registered."""
    return [module for module in list_modules() if hasattr(timm.models, module)]


OWN = "interp_zoo"  # in the place of a module: all architectures of this package


def parameters(name: str) -> int | None:
    """How many a model has, without making them; None for networks that compute constants while they are built."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception:  # whatever networks do that compute with what is not there
            return None


def smallest(module: str) -> str:
    """The module's model with the fewest parameters."""
    names = list_models(module=module)
    sizes = [(size, name) for name in names if (size := parameters(name)) is not None]
    return min(sizes)[1] if sizes else names[0]


def build(name: str, *, calibrated: bool = False, **kwargs: Any) -> nn.Module:
    """An untrained model in eval mode, none of whose weights are all zero.

    Args:
        name: timm's.
        calibrated: whether its BatchNorm has statistics.
        kwargs: for timm.create_model.
    """
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **kwargs)
    if "img_size" in kwargs:
        cfg: Any = model.pretrained_cfg
        cfg["input_size"] = (3, kwargs["img_size"], kwargs["img_size"])
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and not bool(weight.any()):
            if weight.ndim == 1:
                nn.init.ones_(weight)
            else:
                nn.init.trunc_normal_(weight, std=0.02)
        biases = getattr(module, "attention_biases", None)
        if isinstance(biases, nn.Parameter) and not bool(biases.any()):
            with torch.no_grad():
                biases[:, 0] = 4.0  # a place looks at itself: attention that is even everywhere has one map, the mean
    if calibrated:
        for module in filter(is_batch_norm, model.modules()):
            module.train()
            module.momentum = 1.0  # type: ignore[assignment]  # one batch tells it all
        with torch.no_grad():
            model(pictures(model, 4))
    return model.eval()


def smaller(name: str) -> dict[str, int]:
    """What builds a network for fewer pixels, if it is bound to many, and timm can."""
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.fixed_input_size or max(cfg.input_size) <= MAX_PIXELS:
        return {}
    with torch.device("meta"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            timm.create_model(name, img_size=SMALL_PIXELS).eval()(torch.zeros(1, 3, SMALL_PIXELS, SMALL_PIXELS))
        except Exception:  # each network refuses in its own way
            return {}
    return {"img_size": SMALL_PIXELS}


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a layer has running statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def explain(module: str, name: str, **kwargs: Any) -> Row:
    """The row of a module's model, made with some arguments, whatever happens to it."""
    try:
        return _explain(module, name, **kwargs)
    except Exception as error:  # the table says what happened; the other models go on
        return Row(module, name, note=" ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())[:200])


def _explain(module: str, name: str, **kwargs: Any) -> Row:
    row = Row(module, name)
    kwargs = smaller(name) | kwargs
    model = build(name, **kwargs)
    check(row, model)
    if not row.passed and any(map(is_batch_norm, model.modules())):
        again = Row(module, name)
        check(again, build(name, calibrated=True, **kwargs))
        if again.passed:
            again.note = "BatchNorm with statistics"
            return again
    return row


def pictures(model: Any, n: int = 2) -> Tensor:
    """Random pictures, smooth with some texture, as the model takes them, (n, channels, H, W)."""
    channels, height, width = model.pretrained_cfg["input_size"]
    if height > MAX_PIXELS and not model.pretrained_cfg["fixed_input_size"]:
        height = width = SMALL_PIXELS
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, channels, 8, 8, generator=generator)
    texture = torch.randn(n, channels, height, width, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic") + texture / 2


def check(row: Row, model: nn.Module) -> None:
    """Fills the row's cells."""
    x = pictures(model)
    before = fingerprint(model)
    explainer = interp_zoo.Explainer(model, "gradcam")
    plain = explainer.features(x[:1])  # finds the cut
    start = time.perf_counter()
    exp = explainer(x, target=[1, 2])
    row.seconds = (time.perf_counter() - start) / len(x)
    row.cut, row.passes = exp.layer, f"{exp.cost.forward:g} + {exp.cost.backward:g}"
    row.shape = " x ".join(map(str, plain.shape[1:]))
    row.map = bool(exp.raw.isfinite().all()) and bool((exp.raw.amax((1, 2)) > exp.raw.amin((1, 2))).all())
    row.map &= (exp.cost.forward, exp.cost.backward) == (1, 1)
    alone = explainer(x[1:], target=2)
    row.alone = bool(torch.allclose(alone.raw[0], exp.raw[1], rtol=1e-3, atol=1e-3 * exp.raw[1].abs().max().item()))
    row.logits = tail_is_the_model(explainer, x[:1])
    row.align, row.note = alignment(explainer, x[:1], plain)
    row.trace = fingerprint(model) == before


def tail_is_the_model(explainer: interp_zoo.Explainer, x: Tensor) -> bool:
    """Whether the tail, on a picture's own features twice, gives the model's own logits."""
    with explainer.anatomy(x) as (anatomy, pixels):
        split = anatomy.split(pixels)
        with torch.no_grad():
            want = anatomy.logits(pixels)
            got = anatomy.tail(pixels, 0, split.maps.detach()[[0, 0]])
    return torch.allclose(got, want.expand_as(got), rtol=1e-3, atol=1e-3 * want.abs().max().item())


CORNERS = ("top left", "top right", "bottom left", "bottom right")


def alignment(explainer: interp_zoo.Explainer, x: Tensor, plain: Tensor) -> tuple[bool, str]:
    """Whether texture in a picture's corners changes its features there, from `plain`; else in which corners not.

    There: more than in the other corners, or more than texture in the other corners does. (Some places feel any change
    more than others do.)
    """
    height, width = x.shape[2:]
    h, w = height // 3, width // 3
    noise = torch.randn(1, x.shape[1], h, w, generator=torch.Generator().manual_seed(1))
    found = []  # a row for each corner with texture, a column for each where features are
    for corner in range(len(CORNERS)):
        rows, columns = slice(-h, None) if corner >= 2 else slice(h), slice(-w, None) if corner % 2 else slice(w)
        changed = x.clone()
        changed[:, :, rows, columns] += noise
        change = (explainer.features(changed) - plain).abs().sum(1)
        found.append(F.adaptive_avg_pool2d(change, 2).flatten())
    changes, diagonal = torch.stack(found), torch.arange(len(CORNERS))
    there = (changes.argmax(1) == diagonal) | ((changes / changes.mean(0)).argmax(1) == diagonal)
    wrong = [name for name, right in zip(CORNERS, there.tolist(), strict=True) if not right]
    return not wrong, f"not in the {', '.join(wrong)} corner" if wrong else ""


def fingerprint(model: nn.Module) -> list[Any]:
    """All that a call could leave behind on a model."""
    marks: list[Any] = []
    for name, module in model.named_modules():
        own = {k: id(v) for k, v in vars(module).items() if not isinstance(v, dict)}
        dicts = {k: [(i, id(j)) for i, j in v.items()] for k, v in vars(module).items() if isinstance(v, dict)}
        marks.append((name, module.training, own, dicts))
    tensors = [*model.named_parameters(), *model.named_buffers()]
    marks += [(k, t.requires_grad, t.grad is None, t._version, t.dtype, t.device) for k, t in tensors]
    return marks


def cell(value: Any) -> str:
    """A table cell."""
    if isinstance(value, bool) or value is None:
        return MARKS[value]
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def read(file: Path) -> dict[str, Row]:
    """The rows of a table that was written before, by model; none if there is none."""
    names = [f.name for f in fields(Row)]
    meant = {text: mark for mark, text in MARKS.items()}
    rows: dict[str, Row] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        cells = [part.strip() for part in line.split("|")[1:-1]]
        if len(cells) == len(names) and cells[0] != names[0] and set(line) != set("|-"):
            kept: dict[str, Any] = dict(zip(names, cells, strict=True))
            kept |= {"seconds": float(kept["seconds"])} | {check: meant[kept[check]] for check in CHECKS}
            rows[kept["model"]] = Row(**kept)
    return rows


def of_this_timm(file: Path) -> bool:
    """Whether a table was written with the timm that is installed."""
    return file.is_file() and f" with timm {timm.__version__} and torch" in file.read_text(encoding="utf-8")


def table(rows: list[Row], command: str, which: str) -> str:
    """The report in Markdown, on models that `which` describes."""
    passed = {name: sum(bool(getattr(row, name)) for row in rows) for name in CHECKS}
    counts = ", ".join(f"{name} {n}" for name, n in passed.items())
    names = [f.name for f in fields(Row)]
    lines = [
        "# Coverage of timm",
        "",
        f"Written by `{command}` with timm {timm.__version__} and torch {torch.__version__.partition('+')[0]}: "
        f"{which}, untrained, no layer named. "
        f"Of {len(rows)} models {sum(row.passed for row in rows)} pass every check ({counts}).",
        "",
        "What is checked: see [recipes/coverage.py](../recipes/coverage.py). Passes: forward + tail backward for "
        "a picture; seconds: for a picture by Grad-CAM on a CPU, in float32.",
        "",
        "| " + " | ".join(names) + " |",
        "|" + "---|" * len(names),
    ]
    lines += ["| " + " | ".join(cell(getattr(row, name)) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Explains, checks and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--modules", default="", help="comma-separated; all of timm's and interp_zoo if empty")
    parser.add_argument(
        "--all", action="store_true", help="every model with up to 400 M parameters; goes on where it was"
    )
    parser.add_argument("--output", type=Path, help="the table, in Markdown (docs/coverage.md, docs/coverage_all.md)")
    args = parser.parse_args()
    if args.output is None:
        if args.modules:
            parser.error("--modules makes a part of the table: say where it is to be written with --output")
        args.output = Path("docs", "coverage_all.md" if args.all else "coverage.md")
    known = [*timm_modules(), OWN]
    wanted: list[str] = args.modules.split(",") if args.modules else known
    if unknown := set(wanted) - set(known):
        parser.error(f"--modules: timm has no {', '.join(sorted(unknown))}")
    warnings.filterwarnings("ignore", message="map .* is blank")  # untrained networks speak against many a class
    args.output.parent.mkdir(parents=True, exist_ok=True)
    command = "python recipes/coverage.py" + " --all" * args.all + f" --modules {args.modules}" * bool(args.modules)
    which = "every timm model of up to 400 M parameters" if args.all else "the smallest model of each of timm's modules"

    def write(rows: Iterable[Row]) -> None:
        write_whole(args.output, table(list(rows), command, f"{which}, and all of this package's own"))

    there = read(args.output) if args.all and of_this_timm(args.output) else {}
    rows: dict[str, Row] = {}
    for row in resumed(wanted, there, write) if args.all else each(wanted):
        rows[row.model] = row
        print(f"{len(rows)} {row.module}: {row.model} at {row.cut}, {'pass' if row.passed else row}", flush=True)
    write({**rows, **there}.values())  # those of modules that were not asked for now stay


def each(modules: list[str]) -> Iterator[Row]:
    """The rows of the smallest models of some modules, and of all of the package's own."""
    for module in modules:
        for name in interp_zoo.list_models() if module == OWN else [smallest(module)]:
            yield explain(module, name)


def resumed(modules: list[str], rows: dict[str, Row], write: Callable[[Iterable[Row]], None]) -> Iterator[Row]:
    """The rows of all models of some modules that are not too large; those that are there need not be made.

    Args:
        modules: of timm, or this package.
        rows: what is there, by model.
        write: keeps all rows, those of models that were begun too: those may take this process with them.
    """
    for module in modules:
        for name in interp_zoo.list_models() if module == OWN else list_models(module=module):
            old = rows.get(name) or Row(module, name)
            if old.note in (AGAIN, DIED):
                rows[name] = Row(module, name, note=DIED)
            elif not old.passed and (parameters(name) or 0) <= LARGEST:
                rows[name] = Row(module, name, note=AGAIN if old.note == BEGUN else BEGUN)
                write(rows.values())
                rows[name] = explain(module, name)
                write(rows.values())
                gc.collect()
            if name in rows:
                yield rows[name]


if __name__ == "__main__":
    main()
