"""Blur and ringing kernels of the degradation, and filtering with them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PFStorerError

SINC_RADIUS = 10  # px: reaches the fourth zero at half the Nyquist frequency
KERNEL_SHAPES = ("gaussian", "generalised", "plateau")


def blur_kernel(
    sigma_x: float, sigma_y: float, angle: float = 0.0, shape: str = "gaussian", beta: float = 1.0
) -> Tensor:
    """Return a (k, k) kernel of sum 1.

    Args:
        sigma_x, sigma_y: standard deviations along the two axes, px.
        angle: of the first axis, radians.
        shape: "gaussian", "generalised" or "plateau".
        beta: exponent of the latter two.

    Source: Real-ESRGAN (arXiv 2107.10833), section 3.1.
    """
    sigma_x, sigma_y = max(sigma_x, 0.05), max(sigma_y, 0.05)
    radius = max(1, math.ceil(3.0 * max(sigma_x, sigma_y)))
    y, x = _kernel_grid(radius)
    along = (x * math.cos(angle) + y * math.sin(angle)) / sigma_x
    across = (y * math.cos(angle) - x * math.sin(angle)) / sigma_y
    distance = along.square() + across.square()
    if shape == "gaussian":
        kernel = torch.exp(-0.5 * distance)
    elif shape == "generalised":
        kernel = torch.exp(-0.5 * distance**beta)
    elif shape == "plateau":
        kernel = 1.0 / (1.0 + distance**beta)
    else:
        raise PFStorerError(f"Unknown kernel shape {shape!r}; use one of {KERNEL_SHAPES}.")
    return kernel / kernel.sum()


def sinc_kernel(cutoff: float) -> Tensor:
    """Return the circular low-pass kernel (k, k) of sum 1 with a cut-off in radians per px.

    Source: Real-ESRGAN (arXiv 2107.10833), section 3.3: cutoff J1(cutoff r) / (2 pi r).
    """
    y, x = _kernel_grid(SINC_RADIUS)
    r = torch.sqrt(x.square() + y.square())
    kernel = cutoff * torch.special.bessel_j1(cutoff * r) / (2.0 * math.pi * r)
    kernel[SINC_RADIUS, SINC_RADIUS] = cutoff**2 / (4.0 * math.pi)  # the limit at r = 0
    return kernel / kernel.sum()


def _kernel_grid(radius: int) -> tuple[Tensor, Tensor]:
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    return axis[:, None], axis[None, :]


def filter_image(image: Tensor, kernel: Tensor) -> Tensor:
    """Return the image (1, C, H, W) in [0, 1] filtered with one kernel (k, k), edges replicated."""
    height, width = image.shape[-2:]
    radius = kernel.shape[-1] // 2
    padded = F.pad(image, (radius,) * 4, mode="replicate")  # (1, 3, H + 2r, W + 2r)
    # FFT: the cost does not grow with the kernel. Sizes of 16 n are quick to transform; only
    # the borders, which are cut off, wrap round.
    shape = [-(-side // 16) * 16 for side in padded.shape[-2:]]
    spectrum = torch.fft.rfft2(padded, s=shape) * torch.fft.rfft2(kernel, s=shape)
    filtered = torch.fft.irfft2(spectrum, s=shape)
    return filtered[..., 2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width].clamp(
        0.0, 1.0
    )  # (1, 3, H, W)
