"""Training of a base restorer on photos, on top of a Stable Diffusion that stays frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from ...restorers.base import BaseRestorer
from ...restorers.stablesr.encoder import EncoderConfig
from ...training.base import BaseTrainingConfig, restoration_objective, restore_latents
from ...training.devices import own_accelerate_state
from ...training.feed import PairFeed, PictureSource
from ...training.loop import LoopConfig, Sampler, fit
from ...training.pool import WeightedDegradations
from ..base import pooled_embedding
from ..sites import find_sft_sites
from .from_model import decoded, scaled_encoder, trainable_unet, training_schedule
from .network import HostNetwork

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


@dataclass(frozen=True)
class NewRestorer:
    """A restorer to train.

    Args:
        name: of the restorer.
        config: sizes, whose type tells the family; StableSR's official ones by default.
        sizes: further ones that the family has, such as StableSR's `hidden`.
    """

    name: str
    config: Any = None
    sizes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """Where a training's pairs of clean and LQ pictures come from.

    Args:
        source: gives clean pictures of one size.
        degradations: (weight, config) of the LQ pictures.
        capacity: newest latent pairs that steps draw from; a tenth is made before the first step.
        workers: processes that cut and degrade views meanwhile; 0 does it in this one.
    """

    source: PictureSource
    degradations: WeightedDegradations
    capacity: int = 20_000
    workers: int = 0


@dataclass(frozen=True)
class BaseTraining:
    """How a restorer is trained.

    Args:
        loop, objective: settings.
        max_seconds: see `fit`.
    """

    loop: LoopConfig
    objective: BaseTrainingConfig
    max_seconds: float | None = None


def train_base_restorer(
    checkpoint: tuple[Any, Any, Any],
    new: NewRestorer,
    pairs: Pairs,
    training: BaseTraining,
    folder: Path,
) -> tuple[BaseRestorer, bool]:
    """Trains a restorer; UNet, text encoder and VAE stay as they are.

    Args:
        checkpoint: MODEL, CLIP and VAE of a plain Stable Diffusion from ComfyUI's loader.
        new: what is trained.
        pairs: on what.
        training: how.
        folder: where state, log and samples go; a run there is taken up.

    Returns:
        The restorer with averaged weights, and whether all steps are done.

    Raises:
        PFStorerError: a model that cannot carry a restorer, or what `fit` raises.

    Source: StableSR (arXiv 2305.07015), section 3.1.
    """
    model, clip, vae = checkpoint
    schedule = training_schedule(model)
    kind = schedule.config["prediction_type"]
    from accelerate import PartialState

    with own_accelerate_state():  # as the loop will find it
        processes = PartialState()
        device, process = processes.device, processes.process_index
    feed = PairFeed(
        [(1.0, pairs.source, pairs.degradations)],
        scaled_encoder(model, vae),
        device=device,
        workers=pairs.workers,
        capacity=pairs.capacity,
        first=pairs.capacity // 10,
        seed=training.loop.seed + process,
    )
    shown = feed.shown(4)
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    encoding = prompt[0][0]
    size = shown[0].shape[-1] * vae.spacial_compression_encode()
    # Under inference mode tensors could not take part in training.
    with torch.inference_mode(False), torch.enable_grad():
        unet = trainable_unet(model)
        channels = {site: channels for site, (channels, _) in find_sft_sites(unet).items()}
        config = new.config or EncoderConfig(in_channels=shown[0].shape[1])
        torch.manual_seed(training.loop.seed)
        restorer = BaseRestorer.initialise(
            channels, config, name=new.name, prediction_type=kind, **new.sizes
        )
        network = HostNetwork(
            unet,
            restorer,
            encoding.detach().clone()[0].float(),
            pooled_embedding(model, prompt, (size, size)),
            train_base=False,
        )
        objective = restoration_objective(feed, schedule, training.objective)
        done = fit(
            network,
            objective,
            training.loop,
            folder,
            sample=_sample_sheet(model, vae, shown, schedule),
            max_seconds=training.max_seconds,
            kept={"feed": feed},
        )
    restorer.info = dataclasses.replace(restorer.info, context_dim=encoding.shape[-1], size=size)
    return restorer.cpu(), done


def _sample_sheet(
    model: Any, vae: Any, shown: tuple[Tensor, Tensor], schedule: DDPMScheduler
) -> Sampler:
    """Sheets of clean and LQ latents (B, C, h, w) each: rows of LQ, restored, clean."""
    clean, lq_latent = shown

    def sheet(network: nn.Module) -> Tensor:
        device = next(network.parameters()).device
        restored = restore_latents(network, schedule, lq_latent.to(device), steps=20, seed=0)
        rows = [decoded(model, vae, latent) for latent in (lq_latent, restored, clean)]
        return make_grid(torch.cat(rows).clamp(0, 1), nrow=len(clean), padding=0)

    return sheet
