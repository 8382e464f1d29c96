"""Cost of restorer and adapters: steps of a Stable Diffusion 2.1 UNet with and without them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from report import Section, table
from timing import in_turns, randomise, timed

TITLE = "Step cost on the shape of Stable Diffusion 2.1"
REPEATS = 7
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


class Steps:
    """Steps of a UNet with random weights, with and without restorer and adapters.

    Args:
        quick: of a smaller UNet.
    """

    def __init__(self, quick: bool) -> None:
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        from pfstorer_core.host.patch.applied import AppliedIdentity
        from pfstorer_core.host.patch.bare_unet import restorer_options
        from pfstorer_core.host.sites import find_identity_sites, find_sft_sites
        from pfstorer_core.identities.adapter import AdapterInfo, IdentityAdapter
        from pfstorer_core.identities.config import PersonalizationConfig
        from pfstorer_core.restorers.base import BaseRestorer
        from pfstorer_core.restorers.stablesr.encoder import EncoderConfig

        gpu = torch.accelerator.current_accelerator(check_available=True)
        device, self.dtype = (gpu, torch.float16) if gpu else (torch.device("cpu"), torch.float32)
        self.side = 64 if gpu else 16
        shape = SMALL if quick else SD21
        width = shape["context_dim"]
        encoder = EncoderConfig(model_channels=32, out_channels=32) if quick else EncoderConfig()
        torch.manual_seed(0)
        self.unet = UNetModel(**shape, dtype=self.dtype, device=device)
        channels = {site: channels for site, (channels, _) in find_sft_sites(self.unet).items()}
        restorer = BaseRestorer.initialise(channels, encoder, hidden=128).to(device, self.dtype)
        self.sites = find_identity_sites(self.unet)
        info = AdapterInfo("random", "random", "", width, self.sites, PersonalizationConfig())
        self.adapter = IdentityAdapter.initialise(info).to(device, self.dtype)
        self._modules = (self.unet, restorer, self.adapter)
        randomise(*self._modules)

        place = {"device": device, "dtype": self.dtype}
        x = torch.randn(2, 4, self.side, self.side, **place)
        lq_latent = torch.randn(1, 4, self.side, self.side, **place)
        timesteps = torch.full((2,), 500.0, device=device)
        self._inputs = x, timesteps, torch.randn(2, 77, width, **place)
        identity = AppliedIdentity(self.adapter)
        self.steered = restorer_options(self.unet, restorer, lq_latent)
        self.personalized = restorer_options(self.unet, restorer, lq_latent, [identity])
        self.three = restorer_options(self.unet, restorer, lq_latent, [identity] * 3)
        key = "optimized_attention_override"
        self.plain = {key: self.steered[key]}

    def guided(self, transformer_options: dict) -> Callable[[], object]:
        """Returns a guided step: a batch of two."""

        def run() -> object:
            with torch.no_grad():
                return self.unet(*self._inputs, transformer_options=transformer_options)

        return run

    def training(self, transformer_options: dict, trained: torch.nn.Module) -> Callable[[], object]:
        """Returns forward and backward of the same batch, for the weights of one module."""

        def run() -> None:
            for module in self._modules:
                module.requires_grad_(module is trained)
            self.unet(*self._inputs, transformer_options=transformer_options).mean().backward()
            trained.zero_grad(set_to_none=True)

        return run


def measure(quick: bool = False) -> Section:
    """Times steps with random weights.

    A guided step (classifier-free guidance) is a batch of two. A training step is forward and
    backward of the same batch: of all weights of the bare UNet, and of the adapter's alone.
    """
    steps, repeats = Steps(quick), (1 if quick else REPEATS)
    ways = (steps.plain, steps.steered, steps.personalized, steps.three)
    bare, steered, one, several = in_turns(
        [timed(steps.guided(options)) for options in ways], repeats, warm_up=not quick
    )
    whole, adapter_only = in_turns(
        [
            timed(steps.training(steps.plain, steps.unet)),
            timed(steps.training(steps.personalized, steps.adapter)),
        ],
        max(1, repeats // 2),
        warm_up=not quick,
    )
    weights = sum(parameter.numel() for parameter in steps.adapter.parameters())
    what = "A small UNet of the kind of" if quick else "The shape of"
    rows = [
        [name, f"{seconds:.3f}", other, f"{seconds / base:.3f}" if base else ""]
        for name, seconds, other, base in (
            ("guided step, bare UNet", bare, "", None),
            ("guided step, restorer", steered, "bare UNet", bare),
            ("guided step, restorer and adapter", one, "restorer", steered),
            ("guided step, restorer and three adapters", several, "restorer", steered),
            ("forward and backward, bare UNet, all weights", whole, "", None),
            ("training step of an adapter", adapter_only, "forward and backward", whole),
        )
    ]
    return Section(
        TITLE,
        f"{what} Stable Diffusion 2.1's UNet with random weights, latent {steps.side} x "
        f"{steps.side}, {str(steps.dtype).removeprefix('torch.')}; an adapter has "
        f"{len(steps.sites)} blocks and {weights / 1e6:.1f} M parameters ({2 * weights / 1e6:.0f} "
        "MB in fp16). A guided step is a batch of two; a training step is forward and backward of "
        "the same batch.\n\n" + table(["", "seconds", "compared with", "ratio"], rows),
    )
