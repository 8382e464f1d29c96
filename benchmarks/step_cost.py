"""Cost of restorer and adapter: steps of a Stable Diffusion 2.1 UNet with and without them.

    python benchmarks/step_cost.py

A guided step (classifier-free guidance) is a batch of two. A training step is forward and backward
of the same batch: of all weights of the bare UNet, and of the adapter's alone. Weights are random;
the latent is 16 x 16 on a CPU and 64 x 64 on a GPU. All are timed in turns in one run, and ratios
of the medians are printed, so the machine's speed cancels out.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from in_process import use_comfyui

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latent", type=int, help="side of the latent")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    use_comfyui()
    gpu = torch.cuda.is_available()
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from pfstorer_core.adapter import AdapterInfo, IdentityAdapter
    from pfstorer_core.encoder import EncoderConfig
    from pfstorer_core.host.identities import AppliedIdentity
    from pfstorer_core.host.patches import restorer_options
    from pfstorer_core.host.sites import find_identity_sites, find_sft_sites
    from pfstorer_core.personalization import PersonalizationConfig
    from pfstorer_core.restorer import BaseRestorer

    device, dtype = ("cuda", torch.float16) if gpu else ("cpu", torch.float32)
    side = options.latent or (64 if gpu else 16)
    torch.manual_seed(0)
    unet = UNetModel(**SD21, dtype=dtype, device=device)
    channels = {site: channels for site, (channels, _) in find_sft_sites(unet).items()}
    restorer = BaseRestorer.initialise(channels, EncoderConfig(), hidden=128).to(device, dtype)
    sites = find_identity_sites(unet)
    info = AdapterInfo("random", "random", "", SD21["context_dim"], sites, PersonalizationConfig())
    adapter = IdentityAdapter.initialise(info).to(device, dtype)
    with torch.no_grad():  # zeros and uninitialised memory may compute at another speed
        for module in (unet, restorer, adapter):
            for parameter in module.parameters():
                parameter.normal_(std=0.02)

    x = torch.randn(2, 4, side, side, device=device, dtype=dtype)
    lq_latent = torch.randn(1, 4, side, side, device=device, dtype=dtype)
    timesteps = torch.full((2,), 500.0, device=device)
    context = torch.randn(2, 77, 1024, device=device, dtype=dtype)
    identity = AppliedIdentity(adapter)
    steered = restorer_options(unet, restorer, lq_latent)
    personalized = restorer_options(unet, restorer, lq_latent, [identity])
    three = restorer_options(unet, restorer, lq_latent, [identity] * 3)
    plain = {"optimized_attention_override": steered["optimized_attention_override"]}

    def step(transformer_options: dict) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return unet(x, timesteps, context, transformer_options=transformer_options)

        return run

    def training_step(transformer_options: dict, trained: torch.nn.Module) -> Callable[[], object]:
        def run() -> None:
            for module in (unet, restorer, adapter):
                module.requires_grad_(module is trained)
            unet(x, timesteps, context, transformer_options=transformer_options).mean().backward()
            trained.zero_grad(set_to_none=True)

        return run

    bare, steered_time, one, several = in_turns(
        [step(plain), step(steered), step(personalized), step(three)], options.repeats, gpu
    )
    whole, adapter_only = in_turns(
        [training_step(plain, unet), training_step(personalized, adapter)],
        max(2, options.repeats // 2),
        gpu,
    )
    weights = sum(parameter.numel() for parameter in adapter.parameters())
    print(
        f"Stable Diffusion 2.1 shape, latent {side} x {side}, {device}, "
        f"{str(dtype).removeprefix('torch.')}; adapter: {len(sites)} blocks, "
        f"{weights / 1e6:.1f} M parameters, {2 * weights / 1e6:.0f} MB in fp16.\n"
    )
    print("| | seconds | compared with | ratio |\n|---|---|---|---|")
    for name, seconds, other, base in (
        ("guided step, bare UNet", bare, "", None),
        ("guided step, restorer", steered_time, "bare UNet", bare),
        ("guided step, restorer and adapter", one, "restorer", steered_time),
        ("guided step, restorer and three adapters", several, "restorer", steered_time),
        ("forward and backward, bare UNet, all weights", whole, "", None),
        ("training step of an adapter", adapter_only, "forward and backward", whole),
    ):
        ratio = f"{seconds / base:.3f}" if base else ""
        print(f"| {name} | {seconds:.3f} | {other} | {ratio} |")


def in_turns(steps: list[Callable[[], object]], repeats: int, gpu: bool) -> list[float]:
    """Median seconds of each step, all run in turns after one warm-up."""
    times: list[list[float]] = [[] for _ in steps]
    for repeat in range(repeats + 1):
        for k, step in enumerate(steps):
            start = time.perf_counter()
            step()
            if gpu:
                torch.cuda.synchronize()
            if repeat:
                times[k].append(time.perf_counter() - start)
    return [statistics.median(t) for t in times]


if __name__ == "__main__":
    main()
