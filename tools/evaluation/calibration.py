"""Constants of the code, chosen by what was measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GRID = 0.05  # to which the ends of a ramp are rounded

Ends = tuple[float, float]


def fit_ramp(levels: Sequence[float], values: Sequence[float]) -> tuple[Ends, Ends]:
    """Returns the ramp that passes nearest to points: flat, then straight, then flat again.

    Args:
        levels: of the points, in [0, 1], some of them 0.1 apart.
        values: of the points.

    Returns:
        The levels between which it rises or falls, multiples of 0.05, and its values there.
    """
    x, y = torch.tensor(levels, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    # Within the points, so that none of the values there is a guess.
    grid = range(math.ceil(min(levels) / _GRID), math.floor(max(levels) / _GRID) + 1)
    fits = []
    for low, high in itertools.combinations([round(k * _GRID, 2) for k in grid], 2):
        share = ((x - low) / (high - low)).clamp(0, 1)
        parts = torch.stack([1 - share, share], 1)  # (N, 2): of the first and of the last value
        ends = torch.linalg.lstsq(parts, y).solution
        error = float((parts @ ends - y).square().sum())
        fits.append((round(error, 9), (low, high), (float(ends[0]), float(ends[1]))))
    _, between, reached = min(fits)
    return between, reached


def ramp(levels: Tensor, between: Ends, ends: Ends) -> Tensor:
    """Returns the values of a ramp of `fit_ramp` at levels, of their shape."""
    (low, high), (first, last) = between, ends
    return first + (last - first) * ((levels - low) / (high - low)).clamp(0, 1)


def best_strength(
    strengths: Sequence[float], similarity: Tensor, quality: Tensor, tolerated: float
) -> float:
    """Returns the strength of the best quality among those that are as good as most similar.

    Args:
        strengths: S of them.
        similarity, quality: (S,) means of what was measured with each.
        tolerated: how far below the best similarity still counts as good.
    """
    good = similarity >= similarity.max() - tolerated
    return strengths[int(quality.masked_fill(~good, float("-inf")).argmax())]
