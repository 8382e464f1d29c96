"""At which size a restorer of one size works best on pictures, and which it would only spoil."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pictures.detail import degradation_level
from ..pictures.resizing import resize_bicubic

# Of `degradation_level`; both chosen on photos, see docs/tiles.md.
_BLURRED, _SHARP = 0.8, 0.45
_LARGE = 3.0  # times the size that the restorer knows: what it still restores as parts of a face

Size = tuple[int, int]  # height, width


def working_size(images: Tensor, size: Size, known: float) -> tuple[Size, Tensor]:
    """Returns the size at which pictures are restored best, and which a restorer only spoils.

    Tiles of a face that is much larger than those of the training show parts of it. As long as
    these parts have detail, a restorer of one size betters them; where they are blurred it makes
    something else of them. There, half the size loses nothing, and shows more of the face. So the
    size is halved while faces are large for it and the sharpest of the pictures is blurred at it.
    Where such large faces are sharp, its autoencoder, and what it makes of the parts of a face,
    cost them more than it can give.

    Args:
        images: (B, 3, H, W) in [0, 1].
        size: of the output.
        known: factor on the pictures' own size at which their largest face is as large as those of
            the training, see `host.restoring.regions.known_factor`.

    Returns:
        The given size or halves of it, and (B,) bool on the CPU: the pictures to leave as they are.
    """
    largest = _LARGE * known * max(images.shape[2:])  # px
    kept = torch.zeros(len(images), dtype=torch.bool)
    height, width = size
    while max(height, width) > largest:
        levels = degradation_level(resize_bicubic(images, (height, width)))  # (B,)
        if (height, width) == size:
            kept = levels <= _SHARP
        if not (levels >= _BLURRED).all():
            break
        height, width = (max(1, side // 2) for side in (height, width))
    return (height, width), kept
