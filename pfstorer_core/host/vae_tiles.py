"""Encodes and decodes pictures of any size, tile by tile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ..errors import PFStorerError
from ..tiling import Tile, TileBlend, tile_grid
from .memory import available_memory, is_out_of_memory
from .padding import mirrored, pad

logger = logging.getLogger(__name__)

LARGEST_TILE = 128  # latent pixels: 1024 px with Stable Diffusion
SMALLEST_TILE = 16
_OVERLAP = 1 / 4  # of a tile
_USABLE = 0.8  # of the free memory


def encode(
    vae: Any, pictures: Tensor, padded: tuple[int, int], needed: Tensor | None = None
) -> Tensor:
    """Encodes pictures, extended to the right and below by their mirror image.

    Args:
        vae: ComfyUI's VAE.
        pictures: (B, 3, H, W) in [0, 1].
        padded: (height, width) to encode, multiples of the VAE's compression.
        needed: (h, w) on the latent; what lies in tiles that are zero is left out and comes back as
            zeros. None is everything.

    Returns:
        (B, C, h, w) latents as the VAE gives them.
    """
    cell = vae.spacial_compression_encode()
    rows, columns = (
        mirrored(side, whole, pictures.device)
        for side, whole in zip(pictures.shape[2:], padded, strict=True)
    )  # (padded height,), (padded width,)

    def run(tile: Tile) -> Tensor:
        window = tile.scaled(cell)
        cut = pictures[:, :, rows[window.y0 : window.y1]]  # (B, 3, window height, W)
        cut = cut[:, :, :, columns[window.x0 : window.x1]]  # (B, 3, window height, window width)
        latent: Tensor = vae.encode(cut.movedim(1, -1))
        return latent

    def memory(tile: int) -> float:
        side = tile * cell
        return float(vae.memory_used_encode((1, 3, side, side), vae.vae_dtype))

    latent_size = padded[0] // cell, padded[1] // cell
    return _by_tiles(vae, run, memory, latent_size, 1, needed)


def decode(
    vae: Any,
    latent: Tensor,
    needed: Tensor | None = None,
    *,
    fidelity: float = 0.0,
    lq: Tensor | None = None,
) -> Tensor:
    """Decodes latents.

    Args:
        vae: ComfyUI's VAE, or a `FusionVAE` for a fidelity above 0.
        latent: (B, C, h, w) as the VAE takes them.
        needed: (h, w); what lies in tiles that are zero is left out and comes back as in `lq`, or
            as zeros without it. None is everything.
        fidelity: fusion weight w of the LQ image's features, in [0, 1].
        lq: (B, 3, H, W) LQ images at the size of the output or smaller than it by a padding.

    Returns:
        (B, 3, H, W) in [0, 1].

    Source: StableSR (arXiv 2305.07015), section 3.3, for the fusion.
    """
    cell = vae.spacial_compression_decode()
    rows = columns = torch.empty(0)
    if fidelity > 0 and lq is not None:
        rows, columns = (
            mirrored(side, whole * cell, lq.device)
            for side, whole in zip(lq.shape[2:], latent.shape[2:], strict=True)
        )

    def run(tile: Tile) -> Tensor:
        samples = tile.crop(latent)
        if fidelity > 0 and lq is not None:
            window = tile.scaled(cell)
            cut = lq[:, :, rows[window.y0 : window.y1]]
            cut = cut[:, :, :, columns[window.x0 : window.x1]].movedim(1, -1)  # (B, h, w, 3)
            decoded = vae.decode_with(samples, cut, fidelity)
        else:
            decoded = vae.decode(samples)
        pictures: Tensor = decoded.movedim(-1, 1)
        return pictures

    def memory(tile: int) -> float:
        shape = (1, latent.shape[1], tile, tile)
        estimate = vae.memory_used_decode_with if fidelity > 0 else vae.memory_used_decode
        return float(estimate(shape, vae.vae_dtype))

    height, width = latent.shape[2:]
    elsewhere: Tensor | float = 0.0
    if needed is not None and lq is not None:
        elsewhere = pad(lq, (height * cell, width * cell))
    return _by_tiles(vae, run, memory, (height, width), cell, needed, elsewhere)


def _by_tiles(
    vae: Any,
    run: Callable[[Tile], Tensor],
    memory: Callable[[int], float],
    latent_size: tuple[int, int],
    scale: int,
    needed: Tensor | None,
    elsewhere: Tensor | float = 0.0,
) -> Tensor:
    """Blends what `run` gives for tiles of the latent, with smaller ones when memory runs out.

    Args:
        memory: bytes that a tile of a side takes.
        scale: how much larger the result is than the latent.
        elsewhere: what comes back where no tile is needed.
    """
    usable = _USABLE * available_memory(vae.patcher)
    side = min(LARGEST_TILE, max(latent_size))
    while memory(side) > usable and side // 2 >= SMALLEST_TILE:
        side //= 2
    while True:
        try:
            return _blend(run, latent_size, side, scale, needed, elsewhere)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # After the handler, because the error holds on to the tensors of the failed try.
        mm.soft_empty_cache()
        if side // 2 < SMALLEST_TILE:
            raise PFStorerError(
                f"There is not enough memory for the VAE even with tiles of {side} latent pixels; "
                "close other programs, or start ComfyUI with --lowvram or --cpu-vae."
            )
        side //= 2
        logger.warning("Out of memory in the VAE; going on with tiles of %d latent pixels", side)


def _blend(
    run: Callable[[Tile], Tensor],
    latent_size: tuple[int, int],
    side: int,
    scale: int,
    needed: Tensor | None,
    elsewhere: Tensor | float,
) -> Tensor:
    tiles = tile_grid(*latent_size, side, int(side * _OVERLAP))
    if needed is not None:
        tiles = [tile for tile in tiles if tile.crop(needed).any()]
    blend = None
    for tile in tiles:
        mm.throw_exception_if_processing_interrupted()
        output = run(tile)
        if len(tiles) == 1 and tile.size == latent_size:
            return output
        if blend is None:
            whole = (latent_size[0] * scale, latent_size[1] * scale)
            blend = TileBlend((*output.shape[:2], *whole), output.device)
        blend.add(tile.scaled(scale), output)
    if blend is None:
        raise PFStorerError("Nothing is to be restored: the masks are empty.")
    if isinstance(elsewhere, Tensor):
        elsewhere = elsewhere.to(output)
    return blend.mean(elsewhere)
