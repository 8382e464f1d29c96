"""A family of restorers in one file: what a newcomer writes, without a change in the core.

Each residual block gets a 1x1 convolution of the LQ latent, scaled down to its level, added.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# In ComfyUI the plugin's modules have names that begin with its folder.
LOADED = [name for name in sys.modules if name.endswith(".pfstorer_core")]
CORE = "pfstorer_core" if "pfstorer_core" in sys.modules else LOADED[0]
base = importlib.import_module(f"{CORE}.restorers.base")
PREFIX = "toy."


@dataclass(frozen=True)
class ToyConfig:
    """Sizes: channels of the LQ latent, and levels of the UNet."""

    latent_channels: int = 4
    levels: int = 2


class ToyRestorer(base.BaseRestorer):
    """Adds a linear map of the LQ latent to each residual block."""

    config_type = ToyConfig

    def __init__(self, info: Any, channels: Mapping[str, int], operations: Any, place: Any) -> None:
        super().__init__(info)
        self._channels = dict(channels)
        self.maps = nn.ModuleList(
            operations.Conv2d(info.config.latent_channels, width, 1, **place)
            for width in channels.values()
        )

    @classmethod
    def select(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in tensors.items() if key.startswith(PREFIX)}

    @classmethod
    def infer_config(cls, weights: Mapping[str, Tensor]) -> ToyConfig:
        raise ValueError("no description")

    @classmethod
    def build(
        cls,
        info: Any,
        weights: Mapping[str, Tensor],
        *,
        dtype: torch.dtype | None = None,
        device: Any = None,
        operations: Any = torch.nn,
    ) -> "ToyRestorer":
        channels = {
            key.removeprefix(PREFIX).removesuffix(".bias"): len(tensor)
            for key, tensor in weights.items()
            if key.endswith(".bias")
        }
        return cls(info, channels, operations, {"dtype": dtype, "device": device})

    @classmethod
    def untrained(cls, info: Any, site_channels: Mapping[str, int], **sizes: Any) -> "ToyRestorer":
        restorer = cls(info, site_channels, torch.nn, {})
        for layer in restorer.maps:
            nn.init.zeros_(layer.bias)
            nn.init.normal_(layer.weight, std=0.05)
        return restorer

    @property
    def latent_channels(self) -> int:
        return self.info.config.latent_channels

    @property
    def levels(self) -> int:
        return self.info.config.levels

    @property
    def site_channels(self) -> dict[str, int]:
        return self._channels

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {
            f"{PREFIX}{site}.": layer for site, layer in zip(self.sites, self.maps, strict=True)
        }

    def forward(self, lq_latent: Tensor, timesteps: Tensor) -> Sequence[Tensor]:
        return [F.avg_pool2d(lq_latent, 2**level) for level in range(self.levels)]

    def modulate(self, site: str, h: Tensor, features: Tensor) -> Tensor:
        added = self.parts[f"{PREFIX}{site}."](features)
        return h + added.repeat(len(h) // len(added), 1, 1, 1).to(h.dtype)


base.FAMILIES["toy"] = ToyRestorer
NODE_CLASS_MAPPINGS: dict[str, Any] = {}
