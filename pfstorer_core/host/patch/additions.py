"""What personalization blocks add to the blocks of ComfyUI's UNet."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...areas import area_mean
from ...errors import PFStorerError
from ...identities.base import Factor, IdentityBlock, Personalized, Prepared, Shown
from .applied import AppliedIdentity
from .masks import GAMMA_COND, MASK_COND, TEXT_COND
from .references import references_by_site
from .sampling import SamplingMemory, computing_type, weights_on


@dataclass(frozen=True)
class Addition:
    """What one identity adds to one block of the UNet.

    Args:
        block: the personalization block.
        strength: factor on its output, or (B, 1, 1, 1) factors.
        weight: (B, 1, h, w) in [0, 1] at the latent's resolution; None is 1 everywhere.
        reference: (1, N, C) tokens of the references' features.
    """

    block: IdentityBlock
    strength: float | Tensor
    weight: Tensor | None
    reference: Tensor | None


def add_identities(h: Tensor, context: Tensor, parts: Sequence[Addition]) -> Tensor:
    """Returns F + sum of weight * strength * gamma * block(F), all computed from the same F.

    Args:
        h: (B, C, H, W) output F of a UNet block.
        context: (B, tokens, width) text embedding.
        parts: one per identity; none returns `h` itself.
    """
    personalized = h
    for part in parts:
        personalized = personalized + _delta(h, context, part)
    return personalized


def _delta(h: Tensor, context: Tensor, part: Addition) -> Tensor:
    delta = part.block(h, context, part.reference)  # (B, C, H, W)
    if part.weight is not None:
        delta = delta * area_mean(part.weight, (h.shape[2], h.shape[3]))
    if isinstance(part.strength, Tensor) or part.strength != 1:
        delta = part.strength * delta
    return delta.to(h.dtype)


@dataclass
class KeptAdditions:
    """Adds what identities give in one forward of a sampling, from what is kept between forwards.

    Args:
        memory: of the sampling.
        context: (B, tokens, width) text embedding of the forward.
    """

    memory: SamplingMemory
    context: Tensor
    _text: Hashable = None
    _maps: dict[Hashable, Tensor] = field(default_factory=dict)

    def add(self, h: Tensor, context: Tensor, parts: Sequence[Addition]) -> Tensor:
        """Returns what `add_identities` gives, which it leaves to it where nothing can be kept.

        Args:
            h: (B, C, H, W) output F of a UNet block.
            context: (B, tokens, width) text embedding; another than the forward's is of a node that
                changes it on the way.
            parts: one per identity.
        """
        changed = context is not self.context or len(context) != len(h)
        if not parts or changed or torch.is_grad_enabled():
            return add_identities(h, context, parts)
        if self._text is None:
            self._text = self.memory.text(context)
        together = self._prepared(parts, h)
        if together is not None:
            return together(h, h, [self._factor(part, h) for part in parts])
        total = h
        for part in parts:
            alone = self._prepared([part], h)
            if alone is None:
                total = total + _delta(h, context, part)
            else:
                total = alone(h, total, [self._factor(part, h)])
        return total

    def _prepared(self, parts: Sequence[Addition], h: Tensor) -> Prepared | None:
        kind = type(parts[0].block)
        if any(type(part.block) is not kind for part in parts):
            return None
        shown = [Shown(part.block, self.context, part.reference) for part in parts]
        key = tuple((id(part.block), id(part.reference)) for part in parts), h.device, h.dtype

        def make() -> tuple[Any, Prepared | None]:
            weights_of = functools.partial(weights_on, device=h.device, dtype=torch.float32)
            # kept beside it, the tensors keep their ids
            return shown, kind.prepare(shown, weights_of, h.dtype)

        found: Prepared | None = self.memory.prepared(self._text, key, make)[1]
        return found

    def _factor(self, part: Addition, h: Tensor) -> Factor:
        strength = part.strength
        weight = None if part.weight is None else self._map(part.weight, h)
        if isinstance(strength, Tensor):
            return 1.0, strength if weight is None else strength * weight
        return strength, weight

    def _map(self, weight: Tensor, h: Tensor) -> Tensor:
        """A weight at a block's resolution, which other blocks share."""
        key = id(weight), h.shape[2:]
        if key not in self._maps:
            self._maps[key] = area_mean(weight, (h.shape[2], h.shape[3]))
        return self._maps[key]


@dataclass(frozen=True)
class TrainedAdditions:
    """Adds what one identity in training gives in one forward, all its blocks prepared at once.

    Args:
        context: (B, tokens, width) text embedding of the forward.
        dtype: of the features.
        prepared: what gives F + delta, by block.
    """

    context: Tensor
    dtype: torch.dtype
    prepared: Mapping[IdentityBlock, Personalized]

    def add(self, h: Tensor, context: Tensor, parts: Sequence[Addition]) -> Tensor:
        """Returns what `add_identities` gives, which it leaves to it where nothing is prepared."""
        changed = context is not self.context or len(context) != len(h) or h.dtype != self.dtype
        if changed or len(parts) != 1:
            return add_identities(h, context, parts)
        return self.prepared[parts[0].block](h)


def trained_additions(
    added: Mapping[str, Sequence[Addition]], x: Tensor, context: Tensor
) -> TrainedAdditions | None:
    """Prepares one identity in training for one forward, or None where `add_identities` must do.

    Args:
        added: by site, as `additions` collects them.
        x: (B, C, h, w) noisy latents.
        context: (B, tokens, width) text embedding of the forward.
    """
    parts = [part for parts in added.values() for part in parts]
    alone = len(parts) == len(added) and all(x.weight is None and x.strength == 1 for x in parts)
    if not parts or not alone or context.stride(0) != 0 or not torch.is_grad_enabled():
        return None
    shown = [Shown(part.block, context[:1], part.reference) for part in parts]
    dtype = computing_type(x)
    found = type(parts[0].block).prepare_training(shown, len(x), dtype)
    if found is None:
        return None
    blocks = [part.block for part in parts]
    return TrainedAdditions(context, dtype, dict(zip(blocks, found, strict=True)))


def additions(
    identities: Sequence[AppliedIdentity],
    unet: nn.Module,
    x: Tensor,
    options: dict[str, Any],
    conditions: dict[str, Any],
) -> dict[str, list[Addition]]:
    """Collects what the identities add in one forward of the UNet, by site.

    An identity out of its range of sigmas or with a mask of zeros costs nothing and does not count
    where masks overlap. Where the masks of the others sum to more than 1, they share that place.

    Args:
        identities: those applied to the MODEL.
        unet: ComfyUI's `UNetModel`.
        x: (B, C, h, w) noisy latents.
        options: the forward's transformer options.
        conditions: keyword arguments of the forward; those of the identities are taken out.

    Raises:
        PFStorerError: a gamma that was to be chosen and was not.
    """
    masks = [conditions.pop(f"{MASK_COND}{k}", None) for k in range(len(identities))]
    gammas = [conditions.pop(f"{GAMMA_COND}{k}", None) for k in range(len(identities))]
    conditions.pop(TEXT_COND, None)
    active = [
        (k, mask)
        for k, mask in enumerate(masks)
        if identities[k].acts_at(options) and (mask is None or bool(mask.any()))
    ]
    total: Any = sum(1.0 if mask is None else mask for _, mask in active)
    collected: dict[str, list[Addition]] = {}
    for k, mask in active:
        identity = identities[k]
        weight = mask
        if len(active) > 1:
            share = torch.as_tensor(total, dtype=x.dtype, device=x.device).clamp(min=1.0)
            weight = (1.0 if mask is None else mask) / share
            weight = weight.expand(x.shape[0], 1, *x.shape[2:])
        strength = identity.strength if gammas[k] is None else gammas[k][:, :, :1, :1]
        if isinstance(strength, str):
            raise PFStorerError(
                f"gamma of '{identity.adapter.info.name or 'the identity'}' is automatic, but the "
                "image it depends on is not known; use 'Tiled Restore' or 'Condition on LQ Image', "
                "or set gamma yourself."
            )
        references = references_by_site(k, identity, unet, x, options)
        for site in identity.adapter.sites:
            block = identity.adapter.block(site)
            addition = Addition(block, strength, weight, references.get(site))
            collected.setdefault(site, []).append(addition)
    return collected
