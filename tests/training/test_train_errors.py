"""What recipes/train.py refuses: in one line, before anything is trained, with nothing lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import saved, texture
from trainings import arguments, main, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("pictures"))


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said on standard error, one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def contents(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--learning-rate", "1"], '"--learning-rate" is no flag (did you mean --'),
        (["--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
        (["--penalty-error", "cosin"], "argument --penalty-error: invalid choice: 'cosin'"),
        (["--config", "finetun"], '`config` "finetun" does not exist (did you mean finetune'),
        (["--model", "resnet51"], '`model` "resnet51" is unknown to timm (did you mean resnet5'),
        (["--batch-size", "0"], "`batch_size` is 0, but must be at least 1"),
        (["--batch-size", "32"], "is 32, more than the 24 pictures to train on: give a smaller one"),
        (["--data-dir", "nowhere"], '`data_dir` "nowhere" does not exist'),
        (["--dataset", "hfds"], '`dataset` "hfds" is unknown'),
        (["--val-split", "train"], '`val_split` "train" is the same pictures as `train_split` "train"'),
        (["--hold-out", "0.001"], "`hold_out` is 0.001, which of 24 pictures leaves one part empty"),
        (["--hold-out", "2"], "`hold_out` is 2.0, but must be between 0 and 1"),
        (["--num-classes", "3"], "class folders"),
        (["--freeze-backbone"], "`freeze_backbone` needs a trained one: give --backbone-pretrained"),
        (["--freeze-backbone", "--pretrained"], "`freeze_backbone` is for CA-Streams"),
        (["--hold-last"], "`hold_last` is for a stream on a frozen backbone: give --freeze-backbone"),
        (["--distill", "0.5"], "`distill` is for a stream on a frozen backbone: give --freeze-backbone"),
        (["--backbone-pretrained"], "`backbone_pretrained` is for CA-Streams"),
        (["--penalty", "-1"], "`penalty` is -1.0, but must be 0 or more"),
        (["--penalty", "1", "--penalty-every", "0"], "`penalty_every` is 0, but must be at least 1"),
        (
            ["--penalty", "1", "--model", "test_vit"],
            "`model` has gelu, but guided backpropagation is defined for ReLU",
        ),
        (["--mixup", "0.2", "--batch-size", "3"], "`batch_size` is 3, but must be even where pictures are mixed"),
        (["--sched", "cosin"], "argument --sched: invalid choice: 'cosin'"),
        (["--opt", "sgdd"], '`opt` "sgdd" is unknown to timm (did you mean sgd'),
        (["--log-with", "tensorbord"], "argument --log-with: invalid choice: 'tensorbord'"),
        (["--log-with", "aim"], "`log_with` aim needs its package, which is not installed"),
        (["--aa", "random"], '`aa` is "random", of which timm makes no augmentation'),
        (["--model-kwargs", "depth=3"], "does not take all of `model_kwargs`"),
        (["--initial-checkpoint", "nowhere.safetensors"], '`checkpoint` "nowhere.safetensors" does not exist'),
    ],
)
def test_arguments(
    more: list[str], told: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--pretrained" in more:  # the refusal comes with weights at hand, not because there are none
        more = [*more[:-1], "--initial-checkpoint", str(saved("test_resnet", tmp_path, num_classes=4))]
    assert told in refused(arguments(folder, tmp_path / "out", *more), capsys)
    assert not (tmp_path / "out").exists()


def test_a_key_that_is_no_flag(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: test_resnet\nlearning_rat: 0.1\nlrr: 1")
    said = refused(["--config", str(file), "--output", str(tmp_path / "out")], capsys)
    assert f'`config` "{file}" has the key "learning_rat", which is no flag' in said
    file.write_text("model: test_resnet\nlrr: 1")
    assert '"lrr", which is no flag (did you mean lr' in refused(["--config", str(file)], capsys)


def test_what_is_missing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "`model` is missing" in refused(["--data-dir", str(folder), "--output", str(tmp_path / "out")], capsys)
    assert "`output` is missing" in refused(["--data-dir", str(folder), "--model", "test_resnet"], capsys)


def test_classes_of_a_checkpoint(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved("test_resnet", tmp_path, num_classes=7)
    said = refused(arguments(folder, tmp_path / "out", "--initial-checkpoint", str(file)), capsys)
    assert f'`initial_checkpoint` "{file}" has 7 classes, but the data has 4' in said


def test_an_empty_split(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "pictures")
    for file in (tmp_path / "pictures" / "validation").rglob("*.png"):
        file.unlink()
    assert "validation" in refused(arguments(tmp_path / "pictures", tmp_path / "out"), capsys)
    assert not (tmp_path / "out").exists()


def test_pictures_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        texture((40, 40), seed=i).save(tmp_path / "pictures" / f"{i}.png")
    said = refused(arguments(tmp_path / "pictures", tmp_path / "out", "--hold-out", "0.5"), capsys)
    assert "has no labels: give class folders, or a labels.csv" in said


def test_a_folder_of_another_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(folder, tmp_path / "out", "--epochs", "1"))
    before = contents(tmp_path / "out")
    for more, told in (
        (["--lr", "0.3"], "holds another run (lr: 0.01 there, 0.3 here)"),
        (["--model", "test_vit"], "holds another run (model: 'test_resnet' there, 'test_vit' here)"),
        (["--batch-size", "8"], "holds another run (pictures a step: 4 there, 8 here)"),
    ):
        said = refused(arguments(folder, tmp_path / "out", "--epochs", "1", *more), capsys)
        assert told in said
        assert "choose another folder, or give --overwrite" in said
        assert contents(tmp_path / "out") == before
    main(arguments(folder, tmp_path / "out", "--epochs", "1", "--lr", "0.3", "--overwrite"))
    assert contents(tmp_path / "out") != before


def test_a_folder_with_other_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    for more in ([], ["--overwrite"]):
        assert "holds other files (thesis.tex)" in refused(arguments(folder, tmp_path / "out", *more), capsys)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_a_picture_that_cannot_be_read(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "pictures")
    (tmp_path / "pictures" / "train" / "class_0" / "1.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "validation" / "class_0" / "1.png").write_bytes(b"no picture")
    main(arguments(tmp_path / "pictures", tmp_path / "out", "--epochs", "1"))
    said = capfd.readouterr().err
    assert "not read: class_0/1.png: no picture format that Pillow knows; the next picture stands in its place" in said
    assert "not read: class_0/1.png: no picture format that Pillow knows; it does not count" in said
