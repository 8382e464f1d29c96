"""Encodes and decodes pictures of any size, tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
from torch import Tensor

from ...errors import PFStorerError
from ...tiling.grid import Tile, TileBlend, tile_grid
from ..memory import available_memory, retry_smaller
from .padding import pad, padded_window

LARGEST_TILE = 128  # latent pixels: 1024 px with Stable Diffusion
SMALLEST_TILE = 16
_OVERLAP = 1 / 4  # of a tile
_USABLE = 0.8  # of the free memory


def encode(
    vae: Any,
    pictures: Tensor,
    padded: tuple[int, int],
    needed: Tensor | None = None,
    tell: Callable[[str], None] | None = None,
) -> Tensor:
    """Encodes pictures, extended to the right and below by their mirror image.

    Args:
        vae: ComfyUI's VAE.
        pictures: (B, 3, H, W) in [0, 1].
        padded: (height, width) to encode, multiples of the VAE's compression.
        needed: (h, w) on the latent; what lies in tiles that are zero is left out and comes back as
            zeros. None is everything.
        tell: is told when memory runs out.

    Returns:
        (B, C, h, w) latents as the VAE gives them.

    Raises:
        PFStorerError: nothing is needed, or not even a small tile fits into memory.
    """
    cell = vae.spacial_compression_encode()

    def run(tile: Tile) -> Tensor:
        cut = padded_window(pictures, padded, tile.scaled(cell))
        latent: Tensor = vae.encode(cut.movedim(1, -1))
        return latent

    def memory(tile: int) -> float:
        side = tile * cell
        return float(vae.memory_used_encode((1, 3, side, side), vae.vae_dtype))

    latent_size = padded[0] // cell, padded[1] // cell
    return _Tiled(vae, run, memory, latent_size, 1, needed).done(tell)


def decode(
    vae: Any,
    latent: Tensor,
    needed: Tensor | None = None,
    *,
    fidelity: float = 0.0,
    lq: Tensor | None = None,
    tell: Callable[[str], None] | None = None,
) -> Tensor:
    """Decodes latents.

    Args:
        vae: ComfyUI's VAE, or a `FusionVAE` for a fidelity above 0.
        latent: (B, C, h, w) as the VAE takes them.
        needed: (h, w); what lies in tiles that are zero is left out and comes back as in `lq`, or
            as zeros without it. None is everything.
        fidelity: fusion weight w of the LQ image's features, in [0, 1].
        lq: (B, 3, H, W) LQ images at the size of the output or smaller than it by a padding.
        tell: is told when memory runs out.

    Returns:
        (B, 3, H, W) in [0, 1].

    Raises:
        PFStorerError: nothing is needed, or not even a small tile fits into memory.

    Source: StableSR (arXiv 2305.07015), section 3.3, for the fusion.
    """
    cell = vae.spacial_compression_decode()
    height, width = latent.shape[2:]
    padded = height * cell, width * cell

    def run(tile: Tile) -> Tensor:
        samples = tile.crop(latent)
        if fidelity > 0 and lq is not None:
            cut = padded_window(lq, padded, tile.scaled(cell))
            decoded = vae.decode_with(samples, cut.movedim(1, -1), fidelity)
        else:
            decoded = vae.decode(samples)
        pictures: Tensor = decoded.movedim(-1, 1)
        return pictures

    def memory(tile: int) -> float:
        shape = (1, latent.shape[1], tile, tile)
        estimate = vae.memory_used_decode_with if fidelity > 0 else vae.memory_used_decode
        return float(estimate(shape, vae.vae_dtype))

    elsewhere: Tensor | float = 0.0
    if needed is not None and lq is not None:
        elsewhere = pad(lq, padded)
    return _Tiled(vae, run, memory, (height, width), cell, needed, elsewhere).done(tell)


@dataclass(frozen=True)
class _Tiled:
    """Work of a VAE that is done by tiles, with smaller ones when memory runs out.

    On a GPU the host's VAE answers that itself first, with tiles of its own.

    Args:
        vae: ComfyUI's VAE.
        run: what is done for a tile of the latent.
        memory: bytes that a tile of a side takes.
        latent_size: (h, w).
        scale: how much larger the result is than the latent.
        needed: (h, w); tiles in which it is zero are left out. None is everything.
        elsewhere: what comes back where no tile is needed.
    """

    vae: Any
    run: Callable[[Tile], Tensor]
    memory: Callable[[int], float]
    latent_size: tuple[int, int]
    scale: int
    needed: Tensor | None
    elsewhere: Tensor | float = 0.0

    def done(self, tell: Callable[[str], None] | None) -> Tensor:
        """Returns the blended result."""
        usable = _USABLE * available_memory(self.vae.patcher)
        side = min(LARGEST_TILE, max(self.latent_size))
        while self.memory(side) > usable and side // 2 >= SMALLEST_TILE:
            side //= 2

        def shrink() -> str:
            nonlocal side
            if side // 2 < SMALLEST_TILE:
                raise PFStorerError(
                    f"There is not enough memory for the VAE even with tiles of {side} latent "
                    "pixels; close other programs, or start ComfyUI with --lowvram or --cpu-vae."
                )
            side //= 2
            return f"in the VAE; going on with tiles of {side} latent pixels"

        return retry_smaller(lambda: self._blend(side), shrink, tell)

    def _blend(self, side: int) -> Tensor:
        tiles = tile_grid(*self.latent_size, side, int(side * _OVERLAP))
        if self.needed is not None:
            tiles = [tile for tile in tiles if tile.crop(self.needed).any()]
        blend = None
        for tile in tiles:
            mm.throw_exception_if_processing_interrupted()
            output = self.run(tile)
            if len(tiles) == 1 and tile.size == self.latent_size:
                return output
            if blend is None:
                whole = [length * self.scale for length in self.latent_size]
                blend = TileBlend((*output.shape[:2], *whole), output.device)
            blend.add(tile.scaled(self.scale), output)
        if blend is None:
            raise PFStorerError("Nothing is to be restored: the masks are empty.")
        elsewhere = self.elsewhere
        return blend.mean(elsewhere.to(output) if isinstance(elsewhere, Tensor) else elsewhere)
