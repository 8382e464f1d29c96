"""Training of a base restorer on photos, on top of a Stable Diffusion that stays frozen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from ...restorers.base import BaseRestorer
from ...restorers.stablesr.encoder import EncoderConfig
from ...training.base import BaseTrainingConfig, restoration_objective, restore_latents
from ...training.feed import PairFeed, PictureSource
from ...training.loop import LoopConfig, Sampler, fit
from ...training.pool import WeightedDegradations
from ..sites import find_sft_sites
from .from_model import scaled_encoder, trainable_unet, training_schedule
from .network import HostNetwork

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


def train_base_restorer(
    model: Any,
    clip: Any,
    vae: Any,
    source: PictureSource,
    degradations: WeightedDegradations,
    folder: Path,
    *,
    loop: LoopConfig,
    training: BaseTrainingConfig,
    name: str,
    encoder: EncoderConfig | None = None,
    hidden: int = 128,
    pairs: int = 20_000,
    workers: int = 0,
    max_seconds: float | None = None,
) -> tuple[BaseRestorer, bool]:
    """Trains encoder and SFT blocks; UNet, text encoder and VAE stay as they are.

    Args:
        model, clip, vae: a plain Stable Diffusion from ComfyUI's checkpoint loader.
        source: gives clean pictures of one size.
        degradations: (weight, config) of the LQ pictures.
        folder: where state, log and samples go; a run there is taken up.
        loop, training: settings.
        name: of the restorer.
        encoder: sizes of the encoder; the official ones by default.
        hidden: hidden channels of the SFT blocks.
        pairs: newest latent pairs that steps draw from; a tenth is made before the first step.
        workers: processes that cut and degrade views meanwhile; 0 does it in this one.
        max_seconds: see `fit`.

    Returns:
        The restorer with averaged weights, and whether all steps are done.

    Raises:
        PFStorerError: a model that cannot carry a restorer, or what `fit` raises.

    Source: StableSR (arXiv 2305.07015), section 3.1.
    """
    schedule = training_schedule(model)
    kind = schedule.config["prediction_type"]
    from accelerate import PartialState

    processes = PartialState()
    feed = PairFeed(
        [(1.0, source, degradations)],
        scaled_encoder(model, vae),
        device=processes.device,
        workers=workers,
        capacity=pairs,
        first=pairs // 10,
        seed=loop.seed + processes.process_index,
    )
    shown = feed.shown(4)
    encoding = clip.encode_from_tokens_scheduled(clip.tokenize(""))[0][0]
    # Under inference mode tensors could not take part in training.
    with torch.inference_mode(False), torch.enable_grad():
        unet = trainable_unet(model)
        channels = {site: channels for site, (channels, _) in find_sft_sites(unet).items()}
        sizes = encoder or EncoderConfig(in_channels=shown[0].shape[1])
        torch.manual_seed(loop.seed)
        restorer = BaseRestorer.initialise(channels, sizes, hidden, name=name, prediction_type=kind)
        network = HostNetwork(
            unet, restorer, encoding.detach().clone()[0].float(), train_base=False
        )
        objective = restoration_objective(feed, schedule, training)
        done = fit(
            network,
            objective,
            loop,
            folder,
            sample=_sample_sheet(model, vae, shown, schedule),
            max_seconds=max_seconds,
            kept={"feed": feed},
        )
    restorer.info = dataclasses.replace(restorer.info, context_dim=encoding.shape[-1])
    return restorer.cpu(), done


def _sample_sheet(
    model: Any, vae: Any, shown: tuple[Tensor, Tensor], schedule: DDPMScheduler
) -> Sampler:
    """Sheets of clean and LQ latents (B, C, h, w) each: rows of LQ, restored, clean."""
    clean, lq_latent = shown

    def decode(latent: Tensor) -> Tensor:
        return vae.decode(model.model.process_latent_out(latent.cpu())).movedim(-1, 1).cpu()

    def sheet(network: nn.Module) -> Tensor:
        device = next(network.parameters()).device
        restored = restore_latents(network, schedule, lq_latent.to(device), steps=20, seed=0)
        rows = [decode(latent) for latent in (lq_latent, restored, clean)]
        return make_grid(torch.cat(rows).clamp(0, 1), nrow=len(clean), padding=0)

    return sheet
