"""Compare methods of explanation on the same pictures, by every metric, and write one report.

    accelerate launch recipes/evaluate.py --model resnet50 --methods gradcam,opticam --data-dir imagenet/val --limit 500

Works on one process or many: each takes its share of the pictures. Rows are written as they are measured; a run that
is killed goes on where it was when it is started again with the same --output.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from interp_zoo.evaluation import between, measures, tables
from interp_zoo.evaluation.boxes import read_boxes
from interp_zoo.evaluation.data import Data, Item, Unreadable, open_data
from interp_zoo.evaluation.measuring import Examiner, Settings, weights_hash
from interp_zoo.evaluation.options import TARGETS, evaluation_flags
from interp_zoo.evaluation.protocol import describe
from interp_zoo.evaluation.records import Missing, Records, Row, Writer
from interp_zoo.evaluation.report import write_report
from interp_zoo.evaluation.results import metric_facts, model_facts, versions, write_results, write_summary
from interp_zoo.evaluation.samples import evenly
from interp_zoo.evaluation.specs import parse_methods
from interp_zoo.explain.inputs import Preprocess
from interp_zoo.explain.labels import Labels
from interp_zoo.explain.methods import UnsuitableModel
from interp_zoo.models import create

ONE_PROCESS = (
    "warning: this is one process: on CPUs accelerate starts several through MPI alone; for two without it: "
    "torchrun --nproc-per-node 2 recipes/evaluate.py ..."
)
SHOWN = 1000  # pictures whose maps are kept: the report shows some of them


def target_kinds(wanted: str, data: Data) -> list[str]:
    """Which targets are explained."""
    if wanted == "label" and not data.labelled:
        raise ValueError('`target` is "label", but the data has no labels: use --target predicted')
    return [kind for kind in TARGETS if kind == wanted or (wanted == "all" and (kind != "label" or data.labelled))]


@contextmanager
def progress(accelerator: Accelerator, total: int) -> Iterator[Any]:
    """A bar with the time that is left, for the main process' share."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), disable=not accelerator.is_main_process) as bar:
        task = bar.add_task("maps", total=total)
        yield lambda n, what: bar.update(task, advance=n, description=what)


def examine(
    examiner: Examiner,
    todo: Mapping[Missing, Sequence[int]],
    data: Data,
    boxes: Mapping[str, Tensor],
    writer: Writer,
    args: argparse.Namespace,
    tick: Any,
) -> None:
    """Measures what is still to be measured of one model, batch by batch, and writes it down."""
    counts = {"fills": args.fill_pictures, "sanity": args.sanity_pictures, "shown": SHOWN}
    samples = {what: set(evenly(data.chosen, count)) for what, count in counts.items()}
    left_out: set[str] = set()
    for missing, indices in todo.items():
        pictures = data.stream(indices)
        while batch := [examiner.admitted(item) for item in islice(pictures, args.batch_size)]:
            for broken in (item for item in batch if isinstance(item, Unreadable)):
                writer.unreadable(broken.index, broken.file, broken.why)
                tick(len(missing), broken.file)
            kinds = sorted({kind for _, kind in missing})
            items = [item for item in batch if isinstance(item, Item)]
            for bare in (item for item in items if item.label is None and "label" in kinds):
                raise ValueError(f'picture "{bare.file}" has no label: use --target predicted')
            if not items:
                continue
            with examiner.batch(items, kinds, boxes) as ready:
                seen = zip(items, ready.thumbnails(), strict=True)
                writer.thumbnails(examiner.name, {i.index: image for i, image in seen if i.index in samples["shown"]})
                places = {what: [n for n, i in enumerate(items) if i.index in some] for what, some in samples.items()}
                for method, kind in sorted(missing):
                    if method not in left_out:
                        try:
                            writer.rows(examiner.rows(ready, method, kind, **places))
                        except UnsuitableModel as error:
                            left_out.add(method)
                            writer.left_out(examiner.name, method, str(error))
                    tick(len(items), f"{examiner.name}, {method}")


def report(
    records: Records,
    data: Data,
    methods: Sequence[str],
    kinds: Sequence[str],
    settings: Settings,
    models: Mapping[str, tuple[nn.Module, str]],
    facts: Mapping[str, str],
) -> dict[str, Any]:
    """Writes all files from all rows, and returns what stands in summary.json."""
    found, chosen = records.read(), set(data.chosen)
    every = [row for row in found.rows.values() if row["index"] in chosen]
    measured = {row["index"] for row in every}
    if not measured:
        file, why = next(iter(found.unreadable.values()), ("", "no method admits the model"))
        raise ValueError(f'nothing could be measured, "{file}": {why}')
    rows: list[Row] = []
    made: list[dict[str, Any]] = []
    found_in: dict[str, dict[str, tables.Rows]] = {kind: {} for kind in kinds}
    for model in models:
        for kind in kinds:
            its = tables.by_method(every, methods, model, kind)
            for method_rows in its.values():
                tables.settle_box_accuracy(method_rows)
                tables.name_classes(method_rows, Labels(models[model][0]))
                rows += method_rows.values()
            if its:
                made.append(tables.make_table(its, settings.metrics, model, kind))
                found_in[kind][model] = its
    compared = [pair for kind, its in found_in.items() for pair in between.compare(its, settings.metrics, kind)]
    left_out = [{"model": m, "method": how, "why": why} for (m, how), why in found.left_out.items()]
    sizes = {name: Preprocess(model).size for name, (model, _) in models.items()}
    summary = {
        "command": shlex.join(["accelerate", "launch", "recipes/evaluate.py", *sys.argv[1:]]),
        "protocol": facts,
        "versions": versions(),
        "metrics": metric_facts(settings.metrics, settings.protocol),
        "models": [model_facts(rows, name, sizes[name], weights) for name, (_, weights) in models.items()],
        "tables": made,
        "comparisons": compared,
        "left_out": [e for e in left_out if e["model"] in models and e["method"] in methods],
        "unreadable": [{"file": f, "why": why} for i, (f, why) in found.unreadable.items() if i in chosen - measured],
    }
    write_results(records.folder, rows, settings.metrics)
    write_summary(records.folder, summary)
    write_report(records.folder / "report.html", summary, rows, found.thumbnails)
    return summary


def run(args: argparse.Namespace, accelerator: Accelerator, console: Console) -> None:
    """Everything is looked at before anything is measured."""
    if args.checkpoint and len(args.model) > 1:
        raise ValueError(f"`checkpoint` is for a single model, but {len(args.model)} are named: name one")
    for name in ("batch_size", "step", "blur_kernel", "fill_pictures", "sanity_pictures"):
        if (number := getattr(args, name)) is not None and number < 1:
            raise ValueError(f"`{name}` is {number}, but must be at least 1")
    if args.blur_kernel % 2 == 0:
        raise ValueError(f"`blur_kernel` is {args.blur_kernel}, but must be odd, such as 11")
    specs = parse_methods(args.methods)
    keys = {"class_map": args.class_map, "input_key": args.input_key, "target_key": args.target_key}
    data = open_data(args.data_dir, args.dataset, args.split, args.limit, held=args.hold_out, **keys)
    boxes = read_boxes(args.boxes, data.names) if args.boxes else {}
    kinds = target_kinds(args.target, data)
    words = [word.strip() for word in args.metrics.split(",") if word.strip()]
    metrics, missing = measures.chosen(words, boxes=bool(boxes), labels=data.labelled, protocol=args.protocol)
    settings = Settings(
        metrics=metrics,
        protocol=args.protocol,
        step=args.step,
        blur_kernel=args.blur_kernel,
        batch_size=args.batch_size,
        amp=None if args.amp == "no" else args.amp,
        seed=args.seed,
    )
    models: dict[str, tuple[nn.Module, str]] = {}
    for name in args.model:
        with accelerator.main_process_first():  # which downloads the weights; the others find them
            model = create(name, checkpoint=args.checkpoint).to(accelerator.device)
        if data.labelled:
            data.check_labels(Labels(model).classes)
        models[name] = (model, weights_hash(model))

    examiners = {name: Examiner(model, name, specs, settings) for name, (model, _) in models.items()}
    prober = next(iter(examiners.values()))
    for first in (item for item in map(prober.admitted, data.stream(data.chosen[:1])) if isinstance(item, Item)):
        prober.probe(first)

    records = Records(args.output)
    if accelerator.is_main_process:
        same = (
            "protocol",
            "step",
            "blur_kernel",
            "amp",
            "seed",
            "fill_pictures",
            "sanity_pictures",
            "limit",
            "hold_out",
        )
        identity: dict[str, Any] = {key: str(getattr(args, key)) for key in same}
        identity |= {"data": data.fingerprint, "metrics": metrics, "versions": versions()}
        identity["boxes"] = sha256(repr({file: its.tolist() for file, its in boxes.items()}).encode()).hexdigest()
        identity["models"] = {n: [sha, repr(resolve_model_data_config(m))] for n, (m, sha) in models.items()}
        records.claim(identity, overwrite=args.overwrite)
    accelerator.wait_for_everyone()

    found = records.read()
    shares: dict[str, dict[Missing, list[int]]] = {}
    pairs = [(spec.text, kind) for spec in specs for kind in kinds]
    for name in models:
        shares[name] = {}
        for what, indices in found.todo(data.chosen, name, pairs).items():
            with accelerator.split_between_processes(indices) as mine:
                shares[name][what] = mine
    if found.rows:
        console.print(f"going on in {args.output}: {len(found.rows):,} rows are there", markup=False)
    accelerator.wait_for_everyone()  # nobody writes before all have read
    writer = records.writer(accelerator.process_index)
    total = sum(len(what) * len(indices) for share in shares.values() for what, indices in share.items())
    with progress(accelerator, total) as tick:
        for name, examiner in examiners.items():
            examine(examiner, shares[name], data, boxes, writer, args, tick)
    accelerator.wait_for_everyone()

    if accelerator.is_main_process:
        machine = f"{accelerator.device.type}, {accelerator.num_processes} x {torch.get_num_threads()} threads"
        facts = describe(
            settings,
            data=data.about,
            target=args.target,
            fills=len(evenly(data.chosen, args.fill_pictures)),
            sanity=len(evenly(data.chosen, args.sanity_pictures)),
            missing=missing,
            machine=machine,
        )
        summary = report(records, data, [spec.text for spec in specs], kinds, settings, models, facts)
        for table in summary["tables"]:
            console.print(*tables.as_text(table, metrics))
        for comparison in summary["comparisons"]:
            console.print(*between.as_text(comparison, metrics))
        for entry in summary["left_out"]:
            console.print(f"left out: {entry['model']}: {entry['why']}", markup=False)
        for entry in summary["unreadable"]:
            console.print(f"not read: {entry['file']}: {entry['why']}", markup=False)
        console.print(f"{args.output / 'report.html'}, results.parquet, results.csv, summary.json", markup=False)
    accelerator.wait_for_everyone()


def main() -> None:
    """Runs, and says in one line what is wrong."""
    args = evaluation_flags((__doc__ or "").partition("\n")[0]).parse_args()
    # One process may be done long before another: it waits as long as it takes.
    wait = InitProcessGroupKwargs(timeout=timedelta(weeks=4))
    # Without `cpu`, accelerate takes torchrun's processes on CPUs for as many lonely ones.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[wait])
    console = Console(quiet=not accelerator.is_main_process)
    if accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ:  # what accelerate sets for several
        print(ONE_PROCESS, file=sys.stderr)
    try:
        run(args, accelerator, console)
    except (ValueError, TypeError, OSError, ImportError) as error:
        where = "" if accelerator.is_main_process else f" in process {accelerator.process_index}"
        print(f"error{where}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    accelerator.end_training()


if __name__ == "__main__":
    main()
