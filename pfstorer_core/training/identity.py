"""Training of an identity adapter on a few photos of one person."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..degradation.presets import PRESETS as DEGRADATIONS
from ..errors import PFStorerError
from ..identities.methods import METHODS, PFSTORER
from ..pictures.views import ViewConfig, random_view
from .devices import sent
from .loop import LoopConfig, Objective
from .losses import diffusion_loss, diffusion_target, stratified_timesteps
from .pool import Encode, LatentPool, degrade_mixed
from .view_pool import drawn_together

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

PRECISIONS = ("auto", "bf16", "fp16", "no")
# Sides are part of an identity (a mole on one cheek), so no view is flipped.
VIEWS = ViewConfig(
    window=(0.65, 1.4),
    flip_probability=0.0,
    rotation=8.0,
    brightness=(0.88, 1.12),
    gamma=(0.88, 1.14),
    saturation=(0.9, 1.1),
)


@dataclass(frozen=True)
class IdentityTrainingConfig:
    """How an adapter is trained.

    Attributes:
        steps: optimiser steps.
        batch: clean latents per step; the regularizer adds as many without a usable LQ latent.
        learning_rate: peak rate, after a warm-up and before a cosine descent.
        optimizer: "muon" or "adamw".
        regularizer_weight: lambda of the generative regularizer; 0 turns it off.
        reference_probability: share of steps in which the blocks see the features of a reference,
            drawn anew each time; 0 turns references off.
        learned_gamma: whether each block learns its gamma.
        tokens: identity tokens of each block.
        views_per_photo: augmented views of each photo, drawn once, see `views`.
        degradations: weight by name of a degradation preset, for the LQ latents.
        snr_gamma: of the min-SNR weighting; None for none.
        lq_noise: standard deviation of noise on the LQ latent, drawn per item in [0, lq_noise].
        ema_decay: decay of the averaged weights, which are the result.
        mixed_precision: "bf16", "fp16", "no", or "auto" for what the device is fastest at.
        checkpointing: whether to recompute activations, for less memory and more time.
        size: side of the views in pixels; 0 is what the base was trained at.
        preview_every: steps between two previews; 0 shows the last only.
        seed: the training is a function of it, the photos and the settings.
        method: how the person is written into the UNet, a name in `identities.methods.METHODS`.

    Raises:
        PFStorerError: a value out of its range.
    """

    steps: int = 700
    batch: int = 4
    learning_rate: float = 8e-3
    optimizer: str = "muon"
    regularizer_weight: float = 1.0
    reference_probability: float = 0.3
    learned_gamma: bool = True
    tokens: int = 16
    views_per_photo: int = 64
    degradations: tuple[tuple[str, float], ...] = (
        ("light", 0.15),
        ("medium", 0.35),
        ("extreme", 0.5),
    )
    snr_gamma: float | None = 5.0
    lq_noise: float = 0.05
    ema_decay: float = 0.99
    mixed_precision: str = "auto"
    checkpointing: bool = False
    size: int = 0
    preview_every: int = 100
    seed: int = 0
    method: str = PFSTORER

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, 1_000_000),
            ("batch", 1, 1024),
            ("learning_rate", 1e-8, 1.0),
            ("regularizer_weight", 0.0, 100.0),
            ("reference_probability", 0.0, 1.0),
            ("views_per_photo", 1, 4096),
            ("lq_noise", 0.0, 10.0),
            ("size", 0, 4096),
            ("preview_every", 0, 1_000_000),
        ):
            if not low <= getattr(self, name) <= high:
                raise PFStorerError(
                    f"{name} is {getattr(self, name)}; give a number from {low} to {high}."
                )
        if self.mixed_precision not in PRECISIONS:
            raise PFStorerError(
                f"mixed_precision is {self.mixed_precision!r}; choose one of "
                f"{', '.join(PRECISIONS)}."
            )
        if self.method not in METHODS:
            raise PFStorerError(
                f"The method is {self.method!r}; choose one of {', '.join(METHODS)}."
            )
        unknown = [name for name, _ in self.degradations if name not in DEGRADATIONS]
        if unknown or not self.degradations:
            raise PFStorerError(
                f"The degradations are {', '.join(unknown) or 'none'}; choose from "
                f"{', '.join(DEGRADATIONS)}."
            )

    @property
    def views(self) -> int:
        """Views of each photo: no more than are drawn in all steps together."""
        return min(self.views_per_photo, self.steps * self.batch)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain values that JSON keeps."""
        return dataclasses.asdict(self)

    def blocks(self) -> Any:
        """Returns the sizes of the adapter's blocks, of the method's `config` type."""
        config = METHODS[self.method].config
        names = {field.name for field in dataclasses.fields(config)}
        return config(**{k: v for k, v in self.to_dict().items() if k in names})

    def loop(self, precision: str) -> LoopConfig:
        """Returns the settings of the loop, for a device that computes in `precision`."""
        return LoopConfig(
            steps=self.steps,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            warmup_steps=min(50, self.steps // 10),
            weight_decay=0.01,
            ema_decay=self.ema_decay,
            mixed_precision=precision,
            # what is computed again in the backward pass cannot be captured
            capture=not self.checkpointing,
            check_every=10,
            seed=self.seed,
            log_every=max(1, min(50, self.steps // 10)),
            sample_every=self.preview_every or self.steps,
            save_every=max(50, self.steps // 10),
        )


PRESETS = {
    "quick": IdentityTrainingConfig(steps=300),
    "standard": IdentityTrainingConfig(steps=700),
    "thorough": IdentityTrainingConfig(steps=2400, views_per_photo=128),
}


def build_photo_pool(
    photos: Sequence[Tensor],
    size: int,
    encode: Encode,
    config: IdentityTrainingConfig,
    *,
    encode_lq: Encode | None = None,
    batch: int = 8,
    on_batch: Callable[[int, int], None] | None = None,
) -> LatentPool:
    """Draws augmented views of the photos, degrades and encodes them, all before the first step.

    Args:
        photos: (3, H, W) each, in [0, 1].
        size: side of the views in pixels.
        encode: the frozen autoencoder.
        config: numbers and kinds of views.
        encode_lq: that of the degraded views, where it is another.
        batch: views that are encoded at once.
        on_batch: is told how many views of how many are done, before each batch.

    Returns:
        `config.views` pairs of each photo.

    Raises:
        PFStorerError: latents that are not finite; the photo is named by its number from 1.

    Source: training without alignment, PFStorer (arXiv 2403.08436), section 3.
    """
    source = _Views(photos, size, config)
    clean, lq = [], []
    for start, views, degraded in drawn_together(source, batch, on_batch):
        with torch.no_grad():
            clean.append(encode(views).half())
            lq.append((encode_lq or encode)(degraded).half())
        good = (clean[-1].isfinite() & lq[-1].isfinite()).flatten(1).all(1)  # (batch,)
        if not good.all():
            photo = (start + int(good.logical_not().nonzero()[0])) // config.views + 1
            raise PFStorerError(
                f"The VAE gives NaN or infinite latents for photo {photo}; start ComfyUI with "
                "--fp32-vae, or choose another VAE."
            )
    return LatentPool(torch.cat(clean), torch.cat(lq))


class _Views:
    """Views of the photos with LQ pictures of them, each a function of the seed and its number."""

    def __init__(self, photos: Sequence[Tensor], size: int, config: IdentityTrainingConfig) -> None:
        self.photos, self.size, self.config = photos, size, config
        self.mixture = [(weight, DEGRADATIONS[name]) for name, weight in config.degradations]

    def __len__(self) -> int:
        return len(self.photos) * self.config.views

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """A view (3, size, size) in [0, 1], and the same degraded."""
        # the CPU generator looks at the low 32 bits of a seed only
        seed = (self.config.seed * 0x9E3779B1 + number) & 0xFFFFFFFF
        generator = torch.Generator().manual_seed(seed)
        photo = self.photos[number // self.config.views]
        view = random_view(photo, self.size, VIEWS, generator)
        return view, degrade_mixed(view[None], self.mixture, generator)[0]


def identity_objective(
    pool: LatentPool, schedule: DDPMScheduler, config: IdentityTrainingConfig
) -> Objective:
    """Restoration loss + lambda * generative regularizer.

    The regularizer is the same loss on the same clean latents with pure noise as LQ latent, under
    fresh noise and timesteps: there the blocks alone can know who it is.

    Source: PFStorer (arXiv 2403.08436), section 3; the noise in place of the LQ latent is ours.
    """

    def objective(model: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        latent, lq_latent = pool.draw(config.batch, generator)  # (B, C, h, w) each
        lq_noise = torch.randn(latent.shape, generator=generator)
        spread = torch.rand(len(latent), 1, 1, 1, generator=generator) * config.lq_noise
        blind = torch.randn(latent.shape, generator=generator)
        parts = [lq_latent + spread * lq_noise]
        if config.regularizer_weight:
            parts.append(blind)
        lq_latent = torch.cat(parts)  # (k * B, C, h, w)
        latent = latent.repeat(len(parts), 1, 1, 1)  # (k * B, C, h, w)
        noise = torch.randn(latent.shape, generator=generator)
        timesteps = stratified_timesteps(schedule, config.batch, generator, blocks=len(parts))
        shown = torch.rand(1, generator=generator) < config.reference_probability
        number = int(torch.randint(len(pool), (1,), generator=generator))
        reference = pool.clean[number : number + 1].float() if shown else None
        device = next(model.parameters()).device
        latent, lq_latent, noise, timesteps = sent((latent, lq_latent, noise, timesteps), device)
        noisy = schedule.add_noise(latent, noise, timesteps)
        target = diffusion_target(schedule, latent, noise, timesteps)
        reference = None if reference is None else sent([reference], device)[0]
        prediction = model(noisy, timesteps, lq_latent, reference)
        losses = diffusion_loss(schedule, prediction, target, timesteps, config.snr_gamma)
        restore = losses[: config.batch].mean()
        if not config.regularizer_weight:
            return restore, {"restore": restore}
        generate = losses[config.batch :].mean()
        loss = restore + config.regularizer_weight * generate
        return loss, {"restore": restore, "generate": generate}

    return objective
