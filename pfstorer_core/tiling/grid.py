"""Tiles: where they lie, how much each counts at a place, and their weighted mean."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import PFStorerError

_VARIANCE = 0.01  # of the Gaussian, relative to the square of the tile's side


class Tile(NamedTuple):
    """A window of a latent or picture: rows y0 to y1 and columns x0 to x1, the ends excluded."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.y1 - self.y0, self.x1 - self.x0

    def scaled(self, factor: int) -> "Tile":
        """Returns the same window of a picture that is larger by `factor`."""
        return Tile(*(factor * side for side in self))

    def crop(self, tensor: Tensor) -> Tensor:
        """Returns the window of a tensor (..., H, W) as a view."""
        return tensor[..., self.y0 : self.y1, self.x0 : self.x1]


def tile_grid(height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Covers a rectangle with tiles of one size, column by column.

    The last tile of a row or column is moved back to end at the border, so that all are of the
    same size; where the rectangle is smaller than a tile, the tiles are as small.

    Args:
        height, width: of the rectangle, at least 1.
        tile: side of a tile.
        overlap: how much neighbours share at least; less than `tile`.

    Raises:
        PFStorerError: sizes that give no grid.

    Source: StableSR (arXiv 2305.07015), section 3.4 and its released code.
    """
    if min(height, width, tile) < 1 or not 0 <= overlap < tile:
        raise PFStorerError(
            f"A picture of {width} x {height} cannot be cut into tiles of {tile} that overlap by "
            f"{overlap}; choose a tile of at least 1 and an overlap smaller than it."
        )
    rows, columns = _starts(height, tile, overlap), _starts(width, tile, overlap)
    h, w = min(tile, height), min(tile, width)
    return [Tile(y, x, y + h, x + w) for x in columns for y in rows]


def gaussian_weight(tile_h: int, tile_w: int) -> Tensor:
    """Returns how much each pixel (tile_h, tile_w) of a tile counts: float32, most in the middle.

    Source: StableSR's released code; its Gaussian is centred on tile_h / 2 but (tile_w - 1) / 2.
    """
    rows = _gaussian(tile_h, tile_h / 2)
    columns = _gaussian(tile_w, (tile_w - 1) / 2)
    return torch.outer(rows, columns).float()


class TileBlend:
    """Weighted mean of overlapping tiles, in float32.

    Args:
        shape: (B, C, H, W) of the whole.
        device: where to sum up.

    Source: StableSR (arXiv 2305.07015), section 3.4.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(shape, device=device)
        self._weight = torch.zeros((shape[0], 1, *shape[2:]), device=device)
        self._gaussians: dict[tuple[int, int], Tensor] = {}

    def add(self, tile: Tile, output: Tensor, item: int | None = None) -> None:
        """Adds what was computed for a tile.

        Args:
            tile: its window.
            output: (B, C, h, w), or (1, C, h, w) for one item.
            item: the only item of the batch that it belongs to; None is all.
        """
        if tile.size not in self._gaussians:
            self._gaussians[tile.size] = gaussian_weight(*tile.size).to(self._sum.device)
        weight = self._gaussians[tile.size]  # (h, w)
        items = slice(None) if item is None else slice(item, item + 1)
        tile.crop(self._sum[items]).addcmul_(output.to(self._sum), weight)
        tile.crop(self._weight[items]).add_(weight)

    def mean(self, elsewhere: Tensor | float = 0.0) -> Tensor:
        """Returns the mean (B, C, H, W); call it once, for it is computed in place.

        Args:
            elsewhere: the values where no tile was added, of any shape that broadcasts.
        """
        covered = self._weight > 0  # (B, 1, H, W)
        self._sum.div_(self._weight.masked_fill_(~covered, 1.0))
        if bool(covered.all()):
            return self._sum
        return torch.where(covered, self._sum, elsewhere)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    last = max(0, length - tile)
    return [*range(0, last, tile - overlap), last]


def _gaussian(length: int, middle: float) -> Tensor:
    place = (torch.arange(length, dtype=torch.float64) - middle) / length  # (length,)
    return torch.exp(-(place**2) / (2 * _VARIANCE)) / math.sqrt(2 * math.pi * _VARIANCE)
