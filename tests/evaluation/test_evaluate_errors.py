"""What recipes/evaluate.py refuses: in one line, before anything is measured, with nothing lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from evaluating import arguments, main, make_place, rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


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


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--methods", "gradcan"], '`method` "gradcan" is unknown (did you mean gradcam'),
        (["--methods", "opticam:iteration=3"], 'method "opticam" has no option `iteration`'),
        (["--metrics", "insertions"], '`metrics` "insertions" is unknown (did you mean insertion'),
        (["--model", "resnet51"], '`model` "resnet51" is unknown to timm (did you mean resnet5'),
        (["--model", "test_resnet", "test_vit"], "`checkpoint` is for a single model, but 2 are named"),
        (["--checkpoint", "nowhere.safetensors"], '`checkpoint` "nowhere.safetensors" does not exist'),
        (["--data-dir", "nowhere"], "nowhere"),
        (["--boxes", "nowhere.csv"], "nowhere.csv"),
        (["--methods", "opticam:objective=foo"], "`objective`"),
        (["--metrics", "average_gain", "--protocol", "torchcam"], '"average_gain" needs the papers\' `protocol`'),
        (["--limit", "0"], "`limit` must be at least 1"),
        (["--batch-size", "0"], "`batch_size` is 0, but must be at least 1"),
        (["--sanity-pictures", "0"], "`sanity_pictures` is 0, but must be at least 1"),
        (["--step", "0"], "`step` is 0, but must be at least 1"),
        (["--blur-kernel", "4"], "`blur_kernel` is 4, but must be odd, such as 11"),
    ],
)
def test_arguments(more: list[str], told: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(arguments(place, tmp_path / "out", *more), capsys)
    assert not (tmp_path / "out").exists()


def test_labels_csv(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = place / "pictures" / "labels.csv"
    good = file.read_text()
    try:
        file.write_text(good.replace("05.png", "55.png"))
        assert "55.png" in refused(arguments(place, tmp_path / "out"), capsys)
        file.write_text(good.replace("05.png,5", "05.png,10"))
        said = refused(arguments(place, tmp_path / "out"), capsys)
        assert 'picture 5 "05.png" is labelled 10, but the model has 10 classes, 0 to 9' in said
    finally:
        file.write_text(good)


def test_boxes_of_other_pictures(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "boxes.csv").write_text("file,left,top,right,bottom\nother.png,1,2,3,4")
    said = refused(arguments(place, tmp_path / "out", "--boxes", str(tmp_path / "boxes.csv")), capsys)
    assert "for none of the" in said


def test_metrics_that_need_boxes_or_labels(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = arguments(place, tmp_path / "out")
    del argv[argv.index("--boxes") : argv.index("--boxes") + 2]
    assert '`metrics` "pointing_game" needs `boxes`: give it, or leave the metric out' in refused(argv, capsys)
    bare = tmp_path / "bare"
    bare.mkdir()
    os.link(place / "pictures" / "00.png", bare / "00.png")
    said = refused([*argv, "--data-dir", str(bare), "--metrics", "average_drop"], capsys)
    assert '`target` is "label", but the data has no labels: use --target predicted' in said


def test_no_picture_can_be_read(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"no picture")
    argv = arguments(place, tmp_path / "out", "--data-dir", str(tmp_path / "data"), "--target", "predicted")
    del argv[argv.index("--boxes") : argv.index("--boxes") + 2]
    assert 'nothing could be measured, "a.png": ' in refused([*argv, "--metrics", "average_drop"], capsys)


def test_other_boxes_or_pictures_are_another_run(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(place, tmp_path / "out", "--limit", "2", "--metrics", "pointing_game")
    main(argv)
    for file, change in (
        (place / "boxes.csv", lambda old: old.replace(b",30,25", b",31,25")),
        (place / "pictures" / "00.png", lambda old: (place / "pictures" / "16.png").read_bytes()),
    ):
        old = file.read_bytes()
        file.write_bytes(change(old))
        try:
            assert "holds the results of another run" in refused(argv, capsys)
        finally:
            file.write_bytes(old)
    main(argv)


def test_another_runs_results(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = arguments(place, tmp_path / "out", "--limit", "2", "--metrics", "average_drop")
    main(argv)
    before = (tmp_path / "out" / "results.csv").read_text()
    for more in (["--limit", "3"], ["--metrics", "average_gain"], ["--protocol", "torchcam"], ["--seed", "1"]):
        said = refused([*argv, *more], capsys)
        assert "holds the results of another run" in said
        assert "--overwrite" in said
        assert (tmp_path / "out" / "results.csv").read_text() == before
    main([*argv, "--limit", "3", "--overwrite"])
    assert len({r["file"] for r in rows(tmp_path / "out")}) == 3


def test_a_full_disk(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = arguments(place, tmp_path / "out", "--limit", "4", "--metrics", "average_drop", "--batch-size", "2")
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", full)
    assert "No space left on device" in refused(argv, capsys)
    monkeypatch.undo()
    part = tmp_path / "out" / "parts" / "00000.jsonl"
    kept = part.read_text()
    assert '"kind": "row"' in kept
    main(argv)
    assert part.read_text().startswith(kept), "nothing is lost"
    assert len(rows(tmp_path / "out")) == 4 * 4
