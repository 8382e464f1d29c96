"""How much fine detail a picture has, and so how degraded it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_OCTAVES = 4
_CELL = 2**_OCTAVES
# Detail of clean and of extremely degraded drawn portraits; their means over 96 pictures.
_CLEAN, _EXTREME = -1.5, -5.6
_MAD_OF_NORMAL = 0.6745  # median of |x| of a standard normal x


def degradation_level(images: Tensor, weight: Tensor | None = None) -> Tensor:
    """Returns how much of their fine detail pictures have lost: 0 is none, 1 as in "extreme".

    A flat picture has nothing to lose and counts as 0.

    Args:
        images: (B, 3, H, W) in [0, 1], scaled to the size at which they are restored.
        weight: (B, 1, H, W) in [0, 1], where to look; None is everywhere.

    Returns:
        (B,) in [0, 1], float32 on the CPU.
    """
    return ((fine_detail(images, weight) - _CLEAN) / (_EXTREME - _CLEAN)).clamp(0, 1)


def fine_detail(images: Tensor, weight: Tensor | None = None) -> Tensor:
    """Returns how much fine detail pictures have, in octaves of energy; 0 is as sharp as can be.

    It compares the energy of Haar wavelets of 2 px with those of 16 px: what was small, blurred or
    strongly compressed has little left of the former. Noise is estimated from the diagonal
    wavelets and taken out.

    Args:
        images: (B, 3, H, W) in [0, 1], scaled to the size at which they are restored.
        weight: (B, 1, H, W) in [0, 1], where to look; None is everywhere.

    Returns:
        (B,) float32 on the CPU.

    Source: ours; noise by Donoho and Johnstone 1994, Ideal spatial adaptation by wavelet shrinkage.
    """
    from kornia.color import rgb_to_grayscale

    coarse = _whole_cells(rgb_to_grayscale(images.float()))  # (B, 1, H', W')
    where = torch.ones_like(coarse[:1])
    if weight is not None:
        where = _whole_cells(weight.to(coarse))  # (B, 1, H', W')
    energies = []
    for _ in range(_OCTAVES):
        coarse, edges, diagonal = _haar(coarse)
        where = F.avg_pool2d(where, 2)  # (B, 1, h, w) of the octave
        noise = (diagonal.abs().flatten(1).median(1).values / _MAD_OF_NORMAL) ** 2  # (B,)
        total = where.flatten(1).sum(1).clamp(min=1e-6)  # (B,)
        energy = (edges * where).flatten(1).sum(1) / total
        energies.append((energy - 2 * noise).clamp(min=1e-9))
    # In a sharp picture the energy grows fourfold with each octave.
    return (torch.log2(energies[0] / energies[-1]) + 2 * (_OCTAVES - 1)).cpu()


def _haar(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (B, 1, H/2, W/2) of x: its coarse half, energy of edges and diagonal wavelets."""
    a, b = x[:, :, ::2, ::2], x[:, :, ::2, 1::2]
    c, d = x[:, :, 1::2, ::2], x[:, :, 1::2, 1::2]
    edges = ((a - b + c - d) / 2) ** 2 + ((a + b - c - d) / 2) ** 2
    return (a + b + c + d) / 2, edges, (a - b - c + d) / 2


def _whole_cells(x: Tensor) -> Tensor:
    """Extends x (B, 1, H, W) to whole cells of the coarsest octave by repeating its edge."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % _CELL, 0, -height % _CELL), mode="replicate")
