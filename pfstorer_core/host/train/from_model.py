"""What trainings take from a MODEL and its VAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import PFStorerError
from ...training.losses import noise_schedule
from ..base import noise_schedule_of
from ..load.unet import build_unet

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

_NOT_FOR_UNET = ("dtype", "device", "disable_unet_model_creation")


def training_schedule(model: Any) -> DDPMScheduler:
    """The noise schedule that a MODEL is sampled with, and what its UNet predicts.

    Raises:
        PFStorerError: it predicts neither noise nor v, or has no timesteps of its own.
    """
    kind, sigmas = noise_schedule_of(model)
    sampling = model.get_model_object("model_sampling")
    steps = sampling.timestep(sampling.sigmas).round().long().cpu()
    if not torch.equal(steps, torch.arange(len(sigmas))):
        raise PFStorerError(
            "The MODEL has a noise schedule that its UNet was not trained with; leave out the node "
            "that changes the model's sampling."
        )
    if kind is None:
        raise PFStorerError(
            f"The MODEL is a {model.model.model_type.name} model; trainings need Stable Diffusion "
            "1.5, 2.1 or XL, whose UNet predicts noise or v."
        )
    return noise_schedule(kind, sigmas)


def scaled_encoder(model: Any, vae: Any) -> Callable[[Tensor], Tensor]:
    """The VAE as (B, 3, H, W) in [0, 1] -> (B, C, h, w), scaled like diffusion latents."""

    def encode(images: Tensor) -> Tensor:
        with torch.inference_mode():  # see `decoded`
            latent = vae.encode(images.movedim(1, -1))
            latent = model.model.process_latent_in(latent).float().cpu()
        return latent.clone()  # of the caller's mode

    return encode


@torch.inference_mode()
def decoded(model: Any, vae: Any, latent: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) on the CPU of latents (B, C, h, w) scaled like diffusion latents.

    As in a node, whatever the caller's mode: the host moves the VAE's weights when they are used,
    and weights loaded in inference mode but moved outside of it fail in every node that follows.
    """
    return vae.decode(model.model.process_latent_out(latent.cpu())).movedim(-1, 1).cpu()


def trainable_unet(model: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of a MODEL's UNet that autograd can run through.

    The MODEL's own weights were loaded under the inference mode in which ComfyUI runs its nodes.
    """
    config = {
        k: v for k, v in model.model.model_config.unet_config.items() if k not in _NOT_FOR_UNET
    }
    unet = build_unet(config, dtype)
    unet.load_state_dict(model.model.diffusion_model.state_dict())
    return unet
