"""Cost of tiles against the area they cover, and of adapters whose masks only some tiles meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from report import Plot, Section, table
from timing import Mini, fitting_side, in_turns, load_mini, random_picture, randomise
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OVERHEAD_TITLE = "Tiles against the area they cover"
ADAPTERS_TITLE = "Adapters in tiles"
OVERLAPS = (0.0, 0.25, 0.5)
OVERLAP = 0.25
SIDE, SMALL_SIDE = 768, 224  # pixels
BATCH = 4  # tiles at once
REPEATS = 5
STEPS = 1


def measure_overhead(quick: bool = False) -> Section:
    """Times samplings in tiles, in one piece, and of single tiles."""
    mini = load_mini()
    side, repeats = (SMALL_SIDE, 1) if quick else (SIDE, REPEATS)
    picture = random_picture(side, side)
    grids = [tile_windows(mini, side, overlap) for overlap in OVERLAPS]
    settings: dict[str, Any] = {"steps": STEPS, "tile_size": mini.tile, "tile_batch": BATCH}
    # as many pictures of one tile's size as the tiled run takes at once
    single = mini.sampling(random_picture(mini.tile, mini.tile, BATCH), **settings)
    whole = mini.sampling(picture, **settings | {"tile_size": side, "tile_batch": 1})
    tiled = [mini.sampling(picture, overlap=overlap, **settings) for overlap in OVERLAPS]

    def single_tile() -> float:
        count = 1 if quick else 4
        return sum(single() for _ in range(count)) / count / BATCH

    one, untiled, *times = in_turns([single_tile, whole, *tiled], repeats, not quick)
    rows, covered, tiled_ratios, overheads = [], [], [], []
    for overlap, windows, seconds in zip(OVERLAPS, grids, times, strict=True):
        covered.append(sum(h * w for h, w in (tile.size for tile in windows)) / side**2)
        tiled_ratios.append(seconds / untiled)
        overheads.append(seconds / (len(windows) * one))
        rows.append(
            [
                f"{overlap:.0%}",
                str(len(windows)),
                f"{seconds:.2f}",
                f"{covered[-1]:.3f}",
                f"{overheads[-1]:.3f}",
                f"{tiled_ratios[-1]:.3f}",
            ]
        )

    def draw(axes: Sequence[Axes]) -> None:
        axes[0].plot(covered, covered, "--", color="grey", label="covered area")
        ideal = [c * o for c, o in zip(covered, overheads, strict=True)]
        axes[0].plot(covered, ideal, "o-", label="measured against single tiles")
        axes[0].plot(covered, tiled_ratios, "s-", label="measured against one piece")
        axes[0].set(xlabel="covered area / picture area", ylabel="time / ideal time of the picture")
        axes[0].legend(fontsize=8)

    text = (
        f"Sampling alone (all of ComfyUI's sampler, no VAE) of {side} x {side} pixels with the "
        f"mini restorer, {STEPS} step, tiles of {mini.tile} x {mini.tile} pixels, {BATCH} at once. "
        "The ideal time is that of a picture of one tile times the number of tiles, the single "
        f"tiles run {BATCH} at once too; time / ideal time is what cutting and blending add. The "
        "last column is against the same picture in one piece, whose time per area also differs "
        "by what attention and caches make of its size.\n\n"
    )
    header = [
        "overlap",
        "tiles",
        "seconds",
        "covered area / picture area",
        "time / ideal time",
        "time / time in one piece",
    ]
    return Section(OVERHEAD_TITLE, text + table(header, rows), Plot("tiles", draw))


def measure_adapters(quick: bool = False) -> Section:
    """Times samplings in tiles with adapters everywhere and within masks."""
    from pfstorer_core import host

    mini = load_mini()
    side = fitting_side(SMALL_SIDE if quick else SIDE, mini.tile, OVERLAP)
    picture = random_picture(side, side)
    masks = corner_masks(side, mini.tile)
    windows = tile_windows(mini, side, OVERLAP)
    met = [[bool(tile.crop(mask).any()) for tile in windows] for mask in masks]
    adapters = [random_adapter(mini) for _ in masks]
    settings: dict[str, Any] = {
        "steps": STEPS,
        "tile_size": mini.tile,
        "overlap": OVERLAP,
        "tile_batch": BATCH,
    }

    def sampling(count: int, masked: bool) -> Any:
        model = mini.model
        for adapter, mask in zip(adapters[:count], masks, strict=False):
            model = host.apply_identity(model, adapter, mask=mask if masked else None)
        return mini.sampling(picture, model, **settings)

    kinds = [(0, False), (1, False), (2, False), (3, False), (1, True), (3, True)]
    repeats = 1 if quick else REPEATS
    times = in_turns([sampling(*kind) for kind in kinds], repeats, not quick)
    costs = [times[k] / times[0] - 1 for k in range(4)]  # by adapters that a tile has
    rows = []
    for (count, masked), seconds in zip(kinds, times, strict=True):
        in_tile = [sum(row[k] for row in met[:count]) for k in range(len(windows))]
        tiles_met = sum(n > 0 for n in in_tile) if masked else len(windows) * (count > 0)
        foretold = 1 + sum(costs[n] for n in in_tile) / len(windows)
        rows.append(
            [
                f"{count} {'in masks' if masked else 'everywhere' if count else ''}".strip(),
                f"{tiles_met} of {len(windows)}",
                f"{seconds:.2f}",
                f"{seconds / times[0]:.3f}",
                f"{foretold:.3f}" if masked else "",
            ]
        )
    text = (
        f"Sampling alone of {side} x {side} pixels with the mini restorer, {STEPS} step, tiles of "
        f"{mini.tile} pixels that overlap by {OVERLAP:.0%}, {BATCH} at once; adapters have random "
        "weights. The foretold ratio is what the tiles that meet a mask cost if those outside all "
        "masks pay nothing.\n\n"
    )
    header = ["adapters", "tiles that meet them", "seconds", "time / none", "foretold"]
    return Section(ADAPTERS_TITLE, text + table(header, rows))


def tile_windows(mini: Mini, side: int, overlap: float) -> list[Any]:
    """Returns the tiles of a square picture in pixels, as Tiled Restore cuts its latent."""
    from pfstorer_core.tiling.grid import tile_grid

    latent, tile = side // mini.cell, mini.tile // mini.cell
    tiles = tile_grid(latent, latent, tile, int(tile * overlap))
    return [window.scaled(mini.cell) for window in tiles]


def corner_masks(side: int, tile: int) -> list[Tensor]:
    """Returns masks (side, side) of three people of a tile's size, each near another corner."""
    far = side - 3 * tile // 2
    masks = []
    for y, x in ((tile // 2, tile // 2), (tile // 2, far), (far, tile // 2)):
        mask = torch.zeros(side, side)
        mask[max(0, y) : y + tile, max(0, x) : x + tile] = 1
        masks.append(mask)
    return masks


def random_adapter(mini: Mini) -> Any:
    """Returns an adapter of random weights that fits the mini restorer."""
    from pfstorer_core.host.base import base_of
    from pfstorer_core.host.sites import find_identity_sites
    from pfstorer_core.identities.adapter import AdapterInfo, IdentityAdapter
    from pfstorer_core.identities.config import PersonalizationConfig

    base = base_of(mini.model).info
    info = AdapterInfo(
        "random",
        base.name,
        base.fingerprint,
        mini.model.model.model_config.unet_config["context_dim"],
        find_identity_sites(mini.model.model.diffusion_model),
        PersonalizationConfig(),
    )
    adapter = IdentityAdapter.initialise(info)
    randomise(adapter)
    return adapter
