"""Degradation with chosen values in place of drawn ones, for test pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PFStorerError
from ..pictures.resizing import resize_bicubic
from .inputs import REFERENCE_SIZE, checked_pictures
from .jpeg import jpeg
from .kernels import blur_kernel, filter_image

SMALLEST_BLUR = 0.1  # px; a narrower kernel is one pixel
WIDEST_BLUR = 0.5  # of the picture's longer side; a wider one leaves one colour
_LARGEST_SIGMA = 64.0  # px; a wider blur is that of a smaller picture, so that memory is bounded
NO_JPEG = 0


@dataclass(frozen=True)
class ExactDegradation:
    """Blur, then loss of size, then noise, then JPEG; only the noise is random.

    Args:
        blur: Gaussian sigma, px of a 512-px picture: one of 128 px gets a quarter.
        downsample: factor between the sharp and the LQ picture, at least 1.
        noise: standard deviation of Gaussian noise in grey levels of 255, at the LQ size.
        jpeg_quality: 1 to 100; 0 saves no JPEG.

    Raises:
        PFStorerError: when a value makes no sense.

    Source: the classical model of blind face restoration (as in GFPGAN, arXiv 2101.04061).
    """

    blur: float = 0.0
    downsample: float = 1.0
    noise: float = 0.0
    jpeg_quality: int = NO_JPEG

    def __post_init__(self) -> None:
        for name, low, high in (
            ("blur", 0.0, 100.0),
            ("downsample", 1.0, 64.0),
            ("noise", 0.0, 255.0),
            ("jpeg_quality", 0, 100),
        ):
            if not low <= getattr(self, name) <= high:  # NaN fails it too
                raise PFStorerError(
                    f"{name} is {getattr(self, name)}; give a number from {low} to {high}."
                )


def blur_in_pixels(sigma: float, height: int, width: int, person: int = 0) -> float:
    """Return a blur sigma in pixels of a picture, of one given for a 512-px picture.

    Args:
        sigma: px at 512 px.
        height, width: of the picture.
        person: side in px of the square that a portrait of one person would take in the picture;
            0 is the whole picture.
    """
    return sigma * (person or math.sqrt(height * width)) / REFERENCE_SIZE


def degrade_exactly(
    images: Tensor, degradation: ExactDegradation, generator: torch.Generator, person: int = 0
) -> Tensor:
    """Return low-quality versions of the images as small as a user would own them.

    Args:
        images: (B, 3, H, W) in [0, 1].
        degradation: the chosen values.
        generator: CPU generator of the noise, drawn item by item.
        person: see `blur_in_pixels`.

    Returns:
        (B, 3, h, w) in [0, 1], in steps of 1/255.

    Raises:
        PFStorerError: for a wrong shape, type or range, or a blur as wide as the picture.
    """
    images = checked_pictures(images)
    height, width = images.shape[-2:]
    size = tuple(max(1, round(side / degradation.downsample)) for side in (height, width))
    sigma = blur_in_pixels(degradation.blur, height, width, person)
    if sigma > WIDEST_BLUR * max(height, width):
        raise PFStorerError(
            f"The blur has a sigma of {sigma:.0f} px in a picture of {width} x {height}, expected "
            f"at most {WIDEST_BLUR:g} of its longer side; lower blur, or person_size."
        )
    results = []
    for item in images.to("cpu", torch.float32):
        image = item[None]  # (1, 3, H, W)
        if sigma >= SMALLEST_BLUR:
            image = _gaussian_blur(image, sigma)
        image = resize_bicubic(image, (size[0], size[1]))  # (1, 3, h, w)
        if degradation.noise:
            noise = torch.randn(image.shape, generator=generator)
            image = (image + degradation.noise / 255.0 * noise).clamp_(0.0, 1.0)
        if degradation.jpeg_quality != NO_JPEG:
            image = jpeg(image, degradation.jpeg_quality)
        results.append(image.mul(255.0).round_().div_(255.0))
    return torch.cat(results).to(images)


def _gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Return the image (1, C, H, W) blurred by a sigma in px, a wide one at a reduced size."""
    height, width = image.shape[-2:]
    factor = math.ceil(sigma / _LARGEST_SIGMA)
    if factor <= 1:
        return filter_image(image, blur_kernel(sigma, sigma))
    # Bicubic resizing adds next to nothing to the variance, and nothing is lost that so wide a
    # blur would leave. torch resizes wrongly to a width of one pixel; across two, any sigma as
    # large as the limit gives their mean.
    h, w = (max(min(side, 2), side // factor) for side in (height, width))
    sigma_x, sigma_y = (
        min(sigma * small / side, _LARGEST_SIGMA) for small, side in ((w, width), (h, height))
    )
    small = filter_image(resize_bicubic(image, (h, w)), blur_kernel(sigma_x, sigma_y))
    return resize_bicubic(small, (height, width))  # (1, C, H, W)
