"""How a latent is cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...tiling.grid import Tile, tile_grid


@dataclass(frozen=True)
class TileLayout:
    """How a latent is cut.

    Args:
        height, width: of the latent, in latent pixels.
        tile: side of a tile in latent pixels.
        overlap: what neighbours share at least, as a share of the tile.
        batch: tiles that the UNet gets at once.
        step: what a tile's side must be a multiple of, in latent pixels.
    """

    height: int
    width: int
    tile: int
    overlap: float = 0.25
    batch: int = 1
    step: int = 1

    @property
    def tiles(self) -> list[Tile]:
        """The windows of the latent."""
        return tile_grid(self.height, self.width, self.tile, int(self.tile * self.overlap))

    @property
    def tile_size(self) -> tuple[int, int]:
        """Height and width of every tile, which a small latent cuts short."""
        return min(self.tile, self.height), min(self.tile, self.width)

    def smaller(self) -> TileLayout | None:
        """Returns a layout that needs less memory, or None if there is no useful one."""
        if self.batch > 1:
            return replace(self, batch=self.batch // 2)
        side = min(self.tile, max(self.height, self.width))
        tile = side // 2 // self.step * self.step
        return replace(self, tile=tile) if tile >= 2 * self.step else None
