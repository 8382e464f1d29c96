"""Runs a workflow in API format on a real ComfyUI with this plugin and saves its pictures."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from comfyui_client import REPO, TEXT_EVENT, Client, PromptRefused, Server, ServerError
from setup_host import find_comfyui

TEXT_SECONDS = 10  # between two lines of text, where the output is no terminal


class Progress:
    """Prints one line per node, with its steps or its text where it reports them.

    A terminal shows every change in place; elsewhere what is new in a text is printed now and then,
    and all of it when the node has ended.

    Args:
        prompt: the workflow in API format, for the nodes' titles.
    """

    def __init__(self, prompt: dict[str, Any]) -> None:
        self.prompt = prompt
        self.line_open = False
        self._in_place = sys.stdout.isatty()
        self._last_text = 0.0
        self._text: list[str] = []
        self._told: set[str] = set()

    def title(self, node_id: str) -> str:
        """Returns what a node is called in the workflow."""
        node = self.prompt.get(node_id, {})
        return str(node.get("_meta", {}).get("title") or node.get("class_type", node_id))

    def __call__(self, event: dict[str, Any]) -> None:
        data = event["data"]
        if event["type"] == "executing":
            self.end_line()
            if data.get("node") is not None:
                print(f"  {self.title(data['node'])}", end="", flush=True)
                self.line_open = True
        elif event["type"] == TEXT_EVENT and self.line_open and data["text"]:
            self._text = data["text"].splitlines()
            self._show_text(self.title(data["node"]))
        elif event["type"] == "progress" and self.line_open and self._in_place:
            if not self._text:  # which says it better
                steps = f"{data['value']:g}/{data['max']:g}"
                print(f"\r  {self.title(str(data.get('node')))} {steps}", end="", flush=True)

    def _show_text(self, title: str) -> None:
        if self._in_place:
            new = self._take_new()
            if new:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r{f'  {title}: {new[-1]}'[:width].ljust(width)}", end="", flush=True)
        elif time.monotonic() - self._last_text >= TEXT_SECONDS:
            self._print_new()

    def _print_new(self) -> None:
        self._last_text = time.monotonic()
        for line in self._take_new():
            print(f"\n    {line}", end="", flush=True)

    def _take_new(self) -> list[str]:
        new = [line for line in self._text if line not in self._told]
        self._told.update(new)
        return new

    def end_line(self) -> None:
        """Ends the current node's line."""
        if self.line_open:
            if not self._in_place:
                self._print_new()
            print(flush=True)
        self.line_open = False
        self._text, self._told = [], set()


def file_name(title: str, number: int, original: str) -> str:
    """Returns a file name that says which node of the workflow a picture comes from."""
    words = "_".join(re.findall(r"\w+", title.lower()))
    return f"{words}{f'_{number + 1}' if number else ''}{Path(original).suffix}"


def run_workflow(workflow: Path, output: Path, comfyui: Path) -> list[Path]:
    """Runs a workflow and returns the paths of its pictures in `output`.

    Raises:
        PromptRefused: ComfyUI does not accept the workflow.
        ServerError: ComfyUI failed, or a node did; the server's log is then in `output`.
    """
    prompt = json.loads(workflow.read_text(encoding="utf-8"))
    output.mkdir(parents=True, exist_ok=True)
    cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    with tempfile.TemporaryDirectory(prefix="pfstorer-") as base:
        server = Server(comfyui, Path(sys.executable), Path(base), cpu=cpu)
        try:
            print(f"Starting ComfyUI on the {'CPU' if cpu else 'GPU'}", flush=True)
            with server, Client(server.url) as client:
                progress = Progress(prompt)
                run = client.run(prompt, timeout=3600, on_event=progress)
                progress.end_line()
                if run.status != "success":
                    error = run.error or {"node_type": "ComfyUI", "exception_message": run.status}
                    raise ServerError(f"{error['node_type']}: {error['exception_message']}")
                paths = []
                for node_id, result in run.outputs.items():
                    for number, image in enumerate(result.get("images", [])):
                        name = file_name(progress.title(node_id), number, image["filename"])
                        paths.append(output / name)
                        paths[-1].write_bytes(client.download(image))
                return paths
        except (PromptRefused, ServerError):
            if server.log_path.is_file():
                shutil.copy(server.log_path, output / "comfyui.log")
            raise


def main() -> None:
    """Reads the command line, runs the workflow and prints where the pictures are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workflow", type=Path, help="workflow in API format (.json)")
    parser.add_argument("--output", type=Path, default=REPO / "output", help="folder for pictures")
    parser.add_argument(
        "--comfyui", type=Path, default=find_comfyui(), help="folder of ComfyUI (default: found)"
    )
    arguments = parser.parse_args()
    if arguments.comfyui is None:
        parser.error("no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH")
    started = time.monotonic()
    try:
        paths = run_workflow(arguments.workflow, arguments.output, arguments.comfyui)
    except (PromptRefused, ServerError) as failure:
        sys.exit(f"error: {failure}")
    print(f"{len(paths)} picture(s) in {(time.monotonic() - started) / 60:.1f} min:")
    for path in paths:
        print(f"  {path}")


if __name__ == "__main__":
    main()
