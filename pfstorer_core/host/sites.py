"""The blocks of ComfyUI's UNet at which restorers and identity adapters work."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    Downsample,
    ResBlock,
    Upsample,
    VideoResBlock,
)
from torch import Tensor, nn

from ..errors import PFStorerError
from ..restorers.steering import Steering

PATCH = "forward_timestep_embed_patch"
BLOCK_LAYERS = (ResBlock, SpatialTransformer)
DIGESTED = ("time_embed.0.bias", "input_blocks.0.0.bias", "out.2.weight")
# In which ComfyUI loads UNets.
_LOAD_TYPES = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def find_sft_sites(unet: Any, checkpoint: str = "the MODEL") -> dict[str, tuple[int, int]]:
    """Finds the residual blocks of a UNet that can carry SFT.

    Args:
        unet: ComfyUI's `UNetModel`.
        checkpoint: how an error shall call the UNet's file.

    Returns:
        Site name, such as "input_blocks.1.0", to (channels, level), where level is the number of
        downsamplings before the site.

    Raises:
        PFStorerError: the model is no UNet, or one whose blocks cannot be split at the skip sum.
    """
    if not all(hasattr(unet, name) for name in ("input_blocks", "middle_block", "output_blocks")):
        raise PFStorerError(
            f"The diffusion model of {checkpoint} is a {type(unet).__name__}, but a restorer needs "
            "the UNet of Stable Diffusion 1.5, 2.1 or XL; load that checkpoint."
        )
    sites: dict[str, tuple[int, int]] = {}
    level = 0
    for name, stage in _stages(unet):
        for i, layer in enumerate(stage):
            site = f"{name}.{i}"
            if isinstance(layer, ResBlock):
                _check_res_block(checkpoint, site, layer)
                sites[site] = (layer.out_channels, level)
            elif isinstance(layer, Downsample):
                level += 1
            elif isinstance(layer, Upsample):
                level -= 1
            elif isinstance(layer, SpatialVideoTransformer):
                raise PFStorerError(_unsupported(checkpoint, site, "is a video transformer"))
    return sites


def find_identity_sites(unet: Any) -> dict[str, int]:
    """Finds the blocks of a UNet after which a personalization block can stand.

    A block is a residual block with the transformer that follows it, if one does; the site is the
    last layer of it. The middle block counts as one.

    Args:
        unet: ComfyUI's `UNetModel`, which `find_sft_sites` accepts.

    Returns:
        Site name, such as "input_blocks.1.1", to channels.

    Source: PFStorer (arXiv 2403.08436), section 3: a block after each block of the base.
    """
    sites = {}
    for name, stage in _stages(unet):
        layers = [(i, x) for i, x in enumerate(stage) if isinstance(x, BLOCK_LAYERS)]
        if any(isinstance(x, ResBlock) for _, x in layers):
            index, last = layers[-1]
            channels = last.out_channels if isinstance(last, ResBlock) else last.in_channels
            sites[f"{name}.{index}"] = channels
    return sites


def size_step(unet: Any) -> int:
    """Returns what the sides of a latent must be a multiple of, so that each level is whole."""
    return int(2 ** max(level for _, level in find_sft_sites(unet).values()))


def unet_digests(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns digests (hex) of a few weights, which tell checkpoints of one shape apart.

    Args:
        weights: of a UNet, by name, as they lie in its file: ComfyUI may round them when it loads.

    Returns:
        First what adapters carry. It is of the weights in fp16, so that a checkpoint in float32 has
        the same one. Then those that adapters of earlier versions have, which took the weights as
        ComfyUI had rounded them.
    """
    digests = []
    for load_type in (torch.float32, *_LOAD_TYPES):
        digest = hashlib.sha256()
        for name in DIGESTED:
            weight = weights[name].detach().cpu().float().to(load_type).half()
            digest.update(weight.contiguous().numpy().tobytes())
        digests.append(digest.hexdigest()[:16])
    return tuple(digests)


def check_fit(unet: nn.Module, restorer: Steering, checkpoint: str = "the MODEL") -> None:
    """Checks that a restorer's SFT blocks fit the UNet.

    Args:
        unet: ComfyUI's `UNetModel`.
        restorer: encoder and SFT blocks.
        checkpoint: how an error shall call the UNet's file.

    Raises:
        PFStorerError: the restorer is made for another UNet.
    """
    found = find_sft_sites(unet, checkpoint)
    name = restorer.info.name
    for site, channels in restorer.site_channels.items():
        if site not in found:
            raise PFStorerError(
                f"Restorer '{name}' has an SFT block for {site}, which the UNet of {checkpoint} "
                "does not have; choose the checkpoint that the restorer was trained on."
            )
        if found[site][0] != channels:
            raise PFStorerError(
                f"Restorer '{name}' has {channels} channels at {site}, but the UNet of "
                f"{checkpoint} has {found[site][0]}; choose the checkpoint that the restorer was "
                "trained on."
            )
        if found[site][1] >= restorer.levels:
            raise PFStorerError(
                f"The encoder of restorer '{name}' has {restorer.levels} levels, too few for "
                f"{site} in the UNet of {checkpoint}; choose the checkpoint that the restorer was "
                "trained on."
            )


def _stages(unet: Any) -> list[tuple[str, Any]]:
    stages: list[tuple[str, Any]] = [
        (f"input_blocks.{i}", stage) for i, stage in enumerate(unet.input_blocks)
    ]
    stages.append(("middle_block", unet.middle_block or ()))
    return stages + [(f"output_blocks.{i}", stage) for i, stage in enumerate(unet.output_blocks)]


def _check_res_block(checkpoint: str, site: str, layer: Any) -> None:
    if isinstance(layer, VideoResBlock):
        raise PFStorerError(_unsupported(checkpoint, site, "is a video block"))
    for trait in ("updown", "use_scale_shift_norm", "exchange_temb_dims", "skip_t_emb"):
        if getattr(layer, trait, False):
            raise PFStorerError(_unsupported(checkpoint, site, f"uses {trait}"))


def _unsupported(checkpoint: str, site: str, reason: str) -> str:
    return (
        f"The block {site} in the UNet of {checkpoint} {reason}, which a restorer cannot steer; "
        "load a Stable Diffusion 1.5, 2.1 or XL checkpoint."
    )
