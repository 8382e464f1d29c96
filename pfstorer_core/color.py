"""Colour correction: gives a restored image the colours of the image it was made from."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import PFStorerError

_WAVELET_LEVELS = 5
_VARIANCE_EPS = 1e-5


def wavelet_fix(image: Tensor, reference: Tensor) -> Tensor:
    """Returns the fine detail of `image` over the coarse colours of `reference`.

    Follows local colour, at the price of halos where the two differ in structure.

    Args:
        image: (B, 3, H, W) in [0, 1], the image to correct.
        reference: (B, 3, H, W) in [0, 1], the image that gives the colours, of the same size.

    Returns:
        (B, 3, H, W), clamped to [0, 1].

    Raises:
        PFStorerError: no RGB images, or of two sizes.

    Source: StableSR (arXiv 2305.07015) and its released code: five levels of an à-trous wavelet.
    """
    _check(image, reference)
    if image.shape[2:] != reference.shape[2:]:
        raise PFStorerError(
            f"The image is {_size(image)} and its colour reference {_size(reference)} pixels "
            "(width x height); scale the reference to the image, or use the AdaIN colour fix."
        )
    # Blurring is linear: detail(image) + coarse(reference) = image + coarse(reference - image).
    difference = reference.float() - image.float()
    return (image.float() + _coarse(difference)).clamp(0, 1).to(image.dtype)


def adain_fix(image: Tensor, reference: Tensor) -> Tensor:
    """Returns `image` with the mean and the contrast of each channel of `reference`.

    Makes no halos, but shifts the picture as a whole.

    Args:
        image: (B, 3, H, W) in [0, 1], the image to correct.
        reference: (B, 3, H', W') in [0, 1], the image that gives the colours, of any size.

    Returns:
        (B, 3, H, W), clamped to [0, 1].

    Raises:
        PFStorerError: no RGB images.

    Source: StableSR (arXiv 2305.07015): adaptive instance normalisation of the pixels.
    """
    _check(image, reference)
    mean, std = _statistics(image)  # (B, 3, 1, 1) each
    target_mean, target_std = _statistics(reference)  # (B, 3, 1, 1) each
    fixed = (image.float() - mean) / std * target_std + target_mean
    return fixed.clamp(0, 1).to(image.dtype)


def _coarse(image: Tensor) -> Tensor:
    """Blurs with the kernel (1, 2, 1) / 4 per axis at distances of 1, 2, 4, 8 and 16 pixels."""
    for level in range(_WAVELET_LEVELS):
        d = 2**level
        wide = F.pad(image, (d, d, 0, 0), mode="replicate")  # (B, 3, H, W + 2 d)
        image = image / 2 + (wide[..., : -2 * d] + wide[..., 2 * d :]) / 4  # (B, 3, H, W)
        high = F.pad(image, (0, 0, d, d), mode="replicate")  # (B, 3, H + 2 d, W)
        image = image / 2 + (high[..., : -2 * d, :] + high[..., 2 * d :, :]) / 4  # (B, 3, H, W)
    return image


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    pixels = image.shape[2] * image.shape[3]
    # One pixel has no spread; the unbiased estimate would divide by zero.
    variance, mean = torch.var_mean(
        image.float(), dim=(2, 3), keepdim=True, correction=min(1, pixels - 1)
    )
    return mean, (variance + _VARIANCE_EPS).sqrt()


def _check(image: Tensor, reference: Tensor) -> None:
    for name, tensor in (("image", image), ("colour reference", reference)):
        if tensor.ndim != 4 or tensor.shape[1] != 3 or 0 in tensor.shape:
            raise PFStorerError(
                f"The {name} has the shape {tuple(tensor.shape)}; expected RGB images as (batch, "
                "3, height, width), so repeat a grey image's channel three times."
            )
        if not tensor.is_floating_point():
            raise PFStorerError(
                f"The {name} holds {str(tensor.dtype).removeprefix('torch.')}; expected "
                "floating-point values in [0, 1]."
            )
    if image.shape[0] != reference.shape[0]:
        raise PFStorerError(
            f"There are {image.shape[0]} images and {reference.shape[0]} colour references; give "
            "one reference per image."
        )


def _size(image: Tensor) -> str:
    return f"{image.shape[3]} x {image.shape[2]}"
