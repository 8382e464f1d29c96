"""Loads a restorer and the diffusion model that it steers as ComfyUI's MODEL, CLIP and VAE."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
from comfy.model_base import ModelType, model_sampling

from ...errors import PFStorerError
from ...restorers import files as restorer_files
from ...restorers.base import BaseRestorer
from ...restorers.checkpoints import UNET_PREFIX
from ...restorers.info import RestorerInfo
from ...restorers.steering import Steering
from ...weights.checks import part_of
from ..base import RESTORER_KEY, Base, describe
from ..patch.model import patch_model
from ..sites import check_fit
from .bundled import from_restorer
from .diffusion import Diffusion, digests_of, load_diffusion, of_loaders

logger = logging.getLogger(__name__)

PREDICTION_TYPES = {"epsilon": ModelType.EPS, "v_prediction": ModelType.V_PREDICTION}


def load_base_restorer(
    restorer_path: str | os.PathLike[str],
    checkpoint_path: str | os.PathLike[str] | None = None,
    loaded: tuple[Any, Any, Any] | None = None,
) -> tuple[Any, Any, Any]:
    """Loads a restorer and the diffusion model that it steers.

    A restorer file that says what its UNet predicts overrules what ComfyUI reads from the
    checkpoint, since it was trained so; one that does not say leaves it to ComfyUI.

    Args:
        restorer_path: restorer file of any known layout.
        checkpoint_path: Stable Diffusion that the restorer was trained on: a checkpoint, or a
            folder as diffusers writes it; None for a restorer that brings its diffusion model
            along.
        loaded: MODEL, CLIP (or None) and VAE of any loader, which then take the checkpoint's place.

    Returns:
        (MODEL, CLIP, VAE). The MODEL must be given an LQ image before it is sampled.

    Raises:
        PFStorerError: a file that is missing, damaged or of another kind, or two that do not fit.
    """
    path = Path(restorer_path)
    restorer = restorer_files.load(path, operations=comfy.ops.manual_cast)
    if loaded is None and checkpoint_path is None:
        diffusion = _of_restorer(restorer, path)
    else:
        _check_needs_one(restorer.info, path, checkpoint_path if loaded is None else None)
        diffusion = of_loaders(*loaded) if loaded else load_diffusion(Path(checkpoint_path or ""))
        check_fit(diffusion.model.model.diffusion_model, restorer, diffusion.name)
        _check_text_width(diffusion, restorer.info)
        diffusion = _with_prediction(diffusion, restorer.info)
    restorer.bundled_state = None  # the MODEL has it now
    base = describe(diffusion.model, diffusion.clip, diffusion.vae, restorer, diffusion.digests)
    check_parts(diffusion, base)
    model = with_restorer(diffusion.model, restorer, base, _placed(restorer, diffusion.model))
    return model, diffusion.clip, diffusion.vae


def check_parts(diffusion: Diffusion, base: Base) -> None:
    """Checks that CLIP and VAE are of the kind that a UNet was trained with.

    Raises:
        PFStorerError: they are not; the sentence says which.
    """
    channels = getattr(diffusion.vae, "latent_channels", base.latent_channels)
    if channels != base.latent_channels:
        raise PFStorerError(
            f"The VAE makes latents of {channels} channels, but the UNet of {diffusion.name} takes "
            f"{base.latent_channels}; connect the VAE of the same Stable Diffusion."
        )
    width = base.context_dim if base.empty_prompt is None else base.empty_prompt[0][0].shape[-1]
    if width != base.context_dim:
        raise PFStorerError(
            f"The CLIP gives text features that are {width} wide, but the UNet of {diffusion.name} "
            f"takes {base.context_dim}; connect the CLIP of the same Stable Diffusion."
        )


def _of_restorer(restorer: BaseRestorer, path: Path) -> Diffusion:
    model, clip, vae = from_restorer(restorer, path)
    weights = part_of(restorer.bundled_state or {}, UNET_PREFIX)
    return Diffusion(model, clip, vae, f"'{path.name}'", digests_of(weights, model))


def _check_needs_one(
    info: RestorerInfo, path: Path, checkpoint: str | os.PathLike[str] | None
) -> None:
    if info.bundled is not None:
        given = f"checkpoint '{Path(checkpoint).name}' was chosen" if checkpoint else ""
        raise PFStorerError(
            f"Restorer '{path.name}' works with its own diffusion model only, but "
            f"{given or 'a MODEL is connected'}; choose 'bundled in restorer' instead, and connect "
            "no MODEL."
        )


def _check_text_width(diffusion: Diffusion, info: RestorerInfo) -> None:
    # The UNets of Stable Diffusion 1.5 and 2.1 have the same residual blocks.
    found = diffusion.model.model.model_config.unet_config.get("context_dim")
    if info.context_dim not in (None, found):
        raise PFStorerError(
            f"Restorer '{info.name}' was trained on a UNet whose text features are "
            f"{info.context_dim} wide, but those of {diffusion.name} are {found} wide (768 "
            "in Stable Diffusion 1.5, 1024 in 2.1, 2048 in XL); choose the checkpoint that the "
            "restorer was trained on."
        )


def _with_prediction(diffusion: Diffusion, info: RestorerInfo) -> Diffusion:
    wanted = PREDICTION_TYPES.get(info.prediction_type or "")
    model = diffusion.model
    if wanted is None or wanted == model.model.model_type:
        return diffusion
    logger.info(
        "Restorer '%s' makes the checkpoint's UNet predict %s instead of %s",
        info.name,
        wanted.name,
        model.model.model_type.name,
    )
    model = model.clone()
    model.add_object_patch("model_sampling", model_sampling(model.model.model_config, wanted))
    return dataclasses.replace(diffusion, model=model)


def with_restorer(model: Any, restorer: Steering, base: Base, patcher: Any) -> Any:
    """Returns a clone of a MODEL with a restorer, and what is said of both.

    Args:
        model: a plain MODEL.
        restorer: what steers it.
        base: description.
        patcher: of the restorer's weights, which the host loads with the MODEL.
    """
    model = patch_model(model, restorer)
    model.set_additional_models(RESTORER_KEY, [patcher])
    model.set_attachments(RESTORER_KEY, base)
    return model


def _placed(restorer: BaseRestorer, model: Any) -> Any:
    """ComfyUI's patcher of a restorer, in the type that a MODEL computes in."""
    restorer.to(model.model.get_dtype_inference()).eval().requires_grad_(False)
    mm.archive_model_dtypes(restorer)
    return comfy.model_patcher.CoreModelPatcher(
        restorer, load_device=model.load_device, offload_device=model.offload_device
    )
