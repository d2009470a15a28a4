"""The folder of a run: whose it is, its journal, its checkpoints, and the flags that make it."""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from conftest import assert_one_line, lively
from torch import nn

from interp_zoo.cards import Results
from interp_zoo.training.checkpoints import Checkpoints
from interp_zoo.training.options import training_flags
from interp_zoo.training.runs import Journal, claim, save_weights


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


GIVEN = ["--model", "m", "--output", "out", "--lr", "0.5", "--model-kwargs", "drop_rate=0.1"]
ARGUMENTS = vars(training_flags(Path("none"), "").parse(GIVEN))
FACTS = {"train": "abc", "pictures a step": 8}
FREE = ["output", "overwrite", "config", "data_dir", "workers", "validation_batch_size", "batch_size"]
FREE += ["grad_accum_steps", "log_interval", "log_with", "checkpoint_minutes"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has a checkpoint and weights."""
    folder = tmp_path / "deep" / "run"
    claim(folder, ARGUMENTS, FACTS)
    for name in ("checkpoints/step-000000003/model.safetensors", "best/model.safetensors"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"weights")
    (folder / "steps.csv").write_text("step\n3\n")
    return folder


def test_the_same_run_goes_on(run: Path) -> None:
    before = contents(run)
    claim(run, dict(ARGUMENTS), dict(FACTS))
    claim(run, ARGUMENTS | dict.fromkeys(FREE, "new"), FACTS)
    assert contents(run) == before
    assert json.loads(before["run.json"]).keys() == {*ARGUMENTS, *FACTS} - {*FREE}


@pytest.mark.parametrize("key", [*(key for key in ARGUMENTS if key not in FREE), *FACTS, "another fact"])
def test_another_run_is_refused(run: Path, key: str) -> None:
    before = contents(run)
    arguments, facts = dict(ARGUMENTS), dict[str, Any](FACTS)
    (arguments if key in arguments else facts)[key] = "new"
    with pytest.raises(
        ValueError, match=rf"^`output` .* holds another run \({key}: .* there, 'new' .*--overwrite"
    ) as e:
        claim(run, arguments, facts)
    assert_one_line(e.value)
    assert contents(run) == before
    claim(run, arguments, facts, overwrite=True)
    assert sorted(contents(run)) == ["args.yaml", "run.json"]
    assert json.loads((run / "run.json").read_text())[key] == "new"


def test_both_values_are_told(run: Path) -> None:
    with pytest.raises(ValueError, match=r"\(lr: 0\.5 there, 0\.25 here\)"):
        claim(run, ARGUMENTS | {"lr": 0.25}, FACTS)
    with pytest.raises(ValueError, match=r"\(model_kwargs: \{'drop_rate': 0\.1\} there, \{\} here\)"):
        claim(run, ARGUMENTS | {"model_kwargs": {}}, FACTS)
    with pytest.raises(ValueError, match=r"\(train: 'abc' there, 'x{56}\.\.\. here\)"):
        claim(run, ARGUMENTS, FACTS | {"train": "x" * 90})


@pytest.mark.parametrize("stranger", ["thesis.tex", "logs/mine.txt", "best/model.safetensors", "checkpoints/a/b"])
def test_other_files_are_refused_and_stay(tmp_path: Path, stranger: str) -> None:
    """Names as a run has them are no proof that they are one's own: there is no run.json beside them."""
    (tmp_path / stranger).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / stranger).write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=rf"^`output` .* holds other files \({stranger.split('/')[0]}\): choose"):
            claim(tmp_path, ARGUMENTS, FACTS, overwrite=overwrite)
    assert contents(tmp_path) == {stranger: b"dear"}
    with pytest.raises(ValueError, match=r'^`output` ".*" is a file: choose another folder$'):
        claim(tmp_path / stranger, ARGUMENTS, FACTS)


def test_overwrite_spares_what_is_not_of_a_run(run: Path) -> None:
    (run / "notes.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"^`output` .* holds other files \(notes\.txt\)"):
        claim(run, ARGUMENTS | {"lr": 1.0}, FACTS, overwrite=True)
    assert (run / "notes.txt").is_file()


def test_a_run_without_its_checkpoints_keeps_its_weights(run: Path) -> None:
    """As one is left that is done, and whose checkpoints were deleted for the room."""
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match=r"^`output` .* holds another run \(lr: "):
        claim(run, ARGUMENTS | {"lr": 1.0}, FACTS)
    assert (run / "best" / "model.safetensors").is_file()


def test_killed_before_its_first_checkpoint_a_folder_is_claimed_anew(run: Path) -> None:
    for name in ("checkpoints", "best"):
        shutil.rmtree(run / name)
    (run / "features").mkdir()
    for name in ("features/0.bin", ".run.json.new", "summary.csv"):
        (run / name).write_text("half")
    claim(run, ARGUMENTS | {"lr": 1.0}, FACTS)
    assert sorted(contents(run)) == ["args.yaml", "run.json"]
    (run / "run.json").unlink()  # and before it had an identity
    claim(run, ARGUMENTS, FACTS)
    assert json.loads((run / "run.json").read_text())["lr"] == 0.5


def test_a_linked_folder_is_unlinked_not_emptied(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "dear.txt").write_text("dear")
    (run / "features").symlink_to(tmp_path / "elsewhere")
    claim(run, ARGUMENTS | {"lr": 1.0}, FACTS, overwrite=True)
    assert sorted(p.name for p in run.iterdir()) == ["args.yaml", "run.json"]
    assert (tmp_path / "elsewhere" / "dear.txt").read_text() == "dear"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


COLUMNS = ["epoch", "loss", "eval_top-1"]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path, COLUMNS, writes=True)
    made.rewind(0, 0, None)
    return made


def note(journal: Journal, steps: range, extra: bool = False) -> list[float]:
    """Steps whose losses need all digits; those of even number may have an extra."""
    values = torch.rand(steps.stop, generator=torch.Generator().manual_seed(0)) / 3
    for step in steps:
        journal.step(step, 1, 0.1 / 3, values[step], values[step] / 7 if extra and step % 2 == 0 else None)
    return [float(values[step]) for step in steps]


def test_what_is_noted_is_written_at_a_flush_with_all_digits(journal: Journal, tmp_path: Path) -> None:
    want = note(journal, range(1, 6), extra=True)
    assert rows(tmp_path / "steps.csv") == []
    assert journal.flush() == want[-1]
    found = rows(tmp_path / "steps.csv")
    assert [int(row["step"]) for row in found] == [1, 2, 3, 4, 5]
    assert [float(row["loss"]) for row in found] == want
    assert [row["extra"] for row in found[::2]] == ["", "", ""]
    assert float(found[1]["extra"]) == pytest.approx(want[1] / 7)
    assert {(row["epoch"], float(row["lr"])) for row in found} == {("1", 0.1 / 3)}
    assert math.isnan(journal.flush())
    assert len(rows(tmp_path / "steps.csv")) == 5
    assert [*journal.means()] == pytest.approx([sum(want) / 5, (want[1] + want[3]) / 14])
    assert journal.means() == (None, None)  # of the next epoch


def test_the_sums_of_an_epoch_go_on(journal: Journal, tmp_path: Path) -> None:
    want = note(journal, range(1, 4))
    journal.flush()
    sums = json.loads(json.dumps(journal.sums))
    other = Journal(tmp_path, COLUMNS, writes=True)
    other.rewind(3, 0, sums)
    want += note(other, range(4, 6))
    other.flush()
    mean, extra = other.means()
    assert mean == pytest.approx(sum(want) / 5)
    assert extra is None


def test_rewinding_cuts_half_lines_and_later_steps(journal: Journal, tmp_path: Path) -> None:
    note(journal, range(1, 13), extra=True)
    journal.flush()
    for epoch in (1, 2, 3):
        journal.epoch({"epoch": epoch, "loss": 1 / 3, "eval_top-1": None, "more": 5})
    whole = {name: (tmp_path / name).read_bytes() for name in ("steps.csv", "summary.csv")}
    lines = whole["steps.csv"].splitlines(keepends=True)
    for cut in range(len(b"".join(lines[:11])), len(whole["steps.csv"])):  # within steps 11 and 12
        (tmp_path / "steps.csv").write_bytes(whole["steps.csv"][:cut])
        journal.rewind(10, 2, None)
        assert (tmp_path / "steps.csv").read_bytes() == b"".join(lines[:11])
    assert rows(tmp_path / "summary.csv") == [{"epoch": e, "loss": repr(1 / 3), "eval_top-1": ""} for e in ("1", "2")]
    note(journal, range(11, 13), extra=True)
    journal.flush()
    assert (tmp_path / "steps.csv").read_bytes() == whole["steps.csv"]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["loss", "extra"])
def test_a_loss_that_is_not_finite_is_told(journal: Journal, tmp_path: Path, loss: float, which: str) -> None:
    note(journal, range(1, 3))
    bad, good = torch.tensor(loss), torch.tensor(1.0)
    journal.step(3, 7, 0.1, *((bad, None) if which == "loss" else (good, bad)))
    note(journal, range(4, 6))
    what = "the loss is" if which == "loss" else "the term that is added to the loss is"
    with pytest.raises(FloatingPointError, match=rf"^{what} -?(nan|inf) in step 3 \(epoch 7\); .* lower `lr`"):
        journal.flush()
    assert [int(row["step"]) for row in rows(tmp_path / "steps.csv")] == [1, 2, 3]


def test_one_process_writes(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "none", COLUMNS, writes=False)
    journal.rewind(0, 0, None)
    want = note(journal, range(1, 4))
    assert journal.flush() == want[-1]
    journal.epoch({"epoch": 1})
    assert journal.means()[0] == pytest.approx(sum(want) / 3)
    assert not (tmp_path / "none").exists()


class Trained:
    """A tiny network with all that a checkpoint holds, trained for some steps."""

    def __init__(self, folder: Path, steps: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        torch.manual_seed(steps)
        self.accelerator = Accelerator(cpu=True, mixed_precision="no")
        network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1 * (1 + steps), momentum=0.9)
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.average = nn.Linear(2, 2)
        self.checkpoints = Checkpoints(folder)
        for _ in range(steps):
            self.train()

    def train(self) -> None:
        self.network(torch.randn(5, 4)).pow(2).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, step: int) -> None:
        self.checkpoints.save(self.accelerator, {"step": step, "sums": [0.1 / 3]}, self.average)

    def load(self) -> Any:
        return self.checkpoints.load(self.accelerator, self.average)

    @property
    def state(self) -> list[Any]:
        momenta = [s["momentum_buffer"] for s in self.optimizer.state_dict()["state"].values()]
        tensors = [*self.network.state_dict().values(), *momenta, *self.average.state_dict().values()]
        return [*(t.tolist() for t in tensors), self.optimizer.param_groups[0]["lr"]]


@pytest.fixture(autouse=True)
def no_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_a_checkpoint_holds_all(tmp_path: Path) -> None:
    one = Trained(tmp_path / "c", 3)
    assert one.checkpoints.latest() is None
    assert one.load() is None
    want = one.state
    one.save(3)
    other = Trained(tmp_path / "c", 1)
    assert other.state != want
    assert other.load() == {"step": 3, "sums": [0.1 / 3]}
    assert other.state == want
    torch.manual_seed(0)
    one.train()
    torch.manual_seed(0)
    other.train()
    assert other.state == one.state != want


def half(file: Path) -> None:
    """What a full disk leaves."""
    file.write_bytes(b"half a fi")
    raise OSError(28, "No space left on device")


def broken_deletion(path: Path, ignore_errors: bool = False) -> None:
    if path.is_dir() and path.name.startswith("step-"):
        half(next(path.rglob("*.safetensors")))
    shutil_rmtree(path, ignore_errors=ignore_errors)


shutil_rmtree = shutil.rmtree
DEATHS: dict[str, tuple[str, Callable[..., Any]]] = {
    "before anything": ("accelerate.Accelerator.save_state", lambda self, folder: half(Path("/dev/null"))),
    "in the network": ("accelerate.utils.other.safe_save_file", lambda state, file, **_: half(Path(file))),
    "in the optimiser": ("torch.save", lambda state, file, **_: half(Path(file))),
    "in what is counted": ("pathlib.Path.write_text", lambda self, text, **_: half(self)),
    "in the average": ("interp_zoo.training.checkpoints.save_file", lambda state, file: half(Path(file))),
    "while the disk writes": ("os.fsync", lambda _: half(Path("/dev/null"))),
    "before it has a name": ("pathlib.Path.rename", lambda self, name: half(Path("/dev/null"))),
    "in deleting the one before": ("shutil.rmtree", broken_deletion),
}


@pytest.mark.parametrize("when", DEATHS)
def test_a_save_that_dies_leaves_one_that_is_whole(tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Trained(tmp_path / "c", 3)
    one.save(3)
    wanted, want = 3, one.state
    one.train()
    if when == "in deleting the one before":
        wanted, want = 4, one.state
    monkeypatch.setattr(*DEATHS[when])
    with pytest.raises(OSError, match=r"No space left on device"):
        one.save(4)
    monkeypatch.undo()
    other = Trained(tmp_path / "c", 1)
    assert other.load()["step"] == wanted
    assert other.state == want
    other.train()
    want = other.state
    other.save(5)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["step-000000005"]
    another = Trained(tmp_path / "c", 0)
    assert another.load()["step"] == 5
    assert another.state == want


class Harmful:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, asked, load = Trained(tmp_path / "c", 2), [], torch.load
    one.save(2)

    def watched(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("weights_only"))
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    one.load()
    assert asked
    assert set(asked) == {True}
    pickled = [p for p in (tmp_path / "c").rglob("*") if p.suffix in (".bin", ".pkl")]
    assert len(pickled) == len(asked)
    for file in pickled:
        torch.save(Harmful(tmp_path / "done"), file)
    with pytest.raises(pickle.UnpicklingError, match=r"Weights only load failed"):
        one.load()
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("found", [{"loss": 1.5, "top-1": 100 / 3}, {"loss": 1.5, "top-1": 12.5, "top-5": 200 / 3}])
def test_weights_are_written_as_timm_and_cards_read_them(tmp_path: Path, found: dict[str, float]) -> None:
    model = lively("test_resnet", num_classes=7)
    command = "accelerate launch recipes/train.py --model 'a b'"
    save_weights(tmp_path / "best", model, command=command, dataset="my set", split="0.1 of train", accuracy=found)
    results = Results.read(tmp_path / "best" / "results.json")
    assert (results.model, results.command, results.training) == ("test_resnet", command, command)
    assert results.datasets == ("my set",)
    assert {r["name"]: r["value"] for r in results.results} == {k: round(v, 4) for k, v in found.items() if k != "loss"}
    assert {(r["dataset"], r["split"]) for r in results.results} == {("my set", "0.1 of train")}
    assert [r["metric"] for r in results.results] == ["accuracy", "top-5 accuracy"][: len(found) - 1]
    again: nn.Module = timm.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
