"""Cost of the restorer: one guided step of a Stable Diffusion 2.1 UNet with and without it.

    python benchmarks/step_cost.py

A guided step (classifier-free guidance) is a batch of two. Weights are random; the latent is
16 x 16 on a CPU and 64 x 64 on a GPU. Both are timed in turns in one run, and the ratio of the
medians is printed, so the machine's speed cancels out.
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

    from pfstorer_core.encoder import EncoderConfig
    from pfstorer_core.host.patches import find_sft_sites, restorer_options
    from pfstorer_core.restorer import BaseRestorer

    device, dtype = ("cuda", torch.float16) if gpu else ("cpu", torch.float32)
    side = options.latent or (64 if gpu else 16)
    torch.manual_seed(0)
    unet = UNetModel(**SD21, dtype=dtype, device=device)
    channels = {site: channels for site, (channels, _) in find_sft_sites(unet).items()}
    restorer = BaseRestorer.initialise(channels, EncoderConfig(), hidden=128).to(device, dtype)
    with torch.no_grad():  # zeros and uninitialised memory may compute at another speed
        for parameter in [*unet.parameters(), *restorer.parameters()]:
            parameter.normal_(std=0.02)

    x = torch.randn(2, 4, side, side, device=device, dtype=dtype)
    lq_latent = torch.randn(1, 4, side, side, device=device, dtype=dtype)
    timesteps = torch.full((2,), 500.0, device=device)
    context = torch.randn(2, 77, 1024, device=device, dtype=dtype)
    steered = restorer_options(unet, restorer, lq_latent)
    plain = {"optimized_attention_override": steered["optimized_attention_override"]}

    def step(transformer_options: dict) -> Callable[[], object]:
        return lambda: unet(x, timesteps, context, transformer_options=transformer_options)

    with torch.no_grad():
        without, with_restorer = in_turns([step(plain), step(steered)], options.repeats, gpu)
    print("| latent | device | UNet (s) | with restorer (s) | ratio |\n|---|---|---|---|---|")
    print(
        f"| {side} x {side} | {device}, {str(dtype).removeprefix('torch.')} "
        f"| {without:.3f} | {with_restorer:.3f} | {with_restorer / without:.3f} |"
    )


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
