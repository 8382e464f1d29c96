"""Intervals of the shares of votes."""

import random

import pytest
import torch
from blind.tally import share_interval, wilson


def test_wilsons_interval_has_known_values() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 5) == pytest.approx((0.0, 0.4345), abs=1e-4)


def test_the_interval_grows_where_voters_disagree_or_pictures_differ() -> None:
    voters = [f"{v}" for v in range(10) for _ in range(10)]
    pictures = [f"{p}" for _ in range(10) for p in range(10)]
    chance = random.Random(0)
    free = [float(chance.random() < 0.5) for _ in voters]
    by_voter = [float(int(v) < 5) for v in voters]
    by_picture = [float(int(p) < 5) for p in pictures]
    widths = []
    for values in (free, by_voter, by_picture):
        mean, low, high = share_interval(voters, pictures, values)
        assert low <= mean <= high
        widths.append(high - low)
    assert min(widths[1:]) > 2 * widths[0]
    assert share_interval(["a"], ["x"], [1.0])[1] < 0.5, "one vote says next to nothing"


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Votes with random leanings of voters and pictures; the truth is the mean over both."""
    generator = torch.Generator().manual_seed(0)
    held, studies = 0, 100
    for study in range(studies):
        lean = torch.randn(8, 1, generator=generator) + torch.randn(1, 15, generator=generator)
        # P(lean + noise > 0.5), all three standard normal
        votes = lean + torch.randn(8, 15, generator=generator) > 0.5
        truth = float(torch.special.ndtr(torch.tensor(-0.5 / 3**0.5)))
        cells = [(f"{v}", f"{p}", float(votes[v, p])) for v in range(8) for p in range(15)]
        _, low, high = share_interval(*zip(*cells, strict=True), seed=study)
        held += low <= truth <= high
    assert held / studies >= 0.88, "0.95 with the error of 100 studies, and few voters"
