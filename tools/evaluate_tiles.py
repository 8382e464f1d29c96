"""Measures tiled restoration: seams, several people, large scales, few steps.

    python tools/evaluate_tiles.py                            # all, on drawn people
    python tools/evaluate_tiles.py --sections seams group     # some
    python tools/evaluate_tiles.py --people FOLDER --recognition MobileFaceNet.tflite

Runs in ComfyUI's environment (scripts/setup_host.py makes one), by default with the mini restorer.
Beside --sections it takes all options of tools/evaluate.py; people, adapters and their cache are
the same, so with the same options no adapter is trained twice. Of photos of real people it measures
those that lie side by side, and few steps. Writes Markdown tables and pictures to OUT. Intervals
are 95% bootstraps that resample people or groups.
"""

from __future__ import annotations

import argparse
import io
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import repository  # noqa: F401
import torch
from evaluate import extending_parser, parse_options
from evaluation.face_measures import described
from evaluation.people import derive_seed
from evaluation.seams import seams
from evaluation.several_people import group, people
from evaluation.tables import LEVELS, SIMILARITY, contact_sheet, markdown_table
from evaluation.tile_trial import Trial
from in_process import use_comfyui
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.metrics import haarpsi, psnr
from pfstorer_core.pictures.resizing import resize_bicubic

JPEG_QUALITY = 80


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line: the options of tools/evaluate.py, and the sections."""
    parser = extending_parser(__doc__)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=[])
    chosen, others = parser.parse_known_args(arguments)
    options = parse_options(others)
    possible = PHOTOGRAPHED if options.people else DRAWN
    if wrong := [name for name in chosen.sections if name not in possible]:
        parser.error(
            f"{wrong[0]} is measured on {'drawn people' if options.people else '--people FOLDER'}"
        )
    options.sections = chosen.sections or list(possible)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen sections; writes each report to OUT as tiles_SECTION.md and prints it."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    use_comfyui(progress_bars=False)
    try:
        trial = Trial(options)
    except PFStorerError as error:
        sys.exit(f"error: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.sections:
        report = SECTIONS[name](trial)
        (options.out / f"tiles_{name}.md").write_text(report, encoding="utf-8")
        print(report, flush=True)


def upscaling(trial: Trial) -> str:
    """Scales portraits of 26 px up twenty times, in all ways."""
    side, small = 520, 26
    rows, sheets = [], []
    kinds: dict[str, list[list[float]]] = {}
    for person in trial.people:
        seed = derive_seed("upscaling", person.name)
        clean = portrait_set(int(person.name), 1, seed, side)
        lq = _jpeg(resize_bicubic(clean, (small, small)))
        model = trial.personalized(trial.bench.model, person)
        pictures = {"LQ, scaled": resize_bicubic(lq, (side, side))}
        for name, base, way in (
            ("base, auto", trial.bench.model, "auto"),
            ("personalized, one pass", model, "one pass"),
            ("personalized, progressive", model, "progressive"),
            ("personalized, auto", model, "auto"),
        ):
            started = time.perf_counter()
            pictures[name] = trial.restore(base, lq, size=(side, side), upscaling=way)
            kinds.setdefault(f"{name} s", []).append([time.perf_counter() - started])
        pictures["truth"] = clean
        for name, picture in pictures.items():
            values = [trial.similarity(picture, person)]
            if name != "truth":
                values += [float(psnr(picture, clean)), float(haarpsi(picture, clean))]
            kinds.setdefault(name, []).append(values)
        sheets.append(torch.cat(list(pictures.values())))
    for name, values in kinds.items():
        if not name.endswith(" s"):
            means = [statistics.fmean(column) for column in zip(*values, strict=True)]
            seconds = [x for (x,) in kinds.get(f"{name} s", [])]
            cells = [f"{means[0]:.3f}", *(f"{x:.2f}" for x in means[1:])]
            cells += [""] * (3 - len(cells))
            rows.append([name, *cells, f"{statistics.fmean(seconds):.1f}" if seconds else ""])
    labels = [p.name for p in trial.people[:3]]
    shown = [
        (name, torch.cat([sheet[k : k + 1] for sheet in sheets[:3]]))
        for k, name in enumerate(pictures)
    ]
    contact_sheet(shown, labels, cell=260).save(trial.out / "tiles_upscaling.png")
    table = markdown_table(["", SIMILARITY, "PSNR", "HaarPSI", "seconds"], rows)
    return f"Portraits of {small} px scaled up to {side} px ({side / small:.0f} x).\n\n{table}\n"


def fast(trial: Trial) -> str:
    """Measures quality against steps and the encoder's interval."""
    rows = []
    for steps, interval in ((1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (8, 4), (20, 1), (20, 4)):
        cells, seconds = [f"{steps}", f"{interval}"], 0.0
        for level in LEVELS:
            similar, quality = [], []
            for person, measures in zip(trial.people, trial.measures, strict=True):
                generator = torch.Generator().manual_seed(derive_seed(level, person.name))
                lq = degrade(person.clean, PRESETS[level], generator)
                model = trial.personalized(trial.bench.model, person)
                started = time.perf_counter()
                out = trial.restore(model, lq, steps=steps, encoder_interval=interval)
                seconds += time.perf_counter() - started
                similar.append(float(measures(out)[SIMILARITY].mean()))
                quality.append(float(psnr(out, person.clean).mean()))
            cells.append(f"{statistics.fmean(similar):.3f} / {statistics.fmean(quality):.2f}")
        pictures = sum(len(person.clean) for person in trial.people) * len(LEVELS)
        rows.append([*cells, f"{1000 * seconds / pictures:.0f}"])
    table = markdown_table(["steps", "encoder interval", *LEVELS, "ms a picture"], rows)
    return (
        f"{len(trial.people)} people, personalized, {SIMILARITY} (by "
        f"{described(trial.networks)}) / PSNR, euler.\n\n{table}\n"
    )


SECTIONS: dict[str, Callable[[Trial], str]] = {
    "seams": seams,
    "group": group,
    "people": people,
    "upscaling": upscaling,
    "fast": fast,
}
DRAWN = ("seams", "group", "upscaling", "fast")
PHOTOGRAPHED = ("people", "fast")


def _jpeg(images: Tensor) -> Tensor:
    saved = []
    for image in images:
        buffer = io.BytesIO()
        to_pil_image(image.clamp(0, 1)).save(buffer, "JPEG", quality=JPEG_QUALITY)
        saved.append(pil_to_tensor(Image.open(buffer)).float() / 255)
    return torch.stack(saved)


if __name__ == "__main__":
    main()
