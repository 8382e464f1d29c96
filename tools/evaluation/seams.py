"""How visible the borders of tiles are."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.drawn.groups import degrade_people, group_photo
from pfstorer_core.measures.intervals import clustered_interval
from pfstorer_core.measures.metrics import psnr
from pfstorer_core.tiling.grid import tile_grid

from .tables import interval_text, markdown_table
from .tile_trial import FRAME, Trial

CROWD = 512, 960  # height and width of a group photo of six people
CROWDS = 16
CROWD_TILE = 176  # pixels
NEAR = 4, 8  # pixels from a border: what is there is alike, also in its place in latent pixels


def seams(trial: Trial) -> str:
    """Compares gradients across tile borders with those elsewhere."""
    overlaps = (0.0, 0.25)
    profiles: dict[float, list[Tensor]] = {overlap: [] for overlap in overlaps}
    quality: dict[str, list[float]] = {}
    height, width = CROWD
    for number in range(CROWDS):
        first = 2_000_000 + 6 * number
        truth = group_photo(range(first, first + 6), height, width, number).picture
        generator = torch.Generator().manual_seed(number)
        lq = degrade_people(truth, FRAME, PRESETS["medium"], generator)
        settings = {"upscaling": "one pass", "steps": 4}
        whole = trial.restore(trial.bench.model, lq, tile_size=width, **settings)
        pictures = {"LQ": lq, "one piece": whole}
        for overlap in overlaps:
            restored = trial.restore(
                trial.bench.model, lq, tile_size=CROWD_TILE, overlap=overlap, **settings
            )
            profiles[overlap].append(_border_gradients(restored, whole, truth, overlap))
            pictures[f"tiles, overlap {overlap:.0%}"] = restored
        for name, picture in pictures.items():
            quality.setdefault(name, []).append(float(psnr(picture, truth)))
    rows = []
    for name, values in quality.items():
        rows.append([name, "", "", "", f"{statistics.fmean(values):.2f}"])
    for row, overlap in zip(rows[2:], overlaps, strict=True):
        gradients = torch.cat(profiles[overlap])[:, None]  # (borders, 1, 6)
        for column, (over, under) in enumerate(((0, 2), (1, 2), (0, 1)), 1):
            # measures: across the border and beside it, in each of the two pictures
            four = gradients[..., (2 * over, 2 * over + 1, 2 * under, 2 * under + 1)]
            ratio = clustered_interval(
                four, lambda m: (m[..., 0] / m[..., 1]) / (m[..., 2] / m[..., 3])
            )
            row[column] = interval_text(ratio)
    header = ["", "tiles / truth", "one piece / truth", "tiles / one piece", "PSNR"]
    return (
        f"{CROWDS} group photos of six people, {width} x {height} px, medium degradation, tiles of "
        f"{CROWD_TILE} px. Mean gradient across the borders of tiles as a multiple of that "
        f"{NEAR[0]} and {NEAR[1]} px beside them, in the picture restored in tiles, in the one "
        "restored in one piece (at the same places), and in the truth; 1 is seamless.\n\n"
        f"{markdown_table(header, rows)}\n"
    )


def _border_gradients(restored: Tensor, whole: Tensor, truth: Tensor, overlap: float) -> Tensor:
    """Returns the mean gradients across each border and beside it.

    Returns:
        (borders, 6): restored in tiles, restored in one piece, truth; each across and beside.
    """
    found = []
    for dim in (2, 3):
        profiles = [
            x.mean(1, keepdim=True).diff(dim=dim).abs().mean([d for d in range(4) if d != dim])
            for x in (restored, whole, truth)
        ]  # (length - 1,) each
        for line in _border_lines(truth.shape[dim], CROWD_TILE, int(CROWD_TILE * overlap)):
            beside = [line - 1 + side * far for side in (-1, 1) for far in NEAR]
            beside = [place for place in beside if 0 <= place < len(profiles[0])]
            found += [x for p in profiles for x in (p[line - 1], p[beside].mean())]
    return torch.stack(found).reshape(-1, 6)


def _border_lines(length: int, tile: int, overlap: int) -> list[int]:
    """Returns the places along an axis at which a tile begins or ends."""
    tiles = tile_grid(length, 1, tile, overlap)
    return sorted(({t.y0 for t in tiles} | {t.y1 for t in tiles}) - {0, length})
