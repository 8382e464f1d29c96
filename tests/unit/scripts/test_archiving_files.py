"""An archive's names, list and journal: nothing collides, is lost or is done twice."""

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from archiving.journal import MOST_DEATHS, Journal, OutputError
from archiving.listing import MANIFEST, OWN, check_folders, files_in, output_name, within
from archiving.manifest import Manifest
from archiving.pictures import digest_of
from archiving.results import DONE, FAILED, GONE, KEPT, OTHER, WAITING, Result

from pfstorer_core.errors import PFStorerError

NAMES = ["a.jpg", "a.png", "b/a.jpg", "b/A.JPG", "b/\u00e9.tif", "b/e\u0301.tif", "c.JPEG", "x.txt"]


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """A folder of files that are called like photos."""
    folder = tmp_path / "in"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder whose journal is ready."""
    folder = tmp_path / "out"
    Journal(folder).prepare()
    return folder


@pytest.fixture
def manifest(output: Path) -> Iterator[Manifest]:
    with Manifest(output, "settings") as opened:
        yield opened


def done(path: str, content: bytes, **changes: object) -> Result:
    result = Result(path, DONE, digest_of(path.encode()), "settings")
    size = {"output_digest": digest_of(content), "output_size": len(content)}
    return replace(result, **{**size, **changes})


def test_all_files_are_listed_but_the_archive_s_own(originals: Path) -> None:
    inside = originals / "restored"
    inside.mkdir()
    (inside / "a.jpg").write_bytes(b"")
    (originals / OWN).mkdir()
    (originals / OWN / "a.jpg").write_bytes(b"")
    (originals / "loop").symlink_to(originals, target_is_directory=True)
    (originals / "nowhere.jpg").symlink_to("nothing")
    strange = os.fsencode(originals) + b"/\xff.jpg"
    Path(os.fsdecode(strange)).write_bytes(b"")
    files = {file.path: file.is_picture for file in files_in(originals, inside)}
    assert files == {
        **{name: name != "x.txt" for name in NAMES},
        "nowhere.jpg": True,
        "\\udcff.jpg": False,
    }


def test_originals_cannot_be_overwritten(originals: Path, tmp_path: Path) -> None:
    check_folders(originals, tmp_path / "out")
    check_folders(originals, originals / "restored")
    (tmp_path / "link").symlink_to(originals, target_is_directory=True)
    for output in (originals, tmp_path, tmp_path / "link", tmp_path / "in" / ".."):
        with pytest.raises(PFStorerError, match="would lie in the output folder"):
            check_folders(originals, output)
    with pytest.raises(PFStorerError, match="There is no folder"):
        check_folders(tmp_path / "nothing", tmp_path / "out")


@pytest.mark.parametrize("file_format", ["same", "png", "jpeg"])
def test_no_two_photos_are_given_one_name(file_format: str) -> None:
    taken: set[str] = set()
    pictures = [name for name in NAMES if name != "x.txt"]
    names = [output_name(name, file_format, taken) for name in pictures]
    assert len(taken) == len(pictures)
    assert len({name.casefold() for name in names}) == len(pictures)
    assert names[0] == ("a.png" if file_format == "png" else "a.jpg")
    assert names[-1] == ("c.png" if file_format == "png" else "c.JPEG")
    assert [Path(name).parent for name in names] == [Path(name).parent for name in pictures]


def test_names_cannot_lead_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").symlink_to(tmp_path, target_is_directory=True)
    assert within(tmp_path / "out", "c/a.jpg") == tmp_path / "out" / "c" / "a.jpg"
    for name in ("b/a.jpg", "../a.jpg", "c/../../a.jpg", "/etc/a.jpg"):
        with pytest.raises(PFStorerError, match="leads out"):
            within(tmp_path / "out", name)


def test_only_what_is_missing_or_other_is_done(
    originals: Path, output: Path, manifest: Manifest
) -> None:
    manifest.update(files_in(originals, output), "same")
    tasks = {task.path: task for task in manifest.waiting()}
    assert set(tasks) == set(NAMES) - {"x.txt"}
    assert manifest.counts()[OTHER] == 1
    for name, task in tasks.items():
        place = output / task.output
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"restored")
        assert manifest.record([done(name, b"restored")], attempts=2)
    manifest.update(files_in(originals, output), "same")
    assert manifest.waiting() == []

    (output / "a.jpg").unlink()
    (originals / "a.png").write_bytes(b"changed")
    (originals / "new.jpg").write_bytes(b"")
    (originals / "c.JPEG").unlink()
    os.utime(originals / "b" / "a.jpg", ns=(1, 1))
    manifest.update(files_in(originals, output), "same")
    waiting = {task.path: task for task in manifest.waiting()}
    assert set(waiting) == {"a.jpg", "a.png", "new.jpg", "b/a.jpg"}
    assert waiting["b/a.jpg"].done == digest_of(b"b/a.jpg"), "only touched: its digest tells"
    assert waiting["new.jpg"].done == ""
    assert manifest.counts()[GONE] == 1
    manifest.record([Result("b/a.jpg", KEPT, "", "settings")], attempts=2)
    assert "b/a.jpg" not in {task.path for task in manifest.waiting()}

    with Manifest(output, "other settings") as other:
        other.update(files_in(originals, output), "same")
        assert len(other.waiting()) == len(NAMES) - 1, "all but the text and the one that is gone"
        assert {task.done for task in other.waiting()} == {""}


def test_a_failure_is_tried_again_and_then_named(
    originals: Path, output: Path, manifest: Manifest
) -> None:
    manifest.update(files_in(originals, output), "same")
    failed = Result("a.jpg", FAILED, "", "settings", machine="one", error="It is torn.")
    assert manifest.record([failed], attempts=2) == []
    (again,) = [task for task in manifest.waiting() if task.avoid]
    assert (again.path, again.avoid) == ("a.jpg", "one")
    assert manifest.record([failed], attempts=2) == [failed]
    assert "a.jpg" not in {task.path for task in manifest.waiting()}
    assert [result.error for result, _ in manifest.results(FAILED)] == ["It is torn."]
    manifest.update(files_in(originals, output), "same")
    (task,) = [task for task in manifest.waiting() if task.path == "a.jpg"]
    assert task.avoid == "", "a later run tries it as if it were new"


def test_foreign_files_are_not_replaced(originals: Path, output: Path, manifest: Manifest) -> None:
    (output / "a.jpg").write_bytes(b"somebody's")
    with pytest.raises(PFStorerError, match="was not written by this archive"):
        manifest.update(files_in(originals, output), "same")
    assert manifest.counts() == {}, "all or nothing is taken over"
    (output / "a.jpg").unlink()
    manifest.update(files_in(originals, output), "same")
    (output / "a.jpg").write_bytes(b"written, but not written down")
    manifest.update(files_in(originals, output), "same")
    assert "a.jpg" in {task.path for task in manifest.waiting()}


def test_another_format_gets_other_names(originals: Path, output: Path, manifest: Manifest) -> None:
    manifest.update(files_in(originals, output), "same")
    names = manifest.outputs()
    manifest.update(files_in(originals, output), "png")
    renamed = manifest.outputs()
    assert {Path(name).suffix for name in renamed.values()} == {".png"}
    manifest.update(files_in(originals, output), "png")
    assert manifest.outputs() == renamed
    assert len(set(renamed.values())) == len(names)


def test_a_damaged_list_is_told(output: Path) -> None:
    (output / MANIFEST).write_bytes(b"no table" * 1000)
    with pytest.raises(PFStorerError, match=r"archive\.sqlite"):
        Manifest(output, "settings")


def test_a_record_counts_only_with_its_picture(output: Path) -> None:
    journal = Journal(output)
    result = done("b/a.jpg", b"restored")
    journal.write(result, "b/a.jpg", b"restored")
    assert (output / "b" / "a.jpg").read_bytes() == b"restored"
    assert journal.read("b/a.jpg", "b/a.jpg") == result
    assert list(journal.all({"b/a.jpg": "b/a.jpg"})) == [result]
    assert list(journal.partial.iterdir()) == []

    (output / "b" / "a.jpg").write_bytes(b"half")
    assert journal.read("b/a.jpg", "b/a.jpg") is None
    (output / "b" / "a.jpg").unlink()
    assert list(journal.all({"b/a.jpg": "b/a.jpg"})) == []
    for record in journal.records.iterdir():
        record.write_bytes(b"{")
    assert list(journal.all({"b/a.jpg": "b/a.jpg"})) == []


def test_what_no_driver_wrote_down_is_taken_over(
    originals: Path, output: Path, manifest: Manifest
) -> None:
    journal = Journal(output)
    manifest.update(files_in(originals, output), "same")
    journal.write(done("a.jpg", b"restored"), "a.jpg", b"restored")
    manifest.take_over(journal)
    assert manifest.counts() == {DONE: 1, WAITING: len(NAMES) - 2, OTHER: 1}
    assert list(journal.records.iterdir()) == []
    manifest.update(files_in(originals, output), "same")
    assert "a.jpg" not in {task.path for task in manifest.waiting()}


def test_a_photo_that_ends_workers_is_given_up(output: Path) -> None:
    journal = Journal(output)
    for _ in range(MOST_DEATHS):
        assert journal.begin("a.jpg")
    assert not journal.begin("a.jpg")
    assert journal.begin("b.jpg")
    journal.end("a.jpg")
    assert journal.begin("a.jpg")
    journal.prepare()
    assert list(journal.begun.iterdir()) == []


def test_writing_refused_ends_the_run_and_leaves_the_old(output: Path) -> None:
    journal = Journal(output)
    journal.write(done("a.jpg", b"old"), "a.jpg", b"old")
    (output / "b").write_bytes(b"a file where a folder shall be")
    with pytest.raises(OutputError, match="run the same command again"):
        journal.write(done("b/a.jpg", b"new"), "b/a.jpg", b"new")
    os.rmdir(journal.partial)
    with pytest.raises(OutputError, match=r"a\.jpg"):
        journal.write(done("a.jpg", b"new"), "a.jpg", b"new")
    assert (output / "a.jpg").read_bytes() == b"old"
    with pytest.raises(PFStorerError, match="Nothing can be written"):
        Journal(output / "b").prepare()


def test_the_list_is_a_table_that_others_can_read(
    originals: Path, output: Path, manifest: Manifest
) -> None:
    manifest.note_settings("{}")
    manifest.update(files_in(originals, output), "same")
    with sqlite3.connect(output / MANIFEST) as table:
        (count,) = table.execute("SELECT count(*) FROM photos WHERE state = 'waiting'").fetchone()
    assert count == len(NAMES) - 1
