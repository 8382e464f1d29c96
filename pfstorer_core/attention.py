"""Attention, as each device computes it right and fast."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Returns what queries (B, heads, N, d) find among keys and values (B, heads, M, d)."""
    if query.device.type == "mps":  # gives wrong values for views in some versions
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    return F.scaled_dot_product_attention(query, key, value)
