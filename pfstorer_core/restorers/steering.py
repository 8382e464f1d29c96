"""What steers a frozen UNet from an LQ latent: all that the host's forward knows of a restorer."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..weights.layers import WeightsOf
from .info import RestorerInfo


class Modulation(Protocol):
    """What `Steering.modulate` computes, for weights that stay as they are for a while."""

    def __call__(self, site: str, h: Tensor, features: Tensor, shared: dict[Any, Tensor]) -> Tensor:
        """Returns the modulated features of a residual block.

        Args:
            site, h, features: as `Steering.modulate` takes them.
            shared: what several sites share in one forward of the UNet; empty at first.
        """


class Steering(nn.Module, abc.ABC):
    """Steers a frozen UNet from an LQ latent: features of it modulate residual blocks.

    The host runs `forward` once for each LQ latent and timestep, and `modulate` in each residual
    block that `site_channels` names, on the output of its last convolution, before the skip sum.
    One that modulates no block steers by hooks of its own, which `hooked` gives.

    Args:
        info: description of the restorer.
    """

    def __init__(self, info: RestorerInfo) -> None:
        super().__init__()
        self.info = info

    @property
    @abc.abstractmethod
    def latent_channels(self) -> int:
        """Channels of the LQ latent."""

    @property
    @abc.abstractmethod
    def levels(self) -> int:
        """Number of feature maps that `forward` returns, one per resolution of the UNet."""

    @property
    @abc.abstractmethod
    def site_channels(self) -> dict[str, int]:
        """Per residual block that it modulates ("input_blocks.1.0", ...), its channels."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The residual blocks that it modulates."""
        return tuple(self.site_channels)

    @abc.abstractmethod
    def forward(self, lq_latent: Tensor, timesteps: Tensor) -> Sequence[Tensor]:
        """Returns features of LQ latents.

        Args:
            lq_latent: (B, latent_channels, H, W), scaled like the diffusion latents.
            timesteps: (B,) in [0, 1000).

        Returns:
            `levels` tensors (B, C_k, H / 2^k, W / 2^k).
        """

    @abc.abstractmethod
    def modulate(self, site: str, h: Tensor, features: Tensor) -> Tensor:
        """Returns the modulated features of a residual block.

        Args:
            site: the block.
            h: (k * B, C, H, W) its features; `features` serves each B in turn.
            features: (B, C_level, H, W) of the site's level.

        Returns:
            (k * B, C, H, W), of the type of `h`.
        """

    def prepare(self, levels: Mapping[str, int], weights_of: WeightsOf) -> Modulation | None:
        """Returns a faster `modulate` for one sampling, whose weights may be joined copies.

        A family need not have one.

        Args:
            levels: per site, the number of its level's feature map.
            weights_of: gives the weights to copy.
        """
        return None

    def hooked(
        self, options: dict[str, Any], lq_latent: Tensor | None, checkpoint: bool
    ) -> dict[str, Any]:
        """Returns the host's options of one forward of the UNet with hooks of its own.

        A family need not have any.

        Args:
            options: whose lists and dictionaries stay as they are.
            lq_latent: (B, latent_channels, H, W); None leaves the hooks the one that they have.
            checkpoint: whether to keep no activations for the backward pass.
        """
        return options

    @abc.abstractmethod
    def copy_for_training(self, dtype: torch.dtype) -> Steering:
        """Returns a copy on the CPU that can be trained, with layers of `torch.nn`."""
