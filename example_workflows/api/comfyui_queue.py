"""Talks to a running ComfyUI over HTTP; needs the standard library only."""

from __future__ import annotations

import hashlib
import http.client
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

POLL_SECONDS = 1.0
STOP_SECONDS = 120  # in which an interrupted prompt ends and a training keeps its state

Prompt = dict[str, dict[str, Any]]  # by node id: class_type, inputs, _meta


class ComfyUIError(Exception):
    """What went wrong, in a sentence for the user."""


class PromptRefused(ComfyUIError):
    """The server does not take a prompt as it is.

    Args:
        lines: what is wrong with it, a sentence each.
        node_errors: by node id, the server's list of errors and the class of the node.
    """

    def __init__(self, lines: list[str], node_errors: dict[str, Any]) -> None:
        super().__init__("\n".join(["ComfyUI refused the prompt.", *lines]))
        self.node_errors = node_errors


class ComfyUI:
    """A ComfyUI server.

    Args:
        url: its address, for example http://127.0.0.1:8188.
    """

    def __init__(self, url: str) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")

    def request(
        self, path: str, data: bytes | None = None, kind: str = "application/json"
    ) -> bytes:
        """Sends GET, or POST where there is data, and returns the answer.

        Raises:
            ComfyUIError: no server answers.
            urllib.error.HTTPError: the server refuses.
        """
        try:
            call = urllib.request.Request(self.url + path, data, {"Content-Type": kind})
            with urllib.request.urlopen(call, timeout=120) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ComfyUIError(
                f"No ComfyUI answers at {self.url} ({reason}); start it, or give its address "
                "with --server."
            ) from error

    def get(self, path: str) -> Any:
        """Returns what the server answers to GET, as JSON."""
        try:
            return json.loads(self.request(path))
        except (urllib.error.HTTPError, ValueError) as error:
            raise ComfyUIError(
                f"{self.url} does not answer as ComfyUI does ({error}); check the address."
            ) from error

    def post(self, path: str, body: Any) -> Any:
        """Returns what the server answers to POST of JSON, as JSON; None where it says nothing."""
        answer = self.request(path, json.dumps(body).encode())
        return json.loads(answer) if answer else None

    def object_info(self, node_type: str) -> dict[str, Any] | None:
        """Returns what the server knows of a type of node, None if it knows no such type."""
        info: dict[str, Any] = self.get(f"/object_info/{node_type}")
        return info.get(node_type)

    def require_nodes(self, prompt: Prompt) -> None:
        """Checks that the server has all nodes of a prompt.

        Raises:
            ComfyUIError: it has not.
        """
        types = {node["class_type"] for node in prompt.values()}
        missing = [t for t in sorted(types) if self.object_info(t) is None]
        if missing:
            raise ComfyUIError(
                f"The ComfyUI at {self.url} has no node {', '.join(missing)}; install or update "
                "comfyui-pfstorer and ComfyUI, and start it again."
            )

    def upload(self, photo: Path) -> str:
        """Uploads a picture and returns the name that Load Image takes.

        It is named after its content, so that the same picture is there only once.
        """
        try:
            content = photo.read_bytes()
        except OSError as error:
            raise ComfyUIError(f"{photo} cannot be read ({error.strerror}).") from error
        name = f"{hashlib.sha256(content).hexdigest()[:20]}{photo.suffix.lower()}"
        boundary = uuid.uuid4().hex
        fields = {"subfolder": "pfstorer", "overwrite": "true"}
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
            for key, value in fields.items()
        ]
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = "".join(parts).encode() + content + f"\r\n--{boundary}--\r\n".encode()
        try:
            answer = self.request(
                "/upload/image", body, f"multipart/form-data; boundary={boundary}"
            )
        except urllib.error.HTTPError as error:
            raise ComfyUIError(f"ComfyUI did not take {photo}: {error}.") from error
        taken = json.loads(answer)
        return f"{taken['subfolder']}/{taken['name']}"

    def queue(self, prompt: Prompt, **more: Any) -> str:
        """Queues a prompt and returns its id.

        Args:
            prompt: in API format.
            more: what else ComfyUI shall know, for example `client_id`.

        Raises:
            PromptRefused: the server refuses all or any part of it.
        """
        try:
            answer = self.post("/prompt", {"prompt": prompt, **more})
        except urllib.error.HTTPError as refusal:
            try:
                answer = json.loads(refusal.read())
            except ValueError:
                raise ComfyUIError(f"ComfyUI refused the prompt ({refusal}).") from refusal
        node_errors = answer.get("node_errors", {})
        # It takes a prompt of which some outputs are valid, and would run these alone.
        if node_errors and "prompt_id" in answer:
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            self.post("/interrupt", {"prompt_id": answer["prompt_id"]})
        lines = [
            f"{title(prompt, node)}: {error['message']}: {error['details']}."
            for node, found in node_errors.items()
            for error in found["errors"]
        ]
        if lines or "prompt_id" not in answer:
            lines = lines or [str(answer.get("error", {}).get("message", answer))]
            raise PromptRefused(lines, node_errors)
        return str(answer["prompt_id"])

    def wait(self, prompt: Prompt, prompt_id: str) -> dict[str, Any]:
        """Waits until a prompt has ended, shows how long, and returns the nodes' outputs.

        Raises:
            ComfyUIError: a node failed, or the prompt was interrupted or lost.
        """
        started = 0.0
        while True:
            running, before = self._place(prompt_id)
            ended = self.history(prompt_id)
            if ended:
                _show("")
                return _outputs(prompt, ended)
            if running:
                started = started or time.monotonic()
                minutes, seconds = divmod(int(time.monotonic() - started), 60)
                _show(f"Running for {minutes}:{seconds:02}")
            elif before is not None:
                _show(f"Waiting for {before} before it in the queue")
            else:
                raise ComfyUIError(
                    "ComfyUI no longer knows the prompt: it was removed from the queue, or ComfyUI "
                    "was started again; run the same command again."
                )
            time.sleep(POLL_SECONDS)

    def history(self, prompt_id: str) -> dict[str, Any]:
        """Returns what the server keeps of a prompt that has ended, {} if it has not."""
        entries: dict[str, dict[str, Any]] = self.get(f"/history/{prompt_id}")
        return entries.get(prompt_id, {})

    def stop(self, prompt_id: str) -> None:
        """Interrupts a prompt, or takes it from the queue, and waits until it has ended."""
        self.post("/queue", {"delete": [prompt_id]})
        self.post("/interrupt", {"prompt_id": prompt_id})
        deadline = time.monotonic() + STOP_SECONDS
        while self._place(prompt_id)[0] and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def view(self, picture: dict[str, str]) -> bytes:
        """Returns the file of a picture of a node's output."""
        try:
            return self.request(f"/view?{urllib.parse.urlencode(picture)}")
        except urllib.error.HTTPError as error:
            raise ComfyUIError(
                f"ComfyUI made {picture['filename']} but does not give it ({error})."
            ) from error

    def download(self, picture: dict[str, str], path: Path) -> None:
        """Saves a picture of a node's output."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.view(picture))

    def _place(self, prompt_id: str) -> tuple[bool, int | None]:
        """Returns whether a prompt runs, and how many come before it, None if it is not waiting."""
        queue = self.get("/queue")
        running = any(entry[1] == prompt_id for entry in queue["queue_running"])
        waiting = [entry[1] for entry in sorted(queue["queue_pending"], key=lambda e: e[0])]
        if prompt_id not in waiting:
            return running, None
        return running, waiting.index(prompt_id) + len(queue["queue_running"])


def read_prompt(name: str) -> Prompt:
    """Returns one of the prompts that lie beside this file."""
    prompt: Prompt = json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return prompt


def find(prompt: Prompt, class_type: str) -> str:
    """Returns the id of the first node of a type."""
    return next(node for node, entry in prompt.items() if entry["class_type"] == class_type)


def title(prompt: Prompt, node: str) -> str:
    """Returns what a node is called in the workflow."""
    entry = prompt.get(node, {})
    return str(entry.get("_meta", {}).get("title") or entry.get("class_type", node))


def _outputs(prompt: Prompt, ended: dict[str, Any]) -> dict[str, Any]:
    status = ended.get("status") or {}
    if status.get("status_str") == "success":
        outputs: dict[str, Any] = ended["outputs"]
        return outputs
    for kind, data in status.get("messages", []):
        if kind == "execution_error":
            node = title(prompt, str(data["node_id"]))
            raise ComfyUIError(f"{node}: {str(data['exception_message']).strip()}")
    raise ComfyUIError("The prompt was interrupted.")


def _show(line: str) -> None:
    """Shows a line in place; nothing where the output is no terminal."""
    if sys.stdout.isatty():
        print(f"\r{line:<60}", end="" if line else "\r", flush=True)
