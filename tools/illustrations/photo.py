"""A photo of a real person: scikit-image's astronaut (Eileen Collins, NASA, public domain)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade_to_size
from pfstorer_core.pictures.resizing import resize_bicubic

SIDE = 512  # px of the photo
PORTRAIT = (
    224  # px: side of the square around her head in which the head is as large as in training
)
LEFT = 112  # px: of that square; it begins at the top of the photo


def astronaut() -> Tensor:
    """Returns the photo, (3, SIDE, SIDE) in [0, 1]."""
    from skimage.data import astronaut as photo

    return to_tensor(photo())


def small_copy(level: str, seed: int) -> Tensor:
    """Returns the whole photo as somebody might own it.

    Args:
        level: key of `presets.PRESETS`. Her head is spoilt as much as that of a portrait, as by
            `groups.degrade_people`.
        seed: of the degradation.

    Returns:
        (3, h, w) in [0, 1], as small as the preset says.
    """
    config = PRESETS[level].with_blur(PORTRAIT / SIDE)
    generator = torch.Generator().manual_seed(seed)
    return degrade_to_size(astronaut()[None], config, generator)[0]


def portrait(picture: Tensor, side: int = PORTRAIT) -> Tensor:
    """Cuts the square around her head out of the photo, or of one restored from it.

    Args:
        picture: (3, SIDE, SIDE) in [0, 1].
        side: of the result in pixels.

    Returns:
        (3, side, side) in [0, 1].
    """
    cut = picture[:, :PORTRAIT, LEFT : LEFT + PORTRAIT]
    return resize_bicubic(cut[None], (side, side))[0]
