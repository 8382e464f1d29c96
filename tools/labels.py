"""Writes the English labels of the nodes from the nodes, and says what the other languages lack.

    python tools/labels.py

Runs in ComfyUI's environment (scripts/setup_host.py makes one) and starts a server. Names and help
texts in locales/en are those of the nodes; in the other languages they are written by hand. Ends
with an error where a language lacks a text, or has one of a node or input that is gone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import repository  # noqa: F401
from comfyui_client import Client
from comfyui_server import PACK, Server
from setup_host import REPO, find_comfyui

LOCALES = REPO / "locales"
ENGLISH = "en"
FILE = "nodeDefs.json"


def main() -> None:
    """Writes the English file and compares the others with it."""
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("error: no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH")
    with (
        tempfile.TemporaryDirectory() as base,
        Server(comfyui, Path(sys.executable), Path(base), cpu=True) as server,
        Client(server.url) as client,
    ):
        infos = client.get("/object_info")
    ours = {i: info for i, info in infos.items() if info["python_module"] == f"custom_nodes.{PACK}"}
    english = {node_id: node_labels(ours[node_id]) for node_id in sorted(ours)}
    text = json.dumps(english, indent=2, ensure_ascii=False) + "\n"
    (LOCALES / ENGLISH / FILE).write_text(text, encoding="utf-8")
    differences = [line for name in other_languages() for line in compared(english, name)]
    if differences:
        sys.exit("\n".join(differences))


def node_labels(info: dict[str, Any]) -> dict[str, Any]:
    """Returns the labels that the frontend looks for, from a node's entry in /object_info."""
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {
            key.replace(".", "_"): {"name": name, "tooltip": options["tooltip"]}
            for key, name, options in _inputs(info["input"])
        },
        "outputs": {
            str(k): {"name": name, "tooltip": tooltip} for k, (name, tooltip) in enumerate(outputs)
        },
    }


def _inputs(groups: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields path, shown name and options of all inputs, and of a dynamic combo's options."""
    for group in ("required", "optional"):
        for name, (kind, *options) in groups.get(group, {}).items():
            yield f"{prefix}{name}", options[0].get("display_name") or name, options[0]
            if kind == "COMFY_DYNAMICCOMBO_V3":
                for option in options[0]["options"]:
                    yield from _inputs(option["inputs"], f"{prefix}{name}.")


def labels_of(language: str) -> dict[str, Any]:
    """Returns the labels of all nodes in a language."""
    return json.loads((LOCALES / language / FILE).read_text(encoding="utf-8"))


def other_languages() -> list[str]:
    """Returns the languages that are written by hand."""
    return sorted({path.name for path in LOCALES.iterdir() if path.is_dir()} - {ENGLISH})


def compared(english: dict[str, Any], language: str) -> list[str]:
    """Returns a line for each text that a language lacks or has too much."""
    wanted, found = set(_paths(english)), set(_paths(labels_of(language)))
    return [
        *(f"{language} lacks {path}" for path in sorted(wanted - found)),
        *(f"{language} has {path}, which is not there" for path in sorted(found - wanted)),
    ]


def _paths(labels: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in labels.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")
        elif value:
            yield f"{prefix}{key}"


if __name__ == "__main__":
    main()
