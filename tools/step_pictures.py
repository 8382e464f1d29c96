"""Makes the pictures of what templates' notes say, a numbered part for each step.

    python tools/step_pictures.py                            # all
    python tools/step_pictures.py --only restore_photo       # some

Opens the templates in ComfyUI's real page, gives them photos, runs them and takes the steps' parts
of the page; what is to be pressed has a ring. Runs in ComfyUI's environment (scripts/setup_host.py
makes one) and needs Chromium. The photo is scikit-image's astronaut (NASA, public domain), the
person a drawn one, who is learned first, which takes a quarter to half an hour.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import repository
import torch
from comfyui_server import Server
from illustrations.photo import SIDE, small_copy
from illustrations.sheets import save
from in_process import has_gpu
from PIL import Image, ImageDraw, ImageFont
from setup_host import REPO, find_comfyui
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.pictures.resizing import resize_bicubic

sys.path.append(str(repository.ROOT / "tests"))
from comfyui_browser import chromium, open_frontend
from comfyui_frontend import Frontend

PICTURES = REPO / "nodes" / "web" / "docs" / "pictures"
HEIGHT, NUMBER, GAP, MARGIN = 340, 48, 16, 12  # px
PAPER, RING = "#262a31", "#ff9f1c"
DRAWN_PERSON = 5_000_000
RUN_SECONDS = 3600.0
RUN_BUTTON = "queue-button"


@dataclass(frozen=True)
class Step:
    """What is seen of the page for a step.

    Attributes:
        node: title of the node that is shown.
        press: a widget of it that has a ring, or "Run", which is then shown above it.
        compare: the pointer lies on the picture, so that half of each is seen.
    """

    node: str
    press: str = ""
    compare: bool = False


BEFORE_AFTER = Step("Before | after: move over the picture", compare=True)
STEPS = {
    "restore_photo": (
        "1 Restore a photo",
        [Step("Your photo", "upload"), Step("Tiled Restore", "Run"), BEFORE_AFTER],
    ),
    "restore_person": (
        "2 Restore a person",
        [
            Step("Photo 1 of the person", "upload"),
            Step("The photo to restore", "upload"),
            Step("Train Identity Adapter", "Run"),
            BEFORE_AFTER,
        ],
    ),
}


def photos() -> dict[str, Tensor]:
    """Returns the photos of all templates, (3, h, w) in [0, 1], by the title of their node."""
    good = portrait_set(DRAWN_PERSON, 4, 1, 256)  # (4, 3, 256, 256)
    bad = degrade(good[3:], PRESETS["medium"], torch.Generator().manual_seed(2))[0]
    of_the_person = {f"Photo {k + 1} of the person": good[k] for k in range(3)}
    photo = resize_bicubic(small_copy("medium", 1)[None], (SIDE, SIDE))[0]
    return {"Your photo": photo, "The photo to restore": bad} | of_the_person


def shot(frontend: Frontend, clip: dict[str, float] | None = None) -> Image.Image:
    """Returns a part of the page, or all of it."""
    return Image.open(BytesIO(frontend.page.screenshot(clip=clip))).convert("RGB")


def ring(picture: Image.Image, box: tuple[float, float, float, float]) -> None:
    """Draws a ring around a place in a picture."""
    ImageDraw.Draw(picture).rounded_rectangle(box, 10, outline=RING, width=4)


def point_at(frontend: Frontend, place: dict[str, float]) -> None:
    """Puts the pointer on the middle of a place, as a user does."""
    middle = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    frontend.page.mouse.move(*middle, steps=5)
    frontend.page.wait_for_timeout(500)  # it is drawn anew


def part(frontend: Frontend, step: Step) -> Image.Image:
    """Returns the part of the page that shows a step."""
    place = frontend.show_node(step.node)
    if step.compare:
        point_at(frontend, place)
    clip = {
        "x": place["x"] - MARGIN,
        "y": place["y"] - MARGIN,
        "width": place["width"] + 2 * MARGIN,
        "height": place["height"] + 2 * MARGIN,
    }
    picture = shot(frontend, clip)
    if step.press == "Run":
        return below(run_button(frontend), picture)
    if step.press:
        middle = frontend.place_of_widget(step.node, step.press)[1] - clip["y"]
        ring(picture, (MARGIN // 2, middle - 18, picture.width - MARGIN // 2, middle + 18))
    return picture


def run_button(frontend: Frontend) -> Image.Image:
    """Returns the button that runs the workflow, with a ring around it."""
    place = frontend.page.get_by_test_id(RUN_BUTTON).bounding_box()
    assert place is not None
    x, y, width, height = (place[key] for key in ("x", "y", "width", "height"))
    edge = 2 * MARGIN
    clip = {"x": x - 80, "y": y - edge, "width": width + 160, "height": height + 2 * edge}
    picture = shot(frontend, clip)
    ring(picture, (80 - 8, edge - 8, 80 + width + 8, edge + height + 8))
    return picture


def below(first: Image.Image, second: Image.Image) -> Image.Image:
    """Puts one picture below another."""
    page = Image.new(
        "RGB", (max(first.width, second.width), first.height + second.height + GAP), PAPER
    )
    y = 0
    for picture in (first, second):
        page.paste(picture, ((page.width - picture.width) // 2, y))
        y += picture.height + GAP
    return page


def sheet(parts: list[Image.Image]) -> Image.Image:
    """Puts numbered parts into rows of two, since the frontend shows help in a narrow column."""
    scaled = [p.resize((round(p.width * HEIGHT / p.height), HEIGHT), Image.LANCZOS) for p in parts]
    rows = [scaled[k : k + 2] for k in range(0, len(scaled), 2)]
    row_height = HEIGHT + NUMBER + GAP
    width = max(sum(p.width + GAP for p in row) for row in rows) + GAP
    page = Image.new("RGB", (width, row_height * len(rows)), PAPER)
    drawing, font = ImageDraw.Draw(page), ImageFont.load_default(24)
    for k, row in enumerate(rows):
        x, y = GAP, k * row_height
        for number, picture in enumerate(row, 2 * k + 1):
            middle = x + picture.width // 2, y + NUMBER // 2 + 2
            drawing.circle(middle, 17, fill=RING)
            drawing.text(middle, str(number), "#000000", font, anchor="mm")
            page.paste(picture, (x, y + NUMBER))
            x += picture.width + GAP
    return page


def main() -> None:
    """Runs the chosen templates and draws their steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=PICTURES, help="folder of the pictures")
    add("--only", nargs="+", choices=list(STEPS), default=list(STEPS))
    options = parser.parse_args()
    comfyui = find_comfyui()
    if comfyui is None:
        parser.error("no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH")
    with tempfile.TemporaryDirectory(prefix="pfstorer-steps-") as scratch:
        files = {}
        for title, picture in photos().items():
            files[title] = Path(scratch, f"{title}.png")
            to_pil_image(picture.clamp(0, 1)).save(files[title])
        base = Path(scratch, "base")
        with (
            Server(comfyui, Path(sys.executable), base, cpu=not has_gpu()) as server,
            chromium() as browser,
        ):
            for name in options.only:
                template, steps = STEPS[name]
                with open_frontend(browser, server.url) as frontend:
                    frontend.open_template(template)
                    for title in frontend.titles("LoadImage"):
                        frontend.give_picture(title, files[title])
                    frontend.run(RUN_SECONDS)
                    frontend.wait_for_images()
                    parts = [part(frontend, step) for step in steps]
                save(sheet(parts), options.out / f"steps_{name}.jpg")
                print(f"steps_{name}.jpg", flush=True)


if __name__ == "__main__":
    main()
