"""Makes the guide's pictures of a template that has run, as a graph and as an app.

    python tools/page_pictures.py

Runs in ComfyUI's environment (scripts/setup_host.py makes one) and needs Chromium. The photo is
scikit-image's astronaut (NASA, public domain), made small and spoilt.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import repository
from comfyui_server import Server
from illustrations.sheets import save
from in_process import has_gpu
from setup_host import REPO, find_comfyui
from step_pictures import BEFORE_AFTER, photos, point_at, shot
from torchvision.transforms.functional import to_pil_image

sys.path.append(str(repository.ROOT / "tests"))
from comfyui_browser import chromium, open_frontend
from comfyui_frontend import Frontend

TEMPLATE, PHOTO = "1 Restore a photo", "Your photo"
LARGEST = 150_000  # bytes
RESULT = "[...document.querySelectorAll('img')].some(i => i.src.includes('pfstorer'))"


def as_graph(frontend: Frontend, photo: Path) -> None:
    """Runs the template and puts the pointer between before and after."""
    frontend.open_template(TEMPLATE)
    frontend.give_picture(PHOTO, photo)
    frontend.run()
    frontend.wait_for_images()
    frontend.page.wait_for_timeout(2000)  # its pictures are loaded, and the queue is empty
    point_at(frontend, frontend.place_of_node(BEFORE_AFTER.node))


def as_app(frontend: Frontend, photo: Path) -> None:
    """Runs the template as an app."""
    frontend.open_template(TEMPLATE)
    frontend.give_picture(PHOTO, photo)
    frontend.open_as_app()
    frontend.start(app=True)
    frontend.wait()
    frontend.page.wait_for_function(RESULT)
    frontend.page.wait_for_timeout(1000)  # it is drawn


def main() -> None:
    """Runs the template both ways and takes pictures of the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=REPO / "docs" / "images", help="folder of the pictures"
    )
    options = parser.parse_args()
    comfyui = find_comfyui()
    if comfyui is None:
        parser.error("no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH")
    with tempfile.TemporaryDirectory(prefix="pfstorer-page-") as scratch:
        photo = Path(scratch, "photo.png")
        to_pil_image(photos()[PHOTO].clamp(0, 1)).save(photo)
        for name, run in (("template", as_graph), ("app", as_app)):
            base = Path(scratch, name)
            with (
                Server(comfyui, Path(sys.executable), base, cpu=not has_gpu()) as server,
                chromium() as browser,
                open_frontend(browser, server.url) as frontend,
            ):
                run(frontend, photo)
                save(shot(frontend), options.out / f"{name}.jpg", LARGEST)
            print(f"{name}.jpg", flush=True)


if __name__ == "__main__":
    main()
