"""Personalization blocks of one site for many steps: all that stays the same is multiplied out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from ..weights.layers import WeightsOf
    from .base import Factor, Shown
    from .block import PersonalizationBlock

_PAD = 8  # columns beside the features, of which the first is constant; kernels want multiples of 8
_CONSTANT = 10.0  # a unit of the MLP that is always so: large enough for gelu to leave it alone


@dataclass(frozen=True)
class _Weights:
    """One block's, multiplied out in float32; M tokens of text, identity and references.

    A normalised row sums to zero, and to its length once 1 is added; so a constant added to a
    column of the matrix that follows is a bias, and takes no operation of its own.
    """

    inner: Tensor  # (C, width): features to bottleneck
    inner_bias: Tensor  # (1, width)
    keys: Tensor  # (B, heads, M, width): queries multiplied in
    values: Tensor  # (B, heads, M, d + pad); or multiplied by `attended`: (B, heads, M, width)
    attended: Tensor  # (heads * (d + pad), width)
    hidden: Tensor  # (width, hidden + pad)
    outer: Tensor  # (C, width + hidden + pad): all that follows, and gamma


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
        folded = [_fold(part, weights_of, self._fused) for part in parts]

        def together(name: str) -> Tensor:
            return torch.stack([getattr(x, name) for x in folded]).to(dtype)  # (n, ...)

        self._inner = [x.inner.to(dtype) for x in folded]
        self._inner_bias = [x.inner_bias.to(dtype) for x in folded]
        self._outer = [x.outer.to(dtype) for x in folded]
        self._keys, self._values = together("keys").flatten(0, 1), together("values").flatten(0, 1)
        self._attended, self._hidden = together("attended"), together("hidden")
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
    """Returns the blocks of several people as one, or None if their sizes differ."""
    sizes = set()
    for part in parts:
        block: Any = part.block
        shown = None if part.reference is None else part.reference.shape
        sizes.add((block.config, part.context.shape, shown))
    return FoldedBlocks(parts, weights_of, dtype) if len(sizes) == 1 else None


def _fold(part: Shown, weights_of: WeightsOf, fused: bool) -> _Weights:
    block: Any = part.block
    tensors = {name: _read(weights_of, layer) for name, layer in block.named_children()}

    def linear(name: str) -> tuple[Tensor, Tensor]:
        weight, bias = tensors[name]
        assert bias is not None
        return weight, bias

    def after_norm(norm: str, layer: str) -> tuple[Tensor, Tensor]:
        """A layer with the norm's own weights in it: (out, in), (out,)."""
        (scale, shift), (weight, bias) = linear(norm), linear(layer)
        return weight * scale, bias + weight @ shift

    keys, values = _tokens(part, tensors)  # (B, heads, M, d) each
    batch, heads, count, size = values.shape
    width = heads * size
    query, query_bias = after_norm("query_norm", "to_query")
    keys = keys * size**-0.5
    folded = keys @ query.unflatten(0, (heads, size))  # (B, heads, M, width)
    bias = keys @ query_bias.view(heads, size, 1)  # (B, heads, M, 1)
    inner, inner_bias = after_norm("norm", "to_bottleneck")
    attended, attended_bias = linear("attended")
    rows = attended.T.unflatten(0, (heads, size))  # (heads, d, width)
    constant = attended_bias.expand(heads, 1, -1) / heads
    pad = rows.new_zeros(heads, _PAD - 1, width)
    rows = torch.cat([rows, constant, pad], 1)  # (heads, d + pad, width)
    ones = torch.cat([values.new_ones(batch, heads, count, 1)], -1)
    values = torch.cat([values, ones, values.new_zeros(batch, heads, count, _PAD - 1)], -1)
    attended = rows.flatten(0, 1)
    if not fused:
        values, attended = values @ rows, torch.eye(width, device=rows.device)
    hidden, hidden_bias = after_norm("mlp_norm", "mlp_in")
    unit = hidden.new_zeros(_PAD)
    unit[0] = _CONSTANT
    hidden = torch.cat([hidden, hidden.new_zeros(_PAD, width)])
    (last, last_bias), (out, out_bias) = linear("mlp_out"), linear("out")
    rest = out.new_zeros(len(out), _PAD)
    rest[:, 0] = (out @ last_bias + out_bias) / _CONSTANT
    outer = torch.cat([out, out @ last, rest], 1) * tensors["gamma"][0][:, None]
    return _Weights(
        inner.T,
        inner_bias[None],
        _with_bias(folded, bias),
        values,
        attended,
        _with_bias(hidden, torch.cat([hidden_bias, unit])[:, None]).T,
        outer,
    )


def _tokens(part: Shown, tensors: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Keys and values of text, identity and references: (B, heads, M, d) each."""
    block: Any = part.block

    def shown(x: Tensor, norm: str, layer: str) -> Tensor:
        scale, shift = tensors[norm]
        weight, bias = tensors[layer]
        normed = F.layer_norm(x.float(), x.shape[-1:], scale, shift, getattr(block, norm).eps)
        return F.linear(normed, weight, bias)

    memory = [shown(part.context, "text_norm", "text_to_key_value")]  # (B, tokens, 2 width)
    batch = len(part.context)
    if block.tokens is not None:
        memory.append(tensors["tokens"][0].expand(batch, -1, -1))
    if part.reference is not None:
        found = shown(part.reference, "reference_norm", "reference_to_key_value")
        memory.append(found.expand(batch, -1, -1))
    both = torch.cat(memory, 1).unflatten(2, (2, block.heads, -1))  # (B, M, 2, heads, d)
    key, value = both.permute(2, 0, 3, 1, 4)
    return key, value


def _with_bias(rows: Tensor, bias: Tensor) -> Tensor:
    """Rows (..., width) and a bias (..., 1) for what is normalised to sum to `width`."""
    return rows - rows.mean(-1, keepdim=True) + bias / rows.shape[-1]


def _read(weights_of: WeightsOf, layer: Any) -> tuple[Tensor, Tensor | None]:
    weight, bias = weights_of(layer)
    # copies, because the next layer's may take their place
    return weight.float().clone(), None if bias is None else bias.float().clone()


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
