"""Personalization block: adds a person's identity to the features of one block of the UNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..areas import area_mean
from ..attention import attention
from ..weights.layers import WeightsOf
from .base import IdentityBlock, Personalized, Prepared, Shown
from .config import PersonalizationConfig
from .folded import fold_together
from .joined import join_blocks, waits_for_launches


class Gamma(nn.Module):
    """The learned vector that balances base and identity, one value per channel.

    A leaf module, because ComfyUI moves the bare parameters of modules with children to no device.
    """

    def __init__(self, channels: int, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, dtype=dtype, device=device))

    def forward(self, h: Tensor) -> Tensor:
        """(B, N, C) times gamma, in the type of `h`."""
        return h * self.weight.to(h)


class IdentityTokens(nn.Module):
    """Learned keys and values that hold what the block knows of the person; a leaf module."""

    def __init__(self, tokens: int, width: int, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, width, dtype=dtype, device=device))

    def forward(self, h: Tensor) -> Tensor:
        """The tokens for a batch like that of `h` (B, N, C): (B, tokens, width)."""
        return self.weight.to(h).expand(len(h), -1, -1)


class PersonalizationBlock(IdentityBlock):
    """Computes what a person's identity adds to the output F of one UNet block.

    `delta = gamma * out(z)`, where z is F in a bottleneck after cross-attention to the text
    embedding, the learned identity tokens and, if given, the reference's features, and an MLP.

    Args:
        channels: channels of the UNet's features, a multiple of 32.
        context_dim: width of the text embedding.
        config: sizes.
        operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.

    Source: PFStorer (arXiv 2403.08436), section 3, for attention to text and reference and for
        gamma; the identity tokens, the bottleneck and the MLP are ours.
    """

    def __init__(
        self,
        channels: int,
        context_dim: int,
        config: PersonalizationConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> None:
        super().__init__(channels, context_dim, config)
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        width = config.width(channels)
        self.config = config
        self.heads = width // config.head_dim
        self.norm = operations.GroupNorm(32, channels, **place)
        self.to_bottleneck = operations.Linear(channels, width, **place)
        self.query_norm = operations.LayerNorm(width, **place)
        self.to_query = operations.Linear(width, width, **place)
        self.text_norm = operations.LayerNorm(context_dim, **place)
        self.text_to_key_value = operations.Linear(context_dim, 2 * width, **place)
        self.reference_norm = operations.LayerNorm(channels, **place)
        self.reference_to_key_value = operations.Linear(channels, 2 * width, **place)
        self.tokens = IdentityTokens(config.tokens, 2 * width, **place) if config.tokens else None
        self.attended = operations.Linear(width, width, **place)
        self.mlp_norm = operations.LayerNorm(width, **place)
        self.mlp_in = operations.Linear(width, config.mlp_ratio * width, **place)
        self.mlp_out = operations.Linear(config.mlp_ratio * width, width, **place)
        self.out = operations.Linear(width, channels, **place)
        self.gamma = Gamma(channels, **place)

    def initialise(self, generator: torch.Generator) -> None:
        """Draws starting weights under which delta is zero; for layers of `torch.nn`.

        The last layer starts at zero and gamma at one: a gamma of zero would let the other layers
        learn only as fast as it grows.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.zeros_(module.bias)
        if self.tokens is not None:
            nn.init.normal_(self.tokens.weight, generator=generator)
        nn.init.zeros_(self.out.weight)
        self.gamma.requires_grad_(self.config.learned_gamma)

    def forward(self, h: Tensor, context: Tensor, reference: Tensor | None = None) -> Tensor:
        """Returns delta.

        Args:
            h: (B, C, H, W) output F of the UNet block.
            context: (B, tokens, context_dim) text embedding.
            reference: (1 or B, N, C) tokens of `reference_tokens`; None without references.

        Returns:
            (B, C, H, W), of the type of `h`.
        """
        height = h.shape[2]
        z = self.to_bottleneck(rearrange(self.norm(h), "b c h w -> b (h w) c"))  # (B, HW, width)
        same = context.stride(0) == 0  # one text for all, as in a training
        text = self.text_to_key_value(self.text_norm(context[:1] if same else context))
        memory = [text.expand(len(z), -1, -1)]  # (B, tokens, 2 width)
        if self.tokens is not None:
            memory.append(self.tokens(z))
        if reference is not None:
            shown = self.reference_to_key_value(self.reference_norm(reference))
            memory.append(shown.expand(len(z), -1, -1))  # (B, N, 2 width)
        key, value = torch.cat([m.to(z) for m in memory], 1).chunk(2, -1)  # (B, M, width) each
        query = self.to_query(self.query_norm(z)).to(z)
        query, key, value = (
            rearrange(x, "b n (heads d) -> b heads n d", heads=self.heads)
            for x in (query, key, value)
        )
        found = rearrange(_attention(query, key, value), "b heads n d -> b n (heads d)")
        z = z + self.attended(found)
        z = z + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(z))))
        delta = self.gamma(self.out(z))  # (B, HW, C)
        return rearrange(delta, "b (h w) c -> b c h w", h=height).to(h.dtype)

    @classmethod
    def prepare(
        cls, parts: Sequence[Shown], weights_of: WeightsOf, dtype: torch.dtype
    ) -> Prepared | None:
        """Returns the blocks multiplied out, see `folded.FoldedBlocks`."""
        return fold_together(parts, weights_of, dtype)

    @classmethod
    def prepare_training(
        cls, parts: Sequence[Shown], batch: int, dtype: torch.dtype
    ) -> Sequence[Personalized] | None:
        """Returns the blocks with what they share computed once, see `joined.JoinedBlock`."""
        if not waits_for_launches(parts[0].context.device):
            return None
        return join_blocks(parts, batch, dtype)


def reference_tokens(features: Tensor, grid: int) -> Tensor:
    """Turns the UNet features of references into tokens to attend to.

    Args:
        features: (R, C, H, W) output of one UNet block for R references.
        grid: at most so many cells a side remain, by averaging.

    Returns:
        (1, R * N, C), of all references together.
    """
    height, width = features.shape[2:]
    if max(height, width) > grid:
        features = area_mean(features, (min(height, grid), min(width, grid)))
    return rearrange(features, "r c h w -> 1 (r h w) c")


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (B, heads, HW, d) queries to (B, heads, M, d) keys and values."""
    if query.device.type != "cpu":
        return attention(query, key, value)
    # On a CPU the fused kernel takes twice as long, forward and backward, with as few keys.
    weights = torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2), -1)
    return weights @ value
