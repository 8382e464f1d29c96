"""Runs the host and browser tests on every ComfyUI release that `setup_host` knows.

The result is a Markdown report. Versions below the supported floor must refuse the plugin with a
sentence that says to update.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path

import repository  # noqa: F401
from environments import SetupError
from setup_host import HOST_FOLDER, RELEASES, REPO, Host, own_host

ENVIRONMENT = HOST_FOLDER / "matrix-venv"  # shared: the versions differ in a handful of packages
REFUSAL = "update ComfyUI"
WORKFLOW = REPO / "example_workflows" / "api" / "restore_photo.json"


def supported_floor() -> str:
    """Returns the oldest supported version, as pyproject.toml states it."""
    text = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^requires-comfyui = ">=([\d.]+)"', text, flags=re.MULTILINE)
    if found is None:
        raise SetupError("pyproject.toml states no requires-comfyui of the form >=X.Y.Z.")
    return found.group(1)


def as_numbers(version: str) -> tuple[int, ...]:
    """Returns a version as numbers that compare in its order."""
    return tuple(int(part) for part in version.split("."))


def run_tests(host: Host, tests: list[str]) -> tuple[bool, str]:
    """Runs tests on one host; returns whether they passed, and their counts in words."""
    # With bytecode, which some environments forbid: each process of a test compiles all else.
    environment = os.environ | {"COMFYUI_PATH": str(host.comfyui), "PYTHONDONTWRITEBYTECODE": ""}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [str(host.python), "-m", "pytest", *tests, f"--junitxml={report}"]
        code = subprocess.run(command, cwd=REPO, env=environment, check=False).returncode
        if not report.is_file():
            return False, f"pytest ended with {code}"
        suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
        assert suite is not None  # pytest writes exactly one
    count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    words = f"{passed} passed"
    words += f", {failed} failed" if failed else ""
    words += f", {count['skipped']} skipped" if count["skipped"] else ""
    return code == 0, words


def check_refusal(comfyui: Path) -> None:
    """Exits non-zero unless this ComfyUI starts and the main job ends with the refusal."""
    from comfyui_client import Client  # needs the host's packages
    from comfyui_queue import PromptRefused
    from comfyui_server import Server

    prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="pfstorer-") as base:
        with Server(comfyui, Path(sys.executable), Path(base), cpu=True) as server:
            with Client(server.url) as client:
                try:
                    run = client.run(prompt)
                    said = run.error["exception_message"] if run.error else run.status
                except PromptRefused:  # the nodes are not there; the log says why
                    said = server.log()
    if REFUSAL not in said:
        sys.exit(f"expected a sentence with {REFUSAL!r}, found: {said[-2000:]}")


def check_version(version: str, tests: list[str]) -> tuple[bool, str]:
    """Sets up one version and checks it; returns whether it is as it should be, and the result."""
    try:
        host = own_host(version, ENVIRONMENT)
    except SetupError as failure:
        return False, str(failure)
    if as_numbers(version) >= as_numbers(supported_floor()):
        return run_tests(host, tests)
    command = [str(host.python), __file__, "--check-refusal", str(host.comfyui)]
    refused = subprocess.run(command, check=False).returncode == 0
    return refused, f'refused with "{REFUSAL}"' if refused else "not refused clearly"


def main() -> None:
    """Runs the matrix, writes the report, exits non-zero if a version is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", nargs="+", choices=RELEASES, default=list(RELEASES))
    parser.add_argument(
        "--tests", nargs="+", default=["tests/host", "tests/browser"], help="what pytest runs"
    )
    parser.add_argument("--report", type=Path, default=REPO / "docs" / "version_matrix.md")
    parser.add_argument("--check-refusal", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check_refusal is not None:
        check_refusal(arguments.check_refusal)
        return

    rows = []
    good = True
    for version in arguments.versions:
        print(f"== ComfyUI {version}", flush=True)
        started = time.monotonic()
        as_wanted, result = check_version(version, arguments.tests)
        minutes = (time.monotonic() - started) / 60
        good = good and as_wanted
        rows.append(
            f"| {version} | {result} | {'yes' if as_wanted else '**no**'} | {minutes:.1f} |"
        )
    python = ".".join(map(str, sys.version_info[:3]))
    lines = [
        "# ComfyUI versions",
        "",
        f"The supported floor is ComfyUI {supported_floor()}. Made by "
        f"`python3 tools/version_matrix.py` on Python {python}, which runs "
        f"`{' '.join(arguments.tests)}` on each version.",
        "",
        "| ComfyUI | result | as it should be | minutes, with set-up |",
        "|---|---|---|---|",
        *rows,
    ]
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(rows))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
