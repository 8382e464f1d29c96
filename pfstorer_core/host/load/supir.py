"""SUPIR of ComfyUI's core as a base for identities, without a restorer file of ours."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

from ...errors import PFStorerError
from ...restorers.info import RestorerInfo
from ..base import describe
from ..patch.supir import SupirRestorer, supir_hooks
from ..sites import find_sft_sites
from .diffusion import of_loaders
from .restorer import check_parts, with_restorer

NAME = "SUPIR"


def load_supir(model: Any, clip: Any, vae: Any) -> tuple[Any, Any, Any]:
    """Makes the MODEL that core SUPIR steers one that identities can be trained on and applied to.

    Args:
        model: MODEL that `SUPIRApply` gave; stays as it is.
        clip: its CLIP; None where prompts are given and nothing is trained.
        vae: its VAE.

    Returns:
        (MODEL, CLIP, VAE). Until identities are applied, the MODEL gives what the given one does.

    Raises:
        PFStorerError: no SUPIR in the MODEL, or a CLIP or VAE that does not fit.
    """
    diffusion = of_loaders(model, clip, vae)
    hooks = supir_hooks(model.model_options["transformer_options"])
    if hooks is None:
        raise PFStorerError(
            "The MODEL has no SUPIR; connect the MODEL that 'Apply SUPIR Patch' gives, or choose a "
            "restorer file."
        )
    find_sft_sites(model.model.diffusion_model)  # refuses what is no UNet of ours
    info = RestorerInfo(
        NAME,
        prediction_type=None,
        config=None,
        license="",
        bundled=None,
        fingerprint=network_digest(hooks.model_patch.model),
    )
    restorer = SupirRestorer(info, hooks)
    base = describe(model, clip, vae, restorer, diffusion.digests)
    check_parts(diffusion, base)
    # With it among the MODEL's own, the host loads SUPIR once instead of at each layer's use.
    return with_restorer(model, restorer, base, hooks.model_patch), clip, vae


def network_digest(network: nn.Module) -> str:
    """Returns the SHA-256 (hex) of SUPIR's biases and norms, in fp16 as files of both types have.

    They are a thousandth of its weights, and tell its versions apart.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        if weight.ndim == 1:
            digest.update(f"{name} {len(weight)}\n".encode())
            digest.update(weight.detach().float().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
