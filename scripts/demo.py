"""Learns a person from portraits and restores that person: `python3 scripts/demo.py`.

Runs `example_workflows/personalized_restore` through a real ComfyUI: an adapter is trained on eight
portraits of a person who does not exist, and degraded portraits are restored without and with it.
The first run also sets ComfyUI up, see `setup_host.py`. The pictures come to `output/`.
"""

from __future__ import annotations

import subprocess
import sys
import time

from setup_host import REPO, SetupError, ensure_host

SCRIPTS = REPO / "scripts"
WORKFLOW = REPO / "example_workflows" / "api" / "personalized_restore.json"
OUTPUT = REPO / "output"


def main() -> None:
    """Sets the host up if need be, runs the workflow, prints the figures and the times."""
    started = time.monotonic()
    try:
        host = ensure_host()
    except SetupError as failure:
        sys.exit(f"error: {failure}")
    ready = time.monotonic()
    options = ["--output", OUTPUT, "--comfyui", host.comfyui]
    for command in (
        [SCRIPTS / "run_workflow.py", WORKFLOW, *options],
        [SCRIPTS / "compare_pictures.py", "--pictures", OUTPUT],
    ):
        code = subprocess.run([str(host.python), *map(str, command)], check=False).returncode
        if code:
            sys.exit(code)
    done = time.monotonic()
    print(f"Set-up: {(ready - started) / 60:.1f} min, work: {(done - ready) / 60:.1f} min")


if __name__ == "__main__":
    main()
