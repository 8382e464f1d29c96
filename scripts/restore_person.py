"""Restores a picture of a person without and with an adapter that is trained on photos.

    python scripts/restore_person.py --photos FOLDER --picture FILE

Runs in ComfyUI's environment; `demo.py` calls it there. It is the template `personalized_restore`
with the user's photos, through the API queue of a ComfyUI of its own. Pictures, adapter, sheet and
report come to a folder of the name of FOLDER.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from comfyui_client import ComfyUIError
from picture_files import PictureError, check_picture, photos_in
from run_workflow import Results, run_workflow
from setup_host import REPO, find_comfyui
from torch import Tensor
from torchvision.utils import save_image

sys.path.append(str(REPO))

from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.comparison import compare
from pfstorer_core.measures.sheet import sheet
from pfstorer_core.pictures.photos import load_photo
from pfstorer_core.pictures.resizing import resize_bicubic

TEMPLATE = REPO / "example_workflows" / "api" / "personalized_restore.json"
PHOTOS, PICTURE = "photos", "picture.png"  # in ComfyUI's input folder
SMALLEST, LARGEST = 128, 1024  # px of a picture's longer side: what the restorer knows; minutes
KINDS = {"LQ": "Low quality", "base": "Base", "personalized": "Personalized"}  # titles of nodes
REPORTS = {"base": "7", "personalized": "8"}  # nodes that restore


def prepare(photos: list[Path], picture: Path, folder: Path) -> tuple[int, int]:
    """Puts the pictures where ComfyUI finds them: upright, as PNG, none larger than `LARGEST`.

    Args:
        photos: of the person.
        picture: to be restored.
        folder: for ComfyUI's inputs.

    Returns:
        (height, width) in pixels in which the picture is to be restored.

    Raises:
        PFStorerError: a file is damaged.
    """
    (folder / PHOTOS).mkdir(parents=True)
    for number, path in enumerate(photos):
        save_image(_at_most(load_photo(path), LARGEST), folder / PHOTOS / f"{number:03}.png")
    loaded = load_photo(picture)
    save_image(loaded, folder / PICTURE)
    height, width = loaded.shape[1:]
    longest = max(height, width)
    factor = min(max(longest, SMALLEST), LARGEST) / longest
    return round(height * factor), round(width * factor)


def _at_most(picture: Tensor, longest: int) -> Tensor:
    factor = longest / max(picture.shape[1:])
    if factor >= 1:
        return picture
    height, width = (max(1, round(side * factor)) for side in picture.shape[1:])
    return resize_bicubic(picture[None], (height, width))[0]


def build(name: str, longest_side: int) -> dict[str, Any]:
    """Returns the template's prompt with the pictures of `prepare`.

    Args:
        name: of the person and the adapter's file.
        longest_side: of the restored picture in pixels.
    """
    prompt: dict[str, Any] = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    for node in ("5", "9", "10", "11", "12", "16"):  # the truth, and the sheet that shows it
        del prompt[node]
    prompt["2"] |= {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": PHOTOS}}
    prompt["4"] |= {"class_type": "LoadImage", "inputs": {"image": PICTURE}}
    prompt["3"]["inputs"]["name"] = name
    for kind, node in REPORTS.items():
        # A photo's own colours are mostly right, other than those of the template's portraits.
        prompt[node]["inputs"] |= {"longest_side": longest_side, "color_fix": "wavelet"}
        prompt[f"report {kind}"] = {
            "class_type": "PreviewAny",
            "inputs": {"source": [node, 1]},
            "_meta": {"title": kind},
        }
    prompt["adapter"] = {
        "class_type": "PFStorerSaveIdentity",
        "inputs": {"adapter": ["3", 0], "file_name": name, "overwrite": True},
    }
    return prompt


def summarise(results: Results, photos: list[Path]) -> tuple[str, Tensor]:
    """Returns the report as Markdown, and a sheet (3, H, W) in [0, 1] of all pictures."""
    by_name = {path.stem: path for path in results.pictures}
    pictures = {
        kind: load_photo(by_name[title.lower().replace(" ", "_")]) for kind, title in KINDS.items()
    }
    lines = ["| picture | size (px) | time (s) |", "|---|---|---|"]
    for kind, picture in pictures.items():
        seconds = re.search(r"Done in ([\d.]+) s", results.texts.get(kind, ""))
        height, width = picture.shape[1:]
        lines.append(f"| {kind} | {width} x {height} | {seconds[1] if seconds else '-'} |")
    for kind in REPORTS:
        lines += ["", f"{kind}:", "", *(f"- {line}" for line in results.texts[kind].splitlines())]
    compared = compare(
        [pictures["personalized"]],
        references=[load_photo(photos[0])],
        lq=[pictures["LQ"]],
        base=[pictures["base"]],
    )
    return "\n".join(lines), sheet(compared)


def restore(options: argparse.Namespace) -> None:
    """Runs everything and prints the report.

    Raises:
        PictureError, PFStorerError: a file is not what it should be.
        ComfyUIError: ComfyUI failed, or a node did.
    """
    check_picture(options.picture)
    photos = photos_in(options.photos, options.picture)
    name = re.sub(r"[^\w-]+", "_", options.photos.resolve().name) or "person"
    output = options.output / name
    with tempfile.TemporaryDirectory(prefix="pfstorer-") as scratch:
        inputs = Path(scratch)
        size = prepare(photos, options.picture, inputs)
        print(f"Training on {len(photos)} photos of {name}")
        print(f"Restoring {options.picture} at {size[1]} x {size[0]} px", end="")
        print(f" (this demo's limit is {LARGEST} px)" if max(size) == LARGEST else "", flush=True)
        results = run_workflow(build(name, max(size)), output, options.comfyui, inputs)
        report, page = summarise(results, sorted((inputs / PHOTOS).iterdir()))
    (output / "report.md").write_text(f"{report}\n", encoding="utf-8")
    save_image(page, output / "sheet.png")
    print(f"\n{report}\n\nNo truth is known, so nothing is measured here: look at the pictures.")
    for path in [*results.pictures, output / "sheet.png", output / "report.md"]:
        print(f"  {path}")
    print(f"  {output / name}.safetensors: the adapter, for models/pfstorer_identities of ComfyUI")


def main() -> None:
    """Reads the command line and restores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--photos", type=Path, metavar="FOLDER", required=True, help="sharp photos of the person")
    add("--picture", type=Path, metavar="FILE", required=True, help="picture to restore")
    add("--output", type=Path, default=REPO / "output", help="folder for the results")
    add("--comfyui", type=Path, default=find_comfyui(), help="folder of ComfyUI (default: found)")
    options = parser.parse_args()
    if options.comfyui is None:
        parser.error("no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH")
    try:
        restore(options)
    except (PictureError, PFStorerError, ComfyUIError) as failure:
        sys.exit(f"error: {failure}")


if __name__ == "__main__":
    main()
