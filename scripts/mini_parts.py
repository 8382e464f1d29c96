"""The networks of the mini restorer: their sizes, made anew or taken from what a stage left."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from pfstorer_core.errors import PFStorerError
from pfstorer_core.restorers.autoencoder import AutoencoderConfig, PatchAutoencoder
from pfstorer_core.restorers.base import BaseRestorer
from pfstorer_core.restorers.files import load
from pfstorer_core.restorers.stablesr.encoder import EncoderConfig
from pfstorer_core.weights.writing import write_safetensors

if TYPE_CHECKING:
    from pfstorer_core.host.train.network import HostNetwork

SIZE = 128
AUTOENCODER = AutoencoderConfig(
    patch=4,
    latent_channels=16,
    encoder_width=64,
    encoder_depth=2,
    decoder_width=96,
    decoder_depth=4,
    refine_width=24,
)
CONTEXT_DIM = 64
UNET = {
    "image_size": SIZE // AUTOENCODER.patch,
    "in_channels": AUTOENCODER.latent_channels,
    "out_channels": AUTOENCODER.latent_channels,
    "model_channels": 64,
    "num_res_blocks": [1, 2, 2],
    "channel_mult": [1, 2, 3],
    "num_head_channels": 32,
    "num_heads": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": CONTEXT_DIM,
    "transformer_depth": [0, 0, 0, 1, 1],
    "transformer_depth_output": [0, 0, 0, 0, 0, 1, 1, 1],
    "transformer_depth_middle": 1,
    "legacy": False,
}
ENCODER = EncoderConfig(
    in_channels=AUTOENCODER.latent_channels,
    model_channels=64,
    out_channels=64,
    num_res_blocks=1,
    attention_resolutions=(4,),
    channel_mult=(1, 2, 2),
    num_heads=4,
)
SFT_HIDDEN = 48
PROMPT_TOKENS = 8


def build_network(options: argparse.Namespace) -> HostNetwork:
    """The UNet with its restorer, untrained or with the weights of `--start`."""
    from pfstorer_core.host.load.unet import build_unet
    from pfstorer_core.host.sites import find_sft_sites
    from pfstorer_core.host.train.network import HostNetwork
    from pfstorer_core.restorers.checkpoints import UNET_PREFIX

    torch.manual_seed(options.seed)
    unet = build_unet(UNET)
    channels = {site: channels for site, (channels, _) in find_sft_sites(unet).items()}
    prompt = 0.5 * torch.randn(PROMPT_TOKENS, CONTEXT_DIM)
    restorer = BaseRestorer.initialise(
        channels,
        ENCODER,
        hidden=SFT_HIDDEN,
        name="mini",
        prediction_type="v_prediction",
        license="GPL-3.0-or-later",
    )
    if options.start:
        started = start_of(options)
        unet.load_state_dict(part_of(started, UNET_PREFIX))
        restorer.load_state_dict(started.float().state_dict())
        prompt = part_of(started, "cond_stage_model.")["prompt"]
    return HostNetwork(unet, restorer, prompt, train_base=True)


def trained_network(options: argparse.Namespace) -> HostNetwork:
    """The network as the stage "restorer" left it, or as `--start` has it."""
    network = build_network(options)
    path = options.runs / "restorer" / "restorer.safetensors"
    if path.exists() or not options.start:
        network.load_state_dict(load_file(path))
    return network


def load_autoencoder(options: argparse.Namespace, newest: str = "autoencoder") -> PatchAutoencoder:
    """The frozen autoencoder of the newest stage that is there, or of `--start`."""
    autoencoder = PatchAutoencoder(AUTOENCODER)
    autoencoder.silence_refinement()
    for stage in (newest, "autoencoder"):
        path = options.runs / stage / f"{stage}.safetensors"
        if path.exists():
            autoencoder.load_state_dict(load_file(path))
            break
    else:
        if not options.start:
            raise PFStorerError(f"There is no trained autoencoder in '{options.runs}': train it.")
        weights = part_of(start_of(options), "first_stage_model.")
        # a file from before the refinement has all but that
        autoencoder.load_state_dict({**autoencoder.state_dict(), **weights})
    return autoencoder.eval().requires_grad_(False)


def start_of(options: argparse.Namespace) -> BaseRestorer:
    """The bundled restorer that `--start` names.

    Raises:
        PFStorerError: it is none, or of other sizes than this script trains.
    """
    restorer = load(options.start)
    if (restorer.info.bundled or {}).get("unet") != UNET or restorer.info.config != ENCODER:
        raise PFStorerError(
            f"'{options.start}' is no bundled restorer of this script's sizes; leave --start out."
        )
    return restorer


def part_of(restorer: BaseRestorer, prefix: str) -> dict[str, Tensor]:
    """A bundled restorer's weights under a prefix, in float32."""
    state = restorer.bundled_state or {}
    return {k.removeprefix(prefix): t.float() for k, t in state.items() if k.startswith(prefix)}


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


def write_weights(options: argparse.Namespace, model: torch.nn.Module) -> None:
    """Writes what the stage gave to where the next ones look for it."""
    path = options.runs / options.stage / f"{options.stage}.safetensors"
    write_safetensors(path, model.state_dict(), {})
