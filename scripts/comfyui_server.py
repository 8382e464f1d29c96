"""Starts a real ComfyUI with this plugin."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from setup_host import REPO

sys.path.append(str(REPO / "example_workflows" / "api"))

from comfyui_queue import ComfyUI, ComfyUIError

PACK = "comfyui-pfstorer"  # the plugin's folder name in custom_nodes, as the registry installs it
LEFT_OUT = (".git", ".host", "output", "runs", "__pycache__")

START_SECONDS = 120


class ServerError(ComfyUIError):
    """The server did not start, stopped, or did not answer in time."""


def link_pack(base: Path) -> Path:
    """Links this plugin into the `custom_nodes` of a base directory and returns its place there."""
    place = base / "custom_nodes" / PACK
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():  # of an earlier start
        return place
    try:
        place.symlink_to(REPO, target_is_directory=True)
    except OSError:  # Windows allows links only to administrators and developers
        shutil.copytree(REPO, place, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return place


class Server:
    """A ComfyUI process with this plugin alone, on a free port of this machine.

    Use it as a context manager: it is ready inside the block and stopped after it.

    Args:
        comfyui: the folder of ComfyUI.
        python: the Python that runs it.
        base: scratch folder for its models, input, output and settings.
        cpu: run without a GPU.
        options: further command-line options of ComfyUI.
    """

    # Threads that spin long slow everything down where cores are shared; without any spinning a
    # training on two free cores takes half as long again.
    environment: ClassVar[dict[str, str]] = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}

    def __init__(
        self, comfyui: Path, python: Path, base: Path, *, cpu: bool, options: Sequence[str] = ()
    ) -> None:
        self.comfyui = comfyui
        self.python = python
        self.base = base
        self.log_path = base / "comfyui.log"
        self.options = [*(["--cpu"] if cpu else []), *options]
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log(self) -> str:
        """Returns everything that the server has printed."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Starts the process and waits until it answers.

        Raises:
            ServerError: it ended, or did not answer within START_SECONDS.
        """
        link_pack(self.base)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [self.python, self.comfyui / "main.py", "--listen", "127.0.0.1"]
        command += ["--port", port, "--base-directory", self.base]
        # Without its own database all servers of one ComfyUI would share one.
        command += ["--database-url", f"sqlite:///{self.base / 'comfy.db'}"]
        command += ["--disable-auto-launch", "--disable-api-nodes", *self.options]
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self.comfyui,
                env={**self.environment, **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=os.name != "nt",
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"ComfyUI ended while starting:\n{self.log()[-4000:]}")
            try:
                ComfyUI(self.url).get("/system_stats")
                return
            except ComfyUIError:
                time.sleep(0.25)
        raise ServerError(f"ComfyUI did not answer within {START_SECONDS} s:\n{self.log()[-4000:]}")

    def stop(self) -> None:
        """Stops the process and everything that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        self._signal(process, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            self._signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait(10)

    def kill(self) -> None:
        """Ends the process and what it started at once (SIGKILL), as a crash would.

        Another thread may call it. `start` starts a new process in the same folders.
        """
        process, self._process = self._process, None
        if process is not None:
            self._signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait(10)

    @property
    def pid(self) -> int:
        """The process's number.

        Raises:
            ServerError: it does not run.
        """
        if self._process is None:
            raise ServerError("ComfyUI does not run")
        return self._process.pid

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], number: int) -> None:
        if os.name == "nt":
            process.terminate()
            return
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
