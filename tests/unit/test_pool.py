"""Tests of the latent pool."""

import pytest
import torch

from pfstorer_core.degradation import PRESETS
from pfstorer_core.errors import PFStorerError
from pfstorer_core.training.pool import LatentPool, build_shards, degrade_mixed, load_pool


def source(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=generator)


def encode(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pixel_unshuffle(images, 4)


def build(folder, shards, seed=0):
    build_shards(
        folder, source, [(1.0, PRESETS["light"])], encode, shards, shard_size=8, batch=4, seed=seed
    )


def test_shards_depend_on_number_and_seed_alone(tmp_path):
    build(tmp_path / "a", [0, 1])
    build(tmp_path / "b", [1])
    build(tmp_path / "b", [0])
    build(tmp_path / "c", [0, 1], seed=1)
    a, b, c = (load_pool(tmp_path / name) for name in "abc")
    assert torch.equal(a.clean, b.clean)
    assert torch.equal(a.lq, b.lq)
    assert not torch.equal(a.clean, c.clean)
    assert not torch.equal(a.clean[:8], a.clean[8:])


def test_existing_shards_are_kept(tmp_path):
    build(tmp_path, [0])
    before = (tmp_path / "pool-0000.safetensors").stat().st_mtime_ns
    build(tmp_path, [0, 1])
    assert (tmp_path / "pool-0000.safetensors").stat().st_mtime_ns == before
    assert len(load_pool(tmp_path)) == 16
    assert len(load_pool(tmp_path, limit=1)) == 8


def test_lq_belongs_to_its_clean_picture(tmp_path):
    build(tmp_path, [0])
    pool = load_pool(tmp_path)
    clean, lq = (x.flatten(1).float() for x in (pool.clean, pool.lq))
    distance = torch.cdist(lq, clean)  # (N, N)
    assert torch.equal(distance.argmin(1), torch.arange(8))


def test_draw_repeats_with_the_generator(tmp_path):
    build(tmp_path, [0])
    pool = load_pool(tmp_path)
    first, second = (pool.draw(3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[0].dtype == torch.float32


def test_mixed_degradation_uses_every_config():
    """With weight on one preset alone, the result has its strength."""
    images = torch.nn.functional.interpolate(
        torch.rand(6, 3, 16, 16), size=64, mode="bicubic"
    ).clamp(0, 1)
    weak, strong = PRESETS["light"], PRESETS["extreme"]
    losses = []
    for weights in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)):
        mixed = degrade_mixed(
            images,
            list(zip(weights, (weak, strong), strict=True)),
            torch.Generator().manual_seed(0),
        )
        losses.append((mixed - images).pow(2).mean((1, 2, 3)))
    assert losses[0].mean() < losses[1].mean() < losses[2].mean()


def test_errors(tmp_path):
    with pytest.raises(PFStorerError, match="No latent pool"):
        load_pool(tmp_path)
    (tmp_path / "pool-0000.safetensors").write_bytes(b"\x10")
    with pytest.raises(PFStorerError, match="damaged"):
        load_pool(tmp_path)
    with pytest.raises(PFStorerError, match="differ in shape"):
        LatentPool(torch.zeros(1, 4, 2, 2), torch.zeros(2, 4, 2, 2))
