"""Rows on disk: what a killed run leaves is whole, another run's results are refused, nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_one_line

from interp_zoo.evaluation.records import Records
from interp_zoo.files import write_whole

IDENTITY: dict[str, Any] = {"data": "abc", "metrics": ["average_drop"], "models": {"m": "1"}}


def row(index: int, method: str = "gradcam", kind: str = "label", value: float = 1.0) -> dict[str, Any]:
    return {"model": "m", "method": method, "target_kind": kind, "index": index, "metrics": {"average_drop": value}}


@pytest.fixture
def run(tmp_path: Path) -> Records:
    made = Records(tmp_path / "deep" / "out")
    made.claim(IDENTITY)
    return made


def test_what_is_written_is_read(run: Records) -> None:
    one, other = run.writer(0), run.writer(1)
    one.rows([row(0), row(1)])
    other.rows([row(2)])
    one.thumbnails("m", {0: "aaa"})
    other.left_out("m", "attention", "has none")
    other.unreadable(7, "b.png", "broken")
    found = run.read()
    assert list(found.rows.values()) == [row(0), row(1), row(2)]
    assert found.thumbnails == {("m", 0): "aaa"}
    assert found.left_out == {("m", "attention"): "has none"}
    assert found.unreadable == {7: ("b.png", "broken")}


def test_what_is_still_to_do(run: Records) -> None:
    writer = run.writer(0)
    writer.rows([row(0), row(0, "scorecam"), row(1)])
    writer.left_out("m", "attention", "has none")
    writer.unreadable(3, "d.png", "broken")
    pairs = [("gradcam", "label"), ("scorecam", "label"), ("attention", "label")]
    todo = run.read().todo([0, 1, 2, 3, 4], "m", pairs)
    assert todo == {frozenset({pairs[1]}): [1], frozenset(pairs[:2]): [2, 3, 4]}  # 3 may be readable by now
    assert run.read().todo([0], "other", pairs) == {frozenset(pairs): [0]}


def test_a_line_that_was_cut_off_is_done_again(run: Records) -> None:
    run.writer(0).rows([row(0), row(1)])
    file = run.folder / "parts" / "00000.jsonl"
    whole = file.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        file.write_bytes(whole[:cut])
        assert list(run.read().rows.values()) == [row(0)]
    run.writer(0).rows([row(1, value=2.0)])  # what follows is not glued to it
    assert list(run.read().rows.values()) == [row(0), row(1, value=2.0)]


def test_a_full_disk_loses_nothing(run: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = run.writer(0)
    writer.rows([row(0)])
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        writer.rows([row(1)])
    monkeypatch.undo()
    assert row(0) in run.read().rows.values()
    run.writer(0).rows([row(2)])
    assert {index for *_, index in run.read().rows} >= {0, 2}


def test_the_same_run_goes_on(run: Records) -> None:
    run.writer(0).rows([row(0)])
    again = Records(run.folder)
    again.claim(dict(IDENTITY))
    assert len(again.read().rows) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": "xyz"}, r"data: 'abc' there, 'xyz' here"),
        ({"metrics": ["insertion"]}, r"metrics: \['average_drop'\] there"),
        ({"models": {"m": "2"}}, r"m: '1' there, '2' here"),
        ({"amp": "bf16"}, r"amp: None there, 'bf16' here"),
    ],
)
def test_another_runs_results_are_refused(run: Records, change: dict[str, Any], told: str) -> None:
    run.writer(0).rows([row(0)])
    with pytest.raises(
        ValueError, match=rf"`output` \".*out\" holds the results of another run \({told}.*--overwrite"
    ) as e:
        Records(run.folder).claim(IDENTITY | change)
    assert_one_line(e.value)
    assert len(run.read().rows) == 1, "and stay"
    Records(run.folder).claim(IDENTITY | change, overwrite=True)
    assert run.read().rows == {}
    assert json.loads((run.folder / "run.json").read_text())["data"] == (IDENTITY | change)["data"]


def test_models_may_be_added_and_left_out(run: Records) -> None:
    Records(run.folder).claim(IDENTITY | {"models": {"n": "7"}})
    Records(run.folder).claim(IDENTITY | {"models": {"m": "1", "n": "7"}})
    with pytest.raises(ValueError, match=r"another run \(n: '7' there, '8' here\)"):
        Records(run.folder).claim(IDENTITY | {"models": {"n": "8"}})


def test_what_a_killed_run_leaves_is_its_own(run: Records, tmp_path: Path) -> None:
    for name in (".report.html.123.new", ".results.csv.new", ".run.json.new"):
        (run.folder / name).write_text("half")
    Records(run.folder).claim(IDENTITY | {"data": "xyz"}, overwrite=True)
    (tmp_path / "early" / "parts").mkdir(parents=True)
    Records(tmp_path / "early").claim(IDENTITY)
    assert (tmp_path / "early" / "run.json").is_file()


def test_rows_without_an_identity_are_not_deleted(run: Records) -> None:
    run.writer(0).rows([row(0)])
    (run.folder / "run.json").unlink()
    with pytest.raises(ValueError, match=r"holds other files \(parts\)"):
        Records(run.folder).claim(IDENTITY, overwrite=True)
    assert len(run.read().rows) == 1


def test_a_broken_line_is_done_again(run: Records) -> None:
    run.writer(0).rows([row(0)])
    with (run.folder / "parts" / "00000.jsonl").open("a") as file:
        file.write('{"kind": "ro\\0\n[]\n{"kind2": 1}\n')
    assert list(run.read().rows.values()) == [row(0)]


def test_folders_with_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r'`output` ".*" holds other files \(thesis\.tex\): choose another'):
            Records(tmp_path).claim(IDENTITY, overwrite=overwrite)
    with pytest.raises(ValueError, match=r'`output` ".*thesis\.tex" is a file: choose another folder'):
        Records(tmp_path / "thesis.tex").claim(IDENTITY)
    assert (tmp_path / "thesis.tex").read_text() == "dear"


def test_overwrite_spares_what_is_not_of_a_run(run: Records) -> None:
    (run.folder / "notes.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"holds other files \(notes\.txt\)"):
        Records(run.folder).claim(IDENTITY | {"data": "xyz"}, overwrite=True)
    assert (run.folder / "notes.txt").read_text() == "dear"


def test_a_broken_identity_is_told(run: Records) -> None:
    (run.folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"`output` .*: run\.json is broken: give --overwrite"):
        Records(run.folder).claim(IDENTITY)


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.json"
    write_whole(file, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, "new")
    monkeypatch.undo()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
