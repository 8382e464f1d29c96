"""Loads a restorer and the diffusion model that it steers as ComfyUI's MODEL, CLIP and VAE."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import folder_paths
from comfy.model_base import ModelType, model_sampling
from torch import Tensor

from ...errors import PFStorerError
from ...restorers import files as restorer_files
from ...restorers.base import BaseRestorer
from ...restorers.checkpoints import UNET_PREFIX
from ...restorers.info import RestorerInfo
from ...weights.reading import read_weights
from ..base import RESTORER_KEY, Base, describe
from ..patch.model import patch_model
from ..sites import DIGESTED, check_fit, unet_digests
from .bundled import from_restorer

logger = logging.getLogger(__name__)

PREDICTION_TYPES = {"epsilon": ModelType.EPS, "v_prediction": ModelType.V_PREDICTION}


def load_base_restorer(
    restorer_path: str | os.PathLike[str], checkpoint_path: str | os.PathLike[str] | None = None
) -> tuple[Any, Any, Any]:
    """Loads a restorer and the diffusion model that it steers.

    A restorer file that says what its UNet predicts overrules what ComfyUI reads from the
    checkpoint, since it was trained so; one that does not say leaves it to ComfyUI.

    Args:
        restorer_path: restorer file of any known layout.
        checkpoint_path: Stable Diffusion checkpoint that the restorer was trained on; None for a
            restorer that brings its diffusion model along.

    Returns:
        (MODEL, CLIP, VAE). The MODEL must be given an LQ image before it is sampled.

    Raises:
        PFStorerError: a file that is missing, damaged or of another kind, or two that do not fit.
    """
    path = Path(restorer_path)
    restorer = restorer_files.load(path, operations=comfy.ops.manual_cast)
    weights: Mapping[str, Any] = restorer.bundled_state or {}
    if checkpoint_path is None:
        model, clip, vae = from_restorer(restorer, path)
    else:
        checkpoint = Path(checkpoint_path)
        if restorer.info.bundled is not None:
            raise PFStorerError(
                f"Restorer '{path.name}' works with its own diffusion model only, but checkpoint "
                f"'{checkpoint.name}' was chosen; choose 'bundled in restorer' instead."
            )
        model, clip, vae = _load_checkpoint(checkpoint)
        check_fit(model.model.diffusion_model, restorer, f"'{checkpoint.name}'")
        _check_text_width(model, restorer.info, checkpoint)
        model = _with_prediction(model, restorer.info)
        weights = _stored_weights(checkpoint)
    digests = _unet_digests(weights, model)
    restorer.bundled_state = None  # the MODEL has it now
    base = describe(model, clip, vae, restorer, digests)
    return _with_restorer(model, restorer, base), clip, vae


def _load_checkpoint(path: Path) -> tuple[Any, Any, Any]:
    if not path.is_file():
        raise PFStorerError(f"There is no checkpoint '{path}'; choose a Stable Diffusion one.")
    embeddings = folder_paths.get_folder_paths("embeddings")
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
        str(path), output_vae=True, output_clip=True, embedding_directory=embeddings
    )
    return model, clip, vae


def _check_text_width(model: Any, info: RestorerInfo, checkpoint: Path) -> None:
    # The UNets of Stable Diffusion 1.5 and 2.1 have the same residual blocks.
    found = model.model.model_config.unet_config.get("context_dim")
    if info.context_dim not in (None, found):
        raise PFStorerError(
            f"Restorer '{info.name}' was trained on a UNet whose text features are "
            f"{info.context_dim} wide, but those of '{checkpoint.name}' are {found} wide (768 in "
            "Stable Diffusion 1.5, 1024 in 2.1); choose the checkpoint that the restorer was "
            "trained on."
        )


def _with_prediction(model: Any, info: RestorerInfo) -> Any:
    wanted = PREDICTION_TYPES.get(info.prediction_type or "")
    if wanted is None or wanted == model.model.model_type:
        return model
    logger.info(
        "Restorer '%s' makes the checkpoint's UNet predict %s instead of %s",
        info.name,
        wanted.name,
        model.model.model_type.name,
    )
    model = model.clone()
    model.add_object_patch("model_sampling", model_sampling(model.model.model_config, wanted))
    return model


def _stored_weights(checkpoint: Path) -> Mapping[str, Any]:
    try:
        stored, _ = read_weights(checkpoint)  # mapped: only what is looked at is read
    except PFStorerError:  # ComfyUI could read it
        return {}
    inner = stored.get("state_dict", stored)
    return inner if isinstance(inner, Mapping) else {}


def _unet_digests(weights: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    found = {name: weights.get(UNET_PREFIX + name) for name in DIGESTED}
    stored = {name: weight for name, weight in found.items() if isinstance(weight, Tensor)}
    if len(stored) < len(found):  # a checkpoint that names its weights in another way
        stored = model.model.diffusion_model.state_dict()
    return unet_digests(stored)


def _with_restorer(model: Any, restorer: BaseRestorer, base: Base) -> Any:
    restorer.to(model.model.get_dtype_inference()).eval().requires_grad_(False)
    mm.archive_model_dtypes(restorer)
    patcher = comfy.model_patcher.CoreModelPatcher(
        restorer, load_device=model.load_device, offload_device=model.offload_device
    )
    model = patch_model(model, restorer)
    model.set_additional_models(RESTORER_KEY, [patcher])
    model.set_attachments(RESTORER_KEY, base)
    return model
