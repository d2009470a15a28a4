"""recipes/train.py killed and started again: every later loss and all weights are those of a run that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from trainings import arguments, finished, launch, losses, main, make_folder, same, table, weights

from interp_zoo.training.runs import Journal

# All that draws: order, crops, flips, colours, erasing, RandAugment, mixing, dropout.
DRAWS = ["--mixup", "0.2", "--cutmix", "0.5", "--reprob", "0.3", "--aa", "rand-m9-mstd0.5", "--model-kwargs"]
DRAWS += ["drop_rate=0.2", "--model-ema", "--model-ema-decay", "0.9", "--momentum", "0.9", "--epochs", "3"]
OFTEN = ["--checkpoint-minutes", "0"]  # after every step, so that a kill often finds one half-written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("pictures"))


def kill_after(started: list[Forked], output: Path, steps: int) -> None:
    """Kill -9, of all its processes, as soon as so many steps are written down."""
    ends = time.monotonic() + 200
    while time.monotonic() < ends and all(process.poll() is None for process in started):
        file = output / "steps.csv"
        if file.is_file() and len(file.read_bytes().splitlines()) > steps:
            break
        time.sleep(0.002)
    for process in started:
        assert process.poll() is None, process.communicate()[0]
        os.killpg(process.pid, signal.SIGKILL)
    for process in started:
        process.communicate()
        assert process.returncode == -signal.SIGKILL


def assert_same_run(a: Path, b: Path) -> None:
    assert losses(a) == losses(b)
    for which in ("last", "best", "last_ema", "best_ema"):
        assert same(weights(a, which), weights(b, which)), which
    for x, y in zip(table(a / "summary.csv"), table(b / "summary.csv"), strict=True):
        assert {**x, "seconds": ""} == {**y, "seconds": ""}


@pytest.mark.usefixtures("one_thread")
def test_killed_and_started_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*DRAWS, *OFTEN, "--workers", "2"]
    main(arguments(folder, tmp_path / "whole", *argv))
    capsys.readouterr()
    draw = random.Random()  # another place each time: what fails tells where
    for step in sorted(draw.sample(range(1, 16), 2)):
        kill_after(launch(arguments(folder, tmp_path / "killed", *argv)), tmp_path / "killed", step)
    assert len(losses(tmp_path / "killed")) < 18
    main(arguments(folder, tmp_path / "killed", *argv))
    assert f"going on in {tmp_path / 'killed'} after step" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_killed_and_started_again_on_two_processes(folder: Path, tmp_path: Path) -> None:
    argv = arguments(folder, tmp_path / "run", *DRAWS, *OFTEN, "--workers", "1", batch=2)
    whole = finished(launch(argv, processes=2))
    assert "epoch 3 of 3, step 6 of 6" in whole  # 24 pictures, 2 a process
    shutil.move(tmp_path / "run", tmp_path / "whole")
    kill_after(launch(argv, processes=2), tmp_path / "run", random.Random().randrange(2, 16))
    assert len(losses(tmp_path / "run")) < 18
    assert "after step" in finished(launch(argv, processes=2))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_interrupted_and_gone_on_in_another_way(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same steps, in half as large forward passes, and watched differently."""
    main(arguments(folder, tmp_path / "whole", model="test_vit"))
    note = Journal.step

    def interrupted(journal: Journal, step: int, *args: Any) -> None:
        if step == 4:  # the checkpoint is of an odd step
            raise KeyboardInterrupt
        note(journal, step, *args)

    monkeypatch.setattr(Journal, "step", interrupted)
    with pytest.raises(SystemExit):
        main(arguments(folder, tmp_path / "run", *OFTEN, model="test_vit"))
    monkeypatch.undo()
    assert capsys.readouterr().err == "interrupted: the same command goes on from the last checkpoint\n"
    assert len(losses(tmp_path / "run")) == 3
    more = ("--grad-accum-steps", "2", "--log-interval", "5", "--workers", "1", "--checkpoint-minutes", "3")
    main(arguments(folder, tmp_path / "run", *more, model="test_vit", batch=2))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_without_a_checkpoint_it_begins_anew(folder: Path, tmp_path: Path) -> None:
    more = ("--checkpoint-minutes", "9")
    kill_after(launch(arguments(folder, tmp_path / "run", *more)), tmp_path / "run", 2)
    assert len(losses(tmp_path / "run")) >= 2
    main(arguments(folder, tmp_path / "run", *more, "--lr", "0.02"))  # nothing is lost by another rate
    assert len(losses(tmp_path / "run")) == 12


def test_a_loss_that_is_no_number(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = arguments(folder, tmp_path / "run", "--lr", "1e25", "--opt", "sgd", "--sched", "step", *OFTEN)
    for _ in range(2):  # it is the same again
        with pytest.raises(SystemExit):
            main(argv)
        said = capsys.readouterr().err
        assert said.startswith("error: the loss is nan in step ")
        assert said.count("\n") == 1
        step = int(said.split("in step ")[1].split()[0])
        assert step > 1
        (kept,) = (tmp_path / "run" / "checkpoints").glob("step-*")
        assert int(kept.name.removeprefix("step-")) == step - 1
        assert len(losses(tmp_path / "run")) == step  # the one that is none, too
