"""Features of references, which identities attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor

from ...identities.block import reference_tokens
from ..sites import PATCH
from .applied import AppliedIdentity

_REFERENCES = "pfstorer_references"
_COLLECTED = "pfstorer_collected"


@dataclass
class _Features:
    """Tokens of references, by identity and device, then site.

    No plain dict: the host copies those in its options at every step.
    """

    tokens: dict[tuple[int, torch.device], dict[str, Tensor]] = field(default_factory=dict)


class ReferenceMemory:
    """`OUTER_SAMPLE` wrapper under which the references' features are computed once.

    They depend neither on the step nor on the noise, and are gone when the sampling ends: the
    sampler's options are a copy that lives as long.
    """

    def __init__(self, identities: Sequence[AppliedIdentity]) -> None:
        self.needed = any(identity.references for identity in identities)

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Runs the sampling."""
        if self.needed:
            options = executor.class_obj.model_options.setdefault("transformer_options", {})
            options[_REFERENCES] = _Features()
        return executor(*args, **kwargs)


def reference_features(
    unet: Any, sites: Sequence[str], latent: Tensor, context: Tensor, pooled: Tensor | None = None
) -> dict[str, Tensor]:
    """Features that the frozen Stable Diffusion, without SFT, extracts from references.

    They are taken from the clean latent at timestep 0, so that they hold for a whole sampling.

    Args:
        unet: ComfyUI's `UNetModel`.
        sites: the blocks to take them after.
        latent: (R, C, h, w) scaled latents.
        context: (1, tokens, width) text embedding.
        pooled: (1, P) `y`; None for UNets that take none.

    Returns:
        Site to (R, C_site, h', w').

    Source: PFStorer (arXiv 2403.08436), section 3; the clean latent at timestep 0 is ours.
    """
    wanted = {unet.get_submodule(site): site for site in sites}
    collected: dict[str, Tensor] = {}
    options = {
        "patches": {PATCH: [(ResBlock, _collect), (SpatialTransformer, _collect)]},
        _COLLECTED: (wanted, collected),
    }
    timesteps = torch.zeros(len(latent), device=latent.device)
    context = context.to(latent).expand(len(latent), -1, -1)
    y = None if pooled is None else pooled.to(latent).expand(len(latent), -1)
    with torch.no_grad():
        unet(latent, timesteps, context, y, transformer_options=options)
    return collected


def references_by_site(
    number: int, identity: AppliedIdentity, unet: Any, x: Tensor, options: dict[str, Any]
) -> dict[str, Tensor]:
    """Returns what an identity attends to: by site (1, N, C) tokens of all its references.

    Args:
        number: of the identity among those applied, from 0.
        identity: whose references they are; without any there are no tokens.
        unet: ComfyUI's `UNetModel`.
        x: (B, C, h, w) noisy latents, for their type and device.
        options: the forward's transformer options.
    """
    if not identity.references or identity.reference_context is None:
        return {}
    memory = (options.get(_REFERENCES) or _Features()).tokens
    key = (number, x.device)
    if key not in memory:
        sites = identity.adapter.sites
        grid = identity.adapter.info.config.reference_grid
        shown: dict[str, list[Tensor]] = {site: [] for site in sites}
        context = identity.reference_context.to(x)
        for latent, pooled in zip_longest(identity.references, identity.reference_pooled):
            features = reference_features(unet, sites, latent.to(x), context, pooled)
            for site in sites:
                shown[site].append(reference_tokens(features[site], grid))
        memory[key] = {site: torch.cat(tokens, 1) for site, tokens in shown.items()}
    return memory[key]


def _collect(
    layer: Any, x: Tensor, emb: Tensor, context: Any, transformer_options: dict[str, Any], *_: Any
) -> Tensor:
    wanted, collected = transformer_options[_COLLECTED]
    if isinstance(layer, SpatialTransformer):
        h = layer(x, context, transformer_options)
        transformer_options["transformer_index"] += 1
    else:
        h = layer(x, emb)
    if layer in wanted:
        collected[wanted[layer]] = h
    return h
