"""Personalization blocks of one site for many steps: all that stays the same is multiplied out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .folding import (
    after_mlp,
    after_norm,
    attended_rows,
    augmented,
    keys_and_values,
    memory,
    unit,
    with_constant,
)

if TYPE_CHECKING:
    from ..weights.layers import WeightsOf
    from .base import Factor, Shown
    from .block import PersonalizationBlock

_CONSTANT = 10.0  # a unit of the MLP that is always so: large enough for gelu to leave it alone


@dataclass(frozen=True)
class _Weights:
    """Those of n blocks, multiplied out in float32; M tokens of text, identity and references."""

    inner: Tensor  # (n, C, width): features to bottleneck
    inner_bias: Tensor  # (n, 1, width)
    keys: Tensor  # (n, B, heads, M, width): queries multiplied in
    values: Tensor  # (n, B, heads, M, d + PAD); or multiplied by `attended`: (..., M, width)
    attended: Tensor  # (n, heads * (d + PAD), width)
    hidden: Tensor  # (n, width, hidden + PAD)
    outer: Tensor  # (n, C, width + hidden + PAD): all that follows, and gamma


class FoldedBlocks:
    """Adds what the blocks of one or several people give at one site, in few operations.

    Keys and values are computed once for a text and references, and all linear layers that follow
    each other are one. People whose blocks have the same sizes are computed as one batch.

    Args:
        parts: block, text and references of each person.
        weights_of: gives the blocks' weights, of which this keeps products.
        dtype: of the features.
    """

    def __init__(self, parts: Sequence[Shown], weights_of: WeightsOf, dtype: torch.dtype) -> None:
        block: PersonalizationBlock = parts[0].block  # type: ignore[assignment]
        self._epsilons = block.norm.eps, block.query_norm.eps, block.mlp_norm.eps
        self._dtype = dtype
        self._fused = fused_attention_works(parts[0].context.device, dtype)
        folded = _fold(parts, weights_of, self._fused)
        self._inner = folded.inner.to(dtype).unbind()
        self._inner_bias = folded.inner_bias.to(dtype).unbind()
        self._outer = folded.outer.to(dtype).unbind()
        self._keys = folded.keys.to(dtype).flatten(0, 1)
        self._values = folded.values.to(dtype).flatten(0, 1)
        self._attended, self._hidden = folded.attended.to(dtype), folded.hidden.to(dtype)
        self._ones = torch.ones_like(self._inner_bias[0][0])  # (width,)

    def __call__(self, h: Tensor, into: Tensor, factors: Sequence[Factor]) -> Tensor:
        """Returns `into` + sum of factor * delta.

        Args:
            h: (B, C, H, W) output F of the UNet block.
            into: (B, C, H, W).
            factors: per person.
        """
        batch, width, people = len(h), len(self._ones), len(self._inner)
        normed = F.group_norm(h, 32, eps=self._epsilons[0]).flatten(2).mT  # (B, HW, C)
        pixels = normed.shape[1]
        z = h.new_empty(people, batch, pixels, width)
        for inner, bias, out in zip(self._inner, self._inner_bias, z, strict=True):
            torch.baddbmm(bias, normed, inner.expand(batch, -1, -1), out=out)
        z = z.flatten(1, 2)  # (n, B * HW, width)
        found = self._find(self._normed(z, self._epsilons[1]), batch)
        rows = h.new_empty(people, batch * pixels, self._outer[0].shape[1])
        kept, hidden = rows[..., :width], rows[..., width:]
        torch.baddbmm(z, found, self._attended, out=kept)
        _gelu_into(torch.bmm(self._normed(kept, self._epsilons[2]), self._hidden), hidden)
        rows = rows.unflatten(1, (batch, pixels))  # (n, B, HW, width + hidden + pad)
        self._weigh(rows, factors, h)
        total = into.flatten(2)  # (B, C, HW)
        for row, outer, (strength, _) in zip(rows, self._outer, factors, strict=True):
            total = torch.baddbmm(total, outer.expand(batch, -1, -1), row.mT, alpha=strength)
        return total.view_as(into)

    def _normed(self, z: Tensor, eps: float) -> Tensor:
        return F.layer_norm(z, z.shape[-1:], bias=self._ones, eps=eps)

    def _find(self, query: Tensor, batch: int) -> Tensor:
        """Attention of (n, B * HW, width) to the tokens: (n, B * HW, K), which `attended` maps."""
        people, heads = len(query), self._keys.shape[1]
        query = query.unflatten(1, (batch, -1)).flatten(0, 1)  # (n * B, HW, width)
        if self._fused:
            queries = query[:, None].expand(-1, heads, -1, -1)
            found = _fused_attention(queries, self._keys, self._values)  # (n * B, heads, HW, d + p)
            return found.transpose(1, 2).reshape(people, -1, self._attended.shape[1])
        scores = torch.bmm(query, self._keys.flatten(1, 2).mT)  # (n * B, HW, heads * M)
        weights = torch.softmax(scores.unflatten(2, (heads, -1)), -1).flatten(2)
        return torch.bmm(weights, self._values.flatten(1, 2)).view(people, -1, query.shape[-1])

    def _weigh(self, rows: Tensor, factors: Sequence[Factor], h: Tensor) -> None:
        """Multiplies the factors' maps into (n, B, HW, K)."""
        if all(weight is None for _, weight in factors):
            return
        one = h.new_ones(1, 1, 1, 1)
        shape = len(h), 1, *h.shape[2:]
        maps = [(one if x is None else x.to(h.dtype)).expand(shape) for _, x in factors]
        rows.mul_(torch.stack(maps).flatten(2)[..., None])


def fold_together(
    parts: Sequence[Shown], weights_of: WeightsOf, dtype: torch.dtype
) -> FoldedBlocks | None:
    """Returns the blocks of several people as one, or None if their sizes or texts differ."""
    sizes = set()
    for part in parts:
        block: Any = part.block
        shown = None if part.reference is None else part.reference.shape
        sizes.add((block.config, id(part.context), shown))
    return FoldedBlocks(parts, weights_of, dtype) if len(sizes) == 1 else None


def _fold(parts: Sequence[Shown], weights_of: WeightsOf, fused: bool) -> _Weights:
    blocks: list[Any] = [part.block for part in parts]
    heads = blocks[0].heads

    def of(name: str) -> tuple[Tensor, ...]:
        pairs = [_read(weights_of, getattr(block, name)) for block in blocks]
        return tuple(torch.stack(x) for x in zip(*pairs, strict=True))

    (scale, shift), (inner, bias) = of("norm"), of("to_bottleneck")
    query = after_norm(*of("to_query"), *of("query_norm"))
    constant = unit(query)
    attended = attended_rows(heads, constant, *of("attended"))
    query = query * blocks[0].config.head_dim ** -0.5
    keys, values = keys_and_values(memory(parts, of), query, heads)
    values = with_constant(values, constant)
    if not fused:
        values = values @ attended.unflatten(1, (heads, -1))[:, None]
        attended = torch.eye(query.shape[-1], device=query.device).expand_as(query)
    hidden = after_norm(*of("mlp_in"), *of("mlp_norm"))  # (n, hidden, width)
    width = hidden.shape[-1]
    always = (constant * _CONSTANT / width)[:, None].expand(len(hidden), -1, width)
    mlp = after_mlp(constant / _CONSTANT, *of("mlp_out"))
    return _Weights(
        (inner * scale[:, None]).mT,
        torch.baddbmm(bias[..., None], inner, shift[..., None]).mT,
        keys,
        values,
        attended,
        torch.cat([hidden, always], 1).mT,
        torch.bmm(augmented(*of("gamma"), *of("out")), mlp),
    )


def _read(weights_of: WeightsOf, layer: Any) -> list[Tensor]:
    # copies, because the next layer's may take their place
    return [x.float().clone() for x in weights_of(layer) if x is not None]


def _gelu_into(x: Tensor, out: Tensor) -> None:
    if x.device.type == "cpu":  # which writes past views
        out.copy_(F.gelu(x))
    else:
        torch.ops.aten.gelu.out(x, out=out)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, heads, HW, width), (B, heads, M, width), (B, heads, M, d) to (B, heads, HW, d)."""
    found = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, False, scale=1.0
    )
    result: Tensor = found[0]
    return result


@functools.lru_cache(maxsize=16)
def fused_attention_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Tries the fused kernel for keys wider than values, which not every GPU has."""
    if device.type == "meta":  # counts what a GPU would start
        return True
    if device.type != "cuda":
        return False
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(shape, generator=generator, device=device).to(dtype)
        for shape in ((2, 1, 40, 128), (2, 4, 93, 128), (2, 4, 93, 40))
    )
    query = query.expand(-1, 4, -1, -1) / 8
    try:
        found = _fused_attention(query, key, value).float()
    except RuntimeError:
        return False
    expected = torch.softmax((query.float() @ key.float().mT), -1) @ value.float()
    return bool(torch.allclose(found, expected, rtol=0.05, atol=0.05))
