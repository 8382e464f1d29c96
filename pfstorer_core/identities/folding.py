"""Products of the weights of personalization blocks, of n blocks of one size at once, in float32.

All is differentiable, so that a training can go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from .base import Shown

# name of a layer to its weights and, if any, biases in all blocks, (n, ...) each
LayersOf = Callable[[str], tuple[Tensor, ...]]

PAD = 8  # columns for what is constant, of which the first is used; kernels want multiples of 8


def unit(like: Tensor) -> Tensor:
    """Returns what stands in constant columns, (PAD,): one, then zeros."""
    return torch.eye(1, PAD, device=like.device, dtype=like.dtype)[0]


def after_norm(weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Returns a linear layer's weight with its bias and the layer norm before it in it.

    A normalised row sums to zero, and to its length once 1 is added, which is left to the norm; so
    a constant added to a column is a bias, and takes no operation of its own.

    Args:
        weight: (n, out, in).
        bias: (n, out).
        scale: (n, in), of the norm.
        shift: (n, in), of the norm.
    """
    shifted = torch.baddbmm(bias[..., None], weight, (shift - scale)[..., None])  # (n, out, 1)
    return weight * scale[:, None] + shifted / weight.shape[-1]


def memory(parts: Sequence[Shown], layers: LayersOf) -> Tensor:
    """Returns keys and values of text, identity and references, (n, B, M, 2 width).

    Args:
        parts: n blocks, with the same text (B, tokens, width) and as many tokens of references.
        layers: of the blocks.
    """
    block: Any = parts[0].block

    def looked_at(x: Tensor, kind: str) -> Tensor:
        """Of tokens (n or 1, N, features): (n, N, 2 width)."""
        (scale, shift), (weight, bias) = layers(f"{kind}_norm"), layers(f"{kind}_to_key_value")
        eps = getattr(block, f"{kind}_norm").eps
        normed = F.layer_norm(x.to(weight.dtype), x.shape[-1:], eps=eps)
        return torch.baddbmm(bias[:, None], normed * scale[:, None] + shift[:, None], weight.mT)

    batch = len(parts[0].context)
    text = looked_at(parts[0].context.flatten(0, 1)[None], "text")
    found = [text.unflatten(1, (batch, -1))]  # (n, B, tokens, 2 width)
    if block.tokens is not None:
        found.append(layers("tokens")[0][:, None].expand(-1, batch, -1, -1))
    references = [part.reference for part in parts if part.reference is not None]
    if references:
        shown = looked_at(torch.cat(references), "reference")  # (n, N, 2 width)
        found.append(shown[:, None].expand(-1, batch, -1, -1))
    return torch.cat(found, 2)


def keys_and_values(memory: Tensor, query: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Returns keys with the query's layer in them, and values.

    Args:
        memory: (n, B, M, 2 width) keys and values.
        query: (n, width, width), see `after_norm`.
        heads: of the attention.

    Returns:
        (n, B, heads, M, width) and (n, B, heads, M, d).
    """
    both = memory.unflatten(3, (2, heads, -1)).transpose(2, 4)  # (n, B, heads, 2, M, d)
    keys, values = both.unbind(3)
    return keys @ query.unflatten(1, (heads, -1))[:, None], values


def with_constant(values: Tensor, constant: Tensor) -> Tensor:
    """Returns values (..., d + PAD): what is found among them then ends in `constant` (PAD,)."""
    return torch.cat([values, constant.expand(*values.shape[:-1], -1)], -1)


def attended_rows(heads: int, constant: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns a linear layer for what is found among values `with_constant` of a `unit`.

    Args:
        heads: of the attention.
        constant: (PAD,), a `unit`.
        weight: (n, width, width).
        bias: (n, width).

    Returns:
        (n, heads * (d + PAD), width).
    """
    rows = weight.mT.unflatten(1, (heads, -1))  # (n, heads, d, width)
    padding = bias[:, None, None] * (constant / heads)[:, None]  # (n, 1, PAD, width)
    return torch.cat([rows, padding.expand(-1, heads, -1, -1)], 2).flatten(1, 2)


def after_mlp(constant: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns the MLP's last layer and the path around it as one.

    Args:
        constant: (PAD,), whose product with what stands in the constant columns is 1.
        weight: (n, width, hidden).
        bias: (n, width).

    Returns:
        (n, width + 1, width + hidden + PAD): from bottleneck, hidden units and constant columns to
        the bottleneck and a 1.
    """
    count, width, hidden = weight.shape
    around = torch.eye(width, device=weight.device, dtype=weight.dtype).expand(count, -1, -1)
    rows = torch.cat([around, weight, bias[..., None] * constant], -1)
    one = F.pad(constant, (width + hidden, 0)).expand(count, 1, -1)
    return torch.cat([rows, one], 1)


def augmented(gamma: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns a linear layer with its bias as a last column, times gamma: (..., C, width + 1).

    Args:
        gamma, bias: (..., C).
        weight: (..., C, width).
    """
    return torch.cat([weight, bias[..., None]], -1) * gamma[..., None]
