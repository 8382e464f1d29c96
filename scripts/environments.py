"""Virtual environments and what is installed into them; needs the standard library alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


class SetupError(RuntimeError):
    """The set-up cannot go on; the message says what to do."""


def run(command: Sequence[str | Path], error: str) -> None:
    """Runs a command with its output shown.

    Raises:
        SetupError: with `error` as its sentence, when the command fails or does not exist.
    """
    try:
        subprocess.run([str(part) for part in command], check=True)
    except (OSError, subprocess.CalledProcessError) as failure:
        raise SetupError(f"{error} ({failure})") from failure


def environment_python(folder: Path) -> Path:
    """Returns the Python of a virtual environment's folder."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(python: Path, requirements: Sequence[str], constraints: Sequence[str] = ()) -> None:
    """Installs requirements with uv, or with pip where uv is missing or fails.

    Raises:
        SetupError: neither could.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        arguments: list[str | Path] = ["-r", wanted]
        if constraints:
            limits = Path(folder, "constraints.txt")
            limits.write_text("\n".join(constraints) + "\n", encoding="utf-8")
            arguments += ["-c", limits]
        uv = find_uv(python)
        if uv is not None:
            try:
                run([*uv, "pip", "install", "--python", python, *arguments], "uv failed")
                return
            except SetupError as failure:
                print(f"{failure}; trying pip")
        run(
            [python, "-m", "pip", "install", "--disable-pip-version-check", *arguments],
            f"The packages could not be installed into the environment of {python}",
        )


def find_uv(python: Path) -> list[str | Path] | None:
    """Returns the command that starts uv: the one on PATH, or else the environment's own."""
    on_path = shutil.which("uv")
    if on_path:
        return [on_path]
    probe = [str(python), "-m", "uv", "--version"]
    found = subprocess.run(probe, check=False, capture_output=True).returncode == 0
    return [python, "-m", "uv"] if found else None


def requirement_lines(path: Path) -> list[str]:
    """Returns the requirements of a file, without comments and blank lines."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def requirement_name(requirement: str) -> str:
    """Returns the normalised package name of a requirement."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""


def create_environment(folder: Path) -> None:
    """Creates a virtual environment that has pip.

    Raises:
        SetupError: this Python can neither make one nor install uv, which can.
    """
    venv = subprocess.run([sys.executable, "-m", "venv", str(folder)], check=False)
    if venv.returncode == 0:
        return
    # Debian's python3 lacks ensurepip, so that venv fails; uv brings a pip of its own.
    shutil.rmtree(folder, ignore_errors=True)
    advice = (
        f"{sys.executable} cannot make a virtual environment; "
        "install uv, or Debian's python3-venv, and try again"
    )
    uv = shutil.which("uv")
    if uv:
        run([uv, "venv", "--seed", "--python", sys.executable, folder], advice)
        return
    with tempfile.TemporaryDirectory() as tools:
        run([sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, "uv"], advice)
        uv = Path(tools, "bin", "uv")
        run([uv, "venv", "--seed", "--python", sys.executable, folder], advice)


def is_environment(python: Path) -> bool:
    """Tells whether a Python runs and belongs to a virtual environment."""
    probe = [str(python), "-c", "import sys; sys.exit(sys.prefix == sys.base_prefix)"]
    return python.is_file() and subprocess.run(probe, check=False).returncode == 0
