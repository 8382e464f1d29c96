"""Confidence intervals of measures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import PFStorerError


def clustered_interval(
    values: Tensor,
    statistic: Callable[[Tensor], Tensor] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return (value, low, high) of a statistic of means over clusters of items.

    Both levels are resampled, first the clusters and then the items of each, so that the interval
    speaks of new clusters: pictures of one person are alike, and many of few people say less than
    as many of different people. With one cluster it speaks of new items of that cluster alone.
    Measures of one item are drawn together: differences and ratios of measures are paired.

    Args:
        values: (clusters, items) or (clusters, items, measures), all finite.
        statistic: means of the measures (..., measures) to (...), for example their difference or
            ratio; by default the mean of the only measure.
        confidence: between 0 and 1.
        resamples: number of draws with replacement.
        seed: makes the interval reproducible.

    Raises:
        PFStorerError: for another shape, too few or infinite values, or a confidence out of range.

    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8.
    """
    sample = values.detach().cpu().double()
    if sample.ndim == 2:
        sample = sample[:, :, None]
    if sample.ndim != 3 or sample.shape[0] * sample.shape[1] < 2:
        raise PFStorerError(
            f"A confidence interval of values of the shape {tuple(values.shape)} was asked for; "
            "give (clusters, items) or (clusters, items, measures) with at least 2 items."
        )
    if statistic is None and sample.shape[2] != 1:
        raise PFStorerError(
            f"{sample.shape[2]} measures need a statistic that makes one number of their means."
        )
    if not bool(sample.isfinite().all()):
        raise PFStorerError("A confidence interval was asked for values that are not all finite.")
    if not 0.0 < confidence < 1.0 or resamples < 1:
        raise PFStorerError(
            f"The confidence is {confidence} with {resamples} resamples; give a confidence "
            "between 0 and 1 and at least 1 resample."
        )
    generator = torch.Generator().manual_seed(seed)
    clusters, items, _ = sample.shape
    rows = torch.randint(clusters, (resamples, clusters, 1), generator=generator)
    columns = torch.randint(items, (resamples, clusters, items), generator=generator)
    means = sample[rows, columns].mean(dim=(1, 2))  # (resamples, measures)
    whole = sample.mean(dim=(0, 1))  # (measures,)
    if statistic is None:
        means, whole = means[:, 0], whole[0]
    else:
        means, whole = statistic(means), statistic(whole)
    tails = torch.tensor([(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0], dtype=torch.float64)
    low, high = means.quantile(tails).tolist()
    return float(whole), low, high
