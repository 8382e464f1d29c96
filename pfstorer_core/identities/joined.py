"""Personalization blocks of all sites for one forward of a training: what they share is one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
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
    from .base import Shown
    from .block import PersonalizationBlock


@dataclass(frozen=True)
class JoinedBlock:
    """One site's share; B items, M tokens of text, identity and reference.

    Weights have the batch before them where their gradients are summed over it, which is then done
    for many sites at once.
    """

    block: PersonalizationBlock
    inner: Tensor  # (B, width, C): features to bottleneck
    keys: Tensor  # (B, heads, M, width): queries multiplied in
    values: Tensor  # (B, heads, M, d + pad)
    attended: Tensor  # (heads * (d + pad), width)
    outer: (
        Tensor  # (B, C, width + hidden + pad): all that follows the MLP's hidden units, and gamma
    )
    constant: Tensor  # (pad,)
    ones: Tensor  # (width,)
    own: Sequence[Tensor]  # of the norms, the MLP's first layer and the bottleneck's bias

    def __call__(self, h: Tensor) -> Tensor:
        """Returns F + delta, (B, C, H, W), for F of that shape and of the weights' type."""
        with _uncast(h.device):
            return self._personalized(h)

    def _personalized(self, h: Tensor) -> Tensor:
        block, (batch, heads, _, width) = self.block, self.keys.shape
        scale, shift, bias, mlp_scale, mlp_shift, mlp_in, mlp_bias = self.own
        normed = F.group_norm(h, 32, scale, shift, block.norm.eps).flatten(2)  # (B, C, HW)
        z = _ToRows.apply(normed, self.inner, bias)  # (B, HW, width)
        query = F.layer_norm(z, (width,), bias=self.ones, eps=block.query_norm.eps)
        found = F.scaled_dot_product_attention(
            query[:, None].expand(-1, heads, -1, -1),
            self.keys,
            self.values,
            scale=block.config.head_dim**-0.5,
        )  # (B, heads, HW, d + pad)
        found = found.transpose(1, 2).flatten(2).flatten(0, 1)
        z = torch.addmm(z.flatten(0, 1), found, self.attended)  # (B * HW, width)
        normed = F.layer_norm(z, (width,), mlp_scale, mlp_shift, block.mlp_norm.eps)
        hidden = F.gelu(F.linear(normed, mlp_in, mlp_bias))
        rows = torch.cat([z, hidden, self.constant.expand(len(z), -1)], 1)
        rows = rows.unflatten(0, (batch, -1))  # (B, HW, width + hidden + pad)
        total: Tensor = _OntoMaps.apply(h.flatten(2), self.outer, rows)
        return total.view_as(h)


_OWN = (
    "norm.weight",
    "norm.bias",
    "to_bottleneck.bias",
    "mlp_norm.weight",
    "mlp_norm.bias",
    "mlp_in.weight",
    "mlp_in.bias",
)


def join_blocks(parts: Sequence[Shown], batch: int, dtype: torch.dtype) -> list[JoinedBlock]:
    """Returns the blocks of all sites, differentiable with respect to their weights.

    Args:
        parts: the sites' blocks, with layers of `torch.nn`; all have the same text, of one item.
        batch: items of the forward.
        dtype: to compute in. Products of weights are made in the weights' own.
    """
    joined: dict[int, JoinedBlock] = {}
    order = sorted(range(len(parts)), key=lambda k: _sizes(parts[k]))
    with _uncast(parts[0].context.device):
        for _, numbers in itertools.groupby(order, lambda k: _sizes(parts[k])[0]):
            group = list(numbers)
            made = _join_alike([parts[k] for k in group], batch, dtype)
            joined |= dict(zip(group, made, strict=True))
    return [joined[k] for k in range(len(parts))]


def waits_for_launches(device: torch.device) -> bool:
    """Whether a device is one for which operations are joined, at the price of more arithmetic.

    A CPU is not; Apple's GPUs are left alone, whose attention is wrong for some layouts.
    """
    return device.type not in ("cpu", "mps")


def _sizes(part: Shown) -> tuple[Any, int]:
    """What must be the same for keys and values to be made together, and the channels."""
    block: Any = part.block
    shown = () if part.reference is None else tuple(part.reference.shape)
    return (block.heads, shown), block.norm.num_channels


def _join_alike(parts: Sequence[Shown], batch: int, dtype: torch.dtype) -> Iterator[JoinedBlock]:
    """Joins blocks whose bottlenecks have the same width, in the order of their channels."""
    blocks: list[Any] = [part.block for part in parts]
    heads = blocks[0].heads

    def layers(name: str) -> tuple[Tensor, ...]:
        given = [x for x in ("weight", "bias") if hasattr(getattr(blocks[0], name), x)]
        return tuple(_together(torch.stack, blocks, f"{name}.{x}") for x in given)

    query = after_norm(*layers("to_query"), *layers("query_norm"))
    constant = unit(query)
    keys, values = keys_and_values(memory(parts, layers), query, heads)
    values = with_constant(values, constant)
    attended = attended_rows(heads, constant, *layers("attended"))
    mlp = after_mlp(constant, *layers("mlp_out"))  # (n, width + 1, width + hidden + pad)
    names = ("gamma.weight", "out.weight", "out.bias")
    out = augmented(*(_together(torch.cat, blocks, x) for x in names))  # (sum of C, width + 1)
    groups = [list(x) for _, x in itertools.groupby(blocks, lambda x: x.norm.num_channels)]
    outs = out.split([len(x) * x[0].norm.num_channels for x in groups])
    inner: list[Tensor] = []
    outer: list[Tensor] = []
    for group, first, last in zip(groups, outs, mlp.split([len(x) for x in groups]), strict=True):
        whole = torch.bmm(first.unflatten(0, (len(group), -1)), last)
        weights = _together(torch.stack, group, "to_bottleneck.weight")
        inner += _for_items(weights, batch, dtype)
        outer += _for_items(whole, batch, dtype)
    own = _cast([block.get_parameter(name) for block in blocks for name in _OWN], dtype)
    return map(
        JoinedBlock,
        blocks,
        inner,
        _for_items(keys.squeeze(1), batch, dtype),
        _for_items(values.squeeze(1), batch, dtype),
        attended.to(dtype).unbind(),
        outer,
        itertools.repeat(constant.to(dtype)),
        itertools.repeat(query.new_ones(query.shape[1], dtype=dtype)),
        (own[k : k + len(_OWN)] for k in range(0, len(own), len(_OWN))),
    )


def _together(join: Callable[..., Tensor], blocks: Sequence[Any], name: str) -> Tensor:
    """A parameter of all blocks, by `torch.stack` or `torch.cat`."""
    found = join([block.get_parameter(name) for block in blocks])
    if found.requires_grad:
        # else each parameter's gradient would be copied by itself
        found.register_hook(torch.Tensor.contiguous)
    return found


def _for_items(weights: Tensor, batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Weights (n, ...) in another type, for each block as those of a batch: (B, ...)."""
    return weights.to(dtype)[:, None].expand(-1, batch, *weights.shape[1:]).unbind()


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Tensors in another type, those of one shape cast at once."""
    if all(x.dtype == dtype for x in tensors):
        return list(tensors)
    shapes: dict[torch.Size, list[int]] = {}
    for number, x in enumerate(tensors):
        shapes.setdefault(x.shape, []).append(number)
    found: dict[int, Tensor] = {}
    for numbers in shapes.values():
        cast = torch.stack([tensors[k] for k in numbers]).to(dtype)
        found |= dict(zip(numbers, cast.unbind(), strict=True))
    return [found[k] for k in range(len(tensors))]


def _uncast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Lets operations compute in the types that they are given."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


class _ToRows(torch.autograd.Function):
    """Maps (B, C, N) to rows (B, N, K); the gradients have the layouts of what they are of."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Weight (B, K, C), bias (K,)."""
        ctx.save_for_backward(maps, weight)
        return torch.baddbmm(bias, maps.mT, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps, weight = ctx.saved_tensors
        to_maps = torch.bmm(weight.mT, gradient.mT)
        return to_maps, torch.bmm(gradient.mT, maps.mT), gradient.sum((0, 1))


class _OntoMaps(torch.autograd.Function):
    """Maps (B, C, N) and what a weight (B, C, K) makes of rows (B, N, K); gradients as above."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(weight, rows)
        return torch.baddbmm(maps, weight, rows.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, rows = ctx.saved_tensors
        return gradient, torch.bmm(gradient, rows), torch.bmm(gradient.mT, weight)
