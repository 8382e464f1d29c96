"""Runs a workflow in API format on a real ComfyUI with this plugin and saves its pictures."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyui_client import TEXT_EVENT, Client
from comfyui_queue import ComfyUIError, Prompt, title
from comfyui_server import Server
from in_process import has_gpu
from setup_host import REPO, find_comfyui

TRAINING = "PFStorerTrainIdentityAdapter"
TEXT_SECONDS = 10  # between two lines of text, where the output is no terminal


@dataclass
class Results:
    """What a workflow gave.

    Attributes:
        pictures: their files.
        texts: by the node's title, what output nodes show.
    """

    pictures: list[Path]
    texts: dict[str, str]


class Progress:
    """Prints one line per node, with its steps or its text where it reports them.

    A terminal shows every change in place; elsewhere what is new in a text is printed now and then,
    and all of it when the node has ended.

    Args:
        prompt: the workflow in API format, for the nodes' titles.
    """

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.line_open = False
        self._in_place = sys.stdout.isatty()
        self._last_text = 0.0
        self._text: list[str] = []
        self._told: set[str] = set()

    def __call__(self, event: dict[str, Any]) -> None:
        data = event["data"]
        if event["type"] == "executing":
            self.end_line()
            if data.get("node") is not None:
                print(f"  {title(self.prompt, data['node'])}", end="", flush=True)
                self.line_open = True
        elif event["type"] == TEXT_EVENT and self.line_open and data["text"]:
            self._text = data["text"].splitlines()
            self._show_text(title(self.prompt, data["node"]))
        elif event["type"] == "progress" and self.line_open and self._in_place:
            if not self._text:  # which says it better
                steps = f"{data['value']:g}/{data['max']:g}"
                print(
                    f"\r  {title(self.prompt, str(data.get('node')))} {steps}", end="", flush=True
                )

    def _show_text(self, name: str) -> None:
        if self._in_place:
            new = self._take_new()
            if new:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r{f'  {name}: {new[-1]}'[:width].ljust(width)}", end="", flush=True)
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


def without_training(client: Client, prompt: Prompt) -> Prompt:
    """Returns the part of a prompt that needs no training, {} if it has none or gives no output."""
    late = {node for node, entry in prompt.items() if entry["class_type"] == TRAINING}
    if not late:
        return {}
    waiting = late
    while waiting:
        waiting = {
            node
            for node, entry in prompt.items()
            if node not in late
            and any(isinstance(x, list) and x[0] in late for x in entry["inputs"].values())
        }
        late = late | waiting
    early = {node: entry for node, entry in prompt.items() if node not in late}
    infos = (client.object_info(entry["class_type"]) for entry in early.values())
    return early if any(info and info["output_node"] for info in infos) else {}


def run_on(client: Client, prompt: Prompt, output: Path, started: float) -> Results:
    """Runs a prompt, what needs no training first, and saves its pictures in `output`.

    Args:
        client: of the server.
        prompt: by node id, `{"class_type", "inputs", "_meta"}`.
        output: folder for the pictures.
        started: since when it is told how long the first pictures took, of `time.monotonic`.

    Raises:
        ComfyUIError: ComfyUI does not accept the prompt, or failed, or a node did.
    """
    early = without_training(client, prompt)
    if early:
        paths = _run_part(client, early, output).pictures
        minutes = (time.monotonic() - started) / 60
        print(f"First {len(paths)} picture(s) after {minutes:.1f} min, in {output}", flush=True)
    return _run_part(client, prompt, output)  # ComfyUI has kept what was done


def _run_part(client: Client, prompt: Prompt, output: Path) -> Results:
    progress = Progress(prompt)
    run = client.run(prompt, timeout=3600, on_event=progress)
    progress.end_line()
    if run.status != "success":
        error = run.error or {"node_type": "ComfyUI", "exception_message": run.status}
        raise ComfyUIError(f"{error['node_type']}: {error['exception_message']}")
    results = Results([], {})
    for node_id, result in run.outputs.items():
        name = title(prompt, node_id)
        for number, image in enumerate(result.get("images", [])):
            path = output / file_name(name, number, image["filename"])
            client.download(image, path)
            results.pictures.append(path)
        if "text" in result:
            results.texts[name] = "\n".join(result["text"])
    return results


def run_workflow(
    prompt: Prompt, output: Path, comfyui: Path, inputs: Path | None = None
) -> Results:
    """Runs a workflow in API format on a ComfyUI of its own.

    Args:
        prompt: by node id, `{"class_type", "inputs", "_meta"}`.
        output: folder for its pictures and for the adapters that it saves.
        comfyui: folder of ComfyUI.
        inputs: folder of what ComfyUI shall find in its input folder.

    Raises:
        ComfyUIError: ComfyUI does not accept the workflow, or failed, or a node did; the server's
            log is then in `output`.
    """
    started = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    cpu = not has_gpu()
    with tempfile.TemporaryDirectory(prefix="pfstorer-") as base:
        if inputs is not None:
            shutil.copytree(inputs, Path(base, "input"))
        server = Server(comfyui, Path(sys.executable), Path(base), cpu=cpu)
        try:
            print(f"Starting ComfyUI on the {'CPU' if cpu else 'GPU'}", flush=True)
            with server, Client(server.url) as client:
                results = run_on(client, prompt, output, started)
        except ComfyUIError:
            if server.log_path.is_file():
                shutil.copy(server.log_path, output / "comfyui.log")
            raise
        for adapter in Path(base, "models", "pfstorer_identities").glob("*.safetensors"):
            shutil.copy(adapter, output)
    return results


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
        prompt = json.loads(arguments.workflow.read_text(encoding="utf-8"))
        paths = run_workflow(prompt, arguments.output, arguments.comfyui).pictures
    except ComfyUIError as failure:
        sys.exit(f"error: {failure}")
    print(f"{len(paths)} picture(s) in {(time.monotonic() - started) / 60:.1f} min:")
    for path in paths:
        print(f"  {path}")


if __name__ == "__main__":
    main()
