"""At which sizes and in which tiles large pictures are restored."""

from .grid import gaussian_weight, tile_grid

__all__ = ["gaussian_weight", "tile_grid"]
