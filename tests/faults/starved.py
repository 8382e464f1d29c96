"""Restores an archive on a disk that is full once; prints a line of JSON with what went wrong.

Runs under `unshare --mount`: the disk is a small file system in memory, which nobody else sees.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from archives.runs import Run, Setting, pictures, problems

from faults.places import Place

PATIENCE = 7200.0  # seconds for a run
SIZE = 256 * 2**20  # bytes of the disk: all 300 restored photos take some 45 MB
FULL = 1  # how `archive.py` ends when it cannot go on


def failure(state: dict) -> str | None:
    """Runs twice, and says what is wrong."""
    setting = Setting(Path(state["originals"]), Path(state["base"]), tuple(state["options"]))
    # The disk goes with this process; until then it is in the way of removing the folder.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = Place(Path(folder, "place"), SIZE)
        if not place.mounted:
            return "no file system could be mounted"
        output = place.folder / "out"
        with place.full(state["space"]):
            run = Run(setting, output, log=Path(folder, "full.log"))  # not on the full disk
            code = run.process.wait(PATIENCE)
            log = run.log.read_text(errors="replace")
        if code != FULL or ("No space left" not in log and "full" not in log):
            return f"the full disk ended the run with {code}: {log[-500:]}"
        some = len(pictures(output))
        run = Run(setting, output)
        run.process.wait(PATIENCE)
        found = problems(output, setting.originals, state["damaged"])
        if pictures(output) != state["whole"]:
            found.append("pictures differ from the undisturbed run's")
        print(f"{some} pictures were done when the disk was full")
        return "; ".join(found[:5]) if found else None


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)  # which let this script import the others
    print(json.dumps({"failure": failure(json.loads(Path(sys.argv[1]).read_text()))}))
