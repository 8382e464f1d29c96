"""Measures Tiled Restore on photos in which faces are 24 to 384 px high.

    python tools/evaluate_sizes.py --photos FOLDER... [--restorer FILE]

Runs in ComfyUI's environment (scripts/setup_host.py makes one) with requirements-dev.txt, whose
dlib finds the faces. A face's height is that from hairline to chin. For each height, squares around
faces are cut from the photos and restored, clean and degraded: by the automatic choice, in one pass
at their own size, and at half of it. What no photo shows sharply is left out: none is enlarged by
more than 1.3. Blur belongs to a portrait that is twice as high as the face, all else to the pixels.
Writes a Markdown table of HaarPSI and PSNR to the clean photo, and a sheet, to OUT.
"""

from __future__ import annotations

import argparse
import functools
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import repository  # noqa: F401
import torch
from evaluation.faces import FaceFinder, window_of_face
from evaluation.people import derive_seed
from evaluation.tables import interval_text, markdown_table
from in_process import use_comfyui
from setup_host import REPO
from torch import Tensor
from torchvision.utils import save_image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.intervals import clustered_interval
from pfstorer_core.measures.metrics import haarpsi, psnr
from pfstorer_core.pictures.photos import list_photos
from pfstorer_core.pictures.resizing import resize_bicubic

HEIGHTS = (24, 48, 96, 128, 192, 384)  # px
LEVELS = ("clean", "light", "medium")
SMALLEST_SIDE = 400  # px of a square; larger for large faces
MOST_OF_SIDE = 0.75  # that a face takes, at most
LARGEST_SCALE = 1.3
AUTO, ONE_PASS, HALF = WAYS = ("auto", "one pass", "at half the size")
SHOWN = 192  # px: side of a picture on the sheet


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the table and the sheet."""
    options = parse_options(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    use_comfyui(progress_bars=False)

    from pfstorer_core.host import load_base_restorer, restore
    from pfstorer_core.host.feedback import RestoreReport
    from pfstorer_core.host.load.folders import MINI_RESTORER_PATH

    model, _, vae = load_base_restorer(options.restorer or MINI_RESTORER_PATH)

    def run(lq: Tensor, size: int, **settings: Any) -> tuple[Tensor, list[str]]:
        report = RestoreReport()
        restored = restore(
            model,
            vae,
            lq.movedim(1, -1),
            size=(size, size),
            steps=options.steps,
            report=report,
            **settings,
        )
        return restored.movedim(-1, 1).cpu(), report.lines

    rows, sheet = [], []
    for height, clean in squares(options.photos, options.heights, options.pictures).items():
        side = clean.shape[-1]
        for level in LEVELS:
            generator = torch.Generator().manual_seed(derive_seed(level, height))
            lq = clean
            if level in PRESETS:
                lq = degrade(clean, PRESETS[level].with_blur(2 * height / side), generator)
            found: dict[str, list[Tensor]] = {name: [] for name in WAYS}
            notes: list[str] = []
            for item in lq.split(1):  # each as it is restored alone
                whole, lines = run(item, side)
                found[AUTO].append(whole)
                if told := [line for line in lines if "so sharp" in line or "blurred" in line]:
                    notes += told
                    whole, _ = run(item, side, upscaling=ONE_PASS)
                found[ONE_PASS].append(whole)
                half, _ = run(item, side // 2, upscaling=ONE_PASS)
                found[HALF].append(resize_bicubic(half.contiguous(), (side, side)))
            pictures = {"LQ": lq} | {name: torch.cat(items) for name, items in found.items()}
            rows.append([f"{height}", level, f"{len(clean)}", *figures(pictures, clean)])
            print(markdown_table(header(), rows[-1:]).splitlines()[-1], *notes, sep="\n  ")
            shown = [x[:1] for x in (clean, *pictures.values())]
            sheet.append(resize_bicubic(torch.cat(shown).contiguous(), (SHOWN, SHOWN)).clamp(0, 1))
    options.out.mkdir(parents=True, exist_ok=True)
    table = markdown_table(header(), rows)
    (options.out / "sizes.md").write_text(table, encoding="utf-8")
    save_image(torch.cat(sheet), options.out / "sizes.png", nrow=len(sheet[0]), padding=1)
    print(table)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--photos", type=Path, nargs="+", required=True, help="folders or tar files")
    add("--restorer", type=Path, help="a bundled restorer; the mini restorer by default")
    add("--heights", type=int, nargs="+", default=HEIGHTS, help="of the faces, in pixels")
    add("--pictures", type=int, default=4, help="of each height, at most; two or more")
    add("--steps", type=int, default=4, help="sampling steps")
    add("--out", type=Path, default=REPO / "output" / "sizes", help="folder of the results")
    return parser.parse_args(arguments)


def squares(places: Sequence[Path], heights: Sequence[int], count: int) -> dict[int, Tensor]:
    """Cuts squares around faces of each height out of photos.

    Where a photo ends it goes on as in a mirror.

    Args:
        places: folders or tar files of photos.
        heights: of the faces in pixels, from hairline to chin.
        count: squares of each height, at most; of photos drawn at random.

    Returns:
        (N, 3, S, S) in [0, 1] for each height.

    Raises:
        PFStorerError: no two photos show a face of a height sharply.
    """
    finder = FaceFinder()
    photos = list_photos(places)
    random.Random(0).shuffle(photos)
    find = functools.cache(lambda photo: finder.find(photo.load()))
    found = {}
    for height in heights:
        side = max(SMALLEST_SIDE, round(height / MOST_OF_SIDE))
        cut: list[Tensor] = []
        for photo in photos:
            # no face is larger than its photo
            if len(cut) == count or photo.short_side * LARGEST_SCALE < height:
                continue
            face = find(photo)
            if face is not None and face.extent()[1] * LARGEST_SCALE >= height:
                cut.append(window_of_face(photo.load(), face, height / side, side)[0])
        if len(cut) < 2:
            raise PFStorerError(
                f"{len(cut)} of the photos show a face of {height} px sharply; give larger ones, "
                "or leave this height out of --heights."
            )
        found[height] = torch.stack(cut)
    return found


def header() -> list[str]:
    """Returns the table's header."""
    gains = [f"{name} - LQ" for name in WAYS]
    return ["face (px)", "degradation", "photos", "HaarPSI of LQ", *gains, "PSNR of LQ → auto (dB)"]


def figures(pictures: dict[str, Tensor], clean: Tensor) -> list[str]:
    """Returns the cells of pictures (N, 3, S, S) against the clean ones."""
    values = {name: haarpsi(images, clean) for name, images in pictures.items()}
    cells = [f"{values['LQ'].mean():.3f}"]
    for name in WAYS:
        gain = (values[name] - values["LQ"])[:, None]  # each photo is a cluster of its own
        cells.append(interval_text(clustered_interval(gain), sign=True))
    before, after = (float(psnr(pictures[name], clean).mean()) for name in ("LQ", AUTO))
    return [*cells, f"{before:.2f} → {after:.2f}"]


if __name__ == "__main__":
    main()
