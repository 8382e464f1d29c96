"""Compares the pictures that `personalized_restore` made with the clean ones, as a Markdown table.

Similarity is to further clean portraits of the person, which neither the training nor the
restoration saw.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from setup_host import REPO
from torch import Tensor

sys.path.append(str(REPO))

from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.metrics import haarpsi, psnr
from pfstorer_core.measures.similarity import identity_similarity, load_embedding
from pfstorer_core.pictures.photos import load_photo

WORKFLOW = REPO / "example_workflows" / "api" / "personalized_restore.json"
KINDS = {
    "low_quality": "LQ",
    "base": "base",
    "personalized": "personalized",
    "clean": "clean (ceiling)",
}
REFERENCES = 8


def portraits(prompt: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the inputs of the workflow's Demo Portrait nodes.

    Raises:
        ValueError: they are not all of one person and size.
    """
    found = [n["inputs"] for n in prompt.values() if n["class_type"] == "PFStorerDemoPortrait"]
    if len({(inputs["identity"], inputs["size"]) for inputs in found}) != 1:
        raise ValueError("the workflow's portraits are not of one person and size")
    return found


def read_pictures(folder: Path, kind: str, count: int) -> Tensor:
    """Returns (count, 3, H, W) in [0, 1], as `run_workflow.py` names the files."""
    names = [f"{kind}{f'_{number}' if number > 1 else ''}.png" for number in range(1, count + 1)]
    return torch.stack([load_photo(folder / name) for name in names])


def compare(folder: Path) -> str:
    """Returns the table of the pictures in a folder, as Markdown.

    Raises:
        PFStorerError: a picture or the embedding is missing.
    """
    inputs = portraits(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    count = next(i["views"] for i in inputs if i["degradation"] != "none")
    seed = max(i["seed"] for i in inputs) + 1
    references = portrait_set(inputs[0]["identity"], REFERENCES, seed, inputs[0]["size"])
    embedding = load_embedding()
    pictures = {kind: read_pictures(folder, kind, count) for kind in KINDS}
    similarity = {
        kind: float(identity_similarity(embedding, images, references).mean())
        for kind, images in pictures.items()
    }
    lines = [
        "| picture | PSNR to clean (dB) | HaarPSI to clean | identity similarity |",
        "|---|---|---|---|",
    ]
    for kind, label in KINDS.items():
        quality = "- | -"
        if kind != "clean":
            pair = pictures[kind], pictures["clean"]
            quality = f"{float(psnr(*pair).mean()):.2f} | {float(haarpsi(*pair).mean()):.3f}"
        lines.append(f"| {label} | {quality} | {similarity[kind]:.3f} |")
    lines.append("")
    lost = similarity["clean"] - similarity["base"]
    if lost > 0:
        share = (similarity["personalized"] - similarity["base"]) / lost
        lines.append(f"Of the similarity that the base lacks, the adapter returned {share:.0%}.")
    lines.append(
        f"Means over {count} pictures of one drawn person: an example, no measurement; "
        "tools/evaluate.py measures many people with intervals."
    )
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, compares, prints the table and writes it to `table.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, default=REPO / "output", help="folder of them")
    folder = parser.parse_args().pictures
    try:
        table = compare(folder)
    except PFStorerError as failure:
        sys.exit(f"error: {failure}")
    print(table)
    (folder / "table.md").write_text(f"{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
