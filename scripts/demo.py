"""Learns a person from photos and restores that person: `python3 scripts/demo.py`.

    python3 scripts/demo.py                                      # a drawn person, nothing needed
    python3 scripts/demo.py --photos FOLDER --picture FILE       # your own photos

Both go through the API queue of a real ComfyUI: the picture is restored, an adapter is trained on
the photos, and the picture is restored with the adapter. Without arguments that is the template
`example_workflows/personalized_restore`, with portraits of a person who does not exist. FOLDER
holds 3 to 10 sharp photos of one person, FILE is the picture of that person to restore.

The first run also sets ComfyUI up, see `setup_host.py`. The results come to `output/`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from environments import SetupError
from picture_files import PictureError, check_picture, photos_in
from setup_host import REPO, ensure_host

SCRIPTS = REPO / "scripts"
WORKFLOW = REPO / "example_workflows" / "api" / "personalized_restore.json"
OUTPUT = REPO / "output"


def parse() -> argparse.Namespace:
    """Reads the command line, and looks whether the photos are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="sharp photos of the person")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="picture to restore")
    options = parser.parse_args()
    if (options.photos is None) != (options.picture is None):
        parser.error("give both --photos and --picture, or neither")
    if options.photos is not None:
        try:
            check_picture(options.picture)
            photos_in(options.photos, options.picture)
        except PictureError as failure:
            sys.exit(f"error: {failure}")
    return options


def main() -> None:
    """Sets the host up if need be, runs the main job, prints figures and times."""
    options = parse()
    started = time.monotonic()
    try:
        host = ensure_host()
    except SetupError as failure:
        sys.exit(f"error: {failure}")
    ready = time.monotonic()
    common = ["--output", OUTPUT, "--comfyui", host.comfyui]
    if options.photos is None:
        commands = [
            [SCRIPTS / "run_workflow.py", WORKFLOW, *common],
            [SCRIPTS / "compare_pictures.py", "--pictures", OUTPUT],
        ]
    else:
        given = ["--photos", options.photos, "--picture", options.picture]
        commands = [[SCRIPTS / "restore_person.py", *given, *common]]
    for command in commands:
        code = subprocess.run([str(host.python), *map(str, command)], check=False).returncode
        if code:
            sys.exit(code)
    done = time.monotonic()
    print(f"Set-up: {(ready - started) / 60:.1f} min, work: {(done - ready) / 60:.1f} min")


if __name__ == "__main__":
    main()
