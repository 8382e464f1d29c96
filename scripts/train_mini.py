"""Trains the bundled restorer on photos and procedural portraits, in stages that can be resumed.

    python scripts/train_mini.py autoencoder --photos PHOTOS   # pictures to latents and back
    python scripts/train_mini.py restorer --photos PHOTOS      # UNet, encoder and SFT on latents
    python scripts/train_mini.py decoder --photos PHOTOS       # decoder on restored latents
    python scripts/train_mini.py export                        # the file that the plugin brings

PHOTOS are folders or tar files of good photos; without any, portraits are drawn. `--tight` names
those of their folders whose photos are all face. With `--start RESTORER` the stages go on from a
bundled restorer's weights. Worker processes cut and degrade views while the model trains. Runs in
ComfyUI's environment (scripts/setup_host.py makes one), on its device. On few CPU cores,
OMP_NUM_THREADS=1 is faster as soon as anything else runs beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from in_process import use_comfyui
from setup_host import REPO
from torch import Tensor
from torchvision.utils import make_grid

sys.path.append(str(REPO))  # the worker processes import this file without `main`

from mini_parts import (
    AUTOENCODER,
    SIZE,
    UNET,
    build_network,
    load_autoencoder,
    rgb_factors,
    trained_network,
    write_weights,
)

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.metrics import psnr
from pfstorer_core.pictures.photos import Photo, list_photos
from pfstorer_core.restorers.autoencoder import PatchAutoencoder
from pfstorer_core.restorers.files import save
from pfstorer_core.training.autoencoder import (
    UNSEEN,
    Decoding,
    NoisyRoundTrip,
    autoencoder_objective,
    decoder_objective,
    random_portraits,
)
from pfstorer_core.training.base import BaseTrainingConfig, restoration_objective, restore_latents
from pfstorer_core.training.feed import PairFeed, Part
from pfstorer_core.training.loop import LoopConfig, Objective, Sampler, fit
from pfstorer_core.training.losses import noise_schedule
from pfstorer_core.training.photo_views import PhotoViews
from pfstorer_core.training.pool import Encode

DEGRADATIONS = [
    (0.15, PRESETS["light"]),
    (0.32, PRESETS["medium"]),
    (0.30, PRESETS["extreme"]),
    (0.23, PRESETS["face"]),
]
# What is left of a face at extreme degradation does not show whether it was drawn. Trained on both,
# the restorer would turn some such photos into drawings.
DRAWN_DEGRADATIONS = [(0.3, PRESETS["light"]), (0.7, PRESETS["medium"])]
DRAWN_SHARE = 0.1
SHOWN = 12  # photos that no stage trains on, for sample sheets; as many portraits
LEVELS = ("light", "medium", "extreme")


class Material:
    """What a stage trains on, and what its samples show.

    Args:
        options: the command line.
        device: of the training.
    """

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        photos = list_photos(options.photos, smallest=SIZE / 2) if options.photos else []
        generator = torch.Generator().manual_seed(options.seed)
        order = torch.randperm(len(photos), generator=generator).tolist()
        self.photos: list[Photo] = [photos[k] for k in order[SHOWN:]]
        self.views = PhotoViews(self.photos, SIZE, options.tight)
        shown = PhotoViews([photos[k] for k in order[:SHOWN]], SIZE, options.tight)
        self.clean = random_portraits(SHOWN, generator, SIZE, first=UNSEEN, last=UNSEEN + 10**6)
        if photos:
            self.clean = torch.cat([self.clean, shown.draw(SHOWN, generator)])
        self.lq = [degrade(self.clean, PRESETS[name], generator) for name in LEVELS]
        logging.info("%d photos", len(self.photos))

    def feed(self, encode: Encode, capacity: int) -> PairFeed:
        options = self.options
        parts: list[Part] = [(1 - DRAWN_SHARE, self.views, DEGRADATIONS)]
        if self.photos:
            parts.append((DRAWN_SHARE, PhotoViews([], SIZE), DRAWN_DEGRADATIONS))
        return PairFeed(
            parts,
            encode,
            device=self.device,
            workers=options.workers,
            capacity=capacity,
            first=min(capacity, options.first_pairs),
            reuse=options.reuse,
            seed=options.seed,
        )

    def fit(
        self,
        model: torch.nn.Module,
        objective: Objective,
        config: LoopConfig,
        feed: PairFeed,
        sample: Sampler,
    ) -> None:
        """Trains the stage's model, or goes on with its training."""
        options = self.options
        done = fit(
            model,
            objective,
            config,
            options.runs / options.stage,
            sample=sample,
            max_seconds=options.max_seconds,
            kept={"feed": feed},
            device=self.device,
        )
        left = "done" if done else "saved, not finished: run again to go on"
        logging.info("%s %s", options.stage, left)


def host_device() -> torch.device:
    import comfy.model_management as mm

    return mm.get_torch_device()


def loop_config(options: argparse.Namespace, **settings: Any) -> LoopConfig:
    changes = {"steps": options.steps, "learning_rate": options.learning_rate}
    settings |= {name: value for name, value in changes.items() if value}
    return LoopConfig(
        mixed_precision="bf16", seed=options.seed, check_every=25, log_every=100, **settings
    )


def train_autoencoder(options: argparse.Namespace) -> None:
    material = Material(options, host_device())
    feed = material.feed(lambda pictures: pictures, capacity=4096)
    torch.manual_seed(options.seed)
    autoencoder = PatchAutoencoder(AUTOENCODER)
    start = material.views.draw(512, torch.Generator().manual_seed(options.seed))
    autoencoder.start_from_pca(start * 2 - 1)

    def round_trip(model: torch.nn.Module) -> Tensor:
        output = decoded(autoencoder, autoencoder.encode(material.clean.to(host_device()) * 2 - 1))
        logging.info("round trip: %.2f dB", psnr(output, material.clean).mean())
        return make_grid(torch.cat([material.clean, output]), nrow=SHOWN, padding=0)

    material.fit(
        NoisyRoundTrip(autoencoder),
        autoencoder_objective(feed, options.batch or 80),
        loop_config(options, steps=5000, learning_rate=1.5e-3, ema_decay=0.999, weight_decay=0.0),
        feed,
        round_trip,
    )
    write_weights(options, autoencoder)


def train_restorer(options: argparse.Namespace) -> None:
    material = Material(options, host_device())
    autoencoder = load_autoencoder(options).to(material.device)
    schedule = noise_schedule("v_prediction")
    network = build_network(options)
    feed = material.feed(lambda pictures: autoencoder.encode(pictures * 2 - 1), options.capacity)

    def restored(model: torch.nn.Module) -> Tensor:
        device, rows = material.device, []
        for name, lq in zip(LEVELS, material.lq, strict=True):
            with torch.autocast(device.type, torch.bfloat16):
                lq_latent = autoencoder.encode(lq.to(device) * 2 - 1)
                latent = restore_latents(model, schedule, lq_latent.float(), steps=8, seed=0)
            output = decoded(autoencoder, latent.float())
            figures = [psnr(x, material.clean).mean() for x in (lq, output)]
            logging.info("%s: LQ %.2f dB, restored %.2f dB", name, *figures)
            rows += [lq, output]
        return make_grid(torch.cat([*rows, material.clean]), nrow=SHOWN, padding=0)

    material.fit(
        network,
        restoration_objective(feed, schedule, BaseTrainingConfig(batch=options.batch or 128)),
        loop_config(
            options,
            steps=20_000,
            learning_rate=2e-3,
            optimizer="muon",
            warmup_steps=100,
            ema_decay=0.999,
            capture=True,
            sample_every=500,
            save_every=200,
        ),
        feed,
        restored,
    )
    write_weights(options, network)


def train_decoder(options: argparse.Namespace) -> None:
    material = Material(options, host_device())
    device, schedule = material.device, noise_schedule("v_prediction")
    network = trained_network(options).to(device).eval().requires_grad_(False)
    before = load_autoencoder(options).to(device)
    autoencoder = load_autoencoder(options).train()
    feed = material.feed(lambda pictures: pictures, capacity=2048)

    def restored(model: torch.nn.Module) -> Tensor:
        lq_latent = before.encode(material.lq[1].to(device) * 2 - 1)
        latent = restore_latents(network, schedule, lq_latent, steps=8, seed=0)
        rows = [decoded(before, latent), decoded(autoencoder, latent), material.clean]
        own = decoded(autoencoder, before.encode(material.clean.to(device) * 2 - 1))
        logging.info("round trip: %.2f dB", psnr(own, material.clean).mean())
        return make_grid(torch.cat(rows), nrow=SHOWN, padding=0)

    material.fit(
        Decoding(autoencoder),
        decoder_objective(feed, network, schedule, before, options.batch or 24),
        loop_config(
            options, steps=1500, learning_rate=5e-4, warmup_steps=50, ema_decay=0.99, save_every=100
        ),
        feed,
        restored,
    )
    write_weights(options, autoencoder)


def export(options: argparse.Namespace) -> None:
    network = trained_network(options)
    autoencoder = load_autoencoder(options, "decoder")
    views = Material(options, torch.device("cpu")).clean
    factors, bias = rgb_factors(autoencoder, autoencoder.encode(views * 2 - 1))
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
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save(restorer.half(), options.output)
    logging.info("%s: %.1f MB", options.output.name, options.output.stat().st_size / 1e6)


def decoded(autoencoder: PatchAutoencoder, latent: Tensor) -> Tensor:
    """Pictures of latents: (B, 3, H, W) in [0, 1], on the CPU."""
    return ((autoencoder.decode(latent) + 1) / 2).clamp(0, 1).cpu()


STAGES = {
    "autoencoder": train_autoencoder,
    "restorer": train_restorer,
    "decoder": train_decoder,
    "export": export,
}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("stage", choices=STAGES)
    add("--photos", type=Path, nargs="+", default=[], help="folders or tar files of good photos")
    add("--tight", nargs="+", default=[], help="names of folders whose photos are all face")
    add("--start", type=Path, help="bundled restorer whose weights to go on from")
    add("--runs", type=Path, default=REPO / "runs" / "mini", help="states, logs and samples")
    add("--steps", type=int, help="optimiser steps in all")
    add("--batch", type=int, help="pictures per step")
    add("--learning-rate", type=float, help="peak rate")
    add("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes")
    add("--capacity", type=int, default=150_000, help="pairs of latents held; 64 KiB each")
    add("--first-pairs", type=int, default=20_000, help="pairs to make before the first step")
    add("--reuse", type=float, default=4.0, help="how often a pair is used, on average")
    add("--max-seconds", type=float, help="stop and save after this time; run again to go on")
    add(
        "--output",
        type=Path,
        default=REPO / "pfstorer_core" / "assets" / "mini_restorer.safetensors",
    )
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui()
    options.runs.mkdir(parents=True, exist_ok=True)
    try:
        STAGES[options.stage](options)
    except PFStorerError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
