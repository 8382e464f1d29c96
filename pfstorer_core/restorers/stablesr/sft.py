"""Spatial feature transform: features of the low-quality latent steer a block of the UNet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...weights.layers import WeightsOf


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
        return modulated(self.param_free_norm(h), scale, self.mlp_beta(actv)).to(h.dtype)


def modulated(normed: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Returns normed * scale + shift; normed: (k * B, C, H, W), the others (B, C, H, W)."""
    blocks = normed.unflatten(0, (-1, len(scale)))  # (k, B, C, H, W)
    if normed.requires_grad and not (scale.requires_grad or shift.requires_grad):
        found: Tensor = _FrozenModulation.apply(blocks, scale, shift)
    else:
        found = torch.addcmul(shift, blocks, scale)
    return found.flatten(0, 1)


class _FrozenModulation(torch.autograd.Function):
    """`addcmul` whose backward pass is one product, where PyTorch's own multiplies twice."""

    @staticmethod
    def forward(ctx: Any, normed: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return torch.addcmul(shift, normed, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return gradient * scale, None, None


@dataclass(frozen=True)
class _Site:
    """One site's share of the joined layers: weight and bias give 1 + gamma, then beta."""

    block: SFTBlock
    level: int
    hidden: slice
    weight: Tensor  # (2 C, hidden, 3, 3)
    bias: Tensor  # (2 C,)


class JoinedSFT:
    """SFT blocks with their convolutions joined, so that a device starts fewer.

    The blocks of one level share their first convolution, which reads the same features; gamma and
    beta of a site are another one. The norms stay those of the blocks.

    Args:
        blocks: by site.
        levels: per site, its level.
        weights_of: gives the weights, of which this keeps copies.
    """

    def __init__(
        self, blocks: Mapping[str, SFTBlock], levels: Mapping[str, int], weights_of: WeightsOf
    ) -> None:
        self._sites: dict[str, _Site] = {}
        self._first: dict[int, tuple[Tensor, Tensor]] = {}
        for level in sorted({levels[site] for site in blocks}):
            weights, biases, start = [], [], 0
            for site in (site for site in blocks if levels[site] == level):
                weight, bias = _read(weights_of, blocks[site].mlp_shared[0])
                hidden = slice(start, start + len(weight))
                start = hidden.stop
                weights.append(weight)
                biases.append(bias)
                self._sites[site] = _Site(
                    blocks[site], level, hidden, *_scale_and_shift(blocks[site], weights_of)
                )
            self._first[level] = torch.cat(weights), torch.cat(biases)

    def __call__(self, site: str, h: Tensor, features: Tensor, shared: dict[Any, Tensor]) -> Tensor:
        """Returns the modulated features of a site, see `base.Modulation`."""
        own = self._sites[site]
        key = own.level, features.shape
        if key not in shared:
            weight, bias = self._first[own.level]
            shared[key] = F.conv2d(features, weight, bias, padding=1).relu_()
        actv = shared[key][:, own.hidden]  # (B, hidden, H, W)
        scale, shift = F.conv2d(actv, own.weight, own.bias, padding=1).chunk(2, 1)
        return modulated(own.block.param_free_norm(h), scale, shift).to(h.dtype)


def _scale_and_shift(block: SFTBlock, weights_of: WeightsOf) -> tuple[Tensor, Tensor]:
    gamma, beta = (_read(weights_of, layer) for layer in (block.mlp_gamma, block.mlp_beta))
    return torch.cat([gamma[0], beta[0]]), torch.cat([1 + gamma[1], beta[1]])


def _read(weights_of: WeightsOf, layer: nn.Module) -> tuple[Tensor, Tensor]:
    weight, bias = weights_of(layer)
    assert bias is not None  # all of these layers have one
    return weight.clone(), bias.clone()
