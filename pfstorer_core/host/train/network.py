"""ComfyUI's UNet with a restorer in it as one trainable module, for training outside a MODEL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.model_management as mm
import torch
from torch import Tensor, nn

from ...identities.adapter import AdapterInfo, IdentityAdapter
from ...restorers.base import BaseRestorer
from ...restorers.steering import Steering
from ..patch.applied import AppliedIdentity
from ..patch.bare_unet import restorer_options
from ..patch.model import restorer_wrapper
from ..patch.sampling import SamplingMemory
from ..patch.supir import TrainableSupir
from ..sites import find_identity_sites
from .from_model import trainable_unet

if TYPE_CHECKING:
    from .setup import Setup


class HostNetwork(nn.Module):
    """UNet, encoder, SFT blocks and prompt as one function of (noisy latent, timesteps, LQ latent).

    Args:
        unet: ComfyUI's `UNetModel`.
        restorer: encoder and SFT blocks that fit it.
        prompt: (tokens, context width) conditioning that every picture is restored under.
        pooled: (1, P) `y` beside it; None for UNets that take none.
        train_base: whether UNet and prompt are trained as well; a real Stable Diffusion stays
            frozen.
    """

    pooled: Tensor | None

    def __init__(
        self,
        unet: nn.Module,
        restorer: BaseRestorer,
        prompt: Tensor,
        pooled: Tensor | None = None,
        *,
        train_base: bool,
    ):
        super().__init__()
        self.unet = unet.requires_grad_(train_base)
        self.restorer = restorer.requires_grad_(True)
        self.prompt = nn.Parameter(prompt, requires_grad=train_base)
        self.register_buffer("pooled", pooled, persistent=False)

    def forward(self, noisy: Tensor, timesteps: Tensor, lq_latent: Tensor) -> Tensor:
        """The UNet's prediction.

        Args:
            noisy: (B, C, h, w) noisy latent.
            timesteps: (B,).
            lq_latent: (B, C, h, w).

        Returns:
            (B, C, h, w).
        """
        context = self.prompt.expand(len(noisy), -1, -1)  # (B, tokens, width)
        options = restorer_options(self.unet, self.restorer, lq_latent)
        y = _repeated(self.pooled, len(noisy))
        return self.unet(noisy, timesteps, context, y, transformer_options=options)


class PersonalizedNetwork(nn.Module):
    """A frozen UNet and restorer with an adapter in training.

    Args:
        unet: ComfyUI's `UNetModel`.
        restorer: what steers it.
        prompt: (tokens, context width) conditioning of every prediction.
        pooled: (1, P) `y` beside it; None for UNets that take none.
        adapter: the only part that is trained.
        checkpoint: whether to recompute activations in the backward pass.
    """

    pooled: Tensor | None

    def __init__(
        self,
        unet: nn.Module,
        restorer: Steering,
        prompt: Tensor,
        adapter: IdentityAdapter,
        pooled: Tensor | None = None,
        *,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(False)
        self.restorer = restorer.requires_grad_(False)
        self.prompt = nn.Parameter(prompt, requires_grad=False)
        self.register_buffer("pooled", pooled, persistent=False)
        self.adapter = adapter
        self.checkpoint = checkpoint
        self._memory = SamplingMemory()

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        lq_latent: Tensor,
        reference: Tensor | None = None,
    ) -> Tensor:
        """The UNet's prediction.

        Args:
            noisy: (B, C, h, w) noisy latent.
            timesteps: (B,).
            lq_latent: (B, C, h, w).
            reference: (R, C, h, w) clean latents of the person; None for none.

        Returns:
            (B, C, h, w).
        """
        context = self.prompt.expand(len(noisy), -1, -1)  # (B, tokens, width)
        identity = AppliedIdentity(
            self.adapter,
            references=() if reference is None else (reference,),
            reference_context=context[:1],
            reference_pooled=() if reference is None or self.pooled is None else (self.pooled,),
        )
        options = restorer_options(
            self.unet, self.restorer, lq_latent, [identity], self.checkpoint, self._memory
        )
        y = _repeated(self.pooled, len(noisy))
        return self.unet(noisy, timesteps, context, y, transformer_options=options)


def _repeated(pooled: Tensor | None, count: int) -> Tensor | None:
    return None if pooled is None else pooled.expand(count, -1)


def personalized_network(setup: Setup, name: str, photos: int) -> PersonalizedNetwork:
    """Returns a copy of a restorer's MODEL with an untrained adapter.

    Args:
        setup: base and settings.
        name: what to call the person.
        photos: number of photos of the training.
    """
    base, config = setup.base, setup.config
    # makes room, and takes what LoRAs changed out of the weights
    with torch.inference_mode():  # see `from_model.decoded`
        mm.unload_all_models()
    # the frozen part needs no master weights
    full = setup.device.type == "cpu" or setup.precision == "no"
    dtype = torch.float32 if full else setup.model.model.get_dtype_inference()
    unet = trainable_unet(setup.model, dtype)
    info = AdapterInfo(
        name=name,
        base_name=base.info.name,
        base_fingerprint=base.info.fingerprint,
        context_dim=base.context_dim,
        site_channels=find_identity_sites(unet),
        config=config.blocks(),
        photos=photos,
        training=config.to_dict(),
        unet_digest=base.unet_digests[0],
        method=config.method,
    )
    restorer = restorer_wrapper(setup.model).restorer.copy_for_training(dtype)
    cast_ahead(unet, setup.precision)
    cast_ahead(restorer, setup.precision, whole=isinstance(restorer, TrainableSupir))
    return PersonalizedNetwork(
        unet,
        restorer,
        setup.prompt(),
        IdentityAdapter.initialise(info, config.seed),
        setup.pooled(),
        checkpoint=config.checkpointing,
    )


def cast_ahead(frozen: nn.Module, precision: str, whole: bool = False) -> None:
    """Casts weights of a network to what autocast would cast them to at each use.

    Args:
        frozen: a network that is not trained.
        precision: "no", "bf16" or "fp16".
        whole: whether norms and the like are too, for what runs without autocast.
    """
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    for layer in frozen.modules():
        if precision in types and (whole or isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))):
            layer.to(types[precision])
