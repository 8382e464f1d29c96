"""Ranges that settings give, their checks, and draws from them."""

from __future__ import annotations

import math
from typing import Any

import torch

from .errors import PFStorerError

Range = tuple[float, float]


def check_range(name: str, limits: Range, smallest: float, largest: float = math.inf) -> None:
    """Raise PFStorerError unless smallest <= low <= high <= largest."""
    if len(limits) != 2 or not smallest <= limits[0] <= limits[1] <= largest:
        raise PFStorerError(
            f"{name} is {limits}; give (low, high) with {smallest} <= low <= high <= {largest}."
        )


def check_probability(name: str, value: float) -> None:
    """Raise PFStorerError unless the value is from 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise PFStorerError(f"{name} is {value}; give a probability from 0 to 1.")


def check_weights(name: str, weights: tuple[float, ...], count: int) -> None:
    """Raise PFStorerError unless there are `count` weights, none below 0 and not all 0."""
    if len(weights) != count or min(weights) < 0.0 or sum(weights) <= 0.0:
        raise PFStorerError(
            f"{name} is {weights}; give {count} weights of at least 0, not all of them 0."
        )


def lists_to_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings read from JSON, which knows no tuples, as they were."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def draw_uniform(generator: torch.Generator, limits: Range) -> float:
    """Return a number between the limits."""
    low, high = limits
    return low + (high - low) * float(torch.rand((), generator=generator))


def draw_chance(generator: torch.Generator, probability: float) -> bool:
    """Return True with this probability."""
    return float(torch.rand((), generator=generator)) < probability


def draw_choice(
    generator: torch.Generator, options: tuple[str, ...], weights: tuple[float, ...] | None = None
) -> str:
    """Return one of the options, equally likely without weights."""
    weights = weights or (1.0,) * len(options)
    left = draw_uniform(generator, (0.0, sum(weights)))
    for option, weight in zip(options, weights, strict=True):
        left -= weight
        if left < 0.0:
            return option
    return options[-1]
