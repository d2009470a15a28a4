"""recipes/evaluate.py as users run it: what it writes, on one process or two, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import lively, saved, texture
from evaluating import FLOORS, PICTURES, RECIPE, arguments, figures, main, make_place, rows, written
from forked import Forked
from PIL import Image
from pyarrow import parquet
from torch import nn

import interp_zoo
from interp_zoo.evaluation.measures import MEASURES
from interp_zoo.explain import Explainer, masking
from interp_zoo.metrics import functional as F

KINDS = ["label", "predicted", "least_likely"]
METHODS = ["gradcam", *FLOORS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def model(place: Path) -> nn.Module:
    return interp_zoo.models.create("test_resnet", checkpoint=place / "test_resnet.safetensors")


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one uninterrupted process on all pictures."""
    output = tmp_path_factory.mktemp("whole") / "deep" / "out"
    main(arguments(place, output))
    return output


@pytest.fixture(scope="module")
def small(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything on three pictures: 0, 11 and 22."""
    output = tmp_path_factory.mktemp("small") / "out"
    everything = ["--metrics", "all", "--target", "all", "--methods", "gradcam,opticam:iterations=2:layer=layer3"]
    main(arguments(place, output, *everything, "--limit", "3", "--fill-pictures", "1", "--sanity-pictures", "2"))
    return output


def assert_same(one: Path, other: Path) -> None:
    """The same rows and, but for rounding, the same figures."""
    a, b = figures(one), figures(other)
    assert a.keys() == b.keys()
    assert len(a) == PICTURES * len(METHODS)
    for key, values in a.items():
        assert values == pytest.approx(b[key], rel=1e-4, abs=1e-3), key


def test_the_files(whole: Path) -> None:
    files = {"run.json", "parts", "results.csv", "results.parquet", "summary.json", "report.html"}
    assert {p.name for p in whole.iterdir()} == files
    found = rows(whole)
    first = ["file", "model", "method", "target_kind", "target", "average_drop", "average_gain", "average_increase"]
    assert list(found[0])[:8] == first
    assert {r["model"] for r in found} == {"test_resnet"}
    assert [r["method"] for r in found[::PICTURES]] == METHODS
    assert len({r["file"] for r in found}) == PICTURES
    table = parquet.read_table(whole / "results.parquet").to_pylist()
    columns = ("file", "method", "target")
    assert [tuple(str(r[c]) for c in columns) for r in table] == [tuple(r[c] for c in columns) for r in found]
    assert [r["insertion"] for r in table] == pytest.approx([float(r["insertion"]) for r in found])


def test_the_summary(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["command"].startswith("accelerate launch recipes/evaluate.py --model test_resnet")
    (facts,) = summary["models"]
    right = {r["file"] for r in rows(whole) if r["truth"] == r["predicted"]}
    assert (facts["pictures"], facts["labelled"], facts["correct"]) == (PICTURES, PICTURES, len(right))
    assert facts["input_size"] == [160, 160]
    assert len(facts["weights"]) == 64
    (table,) = summary["tables"]
    assert [line["method"] for line in table["rows"]] == METHODS
    for line in table["rows"]:
        its = [float(r["average_drop"]) for r in rows(whole) if r["method"] == line["method"]]
        assert line["metrics"]["average_drop"]["mean"] == pytest.approx(sum(its) / PICTURES)
        assert line["metrics"]["pointing_game"]["count"] == PICTURES - 1  # one has no box
        assert len(line["curves"]["insertion"]) == 5
        for kind in ("insertion", "deletion"):  # where a curve begins and ends, no map has a say
            assert line["curves"][kind][::4] == table["rows"][0]["curves"][kind][::4]
    for word in ("torch", "timm", "interp_zoo", "accelerate"):
        assert summary["versions"][word]


def test_fakecam_is_told(whole: Path) -> None:
    (table,) = json.loads((whole / "summary.json").read_text())["tables"]
    (line,) = (line for line in table["rows"] if line["method"] == "fakecam")
    assert line["metrics"]["pointing_game"]["mean"] == 100
    assert any(w.startswith('"fakecam", which says nothing') and "SP (100.0" in w for w in table["warnings"])
    assert "which says nothing of what the model sees" in (whole / "report.html").read_text()


def test_everything_is_measured(small: Path) -> None:
    assert [entry["name"] for entry in json.loads((small / "summary.json").read_text())["metrics"]] == list(MEASURES)
    found = figures(small)
    assert len(found) == 3 * 5 * len(KINDS)
    some = {name for name, measure in MEASURES.items() if measure.group == "fills"}
    for (_, method, _, file, _), values in found.items():
        sanity = {"class_sensitivity", "randomization"} if file in ("00.png", "11.png") else set()
        if method not in FLOORS:  # the others may be blank for a class that nothing speaks for
            sanity &= values.keys()
        wanted = set(MEASURES) - some - {"class_sensitivity", "randomization"} | sanity
        assert values.keys() == wanted | (some if file == "00.png" else set()), (method, file)


def test_each_kind_explains_its_class(small: Path, place: Path, model: nn.Module) -> None:
    targets = {(r["file"], r["target_kind"]): int(r["target"]) for r in rows(small) if r["method"] == "gradcam"}
    assert [t["target_kind"] for t in json.loads((small / "summary.json").read_text())["tables"]] == KINDS
    files = [place / "pictures" / name for name in ("00.png", "11.png", "22.png")]
    predicted = Explainer(model, "fakecam")(files).target.tolist()
    least = Explainer(model, "fakecam")(files, "least_likely").target.tolist()
    for i, file in enumerate(files):
        want = {"label": int(file.stem) % 10, "predicted": predicted[i], "least_likely": least[i]}
        assert {kind: targets[file.name, kind] for kind in KINDS} == want


def test_figures_are_the_functions(small: Path, place: Path, model: nn.Module) -> None:
    """What stands in the files is what the package's own functions give for one picture alone."""
    file = place / "pictures" / "11.png"
    explainer = Explainer(model, "gradcam")
    exp = explainer(file)
    assert bool(exp.saliency.any())
    with explainer.anatomy(file) as (anatomy, pixels):

        def classify(p: Any) -> Any:
            return anatomy.logits(p).softmax(1)

        own: dict[str, Any] = {"classify": classify, "pixels": pixels, "saliency": exp.saliency, "target": exp.target}
        want = {
            "average_drop": F.average_drop(exp.probability, exp.masked_probability),
            "average_gain": F.average_gain(exp.probability, exp.masked_probability),
            "insertion": F.insertion(**own, mean=anatomy.mean, step=6400),
            "deletion": F.deletion(**own, mean=anatomy.mean, step=6400),
            "saliency_metric": F.saliency_metric(**own),
        }
    # The picture is 42 x 50; box 1, 3, 30, 25 goes where the transform puts it.
    left, top, right, bottom = exp._preprocess.box((50, 42)) if exp._preprocess else (0, 0, 0, 0)
    across, down = 160 / (right - left), 160 / (bottom - top)
    box = [(1 - left) * across, (3 - top) * down, (30 - left) * across, (25 - top) * down]
    inside = exp.saliency[0, max(0, round(box[1])) : round(box[3]), max(0, round(box[0])) : round(box[2])]
    found = figures(small)["test_resnet", "gradcam", "predicted", "11.png", str(int(exp.target))]
    for name, value in want.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-3, abs=1e-3), name
    energy = 100 * (inside.sum() / exp.saliency.sum()).item()
    assert found["energy_pointing_game"] == pytest.approx(energy, abs=2)


@pytest.mark.parametrize("protocol", ["pytorch-grad-cam", "torchcam"])
def test_other_protocols(protocol: str, place: Path, model: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(arguments(place, out, "--limit", "2", "--metrics", "recognition", "--protocol", protocol))
    file = place / "pictures" / "00.png"
    explainer = Explainer(model, "layercam")
    exp = Explainer(model, "gradcam")(file, target=0)
    with explainer.anatomy(file) as (anatomy, pixels):
        x = anatomy.normalise(pixels)
        logits = [anatomy.logits(seen, normalised=True) for seen in (x, masking.apply(x, exp.saliency))]
    scores = [(v if protocol == "torchcam" else v.softmax(1))[:, 0] for v in logits]
    found = figures(out)["test_resnet", "gradcam", "label", "00.png", "0"]
    want = F.average_drop(scores[0], scores[1], protocol=protocol).item()  # type: ignore[arg-type]
    assert found["average_drop"] == pytest.approx(want, rel=1e-3, abs=1e-4)
    assert "average_gain" not in found, "they have none"
    assert protocol in json.loads((out / "summary.json").read_text())["protocol"]["Mask"]


def test_names_that_are_no_utf8(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.link(place / "pictures" / "00.png", os.path.join(os.fsencode(data), b"\xff<b>.png"))
    argv = arguments(place, tmp_path / "out", "--data-dir", str(data), "--target", "predicted")
    del argv[argv.index("--boxes") : argv.index("--boxes") + 2]
    main([*argv, "--metrics", "average_drop"])
    assert {r["file"] for r in rows(tmp_path / "out")} == {"\\xff<b>.png"}
    assert "<b>.png" not in (tmp_path / "out" / "report.html").read_text()


def test_sensitivity_compares_two_classes(place: Path, tmp_path: Path) -> None:
    """Also of a network with one logit, of which the label may be the least likely class."""
    saved("test_resnet", tmp_path, num_classes=1)
    labels = place / "pictures" / "labels.csv"
    whole = labels.read_text()
    labels.write_text("file,class_index\n00.png,0\n01.png,1\n02.png,0\n")
    try:
        argv = arguments(place, tmp_path / "out", "--metrics", "class_sensitivity", "--methods", "scorecam")
        main([*argv, "--checkpoint", str(tmp_path / "test_resnet.safetensors")])
    finally:
        labels.write_text(whole)
    found = [float(r["class_sensitivity"] or "nan") for r in rows(tmp_path / "out") if r["method"] == "scorecam"]
    assert len(found) == 3
    assert all(value != 0 for value in found)


def test_several_models(place: Path, tmp_path: Path) -> None:
    """Each with the targets that it predicts itself, and at its own size."""
    names = []
    for name, size in (("test_resnet", 160), ("test_vit", 96)):
        made = lively(name, num_classes=10, **({"img_size": size} if name == "test_vit" else {}))
        interp_zoo.hub.prepare(made, f"me/{name}", tmp_path / name)
        names.append(f"local-dir:{tmp_path / name}")
    argv = [*arguments(place, tmp_path / "out", "--limit", "2", "--methods", "gradcam,cam", "--target", "predicted")]
    del argv[:4]  # model and checkpoint
    main(["--model", *names, *argv, "--metrics", "average_drop"])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [m["name"] for m in summary["models"]] == names
    assert [m["input_size"] for m in summary["models"]] == [[160, 160], [96, 96]]
    assert [t["model"] for t in summary["tables"]] == names
    methods = [[line["method"] for line in t["rows"]] for t in summary["tables"]]
    assert methods == [["gradcam", "cam", *FLOORS], ["gradcam", *FLOORS]]
    assert [entry["model"] for entry in summary["left_out"]] == names[1:]
    (pair,) = summary["comparisons"]
    assert ([pair["first"], pair["second"]], [r["method"] for r in pair["rows"]]) == (names, ["gradcam", *FLOORS])
    means = [t["rows"][0]["metrics"]["average_drop"]["mean"] for t in summary["tables"]]
    cell = pair["rows"][0]["metrics"]["average_drop"]
    assert [cell["first"], cell["second"]] == pytest.approx(means)
    assert cell["difference"] == pytest.approx(means[1] - means[0])
    found = rows(tmp_path / "out")
    for name in names:
        targets = {(r["file"], r["target"]) for r in found if r["model"] == name}
        assert len(targets) == 2, "one class a picture, the same for each method"
        assert all(r["target"] == r["predicted"] for r in found)


def launch(how: list[str], argv: list[str]) -> subprocess.Popen[str]:
    """Starts the recipe as users do, on CPUs."""
    command = [sys.executable, "-m", *how, str(RECIPE), *argv]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


ACCELERATE = ["accelerate.commands.launch"]


@pytest.mark.parametrize(
    "how",
    [[*ACCELERATE, "--multi_gpu", "--num_processes", "2"], ["torch.distributed.run", "--nproc-per-node", "2"]],
    ids=["accelerate", "torchrun"],
)
def test_two_processes_give_the_figures_of_one(how: list[str], place: Path, whole: Path, tmp_path: Path) -> None:
    """Of 33 pictures, each once; in other batches, too."""
    started = launch(how, arguments(place, tmp_path / "out", "--batch-size", "5"))
    said, _ = started.communicate(timeout=200)
    assert started.returncode == 0, said
    assert_same(tmp_path / "out", whole)
    shares = [{w["index"] for w in written(tmp_path / "out", rank) if w["kind"] == "row"} for rank in range(2)]
    assert [len(share) for share in shares] == [17, 16], "both worked"
    assert not shares[0] & shares[1]


def test_killed_and_started_again(place: Path, whole: Path, tmp_path: Path) -> None:
    argv = arguments(place, tmp_path / "out", "--batch-size", "2")
    started = Forked(RECIPE, argv, {"ACCELERATE_USE_CPU": "true"})
    part = tmp_path / "out" / "parts" / "00000.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (part.exists() and part.read_text().count('"kind": "row"') >= 11):
        assert started.poll() is None, started.communicate()[0]
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    done = part.read_text().count('"kind": "row"')
    assert 11 <= done < PICTURES * len(METHODS), "it was killed on its way"
    assert not (tmp_path / "out" / "results.csv").exists()
    with part.open("a") as file:
        file.write('{"kind": "row", "model": "test_re')  # what a kill may leave
    main(argv)
    assert_same(tmp_path / "out", whole)
    about = [(w["method"], w["index"]) for w in written(tmp_path / "out") if w["kind"] == "row"]
    assert len(about) == len(set(about)), "what was done is not done again"


def test_methods_may_be_added_and_a_finished_run_is_free(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = arguments(place, out, "--limit", "3", "--metrics", "average_drop")
    main([*argv, "--methods", "gradcam"])
    before = written(out)
    main([*argv, "--methods", "layercam,cam,attention"])
    added = written(out)[len(before) :]
    assert {line["method"] for line in added if line["kind"] == "row"} == {"cam", "layercam"}
    assert {r["method"] for r in rows(out)} == {"layercam", "cam", *FLOORS}
    summary = json.loads((out / "summary.json").read_text())
    assert [(entry["method"], entry["model"]) for entry in summary["left_out"]] == [("attention", "test_resnet")]
    capsys.readouterr()
    (out / "report.html").unlink()
    main([*argv, "--methods", "layercam,cam,attention"])
    assert len(written(out)) == len(before) + len(added)
    assert (out / "report.html").is_file()
    assert "going on in" in capsys.readouterr().out


def test_pictures_that_cannot_be_read_are_told(place: Path, tmp_path: Path) -> None:
    broken = place / "pictures" / "22.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50] + bytes(len(whole) - 50))  # a disk that fails, for now
    argv = arguments(place, tmp_path / "out", "--limit", "3", "--metrics", "average_drop")
    try:
        main(argv)
    finally:
        broken.write_bytes(whole)
    assert {r["file"] for r in rows(tmp_path / "out")} == {"00.png", "11.png"}
    (entry,) = json.loads((tmp_path / "out" / "summary.json").read_text())["unreadable"]
    assert entry["file"] == "22.png"
    main(argv)  # once it is mended
    assert len({r["file"] for r in rows(tmp_path / "out")}) == 3
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["unreadable"] == []


def test_a_picture_too_long_to_be_resized_is_listed(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate((Image.new("RGB", (60_000, 1)), texture((40, 50)))):
        image.save(folder / f"{i}.png")
    network = [
        "--model",
        "test_resnet",
        "--checkpoint",
        str(place / "test_resnet.safetensors"),
        "--data-dir",
        str(folder),
    ]
    how = ["--methods", "gradcam:layer=layer4", "--metrics", "recognition", "--target", "predicted"]
    main([*network, *how, "--output", str(tmp_path / "out")])
    (entry,) = json.loads((tmp_path / "out" / "summary.json").read_text())["unreadable"]
    assert entry["file"] == "0.png"
    assert "too long to be resized" in entry["why"]
    assert {row["file"] for row in rows(tmp_path / "out")} == {"1.png"}


def test_one_process_where_two_were_asked_for_is_told(place: Path, tmp_path: Path) -> None:
    """accelerate's launcher starts one process on CPUs without MPI, and says nothing."""
    argv = arguments(place, tmp_path / "out", "--limit", "2", "--metrics", "average_drop", "--methods", "gradcam")
    started = launch([*ACCELERATE, "--cpu", "--num_processes", "2"], argv)
    said, _ = started.communicate(timeout=120)
    assert started.returncode == 0, said
    assert "warning: this is one process: on CPUs accelerate starts several through MPI alone" in said
    assert len({r["file"] for r in rows(tmp_path / "out")}) == 2
