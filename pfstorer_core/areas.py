"""Means over areas, on every device."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def area_mean(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns maps (B, C, H, W) scaled to (h, w), each value the mean of the area that it covers.

    Apple's MPS has this for whole divisions only; others are made on the CPU there.
    """
    height, width = x.shape[2:]
    if x.device.type == "mps" and (height % size[0] or width % size[1]):
        return F.adaptive_avg_pool2d(x.cpu(), size).to(x.device)
    return F.adaptive_avg_pool2d(x, size)
