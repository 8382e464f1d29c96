"""Listens to what the queue of a ComfyUI does.

The requests are those of the examples for users, `example_workflows/api/comfyui_queue.py`. They do
without the websocket, which the standard library has no part for; here it is.
"""

from __future__ import annotations

import asyncio
import json
import queue
import struct
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from setup_host import REPO

sys.path.append(str(REPO / "example_workflows" / "api"))

from comfyui_queue import ComfyUI, ComfyUIError, Prompt

TEXT, PREVIEW_WITH_METADATA = 3, 4  # ComfyUI's BinaryEventTypes
TEXT_EVENT = "progress_text"  # as the frontend calls it


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
        """References to all pictures saved or shown, for `Client.view`."""
        return [image for output in self.outputs.values() for image in output.get("images", [])]


class Client(ComfyUI):
    """One client of a ComfyUI server, listening to its websocket until closed.

    Args:
        url: the server's address, without a slash at the end.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
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
            raise ComfyUIError(f"no websocket connection to {url}")

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

    def queue(self, prompt: Prompt, **extra_data: Any) -> str:
        """Queues a prompt in API format, so that its events come here, and returns its id.

        Args:
            prompt: by node id, `{"class_type", "inputs"}`.
            extra_data: for example `preview_method="latent2rgb"`.

        Raises:
            PromptRefused: the prompt as a whole or any part of it is invalid.
        """
        return super().queue(prompt, client_id=self.client_id, extra_data=extra_data)

    def follow(
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
            ComfyUIError: the time is over, or the connection was lost.
        """
        run = Run(prompt_id)
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = self._received.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                raise ComfyUIError(f"the prompt did not end within {timeout:g} s") from None
            if message is None:
                self._received.put(None)
                raise ComfyUIError("the connection to ComfyUI was lost")
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
        prompt: Prompt,
        timeout: float = 300,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        **extra_data: Any,
    ) -> Run:
        """Queues a prompt and waits for its end; see `queue` and `follow`."""
        return self.follow(self.queue(prompt, **extra_data), timeout, on_event)

    def interrupt(self) -> None:
        """Interrupts the prompt that is running."""
        self.post("/interrupt", {})
