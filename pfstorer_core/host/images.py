"""Images on their way into a restorer's MODEL: as LQ latents and as references."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import PFStorerError
from ..pictures.resizing import resize_bicubic
from ..pictures.values import unit_range
from .base import base_of
from .memory import lack_of_memory_told

VAE_ADVICE = "let the VAE compute in float32 (start ComfyUI with --fp32-vae)"


def encode_lq(model: Any, vae: Any, image: Tensor) -> Tensor:
    """Returns the LQ latent (B, C, h, w) of an IMAGE (B, H, W, 1 | 3 | 4), alpha left out.

    Args:
        model: the restorer's MODEL that is to be conditioned on it.
        vae: its VAE.
        image: to be restored at its size.

    Raises:
        PFStorerError: another shape, values that are no picture's, sides too short for the UNet, or
            too little memory.
    """
    rgb, _ = split_alpha(image)
    height, width = rgb.shape[2:]
    cell, step = vae.spacial_compression_encode(), base_of(model).size_step
    if math.prod(-(-(side // cell) // step) for side in (height, width)) < 2:
        raise PFStorerError(
            f"The image has {width} x {height} pixels, too few for the restorer's UNet; scale it "
            f"to {2 * cell * step} pixels or more on each side before, or use 'Tiled Restore'."
        )
    with lack_of_memory_told(
        "while the VAE encodes the LQ image; use Tiled Restore, which works by tiles, or start "
        "ComfyUI with --cpu-vae."
    ):
        return vae.encode(rgb.movedim(1, -1))


def encode_references(model: Any, vae: Any, photos: Sequence[Tensor]) -> list[Tensor]:
    """Encodes photos of a person as references for `apply_identity`.

    Large ones are scaled down to the size that the restorer was made for, as in the training.

    Args:
        model: MODEL of `load_base_restorer`.
        vae: its VAE.
        photos: IMAGE batches (B, H, W, 1 | 3 | 4) of any sizes.

    Returns:
        One (B, C, h, w) latent per batch.
    """
    step = vae.spacial_compression_encode() * base_of(model).size_step
    latents = []
    for photo in photos:
        rgb, _ = split_alpha(photo)  # (B, 3, H, W)
        scale = min(1.0, base_of(model).trained_size / min(rgb.shape[2:]))
        height, width = (max(2, round(side * scale / step)) * step for side in rgb.shape[2:])
        with lack_of_memory_told(
            "while the VAE encodes references; give fewer or smaller ones, or start ComfyUI with "
            "--cpu-vae."
        ):
            latents.append(vae.encode(resize_bicubic(rgb, (height, width)).movedim(1, -1)))
    return latents


def check_finite(values: Tensor, what: str, advice: str) -> None:
    """Raises PFStorerError "`what` has values that are not finite; `advice`." if there are any."""
    # One reduction without a mask of the same size: infinities and NaN spoil minimum or maximum.
    if not all(bool(x.isfinite()) for x in values.detach().aminmax()):
        raise PFStorerError(f"{what} has values that are not finite (NaN or infinite); {advice}.")


def target_size(image: Tensor, scale: float, longest_side: int) -> tuple[int, int]:
    """Returns (height, width) of the output for an IMAGE (B, H, W, C).

    Args:
        image: the input.
        scale: used if `longest_side` is 0.
        longest_side: pixels of the output's longer side, or 0.

    Raises:
        PFStorerError: a scale that is no number above 0.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise PFStorerError(f"scale is {scale}; choose a number above 0.")
    height, width = image.shape[1:3]
    if longest_side:
        scale = longest_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def split_alpha(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns the colours (B, 3, H, W) and the alpha channel (B, 1, H, W) of an IMAGE.

    Args:
        image: (B, H, W, 1 | 3 | 4).

    Raises:
        PFStorerError: another shape, or values that are not finite or far outside [0, 1].
    """
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise PFStorerError(
            f"The image has the shape {tuple(image.shape)}; expected (batch, height, width, "
            "channels) with 1, 3 or 4 channels."
        )
    image = unit_range(image, "The image").movedim(-1, 1)  # (B, C, H, W)
    if image.shape[1] == 4:
        return image[:, :3], image[:, 3:]
    return image.expand(-1, 3, -1, -1), None
