"""Tests of the feed: what it holds is a function of the draws and the seed, whoever makes it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pfstorer_core.degradation.config import DegradationConfig, StageConfig
from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.training.feed import CHUNK, PairFeed
from pfstorer_core.training.photo_views import PhotoViews

LIGHT = [(1.0, PRESETS["light"])]


class Grey:
    """Pictures of one random grey each."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        level = torch.rand(count, 1, 1, 1, generator=generator)
        return level.expand(count, 3, 16, 16).clone()


def encode(pictures: Tensor) -> Tensor:
    return F.pixel_unshuffle(pictures, 4)


def feed(source=None, workers: int = 0, seed: int = 0) -> PairFeed:
    settings = {"capacity": 4 * CHUNK, "first": 2 * CHUNK, "reuse": 0.5}
    return PairFeed(
        [(1.0, source or Grey(), LIGHT)], encode, workers=workers, seed=seed, **settings
    )


def draws(pairs: PairFeed, steps: range) -> list[tuple[Tensor, Tensor]]:
    return [pairs.draw(8, torch.Generator().manual_seed(k)) for k in steps]


def same(some: list[tuple[Tensor, Tensor]], others: list[tuple[Tensor, Tensor]]) -> bool:
    return all(
        torch.equal(x, y)
        for a, b in zip(some, others, strict=True)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_feed_draws_what_an_uninterrupted_one_does(workers):
    """Also after the ring has been filled several times over, and whoever makes the pairs."""
    # workers import what they draw from, so that is the package's own
    source = PhotoViews([], 32) if workers else Grey()
    whole = draws(feed(source), range(12))
    first = feed(source, workers)
    assert same(draws(first, range(7)), whole[:7])
    second = feed(source, workers)
    second.load_state_dict(first.state_dict())
    assert same(draws(second, range(7, 12)), whole[7:])


def test_the_seed_decides():
    assert not same(draws(feed(), range(2)), draws(feed(seed=1), range(2)))


def test_pairs_stay_together():
    clean, lq = draws(feed(), range(1))[0]
    distance = torch.cdist(lq.flatten(1), clean.flatten(1))
    assert torch.equal(
        distance.argmin(1), torch.cdist(clean.flatten(1), clean.flatten(1)).argmin(1)
    )


def test_new_pairs_come_in_at_the_rate_of_their_use():
    """With `reuse` 2, 16 pairs are made for 32 that are drawn, after the first ones."""
    made = []

    def counting(pictures: Tensor) -> Tensor:
        made.append(len(pictures) // 2)
        return encode(pictures)

    parts = [(1.0, Grey(), LIGHT)]
    pairs = PairFeed(parts, counting, capacity=1024, first=2 * CHUNK, reuse=2.0, seed=0)
    draws(pairs, range(1))
    assert sum(made) == 2 * CHUNK
    draws(pairs, range(16))  # 8 of them each, 128 more
    assert sum(made) == 2 * CHUNK + 128 // 2


def test_shown_pairs_are_the_first_ones():
    clean, lq = feed().shown(3)
    again, _ = feed(seed=0).shown(3)
    assert clean.shape == lq.shape == (3, 48, 4, 4)
    assert torch.equal(clean, again)


class Level:
    """Pictures of one grey."""

    def __init__(self, level: float) -> None:
        self.level = level

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.full((count, 3, 16, 16), self.level)


def test_each_part_has_its_weight_and_its_own_degradations():
    calm, noisy = (
        DegradationConfig(
            first=StageConfig(noise_sigma=(sigma, sigma), jpeg_quality=(95.0, 95.0)),
            second_order_probability=0.0,
            downsample=(1.0, 1.0),
        )
        for sigma in (0.0, 60.0)
    )
    parts = [(3.0, Level(0.25), [(1.0, calm)]), (1.0, Level(0.75), [(1.0, noisy)])]
    pairs = PairFeed(parts, encode, capacity=64 * CHUNK, first=32 * CHUNK, seed=0)
    clean, lq = pairs.draw(2000, torch.Generator().manual_seed(0))
    bright = clean.mean((1, 2, 3)) > 0.5
    assert 0.18 < bright.float().mean() < 0.32
    spread = (lq - clean).flatten(1).std(1)
    assert spread[~bright].max() < 0.02 < 0.05 < spread[bright].min()
