"""Starts a real ComfyUI with this plugin and drives it through its API queue."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

REPO = Path(__file__).absolute().parent.parent
PACK = "comfyui-pfstorer"  # the plugin's folder name in custom_nodes, as the registry installs it
LEFT_OUT = (".git", ".host", "output", "runs", "__pycache__")

START_SECONDS = 120
TEXT, PREVIEW_WITH_METADATA = 3, 4  # ComfyUI's BinaryEventTypes
TEXT_EVENT = "progress_text"  # as the frontend calls it


class ServerError(RuntimeError):
    """The server did not start, stopped, or did not answer in time."""


class PromptRefused(RuntimeError):
    """The queue did not take a prompt as it is.

    Attributes:
        error: the server's own sentence, if any.
        node_errors: by node id, the list of errors and the class of the node.
    """

    def __init__(self, error: Any, node_errors: dict[str, Any]) -> None:
        super().__init__(f"{error} {json.dumps(node_errors)}")
        self.error = error
        self.node_errors = node_errors


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
                # Threads that spin long slow everything down where cores are shared; without any
                # spinning a training on two free cores takes half as long again.
                env={"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000", **os.environ},
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
                urllib.request.urlopen(f"{self.url}/system_stats", timeout=5).close()
                return
            except OSError:
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


@dataclass
class Run:
    """What one prompt did.

    Attributes:
        prompt_id: the queue's name for it.
        status: "success", "error" or "interrupted".
        events: the websocket's messages about it, in order, each `{"type", "data"}`; a node's line
            of text is of type "progress_text" with the data `{"node", "text"}`.
        previews: pictures sent while it ran, as (metadata, JPEG or PNG bytes).
        outputs: by node id, what the history says of its output.
    """

    prompt_id: str
    status: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    previews: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """Returns the data of all events of one type."""
        return [event["data"] for event in self.events if event["type"] == kind]

    @property
    def error(self) -> dict[str, Any] | None:
        """The failing node's `node_id`, `node_type`, `exception_type` and `exception_message`."""
        return next(iter(self.of_type("execution_error")), None)

    @property
    def images(self) -> list[dict[str, str]]:
        """References to all pictures saved or shown, for `Client.download`."""
        return [image for output in self.outputs.values() for image in output.get("images", [])]


class Client:
    """One client of a ComfyUI server, listening to its websocket until closed.

    Args:
        url: the server's address, without a slash at the end.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.client_id = uuid.uuid4().hex
        # Events and previews; None once the connection is gone.
        self._received: queue.Queue[dict[str, Any] | tuple[dict[str, Any], bytes] | None] = (
            queue.Queue()
        )
        self._loop = asyncio.new_event_loop()
        self._connected = threading.Event()
        # A thread of its own, so that the caller may itself live in an event loop.
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()
        if not self._connected.wait(30):
            raise ServerError(f"no websocket connection to {url}")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the websocket."""
        if self._listening.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._listening.join(10)

    def _listen(self) -> None:
        self._task = self._loop.create_task(self._receive())
        try:
            self._loop.run_until_complete(self._task)
        except (asyncio.CancelledError, aiohttp.ClientError):
            pass
        finally:
            self._received.put(None)
            self._loop.close()

    async def _receive(self) -> None:
        address = f"{self.url}/ws?clientId={self.client_id}"
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(address, max_msg_size=0) as socket_:
                # Without it previews come without their prompt and node.
                features = {"supports_preview_metadata": True}
                await socket_.send_json({"type": "feature_flags", "data": features})
                self._connected.set()
                async for message in socket_:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        self._received.put(json.loads(message.data))
                    elif message.type == aiohttp.WSMsgType.BINARY:
                        kind, length = struct.unpack(">II", message.data[:8])
                        if kind == PREVIEW_WITH_METADATA:
                            metadata = json.loads(message.data[8 : 8 + length])
                            self._received.put((metadata, message.data[8 + length :]))
                        elif kind == TEXT:
                            node, text = message.data[8 : 8 + length], message.data[8 + length :]
                            data = {"node": node.decode(), "text": text.decode()}
                            self._received.put({"type": TEXT_EVENT, "data": data})

    def request(self, path: str, body: Any = None) -> bytes:
        """Sends GET, or POST where there is a body, and returns the answer.

        Raises:
            urllib.error.HTTPError: the status is not 2xx.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        call = urllib.request.Request(f"{self.url}{path}", data=data, headers=headers)
        with urllib.request.urlopen(call, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def get_json(self, path: str) -> Any:
        """Returns the answer to GET, read as JSON."""
        return json.loads(self.request(path))

    def object_info(self, node_id: str) -> dict[str, Any] | None:
        """Returns what the server knows of a node type, None if it knows no such type."""
        info: dict[str, Any] = self.get_json(f"/object_info/{node_id}")
        return info.get(node_id)

    def queue(self, prompt: dict[str, Any], **extra_data: Any) -> str:
        """Queues a prompt in API format and returns its id.

        Args:
            prompt: by node id, `{"class_type", "inputs"}`.
            extra_data: for example `preview_method="latent2rgb"`.

        Raises:
            PromptRefused: the prompt as a whole or any part of it is invalid.
        """
        body = {"prompt": prompt, "client_id": self.client_id, "extra_data": extra_data}
        try:
            answer = json.loads(self.request("/prompt", body))
        except urllib.error.HTTPError as refusal:
            answer = json.loads(refusal.read())
            raise PromptRefused(answer.get("error"), answer.get("node_errors", {})) from refusal
        prompt_id: str = answer["prompt_id"]
        if answer["node_errors"]:
            # ComfyUI would run the outputs that are valid.
            self.request("/queue", {"delete": [prompt_id]})
            self.request("/interrupt", {"prompt_id": prompt_id})
            raise PromptRefused(None, answer["node_errors"])
        return prompt_id

    def wait(
        self,
        prompt_id: str,
        timeout: float = 300,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> Run:
        """Waits until a prompt has ended and returns what it did, failed or not.

        Args:
            prompt_id: as returned by `queue`.
            timeout: seconds.
            on_event: called with each of the prompt's events as it comes.

        Raises:
            ServerError: the time is over, or the connection was lost.
        """
        run = Run(prompt_id)
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = self._received.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                raise ServerError(f"the prompt did not end within {timeout:g} s") from None
            if message is None:
                self._received.put(None)
                raise ServerError("the connection to ComfyUI was lost")
            if isinstance(message, tuple):
                if message[0].get("prompt_id", prompt_id) == prompt_id:
                    run.previews.append(message)
                continue
            data = message.get("data", {})
            # The server does not say to which prompt a text belongs; it runs one at a time.
            if message["type"] != TEXT_EVENT and data.get("prompt_id") != prompt_id:
                continue
            run.events.append(message)
            if on_event is not None:
                on_event(message)
            # Sent after the history is written, so the outputs are there to be read.
            if message["type"] == "executing" and data.get("node") is None:
                break
        ends = ("success", "error", "interrupted")
        run.status = next(end for end in ends if run.of_type(f"execution_{end}"))
        run.outputs = self.history(prompt_id).get("outputs", {})
        return run

    def run(
        self,
        prompt: dict[str, Any],
        timeout: float = 300,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        **extra_data: Any,
    ) -> Run:
        """Queues a prompt and waits for its end; see `queue` and `wait`."""
        return self.wait(self.queue(prompt, **extra_data), timeout, on_event)

    def interrupt(self) -> None:
        """Interrupts the prompt that is running."""
        self.request("/interrupt", {})

    def history(self, prompt_id: str) -> dict[str, Any]:
        """Returns the history's entry of a prompt, empty if there is none."""
        entries: dict[str, dict[str, Any]] = self.get_json(f"/history/{prompt_id}")
        return entries.get(prompt_id, {})

    def download(self, image: dict[str, str]) -> bytes:
        """Returns the file that an entry of `Run.images` stands for."""
        return self.request(f"/view?{urllib.parse.urlencode(image)}")
