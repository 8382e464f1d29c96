"""Colours of a restored image: taken from the image it was made from, or none at all.

All functions work in bands of rows, so that a picture of any height needs little memory beside
itself and its result.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PFStorerError

_WAVELET_LEVELS = 5
_HALO = 2**_WAVELET_LEVELS - 1  # rows above and below that a blurred row depends on
_VARIANCE_EPS = 1e-5
_BAND_PIXELS = 2**18
# The halo is computed twice at each border of two bands: lower bands would mostly be halo.
_BAND_ROWS = 4 * _HALO  # at least
_GREY_TOLERANCE = 1 / 512  # half a step of an 8-bit picture


def wavelet_fix(image: Tensor, reference: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Returns the fine detail of `image` over the coarse colours of `reference`.

    Follows local colour, at the price of halos where the two differ in structure.

    Args:
        image: (B, 3, H, W) in [0, 1], the image to correct.
        reference: (B, 3, H, W) in [0, 1], the image that gives the colours, of the same size.
        out: where to write the result, of the shape and type of `image`; may be `image` or
            `reference` itself.

    Returns:
        (B, 3, H, W), clamped to [0, 1]; `out` where it is given.

    Raises:
        PFStorerError: no RGB images, or of two sizes, or an `out` of another shape or type.

    Source: StableSR (arXiv 2305.07015) and its released code: five levels of an à-trous wavelet.
    """
    _check_pair(image, reference)
    if image.shape[2:] != reference.shape[2:]:
        raise PFStorerError(
            f"The image is {_size(image)} and its colour reference {_size(reference)} pixels "
            "(width x height); scale the reference to the image, or use the AdaIN colour fix."
        )
    out = _result(image, out)
    height = image.shape[2]
    for item, colours, fixed in zip(image, reference, out, strict=True):  # (3, H, W) each
        # Differences of rows whose image may be overwritten before the next band is blurred.
        kept = torch.empty_like(item[:, :0], dtype=torch.float32)
        seen = 0
        for y0, y1 in _bands(item):
            end = min(y1 + _HALO, height)
            fresh = colours[:, seen:end].float() - item[:, seen:end].float()
            difference = torch.cat([kept, fresh], 1)  # (3, rows of the band and its halo, W)
            start, seen = end - difference.shape[1], end
            # Blurring is linear: detail(image) + coarse(reference) = image + coarse(difference).
            coarse = _coarse(difference[None])[0, :, y0 - start : y1 - start]  # (3, y1 - y0, W)
            fixed[:, y0:y1] = (coarse + item[:, y0:y1].float()).clamp_(0, 1)
            kept = difference[:, max(y1 - _HALO - start, 0) :].clone()
            del difference, coarse, fresh  # before the next band allocates its own
    return out


def adain_fix(image: Tensor, reference: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Returns `image` with the mean and the contrast of each channel of `reference`.

    Makes no halos, but shifts the picture as a whole.

    Args:
        image: (B, 3, H, W) in [0, 1], the image to correct.
        reference: (B, 3, H', W') in [0, 1], the image that gives the colours, of any size.
        out: where to write the result, of the shape and type of `image`; may be `image` itself.

    Returns:
        (B, 3, H, W), clamped to [0, 1]; `out` where it is given.

    Raises:
        PFStorerError: no RGB images, or an `out` of another shape or type.

    Source: StableSR (arXiv 2305.07015): adaptive instance normalisation of the pixels.
    """
    _check_pair(image, reference)
    out = _result(image, out)
    for item, colours, fixed in zip(image, reference, out, strict=True):
        mean, std = _statistics(item)  # (3, 1, 1) each
        target_mean, target_std = _statistics(colours)  # (3, 1, 1) each
        for y0, y1 in _bands(item):
            band = (item[:, y0:y1].float() - mean).div_(std).mul_(target_std).add_(target_mean)
            fixed[:, y0:y1] = band.clamp_(0, 1)
    return out


def is_grey(image: Tensor) -> list[bool]:
    """Whether each image shows grey alone: its channels differ by at most 1/512 everywhere.

    Args:
        image: (B, 3, H, W) in [0, 1].

    Raises:
        PFStorerError: no RGB images.
    """
    _check(image, "image")
    return [
        all(_spread(item[:, y0:y1]) <= _GREY_TOLERANCE for y0, y1 in _bands(item)) for item in image
    ]


def to_grey(image: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Returns the luma of `image`, repeated in all three channels.

    Args:
        image: (B, 3, H, W) in [0, 1].
        out: where to write the result, of the shape and type of `image`; may be `image` itself.

    Returns:
        (B, 3, H, W) in [0, 1]; `out` where it is given.

    Raises:
        PFStorerError: no RGB images, or an `out` of another shape or type.

    Source: ITU-R BT.601, weights of luma.
    """
    from kornia.color import rgb_to_grayscale

    _check(image, "image")
    out = _result(image, out)
    for item, grey in zip(image, out, strict=True):
        for y0, y1 in _bands(item):
            luma = rgb_to_grayscale(item[:, y0:y1].float())  # (1, rows, W)
            grey[:, y0:y1] = luma.clamp_(0, 1)  # rounding may lead beyond white
    return out


def _bands(image: Tensor) -> Iterator[tuple[int, int]]:
    """First row and end of each band of an image (3, H, W)."""
    height, width = image.shape[1:]
    rows = max(_BAND_PIXELS // width, _BAND_ROWS)
    return ((y, min(y + rows, height)) for y in range(0, height, rows))


def _coarse(image: Tensor) -> Tensor:
    """Blurs with the kernel (1, 2, 1) / 4 per axis at distances of 1, 2, 4, 8 and 16 pixels."""
    for level in range(_WAVELET_LEVELS):
        d = 2**level
        wide = F.pad(image, (d, d, 0, 0), mode="replicate")  # (B, 3, H, W + 2 d)
        around = (wide[..., : -2 * d] + wide[..., 2 * d :]).mul_(0.25)
        image = around.add_(image, alpha=0.5)  # (B, 3, H, W)
        high = F.pad(image, (0, 0, d, d), mode="replicate")  # (B, 3, H + 2 d, W)
        around = (high[..., : -2 * d, :] + high[..., 2 * d :, :]).mul_(0.25)
        image = around.add_(image, alpha=0.5)  # (B, 3, H, W)
    return image


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3, 1, 1) of each channel of an image (3, H, W)."""
    total, squares = torch.zeros(2, 3, dtype=torch.float64)
    for y0, y1 in _bands(image):
        # On the CPU: not every device has that type.
        band = image[:, y0:y1].cpu().double().flatten(1)  # (3, pixels)
        total += band.sum(1)
        squares += torch.linalg.vecdot(band, band)
        del band  # before the next one is allocated
    pixels = image.shape[1] * image.shape[2]
    mean = total / pixels
    # One pixel has no spread; the unbiased estimate would divide by zero.
    variance = (squares - mean * total).clamp(min=0) / max(pixels - 1, 1)
    std = (variance + _VARIANCE_EPS).sqrt()
    mean, std = (value.to(image.device, torch.float32)[:, None, None] for value in (mean, std))
    return mean, std


def _spread(image: Tensor) -> float:
    """Largest difference of the channels of one pixel, for an image (3, H, W)."""
    pixels = image.float()
    return float((pixels.amax(0) - pixels.amin(0)).max())


def _result(image: Tensor, out: Tensor | None) -> Tensor:
    """The tensor to write into: `out`, or a new one like `image`."""
    if out is None:
        return torch.empty_like(image)
    if out.shape != image.shape or out.dtype != image.dtype:
        raise PFStorerError(
            f"The result's tensor is {out.dtype} of the shape {tuple(out.shape)}; expected that of "
            f"the image, {image.dtype} of {tuple(image.shape)}."
        )
    return out


def _check_pair(image: Tensor, reference: Tensor) -> None:
    _check(image, "image")
    _check(reference, "colour reference")
    if image.shape[0] != reference.shape[0]:
        raise PFStorerError(
            f"There are {image.shape[0]} images and {reference.shape[0]} colour references; give "
            "one reference per image."
        )


def _check(image: Tensor, name: str) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise PFStorerError(
            f"The {name} has the shape {tuple(image.shape)}; expected RGB images as (batch, "
            "3, height, width), so repeat a grey image's channel three times."
        )
    if not image.is_floating_point():
        raise PFStorerError(
            f"The {name} holds {str(image.dtype).removeprefix('torch.')}; expected "
            "floating-point values in [0, 1]."
        )


def _size(image: Tensor) -> str:
    return f"{image.shape[3]} x {image.shape[2]}"
