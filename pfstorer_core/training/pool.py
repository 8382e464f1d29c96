"""Pre-encoded (clean, LQ) latent pairs, so that no training has the autoencoder in its loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from ..degradation import DegradationConfig, degrade
from ..errors import PFStorerError
from ..files import write_safetensors

# (count, generator) -> (count, 3, H, W) in [0, 1]
ImageSource = Callable[[int, torch.Generator], Tensor]
# (B, 3, H, W) in [0, 1] -> (B, C, h, w), scaled like diffusion latents
Encode = Callable[[Tensor], Tensor]
WeightedDegradations = Sequence[tuple[float, DegradationConfig]]


class LatentPool:
    """Clean and LQ latents of the same pictures.

    Attributes:
        clean, lq: (N, C, h, w) float16.
    """

    def __init__(self, clean: Tensor, lq: Tensor):
        if clean.shape != lq.shape:
            raise PFStorerError(
                f"Clean and LQ latents differ in shape: {tuple(clean.shape)}, {tuple(lq.shape)}."
            )
        self.clean, self.lq = clean, lq

    def __len__(self) -> int:
        return len(self.clean)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random pairs: two (count, C, h, w) float32 tensors."""
        index = torch.randint(len(self), (count,), generator=generator)
        return self.clean[index].float(), self.lq[index].float()


def degrade_mixed(
    images: Tensor, degradations: WeightedDegradations, generator: torch.Generator
) -> Tensor:
    """Degrades each of (B, 3, H, W) pictures in [0, 1] by one of the configs, drawn by weight."""
    weights = torch.tensor([weight for weight, _ in degradations])
    choice = torch.multinomial(weights, len(images), replacement=True, generator=generator)
    return torch.cat(
        [
            degrade(image[None], degradations[k][1], generator)
            for image, k in zip(images, choice, strict=True)
        ]
    )


def build_shards(
    folder: Path,
    source: ImageSource,
    degradations: WeightedDegradations,
    encode: Encode,
    shards: Sequence[int],
    *,
    shard_size: int = 1024,
    batch: int = 32,
    seed: int = 0,
) -> None:
    """Writes the numbered shards of a pool that are not there yet.

    A shard depends on its number and the seed alone, so several processes may each build a part.

    Args:
        folder: where `pool-NNNN.safetensors` go.
        source: gives clean pictures.
        degradations: (weight, config) of the LQ pictures.
        encode: the frozen autoencoder.
        shards: the numbers to build.
        shard_size: pairs per shard, a multiple of `batch`.
        batch: pictures that are encoded at once.
        seed: of pictures and degradations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for shard in tqdm(shards, desc="latent pool", mininterval=10):
        path = folder / f"pool-{shard:04d}.safetensors"
        if path.exists():
            continue
        # the CPU generator looks at the low 32 bits of a seed only
        generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + shard) & 0xFFFFFFFF)
        clean, lq = [], []
        for _ in range(shard_size // batch):
            images = source(batch, generator)
            with torch.no_grad():
                clean.append(encode(images).half())
                lq.append(encode(degrade_mixed(images, degradations, generator)).half())
        write_safetensors(path, {"clean": torch.cat(clean), "lq": torch.cat(lq)}, {})


def load_pool(folder: Path, limit: int | None = None) -> LatentPool:
    """Reads the (first `limit`) shards of a folder into memory.

    Raises:
        PFStorerError: no shard there, or a damaged one.
    """
    paths = sorted(folder.glob("pool-*.safetensors"))[:limit]
    if not paths:
        raise PFStorerError(f"No latent pool in {folder.name}: build it first.")
    clean, lq = [], []
    for path in paths:
        try:
            shard = load_file(path)
        except (SafetensorError, OSError) as error:
            raise PFStorerError(
                f"The latent pool's {path.name} is damaged: delete it and build it again."
            ) from error
        clean.append(shard["clean"])
        lq.append(shard["lq"])
    return LatentPool(torch.cat(clean), torch.cat(lq))
