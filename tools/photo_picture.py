"""Makes the README's first picture: a photo of a real person, restored by the bundled restorer.

    python tools/photo_picture.py

Runs in ComfyUI's environment (scripts/setup_host.py makes one). The photo is scikit-image's
astronaut (Eileen Collins, NASA, public domain), made small and bad as somebody might own it. The
rows show all of it, and the head.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import repository  # noqa: F401
from illustrations.photo import SIDE, astronaut, portrait, small_copy
from illustrations.sheets import save, sheet
from in_process import use_comfyui
from setup_host import REPO

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.pictures.resizing import resize_bicubic
from pfstorer_core.tiling.upscaling import UPSCALINGS

CELL, WIDEST, LARGEST_FILE = 300, 1000, 150_000  # px, px, bytes


def main() -> None:
    """Restores the photo and draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=REPO / "docs" / "images" / "astronaut.jpg")
    add("--level", choices=list(PRESETS), default="medium", help="of the degradation")
    add("--seed", type=int, default=1, help="of the degradation and of the noise")
    add("--steps", type=int, default=4)
    add("--upscaling", choices=UPSCALINGS, default=UPSCALINGS[0], help="see Tiled Restore")
    add(
        "--enlarged",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give the restorer the copy at the full size",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui()
    from pfstorer_core.host import load_base_restorer, restore
    from pfstorer_core.host.load.folders import MINI_RESTORER_PATH

    model, _, vae = load_base_restorer(MINI_RESTORER_PATH)
    lq = small_copy(options.level, options.seed)  # (3, h, w)
    shown = resize_bicubic(lq[None], (SIDE, SIDE))[0]  # (3, SIDE, SIDE)
    image = (shown if options.enlarged else lq).movedim(0, -1)[None]  # (1, h, w, 3)
    settings = {name: getattr(options, name) for name in ("steps", "seed", "upscaling")}
    restored = restore(model, vae, image, size=(SIDE, SIDE), **settings)[0].movedim(-1, 0)
    pictures = {
        f"LQ, {lq.shape[2]} x {lq.shape[1]} px": shown,
        "restored": restored.cpu(),
        "clean": astronaut(),
    }
    rows = [list(pictures.items()), [("", portrait(picture)) for picture in pictures.values()]]
    save(sheet(rows, CELL, WIDEST), options.out, LARGEST_FILE)


if __name__ == "__main__":
    main()
