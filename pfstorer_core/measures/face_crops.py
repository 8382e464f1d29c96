"""Aligned face crops, as face recognition networks want them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PFStorerError
from ..pictures.resizing import resize_bicubic

SIDE = 112  # px
# Where both eyes, the tip of the nose and both corners of the mouth lie in a crop of SIDE, px;
# left and right are the picture's. Figures of InsightFace's ArcFace training.
POINTS = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)


def aligned_face(picture: Tensor, points: Tensor, side: int = SIDE) -> Tensor:
    """Returns the face turned upright and scaled so that its points lie where `POINTS` says.

    Args:
        picture: (3, H, W) in [0, 1].
        points: (5, 2), x and y in px of the picture, in the order of `POINTS`.
        side: of the crop in px.

    Returns:
        (3, side, side) in [0, 1]; what lies outside the picture repeats its edge.

    Raises:
        PFStorerError: the points are not five, not finite, or all in one place.
    """
    if points.shape != (5, 2) or not bool(points.isfinite().all()):
        raise PFStorerError(
            f"A face has points of the shape {tuple(points.shape)}; give five finite (x, y)."
        )
    target = torch.tensor(POINTS, dtype=torch.float64) * (side / SIDE)
    turn, shift = _similarity(target, points.cpu().double())
    scale = abs(turn)  # px of the picture per px of the crop
    if scale < 1e-6:
        raise PFStorerError("The points of a face lie in one place; use a larger picture of it.")
    height, width = picture.shape[-2:]
    source = picture[None].float()  # (1, 3, H, W)
    if scale > 1.0:  # sampling alone would skip pixels
        size = (max(1, math.ceil(height / scale)), max(1, math.ceil(width / scale)))
        source = resize_bicubic(source, size)
    # Affine map of the crop's coordinates to the picture's, both in [-1, 1] as grid_sample has them
    half = (side - 1) / 2
    centre = turn * complex(half, half) + shift
    a, b = turn.real * side / 2, turn.imag * side / 2
    theta = torch.tensor(
        [
            [2 * a / width, -2 * b / width, (2 * centre.real + 1) / width - 1],
            [2 * b / height, 2 * a / height, (2 * centre.imag + 1) / height - 1],
        ]
    ).to(source)
    grid = F.affine_grid(theta[None], [1, 3, side, side], align_corners=False)
    crop = F.grid_sample(
        source, grid, mode="bicubic", padding_mode="border", align_corners=False
    )  # (1, 3, side, side)
    return crop[0].clamp(0.0, 1.0).to(picture.dtype)


def _similarity(start: Tensor, end: Tensor) -> tuple[complex, complex]:
    """Returns (turn, shift) of the least-squares map turn * z + shift of points (N, 2)."""
    z, w = (torch.view_as_complex(points.contiguous()) for points in (start, end))
    z_mean, w_mean = z.mean(), w.mean()
    z, w = z - z_mean, w - w_mean
    turn = (z.conj() * w).sum() / (z.conj() * z).sum()
    return complex(turn), complex(w_mean - turn * z_mean)
