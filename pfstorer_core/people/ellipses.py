"""Heads with hair as ellipses, from faces and boxes that other detectors find."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .found import FoundHead

# What a head with hair adds to the extent of a face from brow to chin, in shares of it. The crown
# is 0.3 of that height above the hairline, and the head 1.1 times as wide; the rest is hair.
_SIDES, _ABOVE, _BELOW = 0.18, 0.45, 0.05
_EDGE = 0.1  # over which share of the radius the mask fades, on both sides

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
UPRIGHT = (0.0, -1.0)


def head_of_face(
    points: Tensor, size: tuple[int, int], score: float = 1.0, up: tuple[float, float] = UPRIGHT
) -> FoundHead | None:
    """Returns the head with hair around a face.

    Args:
        points: (N, 2), x and y in pixels, between them all of the face from hairline to chin.
        size: (height, width) of the picture in pixels.
        score: in [0, 1], how sure the face's finder is.
        up: (x, y), which way the face's brow lies from its chin; of any length.

    Returns:
        None where nothing of it lies in the picture.
    """
    length = math.hypot(*up) or 1.0
    x, y = up[0] / length, up[1] / length
    across, along = (points.double() @ torch.tensor([[-y, x], [x, y]]).double()).T  # (N,) each
    left, right = float(across.min()), float(across.max())
    chin, brow = float(along.min()), float(along.max())
    side, height = _SIDES * (right - left), brow - chin
    return _ellipse(
        (left - side, chin - _BELOW * height, right + side, brow + _ABOVE * height),
        (x, y),
        size,
        score,
    )


def head_of_face_box(box: Box, size: tuple[int, int], score: float = 1.0) -> FoundHead | None:
    """Returns the head with hair around the box of an upright face, as `head_of_face` does."""
    left, top, right, bottom = box
    corners = torch.tensor([[left, top], [right, bottom]])
    return head_of_face(corners, size, score)


def head_of_box(box: Box, size: tuple[int, int], score: float = 1.0) -> FoundHead | None:
    """Returns the head that fills a box; None where nothing of it lies in the picture."""
    left, top, right, bottom = box
    return _ellipse((left, -bottom, right, -top), UPRIGHT, size, score)


def _ellipse(
    extent: Box, up: tuple[float, float], size: tuple[int, int], score: float
) -> FoundHead | None:
    """Returns an ellipse of an extent (left, low, right, high) along the axes of `up`."""
    left, low, right, high = extent
    x, y = up
    a, b = (right - left) / 2, (high - low) / 2
    u, v = (left + right) / 2, (low + high) / 2
    centre_x, centre_y = -y * u + x * v, x * u + y * v
    reach = 1 + _EDGE
    half_w, half_h = reach * math.hypot(a * y, b * x), reach * math.hypot(a * x, b * y)
    height, width = size
    x0, x1 = max(0, math.floor(centre_x - half_w)), min(width, math.ceil(centre_x + half_w))
    y0, y1 = max(0, math.floor(centre_y - half_h)), min(height, math.ceil(centre_y + half_h))
    if x0 >= x1 or y0 >= y1 or min(a, b) <= 0:
        return None
    across = torch.arange(x0, x1) + 0.5 - centre_x
    down = torch.arange(y0, y1)[:, None] + 0.5 - centre_y
    radius = torch.hypot((-y * across + x * down) / a, (x * across + y * down) / b)
    mask = ((reach - radius) / (2 * _EDGE)).clamp(0, 1)
    return FoundHead((x0, y0, x1, y1), mask, score) if bool(mask.any()) else None
