"""Hangs a restorer, its LQ latent and identities on a clone of a MODEL."""

from collections.abc import Sequence
from typing import Any

from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor

from ...restorers.steering import Steering
from ..base import RESTORER_KEY, NoRestorer
from ..sites import PATCH, check_fit
from .applied import IDENTITY_KEY, AppliedIdentity
from .handlers import HANDLERS, check_host
from .lq import LQCondition
from .masks import IdentityMasks
from .references import ReferenceMemory
from .sampling import SAMPLING, SamplingScope
from .supir import without_centre
from .wrapper import RestorerWrapper, SampledRestorer


def patch_model(model_patcher: Any, restorer: Steering) -> Any:
    """Returns a clone of a MODEL whose UNet runs the restorer, once it is given an LQ latent.

    Args:
        model_patcher: ComfyUI's `ModelPatcher`; stays as it is.
        restorer: encoder and SFT blocks.

    Raises:
        PFStorerError: the restorer does not fit the UNet, or this ComfyUI is too old.
    """
    check_host()
    check_fit(model_patcher.model.diffusion_model, restorer)
    model = model_patcher.clone()
    model.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY, SampledRestorer(restorer))
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, SAMPLING)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, SAMPLING, SamplingScope())
    patches = model.model_options["transformer_options"].get("patches", {}).get(PATCH, [])
    for handler in HANDLERS:
        if handler not in patches:
            model.set_model_patch(handler, PATCH)
    return model


def restorer_wrapper(model_patcher: Any) -> RestorerWrapper:
    """Returns the wrapper of a restorer's MODEL.

    Raises:
        PFStorerError: the MODEL has no restorer.
    """
    found = model_patcher.get_wrappers(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY)
    if not found:
        raise NoRestorer
    return found[0]


def set_identities(model_patcher: Any, identities: Sequence[AppliedIdentity]) -> Any:
    """Returns a clone of a restorer's MODEL with these identities in place of those it had.

    Their adapters are loaded beside the MODEL under ComfyUI's memory manager.
    """
    restorer = restorer_wrapper(model_patcher).restorer
    model = model_patcher.clone()
    model.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY)
    wrapper = SampledRestorer(restorer, identities=identities)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY, wrapper)
    for kind, make in (
        (WrappersMP.CALC_COND_BATCH, IdentityMasks),
        (WrappersMP.OUTER_SAMPLE, ReferenceMemory),
    ):
        model.remove_wrappers_with_key(kind, IDENTITY_KEY)
        model.add_wrapper_with_key(kind, IDENTITY_KEY, make(identities))
    patchers = [identity.patcher for identity in identities if identity.patcher is not None]
    model.set_additional_models(IDENTITY_KEY, patchers)
    return model


def set_lq_latent(model_patcher: Any, lq_latent: Tensor, encoder_interval: int = 1) -> Any:
    """Returns a clone of a restorer's MODEL that restores this LQ latent.

    Args:
        model_patcher: what `patch_model` returned, or a clone of it; stays as it is.
        lq_latent: (B, C, H, W) LQ latent, scaled like the diffusion latents.
        encoder_interval: see `LQCondition`.
    """
    model = model_patcher.clone()
    for kind in (WrappersMP.CALC_COND_BATCH, WrappersMP.OUTER_SAMPLE):
        model.remove_wrappers_with_key(kind, RESTORER_KEY)
    without_centre(model)
    condition = LQCondition(lq_latent, encoder_interval)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, RESTORER_KEY, condition)
    return model


def compile_note(model_patcher: Any) -> list[str]:
    """Returns what to tell the user where a node has compiled a restorer's MODEL."""
    if not model_patcher.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):
        return []
    return ["torch.compile does not speed up a MODEL with a restorer, which runs as without it"]
