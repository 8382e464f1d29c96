"""What the knobs of restoring do."""

from __future__ import annotations

import torch
from evaluation.people import derive_seed
from torch import Tensor

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.drawn.groups import degrade_people, group_photo
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.measures.comparison import compare
from pfstorer_core.measures.sheet import sheet
from pfstorer_core.measures.similarity import load_embedding
from pfstorer_core.pictures.resizing import resize_bicubic

from .sheets import Cell, Rows
from .studio import DARK_GLASSES, NO_GLASSES, PHOTO, ROUND_GLASSES, SIZE, Studio, compared


def restorer(studio: Studio) -> tuple[Rows, int]:
    """What the bundled restorer alone does to a photo."""
    cases = [(PHOTO, "light", 0), (PHOTO, "medium", 0), (PHOTO, "extreme", 2)]
    return compared(studio, cases, lambda _, lq: [("restored", studio.restore(studio.base, lq))])


def gamma(studio: Studio) -> tuple[Rows, int]:
    """Strength of the identity, at two degradations."""

    def ways(person: int, lq: Tensor) -> list[Cell]:
        return [
            (f"{g:g}", studio.restore(studio.personalized(person, gamma=g), lq))
            for g in (0, 0.5, 1, 1.5, 2)
        ]

    return compared(studio, [(ROUND_GLASSES, "medium", 0), (NO_GLASSES, "extreme", 0)], ways)


def adapter(studio: Studio) -> tuple[Rows, int]:
    """The right adapter and one of somebody else."""

    def ways(person: int, lq: Tensor) -> list[Cell]:
        return [
            ("no adapter", studio.restore(studio.base, lq)),
            ("own adapter", studio.restore(studio.personalized(person), lq)),
            ("another's", studio.restore(studio.personalized((person + 1) % 3), lq)),
        ]

    return compared(studio, [(ROUND_GLASSES, "medium", 0), (NO_GLASSES, "medium", 0)], ways)


def start_end(studio: Studio) -> tuple[Rows, int]:
    """Part of the sampling in which the identity acts."""

    def ways(person: int, lq: Tensor) -> list[Cell]:
        parts = ((0.0, 1.0), (0.0, 0.3), (0.0, 0.6), (0.3, 1.0), (0.6, 1.0))
        return [
            (
                f"{start:g} - {end:g}",
                studio.restore(studio.personalized(person, start=start, end=end), lq),
            )
            for start, end in parts
        ]

    return compared(studio, [(ROUND_GLASSES, "medium", 0), (NO_GLASSES, "extreme", 0)], ways)


def mask(studio: Studio) -> tuple[Rows, int]:
    """One adapter with and without a mask, and three with masks."""
    lq, photo = studio.group("medium")
    masks = [m[None] for m in photo.masks]  # (1, H, W) each
    three = studio.base
    for person, where in enumerate(masks):
        three = studio.personalized(person, three, mask=where)
    one, everywhere = studio.personalized(1, mask=masks[1]), studio.personalized(1)
    models = {
        "no adapter": studio.base,
        "one adapter, mask": one,
        "one adapter, no mask": everywhere,
        "3 adapters, 3 masks": three,
    }
    cells = [("LQ", lq), ("mask", masks[1].expand(3, -1, -1))]
    cells += [(name, studio.restore(model, lq, tile_size=192)) for name, model in models.items()]
    return [[cell] for cell in [*cells, ("truth", photo.picture[0])]], SIZE


def masked_only(studio: Studio) -> tuple[Rows, int]:
    """What lies outside the masks, and how their edges fade."""
    lq, photo = studio.group("medium")
    model = studio.personalized(1, mask=photo.masks[1:2])
    cells = [("masked_only off", studio.restore(model, lq, tile_size=192))]
    for feather in (0, 16, 48):
        settings = {"tile_size": 192, "masked_only": True, "feather": feather}
        cells.append((f"on, feather {feather}", studio.restore(model, lq, **settings)))
    return [[cell] for cell in cells], SIZE


def steps(studio: Studio) -> tuple[Rows, int]:
    """Number of sampling steps."""

    def ways(person: int, lq: Tensor) -> list[Cell]:
        return [(f"{n}", studio.restore(studio.base, lq, steps=n)) for n in (1, 4, 8, 20, 50)]

    return compared(studio, [(PHOTO, "medium", 1), (PHOTO, "extreme", 2)], ways)


def denoise(studio: Studio) -> tuple[Rows, int]:
    """Share of the noise schedule that is run."""

    def ways(person: int, lq: Tensor) -> list[Cell]:
        return [
            (f"{d:g}", studio.restore(studio.base, lq, denoise=d)) for d in (0.25, 0.5, 0.75, 1.0)
        ]

    return compared(studio, [(PHOTO, "medium", 1), (PHOTO, "extreme", 2)], ways)


def seed(studio: Studio) -> tuple[Rows, int]:
    """What the noise decides on where the picture shows little."""

    def ways(person: int, lq: Tensor) -> list[Cell]:
        return [(f"seed {s}", studio.restore(studio.base, lq, seed=s)) for s in range(4)]

    return compared(studio, [(PHOTO, "light", 2), (PHOTO, "extreme", 2)], ways)


def color_fix(studio: Studio) -> tuple[Rows, int]:
    """Ways to take the input's colours."""

    def ways(person: int, lq: Tensor) -> list[Cell]:
        model = studio.personalized(person)
        return [
            (fix, studio.restore(model, lq, color_fix=fix)) for fix in ("none", "wavelet", "adain")
        ]

    return compared(studio, [(NO_GLASSES, "medium", 1), (DARK_GLASSES, "extreme", 2)], ways)


def encoder_interval(studio: Studio) -> tuple[Rows, int]:
    """How often the restorer looks at the input."""

    def ways(person: int, lq: Tensor) -> list[Cell]:
        return [(f"{n}", studio.restore(studio.base, lq, encoder_interval=n)) for n in (1, 2, 4, 8)]

    return compared(studio, [(ROUND_GLASSES, "medium", 1), (DARK_GLASSES, "extreme", 1)], ways)


def upscaling(studio: Studio) -> tuple[Rows, int]:
    """Ways to a picture twenty times as large."""
    rows = []
    for person in (ROUND_GLASSES, NO_GLASSES):
        name = studio.people[person].name
        side, small = 520, 26
        clean = portrait_set(int(name), 1, derive_seed("upscaling", name), side)  # (1, 3, H, W)
        lq = resize_bicubic(clean, (small, small))[0]
        model = studio.personalized(person)
        ways = [
            (way, studio.restore(model, lq, size=(side, side), upscaling=way))
            for way in ("one pass", "progressive", "plain")
        ]
        rows.append([("LQ", lq), *ways, ("truth", clean[0])])
    return rows, 160


def tile_size(studio: Studio) -> tuple[Rows, int]:
    """Tiles of several sizes, none of them the default's."""
    lq, photo = _crowd()
    cells = []
    for side in (64, 128, 192, 576):
        label = f"tile_size {side}" if side < lq.shape[-1] else "one tile"
        settings = {"steps": 4, "tile_size": side, "upscaling": "one pass"}
        cells.append((label, studio.restore(studio.base, lq, **settings)))
    return [[cell] for cell in [*cells, ("truth", photo)]], 176


def overlap(studio: Studio) -> tuple[Rows, int]:
    """Borders of tiles, enlarged: one runs through each sleeve."""
    lq, photo = _crowd()
    settings = {"steps": 4, "tile_size": 176, "upscaling": "one pass"}
    pictures = [
        (f"overlap {share:g}", studio.restore(studio.base, lq, overlap=share, **settings))
        for share in (0.0, 0.1, 0.25)
    ]
    cells = [(name, picture[:, 190:, 130:400]) for name, picture in [*pictures, ("truth", photo)]]
    return [[cell] for cell in cells], 128


def _crowd() -> tuple[Tensor, Tensor]:
    """Returns a photo (3, H, W) of three people, degraded and clean."""
    truth = group_photo(range(2_000_000, 2_000_003), 320, 576, 5).picture
    generator = torch.Generator().manual_seed(5)
    return degrade_people(truth, 160, PRESETS["medium"], generator)[0], truth[0]


def comparison(studio: Studio) -> tuple[Rows, int]:
    """The sheet of Compare Restorations for two pictures."""
    person = studio.people[ROUND_GLASSES]
    pairs = [studio.spoilt(ROUND_GLASSES, level) for level in ("medium", "extreme")]
    lq = [pair[0] for pair in pairs]
    compared = compare(
        [studio.restore(studio.personalized(ROUND_GLASSES), picture) for picture in lq],
        truth=[pair[1] for pair in pairs],
        references=list(person.references),
        lq=lq,
        base=[studio.restore(studio.base, picture) for picture in lq],
        embedding=load_embedding(),
    )
    page = sheet(compared)
    return [[("", page)]], page.shape[1] * 4 // 5
