"""Losses of a picture that was saved as JPEG."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def jpeg(image: Tensor, quality: float) -> Tensor:
    """Return an image (1, 3, H, W) in [0, 1] as it is after it was saved as JPEG."""
    pixels = image[0].mul(255.0).round().to(torch.uint8).permute(1, 2, 0)  # (H, W, 3)
    with io.BytesIO() as file:
        Image.fromarray(pixels.contiguous().numpy()).save(file, "JPEG", quality=round(quality))
        decoded = np.array(Image.open(file).convert("RGB"))
    return torch.from_numpy(decoded).permute(2, 0, 1)[None].float() / 255.0  # (1, 3, H, W)
