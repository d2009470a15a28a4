"""The command line: interp-zoo explain | compare | methods | models | push."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from interp_zoo.explain import Explainer, Explanation, compare as compare_methods
from interp_zoo.explain.compare import ROWS, check_figure
from interp_zoo.explain.decoding import is_url
from interp_zoo.explain.inputs import not_there
from interp_zoo.explain.methods import get_method, list_methods
from interp_zoo.explain.storing import check_ending
from interp_zoo.hub import FILES, prepare, publish
from interp_zoo.models import create, list_models
from interp_zoo.models.counting import architecture, flops, parameters
from interp_zoo.models.loading import place, whereabouts

T = TypeVar("T")

DEFAULT_MODEL = "demo_efficientnet_lite0"

app = typer.Typer(
    help="Explain what an image classifier sees.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
out, err = Console(), Console(stderr=True)

Pictures = Annotated[
    list[str] | None,
    typer.Argument(help="Pictures: files, folders or URLs. Without any: a picture of a cat (scikit-image's)."),
]
Model = Annotated[str, typer.Option("--model", "-m", help="A timm model's name, also hf-hub:… and local-dir:…")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target", "-t", help="Class index, label, predicted or least_likely; again for more maps a picture."
    ),
]
Layer = Annotated[str | None, typer.Option(help="Cut the model after this layer; by default the place is found.")]
Checkpoint = Annotated[Path | None, typer.Option(help="A safetensors file with the model's weights.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ...")]
MultiLabel = Annotated[bool, typer.Option("--multi-label", help="Each class has a sigmoid of its own.")]
BatchSize = Annotated[int | None, typer.Option(help="The most pictures, masked copies included, at once.")]


@app.command()
def explain(
    pictures: Pictures = None,
    model: Model = DEFAULT_MODEL,
    method: Annotated[str, typer.Option("--method", help="See `interp-zoo methods`.")] = "opticam",
    target: Targets = None,
    layer: Layer = None,
    checkpoint: Checkpoint = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A folder; a file for one picture; .npz or .json for maps and numbers."),
    ] = Path("explanations"),
    option: Annotated[
        list[str] | None, typer.Option("--option", help="An option of the method: name=value; again for more.")
    ] = None,
    multi_label: MultiLabel = False,
    device: Device = None,
    batch_size: BatchSize = None,
) -> None:
    """Write a map over each picture, and print what it shows."""

    def run() -> Explanation:
        img, wanted = _inputs(pictures, target)
        check_ending(output)
        made = _model(model, checkpoint, device)
        settings: dict[str, Any] = {"layer": layer, "batch_size": batch_size, "multi_label": multi_label}
        return Explainer(made, method, **settings, **_options(option))(img, wanted)

    exp = _or_exit(run)
    files = _or_exit(lambda: exp.save(output))
    for i, (before, after) in enumerate(zip(exp.probability.tolist(), exp.masked_probability.tolist(), strict=True)):
        where = files[i] if len(files) == len(exp) else f"{files[0]}: {exp.name[i]}"
        out.print(f"[bold]{escape(str(where))}[/bold]", soft_wrap=True)
        out.print(f"  label        {escape(exp.label[i])} (class {int(exp.target[i])})", highlight=False)
        out.print(f"  probability  {before:.3f}, under the mask {after:.3f}", highlight=False)
    out.print(f"{exp.method} at {escape(exp.layer)}; {exp.cost} a map", highlight=False)
    if exp.skipped:
        raise typer.Exit(1)


@app.command()
def compare(
    pictures: Pictures = None,
    model: Model = DEFAULT_MODEL,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Again for more; all; without any: all that are not slow.")
    ] = None,
    target: Targets = None,
    layer: Layer = None,
    checkpoint: Checkpoint = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The figure: png, pdf or svg.")] = Path(
        "comparison.png"
    ),
    multi_label: MultiLabel = False,
    device: Device = None,
    batch_size: BatchSize = None,
) -> None:
    """Write one figure: methods side by side, with average drop (AD), average gain (AG) and cost under each."""

    def run() -> Any:
        img, wanted = _inputs(pictures, target)
        check_figure(output)
        made = _model(model, checkpoint, device)
        settings: dict[str, Any] = {"layer": layer, "batch_size": batch_size, "multi_label": multi_label}
        return compare_methods(made, img, method, target=wanted, **settings)

    comparison = _or_exit(run)
    file = _or_exit(lambda: comparison.save(output))
    out.print(f"[bold]{escape(str(file))}[/bold]", soft_wrap=True)
    for why in comparison.left_out.values():
        out.print(f"  left out: {escape(why)}", highlight=False)
    first = next(iter(comparison.explanations.values()))
    if len(first) > ROWS:
        out.print(f"  shows the first {ROWS} of {len(first)} maps", highlight=False)
    if first.skipped:
        raise typer.Exit(1)


@app.command()
def methods(markdown: Annotated[bool, typer.Option("--markdown", help="Print the README's table.")] = False) -> None:
    """List the methods of explanation."""
    if markdown:
        typer.echo(methods_table())
        return
    table = Table("method", "what it does", "cost of a map", "needs", "paper")
    table.columns[0].min_width = max(map(len, list_methods()))
    for name in list_methods():
        m = get_method(name)
        options = ", ".join(f"{k}={v!r}" for k, v in m.options.items())
        what = m.summary + (f"\noptions: {options}" if options else "")
        also = f"\n(also {', '.join(m.aliases)})" if m.aliases else ""
        table.add_row(
            escape(m.name + also), escape(what), escape(m.cost), escape(m.needs or "nothing"), escape(m.paper)
        )
    out.print(table)


def methods_table() -> str:
    """The methods as a Markdown table, as it stands in the README."""
    lines = ["| method | what it does | passes a picture | needs | paper |", "|---|---|---|---|---|"]
    for m in map(get_method, list_methods()):
        lines.append(f"| `{m.name}` | {m.summary.rstrip('.')} | {m.cost} | {m.needs} | {m.paper} |")
    return "\n".join(lines)


@app.command()
def models() -> None:
    """List this package's own timm architectures. All others of timm can be explained, too: timm.list_models()."""
    table = Table("model", "params", "GFLOPs", "tag", "weights")
    table.columns[4].overflow = "fold"
    for column in table.columns[:4]:
        column.no_wrap = True
    for name in list_models():
        model = architecture(name)
        tag, weights = whereabouts(name)
        table.add_row(
            name, f"{parameters(model) / 1e6:.2f} M", f"{flops(model) / 1e9:.3f}", escape(tag), escape(weights)
        )
    out.print(table)
    out.print("GFLOPs: 2 x multiplications of convolutions and matrix products.", highlight=False)


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="The model's name, such as ca_resnet50, or local-dir:FOLDER.")],
    repo_id: Annotated[str, typer.Option(help="Where on the Hub: user/name.")],
    checkpoint: Annotated[Path | None, typer.Option(help="A safetensors file with the model's weights.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="A results file (JSON): the figures on the card. Without one it has none.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="The licence, by the Hub's name of it.")] = None,
    base_model: Annotated[str | None, typer.Option(help="What training started from, by the Hub's name of it.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the new repository private.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Replace files that the repository holds already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the files to a folder, and push nothing.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder for --dry-run.")] = None,
) -> None:
    """Publish a model on the Hugging Face Hub: weights (safetensors), timm's config, a card with what was measured."""
    about: dict[str, Any] = {"results": results, "license": license, "base_model": base_model}
    if output and not dry_run:
        _fail(ValueError("`--output` goes with `--dry-run`: without it the files go to the Hub"))
    folder = output or Path(repo_id.rpartition("/")[2])
    if dry_run:
        _or_exit(lambda: _check_free(folder))
    made = _or_exit(lambda: create(model, checkpoint=checkpoint))
    if dry_run:
        for file in _or_exit(lambda: prepare(made, repo_id, folder, **about)):
            out.print(f"{escape(str(file))}  {file.stat().st_size / 1e6:.2f} MB", highlight=False, soft_wrap=True)
        out.print("nothing was pushed (--dry-run)")
        return
    done = _or_exit(lambda: publish(made, repo_id, private=private, update=update, **about))
    out.print(f"[bold]{escape(done.url)}[/bold] at commit {done.commit}", highlight=False, soft_wrap=True)
    out.print(f'timm.create_model("hf-hub:{escape(repo_id)}", pretrained=True)', highlight=False, soft_wrap=True)


def _check_free(folder: Path) -> None:
    """Refuses a folder that holds anything but what another dry run wrote (a README.md alone is somebody's own)."""
    if folder.exists() and (not folder.is_dir() or {f.name for f in folder.iterdir()} not in (set(), set(FILES))):
        raise FileExistsError(f'`--output` "{folder}" is there already, with other files: name another folder')


def _model(name: str, checkpoint: Path | None, device: str | None) -> nn.Module:
    return place(create(name, checkpoint=checkpoint), device)


def _inputs(pictures: list[str] | None, target: list[str] | None) -> tuple[Any, Any]:
    """What the user named, as `explain` takes it: one target for all pictures, or several for each."""
    img: Any = pictures if pictures else _demo_picture()
    if len(img) == 1 and not is_url(img[0]) and not Path(img[0]).exists():
        raise not_there(img[0])  # before a model is fetched
    wanted = [int(t) if t.lstrip("-").isdigit() else t for t in target or []]
    if len(wanted) < 2:
        return img, wanted[0] if wanted else None
    if len(img) == 1 and not Path(img[0]).is_dir():
        return img, [wanted]
    raise ValueError("`--target` was given several times, which goes with a single picture")


def _demo_picture() -> list[str]:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ImportError(
            'the default picture comes with the extra "demo": pip install "interp_zoo[demo]", or name a picture'
        )
    return [str(Path(spec.origin).parent / "data" / "chelsea.png")]


def _options(given: list[str] | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f'`--option` is "{text}", but must be name=value')
        try:
            options[name.strip()] = ast.literal_eval(value.title() if value.lower() in ("true", "false") else value)
        except (ValueError, SyntaxError):
            options[name.strip()] = value
    return options


def _or_exit(run: Callable[[], T]) -> T:
    """Runs, with warnings and errors as one line each on standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            return run()
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            _fail(error)
        finally:
            for text in dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning):
                err.print(f"[yellow]warning:[/yellow] {escape(text)}", highlight=False, soft_wrap=True)


def _fail(error: Exception) -> NoReturn:
    text = " ".join(str(error).split())
    err.print(f"[red]error:[/red] {escape(text)}", highlight=False, soft_wrap=True)
    sys.exit(1)


if __name__ == "__main__":
    app()
