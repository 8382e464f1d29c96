"""Chooses tile size and batch from the free memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management as mm
import torch

from ...errors import PFStorerError
from ..base import base_of
from ..memory import available_memory
from .layout import TileLayout

# The host, too, takes half more than its estimate before it puts conditions into one batch.
_RESERVE = 1.5
_LARGEST_BATCH = 8  # tiles of the trained size: more gain no speed
# Of the trained side: up to which a latent is not cut, and of which sizes its tiles are otherwise.
_ONE_TILE, _TILE_SHARES = 2.0, (1.25, 1.5)
_SMALLEST_TILE = 2  # coarsest latent pixels of the UNet
_BUFFERS = 6  # of the output's size in float32: input scaled up, result, weights, colours
_LATENT_BUFFERS = 10  # latents that a sampler and the tiles' blend hold at once


@dataclass(frozen=True)
class TilePlan:
    """Tiles of one pass, and what they will take.

    Args:
        layout: how the latent is cut.
        memory: estimated bytes on the MODEL's device, its weights aside.
        free: bytes that are free there, or can be made so.
        pictures: estimated bytes of main memory for pictures and latents.
        cell: pixels per latent pixel.
    """

    layout: TileLayout
    memory: float
    free: float
    pictures: float
    cell: int

    def __str__(self) -> str:
        layout = self.layout
        height, width = (side * self.cell for side in layout.tile_size)
        count = len(layout.tiles)
        tiles = f"1 tile of {width} x {height} px"
        if count > 1:
            overlap = int(layout.tile * layout.overlap) * self.cell
            tiles = f"{count} tiles of {width} x {height} px that overlap by {overlap} px or more"
            tiles += f", {layout.batch} at once"
        return (
            f"{tiles}; about {_bytes(self.memory)} of {_bytes(self.free)} free memory, and "
            f"{_bytes(self.pictures)} main memory for pictures"
        )


@dataclass(frozen=True)
class TileChoice:
    """What is chosen of the tiles.

    Args:
        tile_size: side of a tile in pixels; 0 chooses it: the whole latent up to twice the size
            that the restorer was trained at, else 1.25 to 1.5 times that size, so that a face of
            the size that it knows fits into a tile, and smaller where memory does not suffice.
        overlap: of neighbours, as a share of the tile, in [0, 0.75].
        tile_batch: tiles at once; 0 takes what fits into the free memory.
        cfg: guidance scale; other than 1 doubles the work.

    Raises:
        PFStorerError: a setting out of its range.
    """

    tile_size: int = 0
    overlap: float = 0.25
    tile_batch: int = 0
    cfg: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 0.75:
            raise PFStorerError(
                f"The overlap is {self.overlap}; choose a share of the tile from 0 to 0.75."
            )
        if self.tile_batch < 0 or self.tile_size < 0:
            raise PFStorerError("Tile size and batch are numbers of 0 (automatic) or more.")


def plan_tiles(
    model: Any,
    latent_shape: tuple[int, int, int, int],
    cell: int,
    choice: TileChoice | None = None,
) -> TilePlan:
    """Plans the tiles of one pass.

    Args:
        model: a restorer's MODEL.
        latent_shape: (B, C, h, w) of the whole latent.
        cell: pixels per latent pixel.
        choice: what is chosen; by default everything is automatic.

    Raises:
        PFStorerError: tiles that are too small for the UNet.
    """
    choice = choice or TileChoice()
    tile_size, overlap, tile_batch = choice.tile_size, choice.overlap, choice.tile_batch
    step = base_of(model).size_step
    smallest = _SMALLEST_TILE * step
    if tile_size and tile_size < smallest * cell:
        raise PFStorerError(
            f"Tiles of {tile_size} px are too small for this restorer; choose {smallest * cell} px "
            "or more, or 0 for automatic."
        )
    batch, channels, height, width = latent_shape
    trained = base_of(model).trained_size // cell
    tile = tile_size // cell // step * step or _best_tile(height, width, trained, overlap, step)
    free = available_memory(model)
    conditions = 1 if choice.cfg == 1 else 2

    def memory(side: int, count: int) -> float:
        shape = [conditions * count, channels, min(side, height), min(side, width)]
        return _RESERVE * float(model.model.memory_required(shape))

    if not tile_size:
        while memory(tile, 1) > free and tile // 2 // step * step >= smallest:
            tile = tile // 2 // step * step
    layout = TileLayout(height, width, tile, overlap, 1, step)
    most = len(layout.tiles) * batch
    useful = int(_LARGEST_BATCH * trained**2 / math.prod(layout.tile_size))
    tile_batch = tile_batch or max(1, min(useful, int(free / memory(tile, 1))))
    tile_batch = min(tile_batch, most)
    layout = replace(layout, batch=tile_batch)
    pictures = _picture_memory(latent_shape, cell)
    return TilePlan(layout, memory(tile, tile_batch), free, pictures, cell)


def check_pictures(latent_shape: tuple[int, int, int, int], cell: int) -> None:
    """Checks that pictures and latents of a size fit into main memory.

    Raises:
        PFStorerError: they do not.
    """
    needed, free = _picture_memory(latent_shape, cell), mm.get_free_memory(torch.device("cpu"))
    if needed > free:
        height, width = (side * cell for side in latent_shape[2:])
        raise PFStorerError(
            f"An output of {width} x {height} pixels, {latent_shape[0]} of them, needs about "
            f"{_bytes(needed)} of main memory, but {_bytes(free)} are free; choose a smaller scale "
            "or size, or fewer images at once."
        )


def _best_tile(height: int, width: int, trained: int, overlap: float, step: int) -> int:
    """Returns the side of the tiles that cover a latent with the least work."""
    longest = -(-max(height, width) // step) * step
    if longest <= _ONE_TILE * trained:
        return longest
    low, high = (int(share * trained) // step * step for share in _TILE_SHARES)

    def covered(tile: int) -> int:
        layout = TileLayout(height, width, tile, overlap)
        return sum((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in layout.tiles)

    return min(range(low, high + 1, step), key=covered)


def _bytes(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def _picture_memory(latent_shape: tuple[int, int, int, int], cell: int) -> float:
    batch, channels, height, width = latent_shape
    picture = 3 * cell**2 * _BUFFERS
    return 4.0 * batch * height * width * (picture + channels * _LATENT_BUFFERS)
