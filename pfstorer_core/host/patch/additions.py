"""What personalization blocks add to the blocks of ComfyUI's UNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...areas import area_mean
from ...errors import PFStorerError
from ...identities.base import IdentityBlock
from .applied import AppliedIdentity
from .masks import GAMMA_COND, MASK_COND, TEXT_COND
from .references import references_by_site


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
        delta = part.block(h, context, part.reference)  # (B, C, H, W)
        if part.weight is not None:
            delta = delta * area_mean(part.weight, (h.shape[2], h.shape[3]))
        personalized = personalized + (part.strength * delta).to(h.dtype)
    return personalized


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
