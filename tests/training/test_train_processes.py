"""recipes/train.py on several processes, and in several passes a step: the same losses."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import texture
from trainings import arguments, finished, launch, losses, main, make_folder, table, torchrun


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 pictures, so that some are left out, and 13 to measure on, an odd number."""
    made = make_folder(tmp_path_factory.mktemp("pictures"))
    for split, number in (("train", 3), ("validation", 1)):
        for i in range(number):
            texture((40, 50), seed=900 + i).save(made / split / "class_0" / f"more_{i}.png")
    return made


def test_two_processes_with_half_the_batch(folder: Path, tmp_path: Path) -> None:
    """A network without batch statistics, which are each process' own."""
    more = ["--opt", "adamw", "--lr", "0.001", "--clip-grad", "0.5", "--model-ema", "--model-ema-decay", "0.8"]
    main(arguments(folder, tmp_path / "one", *more, model="test_vit", batch=8))
    finished(torchrun(arguments(folder, tmp_path / "two", *more, model="test_vit", batch=4), processes=2))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert len(losses(tmp_path / "two")) == 2 * (27 // 8)
    ones, twos = (table(tmp_path / name / "summary.csv") for name in ("one", "two"))
    for one, two in zip(ones, twos, strict=True):
        assert two["eval_top-1"] == one["eval_top-1"]  # each picture once
        for name in ("eval_loss", "eval_ema_loss"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-4)


def test_gradient_accumulation(folder: Path, tmp_path: Path) -> None:
    main(arguments(folder, tmp_path / "one", model="test_vit", batch=8))
    main(arguments(folder, tmp_path / "four", "--grad-accum-steps", "4", model="test_vit", batch=2))
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_a_stream_on_two_processes(folder: Path, tmp_path: Path) -> None:
    """Its backbone is in eval mode, so that batch statistics play no part; features are kept by both."""
    main(arguments(folder, tmp_path / "backbone", "--img-size", "32", model="resnet18_cifar"))
    more = ["--backbone-pretrained", f"local-dir:{tmp_path / 'backbone' / 'best'}", "--freeze-backbone"]
    more += ["--img-size", "32", "--distill", "0.5", "--no-aug", "--cache-features", "--eval-explain", "5"]
    main(arguments(folder, tmp_path / "one", *more, model="ca_resnet18_cifar", batch=8))
    two = arguments(folder, tmp_path / "two", *more, model="ca_resnet18_cifar", batch=4)
    finished(launch(two, processes=2))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    last = [table(tmp_path / name / "summary.csv")[-1] for name in ("one", "two")]
    assert last[0]["backbone_top-1"] == last[1]["backbone_top-1"]
    for name in ("AD", "AG", "AI"):  # five pictures on two processes
        assert float(last[1][name]) == pytest.approx(float(last[0][name]), abs=0.05)


def test_the_penalty_on_two_processes(folder: Path, tmp_path: Path) -> None:
    """Of a network with GroupNorm, in which no picture depends on the others beside it."""
    more = ["--penalty", "0.1", "--penalty-every", "2", "--model-kwargs", "norm_layer=groupnorm1"]
    main(arguments(folder, tmp_path / "one", *more, batch=8))
    finished(launch(arguments(folder, tmp_path / "two", *more, batch=4), processes=2))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    penalties = [[row["extra"] for row in table(tmp_path / name / "steps.csv")] for name in ("one", "two")]
    assert [bool(p) for p in penalties[1]] == [True, False, True, False, True, False]
    for one, two in zip(*penalties, strict=True):
        assert float(two or 0) == pytest.approx(float(one or 0), rel=1e-3)
