"""What a restorer and the diffusion model that it steers are, said once: when they are loaded."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from comfy.model_sampling import EDM, EPS, V_PREDICTION, X0
from torch import Tensor

from ..errors import PFStorerError
from ..restorers.info import RestorerInfo
from ..restorers.steering import Steering
from .sites import size_step

RESTORER_KEY = "pfstorer"  # of what a restorer adds to its MODEL: wrappers, models, the attachment
# Published restorers do not say at which size they were trained: that of their Stable Diffusion. Of
# 2.x, whose text features are 1024 wide, the larger variant predicts v.
_SIZE, _LARGER_SIZE, _XL_SIZE = 512, 768, 1024  # px
_XL_WIDTH = 2048  # of the text features of Stable Diffusion XL


@dataclasses.dataclass(frozen=True)
class Base:
    """What a restorer's MODEL carries along, as the attachment `RESTORER_KEY`.

    Args:
        info: description of the restorer.
        trained_size: side in pixels of the pictures it was trained on.
        cell: pixels per latent pixel.
        latent_channels: channels of its latents.
        size_step: what the sides of a latent are a multiple of, so that each level is whole.
        context_dim: width of the text embedding that its UNet takes.
        pooled_dim: width of the pooled text embedding `y` that it takes besides; None for none.
        prediction_type: "epsilon" or "v_prediction"; None for others, which cannot be trained on.
        sigmas: (T,) its noise schedule.
        portraits_only: whether it knows nothing but faces of the trained size.
        checks_persons: whether `person_check` knows how adapters of it score that do not remember.
        empty_prompt: CONDITIONING of the empty prompt; None where the checkpoint has no CLIP.
        unet_digests: see `sites.unet_digests`.
    """

    info: RestorerInfo
    trained_size: int
    cell: int
    latent_channels: int
    size_step: int
    context_dim: int
    pooled_dim: int | None
    prediction_type: str | None
    sigmas: Tensor
    portraits_only: bool
    checks_persons: bool
    empty_prompt: list[Any] | None
    unet_digests: tuple[str, ...]


def describe(model: Any, clip: Any, vae: Any, restorer: Steering, digests: tuple[str, ...]) -> Base:
    """Returns the description of a restorer and a plain MODEL, CLIP (or None) and VAE.

    Args:
        digests: of the UNet, see `sites.unet_digests`.
    """
    info, unet_config = restorer.info, model.model.model_config.unet_config
    context_dim = unet_config.get("context_dim")
    prediction_type, sigmas = noise_schedule_of(model)
    bundled = info.bundled is not None
    return Base(
        info=info,
        trained_size=info.size or _usual_size(info, context_dim, prediction_type),
        cell=vae.spacial_compression_encode(),
        latent_channels=restorer.latent_channels,
        size_step=size_step(model.model.diffusion_model),
        context_dim=context_dim,
        pooled_dim=unet_config.get("adm_in_channels"),
        prediction_type=prediction_type,
        sigmas=sigmas,
        portraits_only=bundled,
        checks_persons=bundled,
        empty_prompt=None if clip is None else clip.encode_from_tokens_scheduled(clip.tokenize("")),
        unet_digests=digests,
    )


def base_of(model: Any) -> Base:
    """Returns what a restorer's MODEL carries along.

    Raises:
        PFStorerError: another MODEL.
    """
    attached = model.get_attachment(RESTORER_KEY)
    if not isinstance(attached, Base):
        raise NoRestorer
    return attached


class NoRestorer(PFStorerError):
    """A MODEL without restorer was given where one with a restorer is needed."""

    def __init__(self) -> None:
        super().__init__(
            "The MODEL has no restorer; connect the MODEL that 'Load Base Restorer' gives."
        )


def pooled_embedding(model: Any, prompt: list[Any] | None, size: tuple[int, int]) -> Tensor | None:
    """Returns what a MODEL's UNet takes as `y` beside a prompt: its pooled text, and the size.

    Args:
        model: any MODEL.
        prompt: CONDITIONING of one prompt.
        size: (height, width) in pixels of the picture.

    Returns:
        (1, P), or None for UNets that take none.

    Source: Stable Diffusion XL (arXiv 2307.01952), section 2.2.
    """
    if prompt is None or model.model.model_config.unet_config.get("adm_in_channels") is None:
        return None
    height, width = size
    options = {**prompt[0][1], "height": height, "width": width, "device": torch.device("cpu")}
    with torch.inference_mode():
        pooled = model.model.encode_adm(**options)
    return pooled.float().cpu().clone()


def noise_schedule_of(model: Any) -> tuple[str | None, Tensor]:
    """Returns what a MODEL's UNet predicts, None for neither noise nor v, and its sigmas (T,)."""
    sampling = model.get_model_object("model_sampling")
    kind = None
    if isinstance(sampling, V_PREDICTION) and not isinstance(sampling, EDM):
        kind = "v_prediction"
    elif isinstance(sampling, EPS) and not isinstance(sampling, (V_PREDICTION, X0)):
        kind = "epsilon"
    return kind, sampling.sigmas.detach().float().cpu()


def _usual_size(info: RestorerInfo, context_dim: int, prediction_type: str | None) -> int:
    if info.bundled is not None:
        return int(info.bundled["unet"]["image_size"]) * int(info.bundled["latent"]["downscale"])
    if context_dim == _XL_WIDTH:
        return _XL_SIZE
    return _LARGER_SIZE if (context_dim, prediction_type) == (1024, "v_prediction") else _SIZE
