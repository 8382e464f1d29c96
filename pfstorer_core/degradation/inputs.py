"""What pictures to degrade must be, and the size that blurs are given for."""

from __future__ import annotations

from torch import Tensor

from ..errors import PFStorerError
from ..pictures.values import unit_range

REFERENCE_SIZE = 512  # px: blur sigmas are given for a picture of this size


def checked_pictures(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) as `unit_range` does, or raise PFStorerError."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise PFStorerError(
            f"Pictures to degrade have the shape {tuple(images.shape)}; give (B, 3, H, W)."
        )
    if not images.is_floating_point():
        raise PFStorerError(
            f"Pictures to degrade are of type {images.dtype}; give floats in [0, 1]."
        )
    return unit_range(images.detach(), "A picture to degrade")
