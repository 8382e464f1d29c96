"""A method of personalization in one file: what a newcomer writes, without a change in the core.

After each block of the UNet a small network is added, which looks neither at text nor references.
"""

import importlib
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# In ComfyUI the plugin's modules have names that begin with its folder.
LOADED = [name for name in sys.modules if name.endswith(".pfstorer_core")]
CORE = "pfstorer_core" if "pfstorer_core" in sys.modules else LOADED[0]
base = importlib.import_module(f"{CORE}.identities.base")
methods = importlib.import_module(f"{CORE}.identities.methods")


@dataclass(frozen=True)
class ToyBlockConfig:
    """Sizes: features of the bottleneck."""

    width: int = 8
    reference_grid: int = 1


class ToyBlock(base.IdentityBlock):
    """Two linear layers with a bottleneck between."""

    def __init__(
        self,
        channels: int,
        context_dim: int,
        config: ToyBlockConfig,
        *,
        dtype: torch.dtype | None = None,
        device: Any = None,
        operations: Any = torch.nn,
    ) -> None:
        super().__init__(channels, context_dim, config)
        self.narrow = operations.Linear(channels, config.width, dtype=dtype, device=device)
        self.widen = operations.Linear(config.width, channels, dtype=dtype, device=device)

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.narrow.weight, std=0.1, generator=generator)
        for values in (self.narrow.bias, self.widen.weight, self.widen.bias):
            nn.init.zeros_(values)

    def forward(self, h: Tensor, context: Tensor, reference: Tensor | None = None) -> Tensor:
        z = F.gelu(self.narrow(h.movedim(1, -1)))  # (B, H, W, width)
        return self.widen(z).movedim(-1, 1).to(h.dtype)


methods.METHODS["toy"] = base.Method(ToyBlockConfig, ToyBlock)
NODE_CLASS_MAPPINGS: dict[str, Any] = {}
