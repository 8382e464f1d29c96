"""Spatial feature transform: features of the low-quality latent steer a block of the UNet."""

from typing import Any

import torch
from torch import Tensor, nn


class SFTBlock(nn.Module):
    """Modulates UNet features by a scale and a shift computed from features of the LQ latent.

    `SFT(h, cond) = GroupNorm(h) * (1 + gamma(cond)) + beta(cond)`

    Args:
        channels: channels of the UNet features, a multiple of 32.
        cond_channels: channels of the encoder's features.
        hidden: channels between the shared convolution and the two that give gamma and beta.
        operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.

    Source: StableSR (arXiv 2305.07015), section 3.1.
    """

    def __init__(
        self,
        channels: int,
        cond_channels: int,
        hidden: int = 128,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> None:
        super().__init__()
        place = {"dtype": dtype, "device": device}
        # The name is historical: in StableSR's weights this norm does have parameters.
        self.param_free_norm = operations.GroupNorm(32, channels, eps=1e-5, **place)
        self.mlp_shared = nn.Sequential(
            operations.Conv2d(cond_channels, hidden, 3, padding=1, **place), nn.ReLU()
        )
        self.mlp_gamma = operations.Conv2d(hidden, channels, 3, padding=1, **place)
        self.mlp_beta = operations.Conv2d(hidden, channels, 3, padding=1, **place)

    def zero_init(self) -> None:
        """Zeroes gamma and beta, so that training starts from a norm that ignores the LQ latent."""
        for layer in (self.mlp_gamma, self.mlp_beta):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, cond: Tensor) -> Tensor:
        """Returns the modulated features.

        Args:
            h: (B, C, H, W) UNet features.
            cond: (B, C_cond, H, W) encoder features. With k * B items in `h`, `cond` serves each
                block of B in turn: the halves of a guided batch share one gamma and one beta.

        Returns:
            (B, C, H, W), of the type of `h`.
        """
        actv = self.mlp_shared(cond)  # (B, hidden, H, W)
        scale = 1 + self.mlp_gamma(actv)  # (B, C, H, W)
        shift = self.mlp_beta(actv)  # (B, C, H, W)
        normed = self.param_free_norm(h)
        if h.shape[0] == cond.shape[0]:
            return (normed * scale + shift).to(h.dtype)
        blocks = normed.unflatten(0, (-1, cond.shape[0]))  # (k, B, C, H, W)
        return (blocks * scale + shift).flatten(0, 1).to(h.dtype)  # (k * B, C, H, W)
