"""The registry's archive of this plugin, as its publishing tool makes it."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pathspec
from setup_host import REPO


@cache
def archived_files() -> tuple[str, ...]:
    """Returns what the archive holds, relative to the repository: git's files, but no ignored ones.

    Files that git does not know yet count too, so that a test says the same before a commit.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout
    lines = (REPO / ".comfyignore").read_text(encoding="utf-8").splitlines()
    ignored = pathspec.GitIgnoreSpec.from_lines(lines)
    paths = (path for path in listed.split("\0") if path and (REPO / path).is_file())
    return tuple(sorted(path for path in paths if not ignored.match_file(path)))


def unpack(folder: Path) -> None:
    """Puts what the archive holds into a folder that is not there yet."""
    for path in archived_files():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPO / path, place)
