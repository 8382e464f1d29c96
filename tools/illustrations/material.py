"""What trainings make of their settings, and what the demo nodes draw."""

from __future__ import annotations

import torch
from evaluation.adapters import FULL, VARIANTS
from torch import Tensor

from pfstorer_core.degradation.exact import ExactDegradation, degrade_exactly
from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.groups import album_page, degrade_people, group_photo
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.pictures.resizing import resize_bicubic

from .photo import astronaut, portrait
from .sheets import Cell, Rows
from .studio import NO_GLASSES, ROUND_GLASSES, SIZE, Studio, compared


def trained(studio: Studio) -> tuple[Rows, int]:
    """Adapters of trainings of several lengths."""

    def ways(person: int, lq: Tensor) -> list[Cell]:
        cells = [("no adapter", studio.restore(studio.base, lq))]
        for bench, name in (
            (studio.quick, "half the steps"),
            (studio.quick, FULL),
            (studio.standard, FULL),
        ):
            steps = VARIANTS[name].config(bench.config).steps
            model = studio.personalized(person, bench=bench, variant=name)
            cells.append((f"{steps}", studio.restore(model, lq)))
        return cells

    return compared(studio, [(ROUND_GLASSES, "extreme", 0), (NO_GLASSES, "extreme", 0)], ways)


def photos(studio: Studio) -> tuple[Rows, int]:
    """Adapters of several numbers of photos."""

    def ways(person: int, lq: Tensor) -> list[Cell]:
        cells = [("no adapter", studio.restore(studio.base, lq))]
        for label, name in (("1 photo", "1 photo"), ("3 photos", "3 photos"), ("8 photos", FULL)):
            model = studio.personalized(person, variant=name)
            cells.append((label, studio.restore(model, lq)))
        return cells

    return compared(studio, [(ROUND_GLASSES, "extreme", 0), (NO_GLASSES, "medium", 0)], ways)


def training_photos(studio: Studio) -> tuple[Rows, int]:
    """Photos that teach much."""
    pictures = [photo[0].movedim(-1, 0) for photo in studio.people[ROUND_GLASSES].photos]
    return [[("", picture) for picture in pictures[:6]]], SIZE


def identities(studio: Studio) -> tuple[Rows, int]:
    """Numbers of people."""
    numbers = range(1_000_000, 1_000_006)
    return [[(f"{n}", portrait_set(n, 1, 0, SIZE)[0]) for n in numbers]], SIZE


def views(studio: Studio) -> tuple[Rows, int]:
    """Pictures of one person, and what another seed changes."""
    return [
        [(f"seed {seed}" if not k else "", view) for k, view in enumerate(pictures)]
        for seed in (0, 1)
        for pictures in [portrait_set(1_000_004, 6, seed, SIZE)]
    ], SIZE


def degradations(studio: Studio) -> tuple[Rows, int]:
    """Presets, on a photo and on drawn portraits."""
    rows = []
    photo = portrait(astronaut(), SIZE)[None]
    clean = torch.cat([photo, portrait_set(1_000_004, 3, 2, SIZE)])  # (4, 3, SIZE, SIZE)
    for number, level in enumerate(PRESETS):
        generator = torch.Generator().manual_seed(number)
        spoilt = degrade(clean, PRESETS[level], generator)
        rows.append([(level, spoilt[0]), *(("", picture) for picture in spoilt[1:])])
    rows.insert(0, [("none", clean[0]), *(("", picture) for picture in clean[1:])])
    return rows, 112


def explicit(studio: Studio) -> tuple[Rows, int]:
    """Each value of the explicit degradation alone."""
    clean = portrait(astronaut(), SIZE)[None]  # (1, 3, SIZE, SIZE)
    values: dict[str, tuple[float, ...]] = {
        "blur": (4, 8, 16),
        "downsample": (4, 8, 12),
        "noise": (8, 16, 32),
        "jpeg_quality": (60, 30, 10),
    }
    rows = []
    for name, chosen in values.items():
        row = []
        for value in chosen:
            exact = ExactDegradation(**{name: value})
            spoilt = degrade_exactly(clean, exact, torch.Generator().manual_seed(0))
            row.append((f"{name} {value}", resize_bicubic(spoilt, (SIZE, SIZE))[0]))
        rows.append(row)
    return rows, 160


def group(studio: Studio) -> tuple[Rows, int]:
    """A group photo, its masks and the presets."""
    photo = group_photo([0, 1, 2], 256, 512, 0)
    cells = [("degradation none", photo.picture[0])]
    for level in ("medium", "extreme"):
        generator = torch.Generator().manual_seed(0)
        spoilt = degrade_people(photo.picture, photo.frames[0][2], PRESETS[level], generator)
        cells.append((f"degradation {level}", spoilt[0]))
    # each mask in one of the colours red, green and blue
    return [[cell] for cell in [*cells, ("mask_1, mask_2, mask_3", photo.masks)]], SIZE


def album(studio: Studio) -> tuple[Rows, int]:
    """A page of an album."""
    page = album_page(0, 8, 3, 128, 0)
    spoilt = degrade_people(page, 128, PRESETS["medium"], torch.Generator().manual_seed(0))
    return [[("degradation none", page[0])], [("degradation medium", spoilt[0])]], 288
