"""Restores a degraded portrait through a real ComfyUI: `python3 scripts/demo.py`.

The first run also sets ComfyUI up, see `setup_host.py`. The pictures come to `output/`.
"""

from __future__ import annotations

import subprocess
import sys
import time

from setup_host import REPO, SetupError, ensure_host

WORKFLOW = REPO / "example_workflows" / "api" / "restore_photo.json"


def main() -> None:
    """Sets the host up if need be, runs the workflow and prints the time of both."""
    started = time.monotonic()
    try:
        host = ensure_host()
    except SetupError as failure:
        sys.exit(f"error: {failure}")
    ready = time.monotonic()
    runner = REPO / "scripts" / "run_workflow.py"
    command = [str(host.python), str(runner), str(WORKFLOW), "--comfyui", str(host.comfyui)]
    code = subprocess.run(command, check=False).returncode
    done = time.monotonic()
    print(f"Set-up: {(ready - started) / 60:.1f} min, work: {(done - ready) / 60:.1f} min")
    sys.exit(code)


if __name__ == "__main__":
    main()
