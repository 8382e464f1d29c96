"""Runs every check of the project: `python3 scripts/check.py`.

Lint, format, types, then the unit, host and browser tests. The first run also sets ComfyUI up, see
`setup_host.py`. Other arguments go to pytest: `python3 scripts/check.py tests/unit -x`; `-n 0` runs
the tests one after another, as tests on a GPU should (`--gpu -n 0`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from environments import SetupError
from setup_host import REPO, ensure_chromium, ensure_host

WORKERS = "2"  # run tests side by side; each holds a ComfyUI of its own, about 3 GiB


def main() -> None:
    """Sets up what is missing, runs the checks and exits non-zero if any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-browser", action="store_true", help="leave out the browser tests")
    arguments, for_pytest = parser.parse_known_args()
    try:
        host = ensure_host(dev=True)
        if not arguments.no_browser:
            ensure_chromium()
    except SetupError as failure:
        sys.exit(f"error: {failure}")
    if arguments.no_browser:
        for_pytest.append("--ignore=tests/browser")

    # Else each of the many processes that tests start compiles PyTorch and ComfyUI anew.
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    failed = []
    for check in (
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["pytest", "-n", WORKERS, "--dist", "loadfile", "--durations=10", *for_pytest],
    ):
        print(f"$ {' '.join(check)}", flush=True)
        command = [str(host.python), "-m", *check]
        if subprocess.run(command, cwd=REPO, env=env, check=False).returncode:
            failed.append(" ".join(check[:2]))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
