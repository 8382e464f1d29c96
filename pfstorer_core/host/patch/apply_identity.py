"""Applies identity adapters to a restorer's MODEL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
from torch import Tensor

from ...errors import PFStorerError
from ...identities.adapter import IdentityAdapter
from ...pictures.values import unit_range
from ..base import Base, base_of, pooled_embedding
from .applied import AppliedIdentity, check_identity_fit, check_mask_counts, check_settings
from .chosen_gammas import choose_gammas, known_image
from .model import restorer_wrapper, set_identities


def apply_identity(
    model: Any,
    adapter: IdentityAdapter,
    gamma: float | Literal["auto"] = 1.0,
    mask: Tensor | None = None,
    start: float = 0.0,
    end: float = 1.0,
    references: Tensor | Sequence[Tensor] | None = None,
) -> Any:
    """Returns a clone of a restorer's MODEL that restores this person.

    May be called again on the result, for further people: what their blocks add is summed, and
    where masks sum to more than 1 they share the place. The same call gives the same MODEL whether
    it comes before or after the MODEL is conditioned on an LQ image.

    Args:
        model: MODEL of `load_base_restorer`; stays as it is.
        adapter: the person.
        gamma: factor on the adapter's own gamma, in [0, 2]; 0 is the base. "auto" chooses it for
            each picture from how degraded that is.
        mask: (H, W) or (B, H, W) in [0, 1], where in the picture the person is; None is everywhere.
        start, end: shares of the sampling between which the adapter acts.
        references: latents (R, C, h, w) of photos of the person as the VAE gives them, or a list of
            such of different sizes. The adapter works without any.

    Raises:
        PFStorerError: a MODEL without restorer or with another than the adapter was trained on, or
            a setting out of its range.

    Source: PFStorer (arXiv 2403.08436), section 3.
    """
    base = base_of(model)
    check_settings(gamma, mask, start, end)
    check_identity_fit(model.model.diffusion_model, adapter, base)
    applied = restorer_wrapper(model).identities
    region = None
    if mask is not None:
        region = unit_range(mask.reshape(-1, *mask.shape[-2:]).float(), "The mask")
    if gamma == 0:  # the base; the mask still says where the person is
        unused = AppliedIdentity(adapter, strength=0.0, mask=region)
        return set_identities(model, [*applied, unused])
    dtype = model.model.get_dtype_inference()
    # weights that this prompt made may be of inference mode; they are only read here
    placed = adapter.copy_with(comfy.ops.manual_cast, dtype)
    mm.archive_model_dtypes(placed)
    patcher = comfy.model_patcher.CoreModelPatcher(
        placed, load_device=model.load_device, offload_device=model.offload_device
    )
    sampling = model.get_model_object("model_sampling")
    sigmas = None
    if (start, end) != (0.0, 1.0):
        sigmas = float(sampling.percent_to_sigma(start)), float(sampling.percent_to_sigma(end))
    latents = _references(model, references, base)
    empty = base.empty_prompt if latents else None
    pooled = (pooled_embedding(model, empty, _pixels(latent, base.cell)) for latent in latents)
    identity = AppliedIdentity(
        adapter=placed,
        patcher=patcher,
        strength=gamma,
        mask=region,
        sigmas=sigmas,
        references=latents,
        reference_context=None if empty is None else empty[0][0],
        reference_pooled=tuple(y for y in pooled if y is not None),
    )
    personalized = set_identities(model, [*applied, identity])
    images = known_image(model)
    if images is not None:
        check_mask_counts([identity], len(images))
    return choose_gammas(personalized, images)


def _references(
    model: Any, references: Tensor | Sequence[Tensor] | None, base: Base
) -> tuple[Tensor, ...]:
    if references is None:
        return ()
    if base.empty_prompt is None:
        raise PFStorerError(
            "The checkpoint has no text encoder, so references cannot be used; leave them out."
        )
    latent_format = model.get_model_object("latent_format")
    latents = [references] if isinstance(references, Tensor) else list(references)
    channels = base.latent_channels
    for latent in latents:
        if latent.ndim != 4 or latent.shape[1] != channels or not latent.numel():
            raise PFStorerError(
                f"The references' latent has the shape {tuple(latent.shape)}; expected (references,"
                f" {channels}, height, width), so use the VAE that 'Load Base Restorer' gives."
            )
    return tuple(latent_format.process_in(x) for x in latents)


def _pixels(latent: Tensor, cell: int) -> tuple[int, int]:
    return latent.shape[2] * cell, latent.shape[3] * cell
