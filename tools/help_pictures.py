"""Makes the pictures of the help pages: what each knob does to drawn people and to a photo.

    python tools/help_pictures.py                       # all
    python tools/help_pictures.py --only gamma steps    # some
    python tools/help_pictures.py --adapters FOLDER     # with adapters of tools/evaluate.py

Runs in ComfyUI's environment (scripts/setup_host.py makes one), with the mini restorer. People and
adapters are those of tools/evaluate.py --preset quick; adapters that FOLDER lacks are trained
first, which takes minutes each. The photo is scikit-image's astronaut (NASA, public domain). Seeds
and settings are fixed, so a picture changes only when the plugin does.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import repository  # noqa: F401
from illustrations import material, people, restoring
from illustrations.sheets import Rows, save, sheet
from illustrations.studio import Studio
from in_process import use_comfyui
from setup_host import REPO

PICTURES = REPO / "nodes" / "web" / "docs" / "pictures"
DRAWN: dict[str, Callable[[Studio], tuple[Rows, int]]] = {
    draw.__name__: draw
    for draw in (
        restoring.restorer,
        restoring.gamma,
        restoring.adapter,
        restoring.start_end,
        restoring.mask,
        restoring.masked_only,
        restoring.steps,
        restoring.denoise,
        restoring.seed,
        restoring.color_fix,
        restoring.encoder_interval,
        restoring.upscaling,
        restoring.tile_size,
        restoring.overlap,
        restoring.comparison,
        material.trained,
        material.photos,
        material.training_photos,
        material.identities,
        material.views,
        material.degradations,
        material.explicit,
        material.group,
        material.album,
        people.found,
        people.matched,
        people.family,
    )
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder of the pictures")
    parser.add_argument("--adapters", type=Path, default=REPO / "output" / "identity" / "adapters")
    parser.add_argument("--only", nargs="+", choices=list(DRAWN), default=list(DRAWN))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the chosen pictures."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    use_comfyui(progress_bars=False)
    studio = Studio(options.adapters)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        rows, cell = DRAWN[name](studio)
        path = options.out / f"{name}.jpg"
        save(sheet(rows, cell), path)
        print(f"{path.name}: {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
