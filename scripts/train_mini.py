"""Trains the mini restorer from nothing on procedural portraits, in stages that can be resumed.

    python scripts/train_mini.py autoencoder   # pictures to latents
    python scripts/train_mini.py pool          # pairs of clean and LQ latents
    python scripts/train_mini.py restorer      # UNet, encoder and SFT in that latent space
    python scripts/train_mini.py export        # pfstorer_core/assets/mini_restorer.safetensors

Runs in ComfyUI's environment (scripts/setup_host.py makes one). On few CPU cores,
OMP_NUM_THREADS=1 is faster as soon as anything else runs beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from in_process import use_comfyui
from safetensors.torch import load_file
from setup_host import REPO
from torch import Tensor
from torchvision.utils import make_grid

sys.path.append(str(REPO))  # here already: most stages need no ComfyUI

from pfstorer_core.autoencoder import AutoencoderConfig, PatchAutoencoder
from pfstorer_core.degradation import PRESETS, degrade
from pfstorer_core.encoder import EncoderConfig
from pfstorer_core.files import write_safetensors
from pfstorer_core.metrics import psnr
from pfstorer_core.painting import draw
from pfstorer_core.restorer import BaseRestorer, save
from pfstorer_core.training.autoencoder import (
    UNSEEN,
    NoisyRoundTrip,
    autoencoder_objective,
    random_portraits,
)
from pfstorer_core.training.base import (
    BaseTrainingConfig,
    restoration_objective,
    restore_latents,
)
from pfstorer_core.training.loop import LoopConfig, fit
from pfstorer_core.training.losses import noise_schedule
from pfstorer_core.training.pool import build_shards, load_pool

if TYPE_CHECKING:
    from pfstorer_core.host.network import HostNetwork

SIZE = 128
AUTOENCODER = AutoencoderConfig(patch=4, latent_channels=12, encoder_width=64, decoder_width=64)
CONTEXT_DIM = 64
UNET = {
    "image_size": 32,
    "in_channels": 12,
    "out_channels": 12,
    "model_channels": 64,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 2],
    "num_head_channels": 32,
    "num_heads": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": CONTEXT_DIM,
    "transformer_depth": [0, 0, 1],
    "transformer_depth_output": [0, 0, 0, 0, 1, 1],
    "transformer_depth_middle": 1,
    "legacy": False,
}
ENCODER = EncoderConfig(
    in_channels=12,
    model_channels=32,
    out_channels=32,
    num_res_blocks=1,
    attention_resolutions=(4,),
    channel_mult=(1, 2, 3),
    num_heads=4,
)
SFT_HIDDEN = 32
PROMPT_TOKENS = 8
DEGRADATIONS = [
    (0.20, PRESETS["light"]),
    (0.35, PRESETS["medium"]),
    (0.35, PRESETS["extreme"]),
    (0.10, PRESETS["face"]),
]


def train_autoencoder(options: argparse.Namespace) -> None:
    fast_draw = torch.compile(draw, dynamic=False)
    torch.manual_seed(options.seed)
    autoencoder = PatchAutoencoder(AUTOENCODER)
    generator = torch.Generator().manual_seed(options.seed)
    start = torch.cat([random_portraits(32, generator, SIZE, draw=fast_draw) for _ in range(16)])
    autoencoder.start_from_pca(start * 2 - 1)
    unseen = random_portraits(
        32, generator, SIZE, draw=fast_draw, first=UNSEEN, last=UNSEEN + 10**6
    )

    def round_trip(model: torch.nn.Module) -> Tensor:
        latents = [model.autoencoder.encode(x[None] * 2 - 1) for x in unseen]
        output = torch.cat([model.autoencoder.decode(latent) for latent in latents])
        output = ((output + 1) / 2).clamp(0, 1)  # (32, 3, H, W)
        logging.info("round trip of unseen identities: %.2f dB", psnr(output, unseen).mean())
        pairs = torch.stack([unseen[:24], output[:24]], 1).flatten(0, 1)  # (48, 3, H, W)
        return make_grid(pairs, nrow=8, padding=0)

    config = LoopConfig(
        steps=options.steps or 1800,
        learning_rate=1.5e-3,
        ema_decay=0.998,
        weight_decay=0.0,
        mixed_precision="bf16",
        compile=True,
        seed=options.seed,
        sample_every=500,
        save_every=250,
    )
    model = NoisyRoundTrip(autoencoder).to(memory_format=torch.channels_last)
    folder = options.runs / "autoencoder"
    objective = autoencoder_objective(AUTOENCODER, 16, SIZE, fast_draw)
    done = fit(model, objective, config, folder, sample=round_trip, max_seconds=options.max_seconds)
    write_safetensors(folder / "autoencoder.safetensors", autoencoder.state_dict(), {})
    logging.info("autoencoder %s", "done" if done else "saved, not finished: run again to go on")


def load_autoencoder(options: argparse.Namespace) -> PatchAutoencoder:
    autoencoder = PatchAutoencoder(AUTOENCODER)
    autoencoder.load_state_dict(load_file(options.runs / "autoencoder" / "autoencoder.safetensors"))
    return autoencoder.eval().requires_grad_(False)


def encode_with(autoencoder: PatchAutoencoder) -> Callable[[Tensor], Tensor]:
    return lambda images: autoencoder.encode(images * 2 - 1)


def build_pool(options: argparse.Namespace) -> None:
    fast_draw = torch.compile(draw, dynamic=False)
    autoencoder = load_autoencoder(options)
    build_shards(
        options.runs / "pool",
        lambda count, generator: random_portraits(count, generator, SIZE, draw=fast_draw),
        DEGRADATIONS,
        encode_with(autoencoder),
        range(*options.shards),
        seed=options.seed,
    )


def build_network(seed: int) -> HostNetwork:
    """The mini UNet with its restorer, untrained."""
    use_comfyui()
    from pfstorer_core.host.bundled import build_unet
    from pfstorer_core.host.network import HostNetwork
    from pfstorer_core.host.sites import find_sft_sites

    torch.manual_seed(seed)
    unet = build_unet(UNET)
    channels = {site: channels for site, (channels, _) in find_sft_sites(unet).items()}
    restorer = BaseRestorer.initialise(
        channels,
        ENCODER,
        hidden=SFT_HIDDEN,
        name="mini",
        prediction_type="v_prediction",
        license="GPL-3.0-or-later",
    )
    prompt = 0.5 * torch.randn(PROMPT_TOKENS, CONTEXT_DIM)
    return HostNetwork(unet, restorer, prompt, train_base=True)


def train_restorer(options: argparse.Namespace) -> None:
    autoencoder = load_autoencoder(options)
    encode = encode_with(autoencoder)
    network = build_network(options.seed)
    pool = load_pool(options.runs / "pool")
    schedule = noise_schedule("v_prediction")
    generator = torch.Generator().manual_seed(options.seed)
    clean = random_portraits(12, generator, SIZE, first=UNSEEN, last=UNSEEN + 10**6)
    lq = torch.cat(
        [degrade(clean, PRESETS[name], generator) for name in ("light", "medium", "extreme")]
    )

    def restored(model: torch.nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            latent = restore_latents(model, schedule, encode(lq), steps=8, seed=0)
        output = ((autoencoder.decode(latent.float()) + 1) / 2).clamp(0, 1)
        target = clean.repeat(3, 1, 1, 1)
        for name, out, low in zip(
            ("light", "medium", "extreme"), output.split(12), lq.split(12), strict=True
        ):
            figures = [psnr(x, clean).mean() for x in (low, out)]
            logging.info("%s: LQ %.2f dB, restored %.2f dB", name, *figures)
        rows = torch.stack(
            [lq.unflatten(0, (3, 12)), output.unflatten(0, (3, 12)), target.unflatten(0, (3, 12))],
            1,
        )
        return make_grid(rows.flatten(0, 2), nrow=12, padding=0)

    config = LoopConfig(
        steps=options.steps or 7500,
        optimizer="muon",
        learning_rate=2e-3,
        warmup_steps=100,
        ema_decay=0.999,
        mixed_precision="bf16",
        seed=options.seed,
        sample_every=1000,
        save_every=500,
        log_every=100,
    )
    objective = restoration_objective(pool, schedule, BaseTrainingConfig(batch=24))
    folder = options.runs / "restorer"
    done = fit(network, objective, config, folder, sample=restored, max_seconds=options.max_seconds)
    write_safetensors(folder / "network.safetensors", network.state_dict(), {})
    logging.info("restorer %s", "done" if done else "saved, not finished: run again to go on")


def export(options: argparse.Namespace) -> None:
    network = build_network(options.seed)
    network.load_state_dict(load_file(options.runs / "restorer" / "network.safetensors"))
    autoencoder = load_autoencoder(options)
    pool = load_pool(options.runs / "pool", limit=1)
    factors, bias = rgb_factors(autoencoder, pool.clean[:256].float())
    restorer = network.restorer
    restorer.info = dataclasses.replace(
        restorer.info,
        bundled={
            "unet": UNET,
            "autoencoder": AUTOENCODER.to_dict(),
            "latent": {
                "channels": AUTOENCODER.latent_channels,
                "downscale": AUTOENCODER.patch,
                "scale_factor": 1.0,
                "rgb_factors": factors,
                "rgb_bias": bias,
            },
            "schedule": {
                "beta_schedule": "linear",
                "linear_start": 0.00085,
                "linear_end": 0.012,
                "timesteps": 1000,
            },
        },
    )
    restorer.bundled_state = {
        **{f"model.diffusion_model.{k}": t.half() for k, t in network.unet.state_dict().items()},
        **{f"first_stage_model.{k}": t.half() for k, t in autoencoder.state_dict().items()},
        "cond_stage_model.prompt": network.prompt.detach().half(),
    }
    path = REPO / "pfstorer_core" / "assets" / "mini_restorer.safetensors"
    path.parent.mkdir(exist_ok=True)
    save(restorer.half(), path)
    logging.info("%s: %.1f MB", path.name, path.stat().st_size / 1e6)


def rgb_factors(
    autoencoder: PatchAutoencoder, latent: Tensor
) -> tuple[list[list[float]], list[float]]:
    """Least-squares map from latent channels to RGB in [-1, 1], for previews while sampling."""
    image = autoencoder.decode(latent)
    image = torch.nn.functional.avg_pool2d(image, AUTOENCODER.patch)  # (B, 3, h, w)
    inputs = latent.movedim(1, -1).flatten(0, -2)  # (N, C)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    colours = image.movedim(1, -1).flatten(0, -2)  # (N, 3)
    solution = torch.linalg.lstsq(inputs, colours).solution  # (C + 1, 3)
    return solution[:-1].tolist(), solution[-1].tolist()


STAGES = {
    "autoencoder": train_autoencoder,
    "pool": build_pool,
    "restorer": train_restorer,
    "export": export,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--runs",
        type=Path,
        default=REPO / "runs" / "mini",
        help="folder of states, logs and samples",
    )
    parser.add_argument("--steps", type=int, help="optimiser steps in all")
    parser.add_argument(
        "--shards", type=int, nargs=2, default=(0, 40), help="first and last + 1 shard of the pool"
    )
    parser.add_argument(
        "--max-seconds", type=float, help="stop and save after this time; run again to go on"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.runs.mkdir(parents=True, exist_ok=True)
    STAGES[options.stage](options)


if __name__ == "__main__":
    main()
