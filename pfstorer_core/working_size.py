"""At which size a restorer of one size works best on pictures, and which it would only spoil."""

from __future__ import annotations

import torch
from torch import Tensor

from .automatic_gamma import degradation_level
from .degradation import resize_bicubic

# Of `degradation_level`; both chosen on photos, see docs/tiles.md.
_BLURRED, _SHARP = 0.8, 0.45
_LARGE = 3.0  # times the size that the restorer knows: what it still restores as parts of a face

Size = tuple[int, int]  # height, width


def working_size(images: Tensor, size: Size, known: float) -> Size:
    """Returns the size at which pictures are restored best: the given one, or halves of it.

    Tiles of a face that is much larger than those of the training show parts of it. As long as
    these parts have detail, a restorer of one size betters them; where they are blurred it makes
    something else of them. There, half the size loses nothing, and shows more of the face. So the
    size is halved while faces are large for it and the sharpest of the pictures is blurred at it.

    Args:
        images: (B, 3, H, W) in [0, 1].
        size: of the output.
        known: factor on the pictures' own size at which their largest face is as large as those of
            the training, see `host.regions.known_factor`.
    """
    height, width = size
    while _large(images, (height, width), known) and bool(
        (_levels(images, (height, width)) >= _BLURRED).all()
    ):
        height, width = (max(1, side // 2) for side in (height, width))
    return height, width


def sharp(images: Tensor, size: Size, known: float) -> Tensor:
    """Returns whether pictures of large faces are so sharp that a small restorer spoils them.

    Its autoencoder, and what it makes of the parts of a face, cost them more than it can give.

    Args:
        images, size, known: as for `working_size`.

    Returns:
        (B,) bool on the CPU.
    """
    if not _large(images, size, known):
        return torch.zeros(len(images), dtype=torch.bool)
    return _levels(images, size) <= _SHARP


def _large(images: Tensor, size: Size, known: float) -> bool:
    return max(size) > _LARGE * known * max(images.shape[2:])


def _levels(images: Tensor, size: Size) -> Tensor:
    return degradation_level(resize_bicubic(images, size))  # (B,)
