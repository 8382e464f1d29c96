"""The command of an archive refuses what cannot be begun, before anything starts."""

from pathlib import Path

import filelock
import pytest
from archive import parser, restore
from archiving.listing import OWN
from setup_host import REPO

from pfstorer_core.errors import PFStorerError

WORKFLOW = REPO / "example_workflows" / "api" / "archive.json"


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Arguments that nothing is wrong with, for a folder without photos."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "list.txt").write_text("no photo", encoding="utf-8")
    folders = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    return [*folders, "--workflow", str(WORKFLOW)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--input", "nowhere"], "There is no folder"),
        (["--output", "{folder}"], "would lie in the output folder"),
        (["--output", "{folder}/in/list.txt"], "Nothing can be written"),
        (["--set", "3.stepps=1"], "names no input"),
        (["--workflow", "nothing.json"], "cannot be read as a workflow"),
    ],
)
def test_what_cannot_be_begun_is_told_in_a_sentence(
    command: list[str], options: list[str], sentence: str, tmp_path: Path
) -> None:
    options = [option.format(folder=tmp_path) for option in options]
    with pytest.raises(PFStorerError, match=sentence):
        restore(parser().parse_args([*command, *options]))


def test_two_runs_cannot_write_into_one_folder(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "out" / OWN).mkdir(parents=True)
    with filelock.FileLock(tmp_path / "out" / OWN / "lock"):
        with pytest.raises(PFStorerError, match="Another run writes"):
            restore(parser().parse_args(command))


def test_a_folder_without_photos_comes_to_an_end(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(parser().parse_args(command)) == 0
    assert "0 restored, 0 failed, 1 of other kinds" in capsys.readouterr().out
    assert "1 .txt" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
