"""Applied identities: what personalization blocks add to the blocks of ComfyUI's UNet, and where.

The masks travel as model conditions, so that ComfyUI itself repeats them over the batch, crops them
to a condition's area and moves them between devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import comfy.conds
import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn

from ..adapter import IdentityAdapter
from ..areas import area_mean
from ..errors import PFStorerError
from ..personalization import PersonalizationBlock, reference_tokens
from ..tiling import Tile
from .conditions import Conds, with_model_conds
from .lq import items_of
from .sites import PATCH

IDENTITY_KEY = "pfstorer_identities"
AUTO: Literal["auto"] = "auto"
_MASK_COND = "pfstorer_mask_"  # with the identity's number: a model condition
_GAMMA_COND = "pfstorer_gamma_"  # likewise
_TEXT_COND = "pfstorer_text_length"  # a model condition as well
_MOST_NUMBERS = 8  # in a line for the user
_REFERENCES = "pfstorer_references"
_COLLECTED = "pfstorer_collected"


@dataclass(frozen=True)
class AppliedIdentity:
    """One person's adapter as it is applied to a MODEL.

    Args:
        adapter: the personalization blocks.
        patcher: ComfyUI's patcher of the adapter; None in training.
        strength: factor on the adapter's own gamma; at 0 only the mask has a meaning. `AUTO` is to
            be chosen for each picture, see `automatic.choose_gammas`.
        gammas: (B,) what was chosen, one per picture.
        mask: (M, H, W) in [0, 1] of any resolution, where the person is; None is everywhere.
        sigmas: highest and lowest sigma at which the adapter acts; None is at all.
        references: (R, C, h, w) scaled latents of photos of the person.
        reference_context: (1, tokens, width) text embedding under which their features are taken.
    """

    adapter: IdentityAdapter
    patcher: Any = None
    strength: float | Literal["auto"] = 1.0
    gammas: Tensor | None = None
    mask: Tensor | None = None
    sigmas: tuple[float, float] | None = None
    references: tuple[Tensor, ...] = ()
    reference_context: Tensor | None = None

    @property
    def gamma_text(self) -> str:
        """The gamma as it is told to the user, of each picture where it was chosen."""
        if self.gammas is None:
            return f"{float(self.strength):g}" if self.strength != AUTO else "automatic"
        return numbers_text(self.gammas, ".2f") + " (automatic)"

    def acts_at(self, options: dict[str, Any]) -> bool:
        """Whether it has any strength and the sampler's sigma lies in the range."""
        if self.strength == 0:
            return False
        sigma = options.get("sigmas")
        if self.sigmas is None or sigma is None:
            return True
        high, low = self.sigmas
        return low <= float(sigma.max()) <= high


@dataclass(frozen=True)
class Addition:
    """What one identity adds to one block of the UNet.

    Args:
        block: the personalization block.
        strength: factor on its output, or (B, 1, 1, 1) factors.
        weight: (B, 1, h, w) in [0, 1] at the latent's resolution; None is 1 everywhere.
        reference: (1, N, C) tokens of the references' features.
    """

    block: PersonalizationBlock
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
    masks = [conditions.pop(f"{_MASK_COND}{k}", None) for k in range(len(identities))]
    gammas = [conditions.pop(f"{_GAMMA_COND}{k}", None) for k in range(len(identities))]
    conditions.pop(_TEXT_COND, None)
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
        references = _reference_tokens(k, identity, unet, x, options)
        for site in identity.adapter.sites:
            block = identity.adapter.block(site)
            addition = Addition(block, strength, weight, references.get(site))
            collected.setdefault(site, []).append(addition)
    return collected


def touched_identities(conds: Conds, item: int, tile: Tile) -> tuple[bool, ...]:
    """Tells for each mask that `IdentityMasks` gave whether it is above zero in a tile of an item.

    Args:
        conds: conditions of the whole latent.
        item: number of the item in the batch.
        tile: window of the latent.
    """
    first = next((c for cond in conds if cond for c in cond), None)
    given = first["model_conds"] if first else {}
    masks = [x.cond for name, x in given.items() if name.startswith(_MASK_COND)]
    return tuple(bool(tile.crop(mask[item]).any()) for mask in masks)


class IdentityMasks:
    """`CALC_COND_BATCH` wrapper that gives every condition of a step the identities' masks.

    And their gammas where these differ between pictures, as maps, which are cut like masks. To run
    prompts of several lengths at once, ComfyUI repeats the short ones, which the UNet's attention
    does not notice; beside an identity's tokens a repeated text would count for more. So it is kept
    from doing so.
    """

    def __init__(self, identities: Sequence[AppliedIdentity]) -> None:
        self.masks = {f"{_MASK_COND}{k}": identity.mask for k, identity in enumerate(identities)}
        self.gammas = {f"{_GAMMA_COND}{k}": x.gammas for k, x in enumerate(identities)}

    def __call__(
        self,
        executor: Any,
        model: Any,
        conds: Conds,
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        **kwargs: Any,
    ) -> list[Tensor]:
        """Runs the conditions of one step, x_in: (B, C, h, w)."""
        added = {}
        for key, mask in self.masks.items():
            if mask is not None:
                mask = items_of(model_options, mask).to(x_in)[:, None]  # (M, 1, H, W)
                mask = area_mean(mask, (x_in.shape[2], x_in.shape[3]))  # (M, 1, h, w)
                mask = comfy.utils.repeat_to_batch_size(mask, x_in.shape[0])
                added[key] = comfy.conds.CONDNoiseShape(mask)
        for key, gammas in self.gammas.items():
            if gammas is not None:
                gammas = items_of(model_options, gammas).to(x_in)
                gammas = comfy.utils.repeat_to_batch_size(gammas, x_in.shape[0])  # (B,)
                gammas = gammas[:, None, None, None].expand(-1, 1, *x_in.shape[2:])  # (B, 1, h, w)
                added[key] = comfy.conds.CONDNoiseShape(gammas)
        if added:
            conds = with_model_conds(conds, added)
        if self.masks:
            conds = [cond and [_with_text_length(c) for c in cond] for cond in conds]
        return executor(model, conds, x_in, timestep, model_options, **kwargs)


def _with_text_length(condition: dict[str, Any]) -> dict[str, Any]:
    given = condition.get("model_conds", {})
    text = given.get("c_crossattn")
    if text is None:
        return condition
    length = comfy.conds.CONDConstant(text.cond.shape[1])
    return {**condition, "model_conds": {**given, _TEXT_COND: length}}


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
    unet: Any, sites: Sequence[str], latent: Tensor, context: Tensor
) -> dict[str, Tensor]:
    """Features that the frozen Stable Diffusion, without SFT, extracts from references.

    They are taken from the clean latent at timestep 0, so that they hold for a whole sampling.

    Args:
        unet: ComfyUI's `UNetModel`.
        sites: the blocks to take them after.
        latent: (R, C, h, w) scaled latents.
        context: (1, tokens, width) text embedding.

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
    with torch.no_grad():
        unet(latent, timesteps, context, transformer_options=options)
    return collected


def numbers_text(values: Tensor, form: str) -> str:
    """Returns values (B,) as text, of many only the least and the largest."""
    if len(values) > _MOST_NUMBERS:
        return f"{float(values.min()):{form}} to {float(values.max()):{form}}"
    return ", ".join(f"{float(value):{form}}" for value in values)


def check_settings(gamma: float | str, mask: Tensor | None, start: float, end: float) -> None:
    """Checks how an identity shall be applied.

    Raises:
        PFStorerError: a value out of its range, or a mask of another shape.
    """
    if gamma != AUTO and (isinstance(gamma, str) or not 0 <= gamma <= 2):
        raise PFStorerError(f"gamma is {gamma}; choose 0 (the base) to 2, or '{AUTO}'.")
    if not 0 <= start <= end <= 1:
        raise PFStorerError(
            f"The identity shall act from {start} to {end} of the sampling; choose 0 <= start <= "
            "end <= 1."
        )
    if mask is not None and (mask.ndim not in (2, 3) or not mask.numel()):
        raise PFStorerError(
            f"The mask has the shape {tuple(mask.shape)}; expected (batch, height, width)."
        )


def check_mask_counts(identities: Sequence[AppliedIdentity], images: int) -> None:
    """Checks that each identity has one mask, or one for each image.

    Raises:
        PFStorerError: another number of masks, which would go to images by chance.
    """
    for identity in identities:
        masks = 1 if identity.mask is None else len(identity.mask)
        if masks not in (1, images):
            raise PFStorerError(
                f"Identity '{identity.adapter.info.name}' has {masks} masks for {images} image(s); "
                "give one mask, or one for each image (masks of one image are joined by "
                "'MaskComposite')."
            )


def _reference_tokens(
    number: int, identity: AppliedIdentity, unet: Any, x: Tensor, options: dict[str, Any]
) -> dict[str, Tensor]:
    if not identity.references or identity.reference_context is None:
        return {}
    memory = (options.get(_REFERENCES) or _Features()).tokens
    key = (number, x.device)
    if key not in memory:
        sites = identity.adapter.sites
        grid = identity.adapter.info.config.reference_grid
        shown: dict[str, list[Tensor]] = {site: [] for site in sites}
        for latent in identity.references:
            context = identity.reference_context.to(x)
            features = reference_features(unet, sites, latent.to(x), context)
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
