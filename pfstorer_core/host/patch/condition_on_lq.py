"""Conditions a restorer's MODEL on an LQ image."""

from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...errors import PFStorerError
from ..base import RESTORER_KEY, base_of
from ..images import VAE_ADVICE, check_finite, split_alpha
from .applied import check_mask_counts
from .chosen_gammas import with_lq_image
from .lq import LQMatch
from .model import restorer_wrapper, set_lq_latent
from .supir import SupirRestorer


def condition_on_lq(model: Any, lq_latent: Tensor, image: Tensor | None = None) -> Any:
    """Returns a clone of a restorer's MODEL that restores one LQ latent, with any KSampler.

    Of the latent's items a sampler may be given any, in any order, see `lq.LQMatch`.

    Args:
        model: MODEL of `load_base_restorer`; stays as it is.
        lq_latent: (B, C, H, W) samples of a LATENT, as the VAE gives them.
        image: (B, H, W, 1 | 3 | 4) IMAGE that the latent was made from; identities whose gamma is
            "auto" need it.

    Raises:
        PFStorerError: a MODEL without restorer or with SUPIR, a latent of another VAE or with
            values that are not finite, or an image of another shape.
    """
    base = base_of(model)
    if isinstance(restorer_wrapper(model).restorer, SupirRestorer):
        raise PFStorerError(
            "SUPIR has its LQ image from 'Apply SUPIR Patch'; connect the MODEL to the sampler "
            "without 'Condition on LQ Image', or use 'Tiled Restore'."
        )
    channels = base.latent_channels
    if lq_latent.ndim != 4 or lq_latent.shape[1] != channels:
        raise PFStorerError(
            f"The LQ latent has the shape {tuple(lq_latent.shape)}, but restorer "
            f"'{base.info.name}' takes (batch, {channels}, height, width); use the VAE that 'Load "
            "Base Restorer' gives."
        )
    check_finite(lq_latent, "The LQ latent", VAE_ADVICE)
    latent_format = model.get_model_object("latent_format")
    scaled = latent_format.process_in(lq_latent)
    model = set_lq_latent(model, scaled)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, RESTORER_KEY, LQMatch(scaled))
    check_mask_counts(restorer_wrapper(model).identities, len(scaled))
    return with_lq_image(model, None if image is None else split_alpha(image)[0])
