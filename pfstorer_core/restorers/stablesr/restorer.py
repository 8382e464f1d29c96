"""StableSR's restorer: a time-aware encoder of the LQ latent, and SFT blocks for the UNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...site_names import module_name
from ...weights.checks import part_of
from ...weights.layers import WeightsOf
from ..base import BaseRestorer, Modulation
from ..info import RestorerInfo
from .encoder import EncoderConfig, TimeAwareEncoder
from .layouts import ENCODER_PREFIX, check_whole, infer_encoder, infer_sft, sft_prefix, split
from .sft import JoinedSFT, SFTBlock


class StableSRRestorer(BaseRestorer):
    """Encoder and SFT blocks of a restorer.

    Args:
        info: description of the restorer; its `config` is an `EncoderConfig`.
        sft_shapes: per site in the UNet ("input_blocks.1.0", ...), channels and hidden channels.
        operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.

    Source: StableSR (arXiv 2305.07015), section 3.1.
    """

    config_type = EncoderConfig
    config_key = "encoder"

    def __init__(
        self,
        info: RestorerInfo,
        sft_shapes: Mapping[str, tuple[int, int]],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> None:
        super().__init__(info)
        self._site_channels = {site: channels for site, (channels, _) in sft_shapes.items()}
        place: dict[str, Any] = {"dtype": dtype, "device": device, "operations": operations}
        self.encoder = TimeAwareEncoder(info.config, **place)
        self.sft_blocks = nn.ModuleDict(
            {
                module_name(site): SFTBlock(channels, info.config.out_channels, hidden, **place)
                for site, (channels, hidden) in sft_shapes.items()
            }
        )

    @classmethod
    def select(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Picks encoder and SFT blocks, averaged copies and all else left out."""
        encoder, blocks = split(tensors)
        weights = {ENCODER_PREFIX + key: tensor for key, tensor in encoder.items()}
        for site, block in blocks.items():
            weights |= {sft_prefix(site) + key: tensor for key, tensor in block.items()}
        return weights

    @classmethod
    def infer_config(cls, weights: Mapping[str, Tensor]) -> EncoderConfig:
        """Returns the likeliest shape of the encoder, see `layouts.infer_encoder`.

        Raises:
            ValueError: encoder or SFT blocks lack.
        """
        check_whole(*split(weights))
        return infer_encoder(part_of(weights, ENCODER_PREFIX))

    @classmethod
    def build(
        cls,
        info: RestorerInfo,
        weights: Mapping[str, Tensor],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> StableSRRestorer:
        """Returns a restorer of the shapes that description and weights give.

        Raises:
            ValueError: encoder or SFT blocks lack, or a description of more than the weights.
        """
        encoder, blocks = split(weights)
        check_whole(encoder, blocks)
        if info.config.num_res_blocks * len(info.config.channel_mult) > len(weights):
            raise ValueError("its description has more blocks than the file has weights")
        shapes = {site: infer_sft(block) for site, block in blocks.items()}
        return cls(info, shapes, dtype=dtype, device=device, operations=operations)

    @classmethod
    def untrained(
        cls, info: RestorerInfo, site_channels: Mapping[str, int], hidden: int = 128, **_: Any
    ) -> StableSRRestorer:
        """Returns an untrained restorer.

        Gamma and beta begin at zero, so that the UNet first meets a plain norm at each site, and
        the LQ latent gains influence only as fast as it helps.

        Args:
            info: description.
            site_channels: per site in the UNet, its channels, a multiple of 32.
            hidden: hidden channels of each SFT block.
        """
        restorer = cls(info, {site: (channels, hidden) for site, channels in site_channels.items()})
        for site in restorer.sites:
            restorer.sft(site).zero_init()
        return restorer

    @property
    def latent_channels(self) -> int:
        """Channels of the LQ latent."""
        return self.encoder.config.in_channels

    @property
    def levels(self) -> int:
        """Number of feature maps of the encoder."""
        return len(self.encoder.config.channel_mult)

    @property
    def site_channels(self) -> dict[str, int]:
        """Per site in the UNet, its channels."""
        return self._site_channels

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Encoder and SFT blocks, by what their checkpoint keys begin with."""
        blocks = {sft_prefix(site): self.sft(site) for site in self.sites}
        return {ENCODER_PREFIX: self.encoder, **blocks}

    def sft(self, site: str) -> SFTBlock:
        """Returns the SFT block of a site, for example "input_blocks.1.0".

        Raises:
            KeyError: the restorer has none there.
        """
        block = self.sft_blocks[module_name(site)]
        return block  # type: ignore[return-value]

    def forward(self, lq_latent: Tensor, timesteps: Tensor) -> list[Tensor]:
        """Returns the encoder's feature maps, finest first; see `TimeAwareEncoder.forward`."""
        return self.encoder(lq_latent, timesteps)

    def modulate(self, site: str, h: Tensor, features: Tensor) -> Tensor:
        """Returns the modulated features of a residual block; see `SFTBlock.forward`."""
        return self.sft(site)(h, features)

    def prepare(self, levels: Mapping[str, int], weights_of: WeightsOf) -> Modulation:
        """Returns the SFT blocks with those of each level joined, see `JoinedSFT`."""
        return JoinedSFT({site: self.sft(site) for site in self.sites}, levels, weights_of)
