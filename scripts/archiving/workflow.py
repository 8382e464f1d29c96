"""The workflow that an archive is restored with: where the photo enters, and what comes out."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setup_host import REPO

sys.path.append(str(REPO / "example_workflows" / "api"))

from comfyui_queue import Prompt, title

from pfstorer_core.errors import PFStorerError, first_line

LOAD, SAVE = "LoadImage", "SaveImage"
PEOPLE = ("PFStorerRestorePeople", "PFStorerMatchPeople")
LOAD_IDENTITY = "PFStorerLoadIdentity"
IDENTITIES = "archive"  # folder of the given adapters, in ComfyUI's folder of adapters
MOST_IDENTITIES = 24  # inputs of these nodes


@dataclass(frozen=True)
class Workflow:
    """A workflow in API format, with one node that loads the photo and one that gives the result.

    Attributes:
        prompt: by node id, `{"class_type", "inputs", "_meta"}`.
        entry: id of the Load Image.
        result: id of the Save Image.
    """

    prompt: Prompt
    entry: str
    result: str

    def of(self, picture: str) -> Prompt:
        """Returns the prompt for a picture of ComfyUI's input folder."""
        prompt = copy.deepcopy(self.prompt)
        prompt[self.entry]["inputs"]["image"] = picture
        # Into ComfyUI's temporary folder, and with less work to pack it: it is read again at once.
        images = self.prompt[self.result]["inputs"]["images"]
        prompt[self.result] |= {"class_type": "PreviewImage", "inputs": {"images": images}}
        return prompt

    def described(self, **more: Any) -> str:
        """Returns what the result depends on beside the photo, as JSON: prompt and `more`."""
        nodes = {
            node: {"class_type": entry["class_type"], "inputs": dict(entry["inputs"])}
            for node, entry in self.prompt.items()
        }
        nodes[self.entry]["inputs"] = {}
        nodes[self.result]["inputs"].pop("filename_prefix", None)
        return json.dumps({"workflow": nodes, "result": self.result, **more}, sort_keys=True)


def read_workflow(path: Path, changes: Sequence[str] = ()) -> Workflow:
    """Reads a workflow and changes inputs of it.

    Args:
        path: file in API format.
        changes: `NODE.INPUT=VALUE` each: a node's id, class or title, an input that it has, and
            the value as JSON, or else as text.

    Raises:
        PFStorerError: no workflow in API format, not one way in and out, or no such input.
    """
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PFStorerError(
            f"'{path}' cannot be read as a workflow ({first_line(error)}); export one from ComfyUI "
            "with 'Export (API)'."
        ) from error
    if not isinstance(prompt, dict) or not all(
        isinstance(entry, dict) and {"class_type", "inputs"} <= entry.keys()
        for entry in prompt.values()
    ):
        raise PFStorerError(
            f"'{path}' is no workflow in API format; export it from ComfyUI with 'Export (API)'."
        )
    for change in changes:
        _change(prompt, change)
    entry = _the_only(prompt, LOAD, "that the photos come in by", path)
    return Workflow(prompt, entry, _the_only(prompt, SAVE, "that gives the result", path))


def with_identities(workflow: Workflow, folder: Path) -> tuple[Workflow, dict[str, str]]:
    """Gives the workflow's node that recognises people the adapters of a folder, and no others.

    Args:
        workflow: with one Restore People or Match People.
        folder: of adapters, which ComfyUI finds as IDENTITIES in its own.

    Returns:
        The workflow, and the adapters' digests by their files' names.

    Raises:
        PFStorerError: no such node, or no adapter or too many.
    """
    nodes = [n for n, entry in workflow.prompt.items() if entry["class_type"] in PEOPLE]
    if len(nodes) != 1:
        raise PFStorerError(
            f"The workflow has {len(nodes)} nodes that recognise people ({', '.join(PEOPLE)}); "
            "--identities needs just one."
        )
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not 1 <= len(files) <= MOST_IDENTITIES:
        raise PFStorerError(
            f"'{folder}' holds {len(files)} adapters (.safetensors); give a folder with 1 to "
            f"{MOST_IDENTITIES}."
        )
    prompt = copy.deepcopy(workflow.prompt)
    inputs = prompt[nodes[0]]["inputs"]
    # Photos go with the adapter of the same number, and the numbers are other people's now.
    for key in [key for key in inputs if key.startswith(("adapters.", "photos."))]:
        del inputs[key]
    for number, file in enumerate(files, 1):
        node = f"identity {number}"
        prompt[node] = {
            "class_type": LOAD_IDENTITY,
            "inputs": {"file_name": f"{IDENTITIES}/{file.name}"},
        }
        inputs[f"adapters.adapter_{number}"] = [node, 0]
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return Workflow(prompt, workflow.entry, workflow.result), digests


def _the_only(prompt: Prompt, kind: str, purpose: str, path: Path) -> str:
    found = [node for node, entry in prompt.items() if entry["class_type"] == kind]
    if len(found) != 1:
        raise PFStorerError(
            f"'{path}' has {len(found)} nodes {kind}; leave just the one {purpose}."
        )
    return found[0]


def _change(prompt: Prompt, change: str) -> None:
    target, equals, text = change.partition("=")
    name, _, key = target.rpartition(".")
    nodes = [
        node
        for node, entry in prompt.items()
        if name in (node, entry["class_type"], title(prompt, node))
    ]
    if not equals or len(nodes) != 1 or key not in prompt[nodes[0]]["inputs"]:
        known = [
            f"{node}.{key}"
            for node, entry in prompt.items()
            for key, value in entry["inputs"].items()
            if not isinstance(value, list)
        ]
        raise PFStorerError(
            f"--set {change} names no input of one node; it is NODE.INPUT=VALUE with one of "
            f"{', '.join(known)}."
        )
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    prompt[nodes[0]]["inputs"][key] = value


def settings_digest(described: str) -> str:
    """Returns what names the settings that photos are restored with."""
    return hashlib.sha256(described.encode()).hexdigest()
