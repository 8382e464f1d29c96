"""The page of an archive, and the line that says how far it is."""

import re
import time
from pathlib import Path

import pytest
from archiving.journal import Journal
from archiving.listing import files_in
from archiving.manifest import Manifest
from archiving.page import write_page
from archiving.progress import Progress
from archiving.results import DONE, FAILED, KEPT, Result
from PIL import Image

HOSTILE = "<img src=x onerror=alert(1)>@@others@@.jpg"


def test_failures_come_first_and_names_are_only_text(tmp_path: Path) -> None:
    originals, output = tmp_path / "in", tmp_path / "out"
    originals.mkdir()
    Journal(output).prepare()
    names = ["a.jpg", "b.jpg", "c.jpg", HOSTILE]
    for name in names:
        Image.new("RGB", (64, 32), "grey").save(originals / name)
    (originals / "torn.jpg").write_bytes(b"")
    (originals / "list.heic").write_bytes(b"")
    with Manifest(output, "s") as manifest:
        manifest.update(files_in(originals, output), "same")
        for name in names:
            Image.new("RGB", (128, 64), "red").save(output / manifest.outputs()[name])
            manifest.record([Result(name, DONE, "", "s", report="Done in 1 s")], attempts=1)
        manifest.record([Result("torn.jpg", FAILED, "", "s", error="It is <torn>.")], attempts=1)
        page = write_page(manifest, originals, output, shown=2).read_text(encoding="utf-8")
        every = write_page(manifest, originals, output, shown=10).read_text(encoding="utf-8")
        none = write_page(manifest, originals, output, shown=0).read_text(encoding="utf-8")
    assert page.index("Not restored") < page.index("It is &lt;torn&gt;.") < page.index("Before and")
    assert "5 photos: 4 restored, 1 not restored" in page and "<li>1 .heic</li>" in page
    pictures = re.findall(r'src="data:image/webp;base64,[^"]+"', page)
    assert len(pictures) == 2 * 2, "before and after of two, and none of the torn one"
    assert every.count('<input type="range"') == 4 and none.count('<input type="range"') == 0
    assert "torn.jpg" in none
    assert "<img src=x" not in every and "&lt;img src=x onerror=alert(1)&gt;@@others@@" in every
    assert "http" not in every.replace("http-equiv", ""), "nothing is loaded from anywhere"
    assert [path.name for path in (output / ".pfstorer").glob("*.part")] == []


def test_the_line_counts_and_estimates(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(10, 2, lambda: 0)
    results = [Result(str(k), state, "", "") for k, state in enumerate([DONE, KEPT, FAILED])]
    progress(results)
    assert progress.line() == "4 of 10 done, 1 failed", "how fast it is, one moment does not tell"
    progress(results[:1])
    assert progress.per_minute() > 0 and progress.line().endswith("left")
    progress(results[:1] * 4)
    progress.close()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("9 of 10 done, 1 failed, ") and last.endswith(" a minute")


def test_the_start_does_not_count_as_slow_photos() -> None:
    progress = Progress(10, 0, lambda: 0)
    time.sleep(0.5)  # ComfyUI's start
    photo = Result("a", DONE, "", "")
    progress([photo])
    time.sleep(0.05)
    progress([photo])
    assert progress.per_minute() > 60 / 0.5


def test_photos_count_that_workers_have_not_told_of_yet(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out")
    journal.prepare()
    progress = Progress(10, 2, journal.count)
    results = [Result(name, DONE, "", "") for name in ("a.jpg", "b.jpg")]
    for result in results:
        journal.write(result, result.path, b"restored")
        progress([])
    line = progress.line()
    assert line.startswith("4 of 10 done, 0 failed, ") and line.endswith(" left")
    for result in results:
        journal.forget(result.path)
    progress(results)
    assert progress.line() == line, "told of, they are no new photos"
