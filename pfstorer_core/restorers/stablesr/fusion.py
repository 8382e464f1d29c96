"""Controllable feature wrapping: the encoder's features of the LQ image correct the decoder's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_RESIDUAL_SCALE = 0.2
_LEAKY_SLOPE = 0.2


class FusionSizes(NamedTuple):
    """Arguments of `FusionBlock`, in its order."""

    in_channels: int
    out_channels: int
    num_blocks: int
    growth: int


def fusion_sizes(weights: Mapping[str, Tensor]) -> FusionSizes:
    """Returns the arguments of the `FusionBlock` that has these weights.

    Args:
        weights: its state dict; only shapes are read.

    Raises:
        KeyError: a tensor that tells a size is missing.
    """
    out_channels, both_channels = weights["encode_enc_1.conv1.weight"].shape[:2]
    dense = (re.match(r"encode_enc_2\.(\d+)\.", key) for key in weights)
    return FusionSizes(
        in_channels=both_channels // 2,
        out_channels=out_channels,
        num_blocks=len({found[1] for found in dense if found}),
        growth=weights["encode_enc_2.0.rdb1.conv1.weight"].shape[0],
    )


class FusionBlock(nn.Module):
    """Adds to a decoder's features what the encoder's features of the LQ image say about them.

    `fused = decoded + w * C(encoded, decoded)`, C being a residual block over both, a chain of
    residual-in-residual dense blocks, and another residual block.

    Args:
        in_channels: channels of the encoder's features, and of the decoder's.
        out_channels: channels of the correction, which must be those of the decoder's features.
        num_blocks: residual-in-residual dense blocks.
        growth: channels that each convolution of a dense block adds.
        operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.

    Source: StableSR (arXiv 2305.07015), controllable feature wrapping; layer names as in its
    weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int = 2,
        growth: int = 32,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> None:
        super().__init__()
        place = {"dtype": dtype, "device": device, "operations": operations}
        self.encode_enc_1 = _ResidualBlock(2 * in_channels, out_channels, **place)
        self.encode_enc_2 = nn.Sequential(
            *(_ResidualDenseChain(out_channels, growth, **place) for _ in range(num_blocks))
        )
        self.encode_enc_3 = _ResidualBlock(out_channels, out_channels, **place)

    def forward(self, encoder_features: Tensor, decoder_features: Tensor, weight: float) -> Tensor:
        """Returns the fused features.

        Args:
            encoder_features: (B, C, H, W), of the LQ image.
            decoder_features: (B, C, H, W), of the latent that is decoded.
            weight: fusion weight w in [0, 1]; 0 leaves the decoder's features as they are.

        Returns:
            (B, C, H, W).
        """
        h = torch.cat([encoder_features, decoder_features], dim=1)  # (B, 2 * C, H, W)
        h = self.encode_enc_3(self.encode_enc_2(self.encode_enc_1(h)))  # (B, C, H, W)
        return decoder_features + weight * h


class _ResidualBlock(nn.Module):
    """Residual block of an autoencoder, whose shortcut is a convolution where widths differ."""

    def __init__(self, in_channels: int, out_channels: int, operations: Any, **place: Any) -> None:
        super().__init__()
        self.norm1 = operations.GroupNorm(32, in_channels, eps=1e-6, **place)
        self.conv1 = operations.Conv2d(in_channels, out_channels, 3, padding=1, **place)
        self.norm2 = operations.GroupNorm(32, out_channels, eps=1e-6, **place)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **place)
        self.conv_out: nn.Module | None = None
        if in_channels != out_channels:
            self.conv_out = operations.Conv2d(in_channels, out_channels, 1, **place)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, out, H, W)
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_out is None else self.conv_out(x))


class _ResidualDenseChain(nn.Module):
    """Residual-in-residual dense block (ESRGAN, arXiv 1809.00219, section 3.1)."""

    def __init__(self, channels: int, growth: int, **place: Any) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(channels, growth, **place)
        self.rdb2 = _DenseBlock(channels, growth, **place)
        self.rdb3 = _DenseBlock(channels, growth, **place)

    def forward(self, x: Tensor) -> Tensor:
        return x + _RESIDUAL_SCALE * self.rdb3(self.rdb2(self.rdb1(x)))


class _DenseBlock(nn.Module):
    """Five convolutions of which each sees the outputs of all before it."""

    def __init__(self, channels: int, growth: int, operations: Any, **place: Any) -> None:
        super().__init__()
        widths = [channels + i * growth for i in range(5)]
        outputs = [growth] * 4 + [channels]
        for i, (width, output) in enumerate(zip(widths, outputs, strict=True), start=1):
            self.add_module(f"conv{i}", operations.Conv2d(width, output, 3, padding=1, **place))

    def forward(self, x: Tensor) -> Tensor:
        *growing, last = self.children()
        h = x
        for conv in growing:
            h = torch.cat([h, F.leaky_relu(conv(h), _LEAKY_SLOPE)], dim=1)  # (B, + growth, H, W)
        return x + _RESIDUAL_SCALE * last(h)  # (B, C, H, W)
