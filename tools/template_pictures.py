"""Runs the templates as they lie and makes their pictures in the template browser.

    python tools/template_pictures.py                          # all
    python tools/template_pictures.py --only restore_photo     # some

Runs in ComfyUI's environment (scripts/setup_host.py makes one). Pictures that lie in RUNS/TEMPLATE
already are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import repository  # noqa: F401
from comfyui_client import ComfyUIError
from PIL import Image
from run_workflow import run_workflow
from setup_host import REPO, find_comfyui

TEMPLATES = REPO / "example_workflows"
QUALITY = 88  # of the JPEG
PORTRAIT = 256  # px: side of a portrait
FAMILY = 640  # px: width of the family photo
CORNER, PART = (2 * 144 + 8, 3 * 144 + 8), (440, 582)  # px: 3 x 4 portraits of the album page


def in_row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Puts pictures of one height side by side."""
    row = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height))
    x = 0
    for picture in pictures:
        row.paste(picture, (x, 0))
        x += picture.width
    return row


def scaled(picture: Image.Image, width: int) -> Image.Image:
    """Scales a picture to a width."""
    return picture.resize((width, round(picture.height * width / picture.width)), Image.LANCZOS)


def restore_photo(folder: Path) -> Image.Image:
    """LQ, restored, clean."""
    names = ("low_quality", "restored", "clean_for_comparison")
    return in_row([scaled(opened(folder, name), PORTRAIT) for name in names])


def personalized_restore(folder: Path) -> Image.Image:
    """LQ, base, personalized and clean of two portraits."""
    rows = [scaled(opened(folder, n), 4 * PORTRAIT) for n in ("side_by_side", "side_by_side_2")]
    page = Image.new("RGB", (rows[0].width, 2 * PORTRAIT))
    for number, row in enumerate(rows):
        page.paste(row, (0, number * PORTRAIT))
    return page


def train_identity(folder: Path) -> Image.Image:
    """The training report."""
    return scaled(opened(folder, "training_report"), 768)


def family_photo(folder: Path) -> Image.Image:
    """LQ, restored and good, one below the other, and the numbered heads above."""
    rows = [opened(folder, name) for name in ("restore_people", "side_by_side")]
    rows = [scaled(row, FAMILY) for row in rows]
    page = Image.new("RGB", (FAMILY, sum(row.height for row in rows)))
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return page


def group_photo(folder: Path) -> Image.Image:
    """LQ, base and personalized, one below the other."""
    page = opened(folder, "side_by_side")
    return scaled(page.crop((0, 0, page.width, page.height * 3 // 4)), 800)


def measure(folder: Path) -> Image.Image:
    """The comparison's sheet."""
    return opened(folder, "side_by_side")


def tiled_4k(folder: Path) -> Image.Image:
    """A part of the page, only scaled and restored."""
    box = (*CORNER, CORNER[0] + PART[0], CORNER[1] + PART[1])
    return in_row([opened(folder, n).crop(box) for n in ("only_scaled_for_comparison", "restored")])


def opened(folder: Path, name: str) -> Image.Image:
    """Returns a picture that `run_workflow` saved."""
    return Image.open(folder / f"{name}.png").convert("RGB")


DRAWN: dict[str, Callable[[Path], Image.Image]] = {
    draw.__name__: draw
    for draw in (
        restore_photo,
        measure,
        train_identity,
        personalized_restore,
        family_photo,
        group_photo,
        tiled_4k,
    )
}


def main() -> None:
    """Runs the chosen templates and draws their pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=TEMPLATES, help="folder of the pictures")
    add("--runs", type=Path, default=REPO / "output" / "templates", help="folder of their results")
    add("--only", nargs="+", choices=list(DRAWN), default=list(DRAWN))
    options = parser.parse_args()
    comfyui = find_comfyui()
    if comfyui is None:
        parser.error("no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH")
    for name in options.only:
        folder = options.runs / name
        if not any(folder.glob("*.png")):
            prompt = json.loads((TEMPLATES / "api" / f"{name}.json").read_text(encoding="utf-8"))
            try:
                run_workflow(prompt, folder, comfyui)
            except ComfyUIError as failure:
                sys.exit(f"error: {failure}")
        path = options.out / f"{name}.jpg"
        DRAWN[name](folder).save(path, "JPEG", quality=QUALITY, optimize=True)
        print(f"{path}: {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
