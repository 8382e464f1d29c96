"""Makes the templates' pictures in the template browser: before and after.

    python tools/template_pictures.py                          # all
    python tools/template_pictures.py --only "1 Restore a photo"    # some

Runs in ComfyUI's environment (scripts/setup_host.py makes one). Pictures that lie in RUNS/TEMPLATE
already are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import repository  # noqa: F401
import torch
from comfyui_client import ComfyUIError
from PIL import Image, ImageDraw, ImageFont, ImageOps
from run_workflow import run_workflow
from setup_host import REPO, find_comfyui
from torchvision.transforms.functional import to_pil_image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import portrait_set

TEMPLATES = REPO / "example_workflows"
QUALITY = 88  # of the JPEG
SIDE = 448  # px
DRAWN_PERSON = 5_000_000
PORTRAIT = 128  # px
PHOTO = REPO / "docs" / "images" / "astronaut.jpg"
# px: places in it, before and after
WHOLE = ((8, 36, 308, 336), (316, 36, 616, 336))
HEADS = ((8, 362, 308, 662), (316, 362, 616, 662))


def halves(before: Image.Image, after: Image.Image) -> Image.Image:
    """Puts the middle halves of two pictures of one size beside each other, in a square."""
    page = Image.new("RGB", (SIDE, SIDE))
    for x, picture in ((0, before), (SIDE // 2, after)):
        square = picture.resize((SIDE, SIDE), Image.LANCZOS)
        page.paste(square.crop((SIDE // 4, 0, SIDE * 3 // 4, SIDE)), (x, 0))
    return page


def restore_a_photo(folder: Path) -> Image.Image:
    """The head of the photo in README, before and after."""
    picture = Image.open(PHOTO).convert("RGB")
    return halves(*(picture.crop(box) for box in HEADS))


def enlarge(folder: Path) -> Image.Image:
    """The photo in README, before and after."""
    picture = Image.open(PHOTO).convert("RGB")
    return halves(*(picture.crop(box) for box in WHOLE))


def restore_a_person(folder: Path) -> Image.Image:
    """LQ and personalized of a drawn person."""
    row = opened(folder, "side_by_side")
    side = row.height
    return halves(row.crop((0, 0, side, side)), row.crop((2 * side, 0, 3 * side, side)))


def family_photo(folder: Path) -> Image.Image:
    """LQ and restored group photo, one below the other, in a square."""
    rows = opened(folder, "side_by_side")
    rows = rows.crop((0, 0, rows.width, rows.height * 2 // 3))
    page = Image.new("RGB", (SIDE, SIDE), "#202024")
    height = SIDE * rows.height // rows.width
    page.paste(rows.resize((SIDE, height), Image.LANCZOS), (0, (SIDE - height) // 2))
    return page


def train_once(folder: Path) -> Image.Image:
    """The curve and the pictures of a training."""
    return opened(folder, "training_report").resize((SIDE, SIDE), Image.LANCZOS)


def measure(folder: Path) -> Image.Image:
    """The restored pictures and the truth, each with its similarity, in a square."""
    sheet = opened(folder, "side_by_side")
    judged = sheet.crop((sheet.width // 3, 0, sheet.width, sheet.height))
    return ImageOps.pad(judged, (SIDE, SIDE), Image.LANCZOS, "white")


def with_supir(folder: Path) -> Image.Image:
    """A sketch: what goes in. There were no weights of SUPIR to make a result with."""
    page = Image.new("RGB", (SIDE, SIDE), "#202024")
    drawing = ImageDraw.Draw(page)
    good = portrait_set(DRAWN_PERSON, 3, 1, PORTRAIT)
    spoilt = degrade(good[:1], PRESETS["extreme"], torch.Generator().manual_seed(2))
    places = [(24 + k * (PORTRAIT + 8), 56) for k in range(3)] + [(24, 264)]
    for picture, place in zip([*good, *spoilt], places, strict=True):
        page.paste(to_pil_image(picture.clamp(0, 1)), place)
    font = ImageFont.load_default(20)
    boxes = {"SUPIR\n+\nthe person": (192, 264, 302, 374), "?": (328, 264, 424, 374)}
    for text, box in boxes.items():
        drawing.rounded_rectangle(box, 8, outline="#88aa88", width=3)
        middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        drawing.text(middle, text, "white", font, anchor="mm", align="center")
    lines = ((247, 182, 247, 260), (156, 319, 188, 319), (304, 319, 324, 319))
    for line in lines:
        drawing.line(line, "#88aa88", 3)
    drawing.text((24, 24), "photos of the person", "white", font)
    drawing.text((24, 232), "the photo", "white", font)
    drawing.text((24, 400), "a sketch: you need SUPIR's files", "#cccccc", font)
    return page


def opened(folder: Path, name: str) -> Image.Image:
    """Returns a picture that `run_workflow` saved."""
    return Image.open(folder / f"{name}.png").convert("RGB")


# By template: the API prompt whose pictures it takes, if any, and what draws it.
DRAWN: dict[str, tuple[str | None, Callable[[Path], Image.Image]]] = {
    "1 Restore a photo": (None, restore_a_photo),
    "2 Restore a person": ("personalized_restore", restore_a_person),
    "3 Train once, use often": ("train_identity", train_once),
    "4 Family photo": ("family_photo", family_photo),
    "5 Enlarge 4x to 20x": (None, enlarge),
    "6 Is it the person - measure": ("measure", measure),
    "7 Restore a person with SUPIR": (None, with_supir),
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
        prompt_name, draw = DRAWN[name]
        folder = options.runs / (prompt_name or name)
        if prompt_name and not any(folder.glob("*.png")):
            path = TEMPLATES / "api" / f"{prompt_name}.json"
            prompt = json.loads(path.read_text(encoding="utf-8"))
            try:
                run_workflow(prompt, folder, comfyui)
            except ComfyUIError as failure:
                sys.exit(f"error: {failure}")
        path = options.out / f"{name}.jpg"
        draw(folder).save(path, "JPEG", quality=QUALITY, optimize=True)
        print(f"{path}: {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
