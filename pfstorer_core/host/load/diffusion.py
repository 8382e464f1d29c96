"""Plain diffusion models as ComfyUI's MODEL, CLIP and VAE: of checkpoints, folders, any loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.diffusers_load
import comfy.sd
import comfy.utils
import folder_paths
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...errors import PFStorerError
from ...restorers.checkpoints import UNET_PREFIX
from ...weights.reading import read_weights
from ..base import RESTORER_KEY
from ..sites import DIGESTED, unet_digests
from .diffusers_folder import STEMS, folder_files


@dataclass(frozen=True)
class Diffusion:
    """A diffusion model without restorer.

    Args:
        model, clip, vae: ComfyUI's; the CLIP is None where there is none.
        name: how an error shall call it.
        digests: see `sites.unet_digests`.
    """

    model: Any
    clip: Any
    vae: Any
    name: str
    digests: tuple[str, ...]


def load_diffusion(path: Path) -> Diffusion:
    """Loads a Stable Diffusion: a checkpoint, or a folder as diffusers writes it.

    Raises:
        PFStorerError: neither is there, or the folder lacks a part.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise PFStorerError(f"There is no checkpoint '{path}'; choose a Stable Diffusion one.")
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
        str(path), output_vae=True, output_clip=True, embedding_directory=_embeddings()
    )
    stored = _stored(path)
    inner = stored.get("state_dict", stored)
    weights = {}
    if isinstance(inner, Mapping):
        weights = {name: inner.get(UNET_PREFIX + name) for name in DIGESTED}
    return Diffusion(model, clip, vae, f"'{path.name}'", digests_of(weights, model))


def of_loaders(model: Any, clip: Any, vae: Any) -> Diffusion:
    """Takes what loaders of any kind gave; `clip` may be None.

    Raises:
        PFStorerError: one of them is missing, or the MODEL has a restorer of ours already.
    """
    if model is None or vae is None:
        raise PFStorerError(
            "'Load Base Restorer' needs MODEL and VAE together (and CLIP, unless prompts are "
            "given); connect both, or neither and choose a checkpoint."
        )
    if not isinstance(model, ModelPatcher) or not hasattr(model.model, "diffusion_model"):
        raise PFStorerError(
            "What is connected as MODEL is no diffusion model; connect that of a loader."
        )
    if model.get_attachment(RESTORER_KEY) is not None:
        raise PFStorerError(
            "The MODEL has a restorer already; connect the MODEL of another loader to 'Load Base "
            "Restorer'."
        )
    return Diffusion(model, clip, vae, "the MODEL", digests_of({}, model))


def _of_folder(folder: Path) -> Diffusion:
    files = folder_files(folder)
    for part in ("unet", "vae"):
        if part not in files:
            raise PFStorerError(
                f"The folder '{folder.name}' has no file {part}/{STEMS[part][0]}.safetensors "
                "(or .fp16.safetensors, .bin), in one piece; download the whole folder."
            )
    try:
        model, clip, vae = comfy.diffusers_load.load_diffusers(
            str(folder), output_clip="text_encoder" in files, embedding_directory=_embeddings()
        )
    except RuntimeError as error:
        if "Could not detect model type" not in str(error):
            raise
        raise PFStorerError(
            f"The folder '{folder.name}' holds no diffusion model that ComfyUI knows; choose the "
            "one of Stable Diffusion that the restorer was trained on."
        ) from error
    stored = _stored(files["unet"])
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    weights = {ours: stored.get(theirs) for theirs, ours in names.items() if ours in DIGESTED}
    return Diffusion(model, clip, vae, f"'{folder.name}'", digests_of(weights, model))


def _stored(path: Path) -> Mapping[str, Any]:
    try:
        return read_weights(path)[0]  # mapped: only what is looked at is read
    except PFStorerError:  # ComfyUI could read it
        return {}


def digests_of(weights: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """Returns the digests of stored weights, of the MODEL's own where some are not known.

    Args:
        weights: as they lie in the file, by their names in the UNet.
        model: the MODEL that they made.
    """
    stored = {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}
    if len(stored) < len(DIGESTED):  # named in another way, or not known
        stored = model.model.diffusion_model.state_dict()
    return unet_digests(stored)


def _embeddings() -> list[str]:
    paths: list[str] = folder_paths.get_folder_paths("embeddings")
    return paths
