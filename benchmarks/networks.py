"""UNet, restorer and adapters of Stable Diffusion 2.1's shape and random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timing import randomise
from torch import Tensor

SD21 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "num_heads": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": 1024,
    "legacy": False,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
# A smaller UNet of the same kind, to try the benchmark itself.
SMALL = SD21 | {"model_channels": 64, "num_head_channels": 32, "context_dim": 64}
TOKENS = 77


@dataclass
class Networks:
    """What a step runs.

    Args:
        unet: ComfyUI's `UNetModel`.
        restorer: a StableSR restorer that fits it.
        adapters: of several people.
        context_dim: width of the text embedding.
    """

    unet: Any
    restorer: Any
    adapters: list[Any]
    context_dim: int

    @classmethod
    def build(
        cls, device: torch.device | str, dtype: torch.dtype, adapters: int = 1, small: bool = False
    ) -> Networks:
        """Returns networks of random weights, or without any on the device "meta"."""
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        from pfstorer_core.host.sites import find_identity_sites, find_sft_sites
        from pfstorer_core.identities.adapter import AdapterInfo, IdentityAdapter
        from pfstorer_core.identities.config import PersonalizationConfig
        from pfstorer_core.restorers.info import RestorerInfo
        from pfstorer_core.restorers.stablesr.encoder import EncoderConfig
        from pfstorer_core.restorers.stablesr.restorer import StableSRRestorer

        shape = SMALL if small else SD21
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        torch.manual_seed(0)
        unet = UNetModel(**shape, **place)
        encoder = EncoderConfig(model_channels=32, out_channels=32) if small else EncoderConfig()
        sft = {site: (channels, 128) for site, (channels, _) in find_sft_sites(unet).items()}
        restorer = StableSRRestorer(
            RestorerInfo("random", None, encoder, "", bundled=None), sft, **place
        )
        width = shape["context_dim"]
        info = AdapterInfo(
            "random", "random", "", width, find_identity_sites(unet), PersonalizationConfig()
        )
        people = [IdentityAdapter(info, **place) for _ in range(adapters)]
        networks = cls(unet, restorer, people, width)
        randomise(*networks.modules)
        return networks

    @property
    def modules(self) -> list[torch.nn.Module]:
        """All networks."""
        return [self.unet, self.restorer, *self.adapters]

    @property
    def place(self) -> dict[str, Any]:
        """Type and device of the weights."""
        weight = next(self.unet.parameters())
        return {"dtype": weight.dtype, "device": weight.device}

    def options(
        self, inputs: StepInputs, people: Sequence[Any] = (), memory: Any = None
    ) -> dict[str, Any]:
        """Returns transformer options under which the UNet runs the restorer and adapters.

        With a `SamplingMemory` it does as in a training that leaves the restorer as it is.
        """
        from pfstorer_core.host.patch.applied import AppliedIdentity
        from pfstorer_core.host.patch.bare_unet import restorer_options

        identities = [AppliedIdentity(adapter) for adapter in people]
        return restorer_options(
            self.unet, self.restorer, inputs.lq_latent, identities, memory=memory
        )

    def freeze(self, *trained: torch.nn.Module) -> None:
        """Lets only these modules be trained; without any, nothing needs gradients."""
        for module in self.modules:
            module.requires_grad_(any(module is x for x in trained))


@dataclass
class StepInputs:
    """Tensors of steps: `batch` items at one timestep, and their LQ latents.

    Args:
        x: (batch, 4, side, side).
        timesteps: (batch,).
        context: (batch, TOKENS, width).
        lq_latent: (batch / halves, 4, side, side).
    """

    x: Tensor
    timesteps: Tensor
    context: Tensor
    lq_latent: Tensor

    @classmethod
    def random(cls, networks: Networks, batch: int, side: int, halves: int = 1) -> StepInputs:
        """Returns random ones; `halves` is 2 for a guided step, whose items share LQ latents."""
        place = networks.place
        return cls(
            torch.randn(batch, 4, side, side, **place),
            torch.full((batch,), 500.0, device=place["device"]),
            torch.randn(batch, TOKENS, networks.context_dim, **place),
            torch.randn(batch // halves, 4, side, side, **place),
        )


def plain_options() -> dict[str, Any]:
    """Returns transformer options under which the bare UNet has the attention of the others."""
    from pfstorer_core.host.patch.bare_unet import trainable_attention

    return {"optimized_attention_override": trainable_attention}


def forward(
    networks: Networks, inputs: StepInputs, options: dict[str, Any]
) -> Callable[[], Tensor]:
    """Returns a function that runs the UNet."""

    def run() -> Tensor:
        return networks.unet(
            inputs.x, inputs.timesteps, inputs.context, transformer_options=options
        )

    return run
