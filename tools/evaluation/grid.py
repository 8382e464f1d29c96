"""The grid that a decoder of patches leaves: energy of the spectrum at the patches' period."""

from __future__ import annotations

import torch
from torch import Tensor

from pfstorer_core.errors import PFStorerError

GRID = "4 px grid (dB)"
_PEAK, _AROUND = 1, 6  # bins: half-widths of what belongs to a peak and of its surroundings
_TINY = 1e-12


def grid_energy(images: Tensor, targets: Tensor, period: int = 4) -> Tensor:
    """Returns how far the grid stands out of a picture, more than out of the clean one, in dB.

    A pattern that repeats each `period` px has peaks in the spectrum at the frequency 1 / period
    along x, along y, and along both diagonals. How far a peak stands out is the mean power of the
    3 x 3 bins around it over that of the 13 x 13 bins around it without the former, in the grey
    picture under a Hann window. Returned is the mean of this over the four peaks, as a ratio to
    that of the clean picture: 0 dB is no grid, 10 dB is ten times the energy.

    Args:
        images: (B, 3, H, W) in [0, 1], sides of at least 16 periods.
        targets: the clean pictures, of the same shape.
        period: px.

    Returns:
        (B,)

    Raises:
        PFStorerError: shapes that differ, or pictures too small.
    """
    if images.shape != targets.shape or images.ndim != 4:
        raise PFStorerError(
            f"The grid of pictures of {tuple(images.shape)} cannot be measured against "
            f"{tuple(targets.shape)}; give two batches (B, 3, H, W) of one shape."
        )
    if min(images.shape[-2:]) < 16 * period:
        raise PFStorerError(
            f"Pictures of {images.shape[-1]} x {images.shape[-2]} px are too small to measure a "
            f"grid of {period} px in; give at least {16 * period} px a side."
        )
    return 10 * torch.log10(_prominence(images, period) / _prominence(targets, period))


def _prominence(images: Tensor, period: int) -> Tensor:
    # Whole periods, so that the frequency falls on a bin.
    height, width = (side // period * period for side in images.shape[-2:])
    grey = images[..., :height, :width].double().mean(1)  # (B, height, width)
    grey = grey - grey.mean((1, 2), keepdim=True)
    for dim, side in ((1, height), (2, width)):
        window = torch.hann_window(side, dtype=grey.dtype, device=grey.device)
        grey = grey * window.reshape([-1 if k == dim else 1 for k in range(3)])
    power = torch.fft.fft2(grey).abs().square()  # (B, height, width)
    y, x = height // period, width // period
    reach = torch.arange(-_AROUND, _AROUND + 1, device=images.device)
    inside = reach.abs() <= _PEAK
    peak = inside[:, None] & inside[None, :]  # (13, 13)
    cuts = torch.stack(
        [
            power[:, (v + reach).remainder(height)[:, None], (u + reach).remainder(width)[None, :]]
            for v, u in ((y, 0), (0, x), (y, x), (y, -x))
        ],
        dim=1,
    )  # (B, 4, 13, 13)
    return ((cuts[..., peak].mean(2) + _TINY) / (cuts[..., ~peak].mean(2) + _TINY)).mean(1)
