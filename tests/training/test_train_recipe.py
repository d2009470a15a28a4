"""recipes/train.py: what it trains, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from conftest import saved, texture
from safetensors.torch import load_file
from torch import nn
from trainings import arguments, losses, main, make_folder, same, table, weights
from typer.testing import CliRunner

import interp_zoo
from interp_zoo.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def backbone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained ResNet-18 for small pictures, as a run leaves it."""
    output = tmp_path_factory.mktemp("backbone") / "run"
    main(arguments(folder, output, "--img-size", "32", model="resnet18_cifar"))
    return output


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("plain") / "run"
    main(arguments(folder, output))
    return output


def test_what_a_run_writes(plain: Path) -> None:
    assert {p.name for p in plain.iterdir()} == {
        *("args.yaml", "run.json", "steps.csv", "summary.csv", "checkpoints", "best", "last"),
    }
    rows = table(plain / "summary.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["eval_top-1"]) <= 100 for row in rows)
    steps = losses(plain)
    assert len(steps) == 2 * 24 // 4
    assert float(rows[0]["loss"]) == pytest.approx(sum(steps[:6]) / 6)
    told = yaml.safe_load((plain / "args.yaml").read_text())
    assert told["lr"] == 0.01
    assert told["weight_decay"] == 2e-5  # defaults, too


def test_the_network_learns(folder: Path, tmp_path: Path) -> None:
    more = ("--epochs", "10", "--opt", "adamw", "--lr", "0.003", "--no-aug", "--smoothing", "0")
    main(arguments(folder, tmp_path / "run", *more))
    rows = table(tmp_path / "run" / "summary.csv")
    assert float(rows[-1]["loss"]) < 0.7 * float(rows[0]["loss"])
    assert float(rows[-1]["eval_top-1"]) >= 75
    best = max(rows, key=lambda row: float(row["eval_top-1"]))
    results = json.loads((tmp_path / "run" / "best" / "results.json").read_text())["results"]
    assert results[0]["value"] == pytest.approx(float(best["eval_top-1"]), abs=1e-3)


def test_timm_makes_the_network_anew(plain: Path, folder: Path) -> None:
    model: Any = timm.create_model(f"local-dir:{plain / 'last'}", pretrained=True).eval()
    assert same(model.state_dict(), weights(plain))
    assert model.num_classes == 4
    assert model.pretrained_cfg["input_size"] == (3, 64, 64)
    again = timm.create_model("test_resnet", num_classes=4, checkpoint_path=str(plain / "last" / "model.safetensors"))
    assert same(again.state_dict(), weights(plain))
    exp = interp_zoo.explain(model, texture(seed=3), method="gradcam")
    assert exp.label[0] in [f"class_{c}" for c in range(4)]


def test_push_takes_a_finished_run(plain: Path, tmp_path: Path) -> None:
    where = ("--repo-id", "me/mine", "--dry-run", "--output", str(tmp_path / "card"))
    results = ("--results", str(plain / "best" / "results.json"))
    done = CliRunner().invoke(app, ["push", f"local-dir:{plain / 'best'}", *where, *results])
    assert done.exit_code == 0, done.output
    card = (tmp_path / "card" / "README.md").read_text()
    value = json.loads((plain / "best" / "results.json").read_text())["results"][0]["value"]
    assert f"{value:g}" in card
    assert "accelerate launch recipes/train.py" in card


def test_its_arguments_are_a_config(plain: Path, tmp_path: Path) -> None:
    main(["--config", str(plain / "args.yaml"), "--output", str(tmp_path / "run")])
    assert losses(tmp_path / "run") == losses(plain)


def test_a_finished_run_is_left_as_it_is(plain: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in plain.rglob("*.safetensors")}
    main(arguments(folder, plain))
    assert "all 2 epochs are done" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in plain.rglob("*.safetensors")} == before
    assert len(table(plain / "summary.csv")) == 2


def test_no_penalty_is_plain_training_bit_for_bit(plain: Path, folder: Path, tmp_path: Path) -> None:
    main(arguments(folder, tmp_path / "run", "--penalty", "0", "--penalty-every", "3"))
    assert losses(tmp_path / "run") == losses(plain)
    assert same(weights(tmp_path / "run"), weights(plain))


def test_interpretable_gradients(plain: Path, folder: Path, tmp_path: Path) -> None:
    main(arguments(folder, tmp_path / "run", "--penalty", "0.5", "--penalty-every", "2"))
    steps = table(tmp_path / "run" / "steps.csv")
    assert [bool(row["extra"]) for row in steps] == [True, False] * 6
    assert all(0 < float(row["extra"]) < 2 for row in steps[::2])
    assert losses(tmp_path / "run")[0] == losses(plain)[0]  # the first loss, before anything is trained
    assert losses(tmp_path / "run")[1] != losses(plain)[1]
    assert weights(tmp_path / "run").keys() == weights(plain).keys()
    model: nn.Module = timm.create_model(f"local-dir:{tmp_path / 'run' / 'last'}", pretrained=True)
    kinds = [(name, type(m)) for name, m in timm.create_model("test_resnet", num_classes=4).named_modules()]
    assert [(name, type(m)) for name, m in model.named_modules()] == kinds


def test_a_stream_starts_at_its_backbone(folder: Path, backbone: Path, tmp_path: Path) -> None:
    more = ("--backbone-pretrained", f"local-dir:{backbone / 'best'}", "--freeze-backbone", "--img-size", "32")
    main(arguments(folder, tmp_path / "run", *more, "--distill", "0.5", model="ca_resnet18_cifar"))
    rows = table(tmp_path / "run" / "summary.csv")
    best = max(float(row["eval_top-1"]) for row in table(backbone / "summary.csv"))
    assert {float(row["backbone_top-1"]) for row in rows} == {best}
    assert float(table(tmp_path / "run" / "steps.csv")[0]["extra"]) < 1e-6  # distillation: nothing to learn yet
    found, of_backbone = weights(tmp_path / "run"), weights(backbone, "best")
    assert same({k.removeprefix("backbone."): v for k, v in found.items() if "backbone" in k}, of_backbone)
    start: Any = timm.create_model("ca_resnet18_cifar", num_classes=4)
    moved = [k for k, v in start.state_dict().items() if "stream" in k and not torch.equal(v, found[k])]
    assert {"stream.blocks.4.proj.weight", "stream.blocks.3.proj.weight"} <= set(moved)


def test_the_last_w_can_be_held(folder: Path, backbone: Path, tmp_path: Path) -> None:
    more = ("--backbone-pretrained", f"local-dir:{backbone / 'best'}", "--freeze-backbone", "--img-size", "32")
    main(arguments(folder, tmp_path / "run", *more, "--hold-last", model="ca_resnet18_cifar"))
    last = weights(tmp_path / "run")["stream.blocks.4.proj.weight"]
    assert torch.equal(last, torch.eye(len(last)))
    assert weights(tmp_path / "run")["stream.blocks.3.proj.weight"].any()


def test_kept_features_change_nothing(folder: Path, backbone: Path, tmp_path: Path) -> None:
    more = ["--backbone-pretrained", f"local-dir:{backbone / 'best'}", "--freeze-backbone", "--img-size", "32"]
    more += ["--no-aug", "--distill", "0.3"]
    for name, flags in (("kept", ["--cache-features"]), ("anew", [])):
        main(arguments(folder, tmp_path / name, *more, *flags, model="ca_resnet18_cifar"))
    assert losses(tmp_path / "kept") == pytest.approx(losses(tmp_path / "anew"), rel=1e-5)
    assert len(set(losses(tmp_path / "kept"))) > 6


def test_a_new_classifier_is_trained_with_the_stream(folder: Path, tmp_path: Path) -> None:
    """The backbone's weights have 100 classes, the data has 4."""
    made = tmp_path / "hundred"
    interp_zoo.hub.write_weights(timm.create_model("resnet18_cifar"), made)
    more = ("--backbone-pretrained", f"local-dir:{made}", "--freeze-backbone", "--img-size", "32")
    main(arguments(folder, tmp_path / "run", *more, model="ca_resnet18_cifar"))
    torch.manual_seed(0)
    found = weights(tmp_path / "run")
    assert found["backbone.fc.weight"].shape == (4, 512)
    assert torch.equal(found["backbone.conv1.weight"], load_file(made / "model.safetensors")["conv1.weight"])


def test_averaged_weights(folder: Path, tmp_path: Path) -> None:
    more = ("--model-ema", "--model-ema-decay", "0.5", "--model-ema-every", "2")
    main(arguments(folder, tmp_path / "run", *more))
    assert not same(weights(tmp_path / "run", "last_ema"), weights(tmp_path / "run"))
    assert (tmp_path / "run" / "best_ema" / "results.json").is_file()
    assert all(row["eval_ema_top-1"] for row in table(tmp_path / "run" / "summary.csv"))


def test_gradcam_is_watched(folder: Path, tmp_path: Path) -> None:
    main(arguments(folder, tmp_path / "run", "--eval-explain", "5", "--eval-explain-interval", "2", "--epochs", "3"))
    rows = table(tmp_path / "run" / "summary.csv")
    assert [bool(row["AD"]) for row in rows] == [True, False, True]  # the last epoch always
    assert all(0 <= float(rows[2][name]) <= 100 for name in ("AD", "AG", "AI"))


def test_bfloat16(plain: Path, folder: Path, tmp_path: Path) -> None:
    main(arguments(folder, tmp_path / "run", "--amp", "--penalty", "0.1"))
    assert losses(tmp_path / "run")[0] == pytest.approx(losses(plain)[0], rel=0.02)
    assert losses(tmp_path / "run") != losses(plain)
    assert {v.dtype for v in weights(tmp_path / "run").values()} == {torch.float32, torch.int64}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 needs a GPU")
def test_float16_scales_its_loss(folder: Path, tmp_path: Path) -> None:
    main(arguments(folder, tmp_path / "run", "--amp", "fp16", "--penalty", "0.1"))
    assert all(loss < 10 for loss in losses(tmp_path / "run"))
    assert list((tmp_path / "run" / "checkpoints").glob("*/scaler.pt"))


def test_mixing_and_the_rest_of_timm(folder: Path, tmp_path: Path) -> None:
    more = ["--mixup", "0.2", "--cutmix", "1", "--mixup-off-epoch", "1", "--smoothing", "0.11", "--reprob", "0.5"]
    more += ["--aa", "rand-m9-mstd0.5", "--opt", "adamw", "--clip-grad", "1", "--layer-decay", "0.8", "--channels-last"]
    main(arguments(folder, tmp_path / "run", *more, "--sched-on-updates", "--warmup-epochs", "1"))
    rates = [float(row["lr"]) for row in table(tmp_path / "run" / "steps.csv")]
    assert len(set(rates)) == 12
    assert rates[:6] == sorted(rates[:6])  # the warm-up of one epoch


def test_fine_tuning_from_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    file = saved("test_resnet", tmp_path, num_classes=4)
    main(arguments(folder, tmp_path / "run", "--initial-checkpoint", str(file), "--lr", "0"))
    found = weights(tmp_path / "run")
    start = load_file(file)
    assert all(torch.equal(found[k], start[k]) for k in start if k.endswith("weight"))


def test_tensorboard_is_off_until_asked_for(plain: Path, folder: Path, tmp_path: Path) -> None:
    assert not list(plain.rglob("events.*"))
    pytest.importorskip("tensorboard")
    main(arguments(folder, tmp_path / "run", "--log-with", "tensorboard"))
    assert list((tmp_path / "run").rglob("events.*"))
    main(arguments(folder, tmp_path / "run", "--log-with", "tensorboard"))
