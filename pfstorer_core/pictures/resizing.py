"""Pictures at other sizes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

RESIZE_MODES = ("area", "bilinear", "bicubic")


def resize_bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (B, C, H, W) in [0, 1] resized to (height, width), antialiased and clamped."""
    if images.shape[-2:] == size:
        return images
    # torch resizes no half precision on the CPU.
    return resize_by(images.float(), size, "bicubic").to(images.dtype)


def resize_by(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Return an image (B, C, H, W) in [0, 1] of float32 resized to (height, width), at least 1.

    Args:
        mode: one of `RESIZE_MODES`; but for "area", antialiased and clamped.
    """
    size = (max(1, size[0]), max(1, size[1]))
    if mode == "area":
        return F.interpolate(image, size, mode=mode)
    return F.interpolate(image, size, mode=mode, antialias=True).clamp_(0.0, 1.0)
