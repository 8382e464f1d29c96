import numpy as np
import pytest
import torch
from scipy import stats

from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.intervals import clustered_interval


def plain_interval(
    values: torch.Tensor, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """The interval of the mean that knows of no clusters, as SciPy computes it."""
    found = stats.bootstrap(
        (values.double().flatten().numpy(),),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def test_clustered_interval_is_a_function_of_its_seed() -> None:
    values = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    first = clustered_interval(values)
    assert first[0] == pytest.approx(float(values.mean()), abs=1e-6)
    assert first == clustered_interval(values)
    assert first[1:] != clustered_interval(values, seed=1)[1:]


def test_clustered_interval_of_equal_values_has_no_width() -> None:
    assert clustered_interval(torch.full((1, 3), 2.0)) == (2.0, 2.0, 2.0)


def test_clustered_interval_covers_new_clusters_better_than_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = {"clustered": 0, "plain": 0}
    for _ in range(200):
        values = torch.randn(20, 1, generator=generator) + torch.randn(20, 8, generator=generator)
        settings = {"confidence": 0.8, "resamples": 400}
        _, low, high = clustered_interval(values, **settings)
        covered["clustered"] += low <= 0.0 <= high
        low, high = plain_interval(values, **settings)
        covered["plain"] += low <= 0.0 <= high
    assert 0.70 < covered["clustered"] / 200 < 0.90
    assert covered["plain"] / 200 < 0.60


def test_clustered_interval_of_one_cluster_is_the_plain_one() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    clustered = clustered_interval(values[None])
    assert clustered[1:] == pytest.approx(plain_interval(values), abs=0.02)
    assert clustered_interval(values[:, None]) == pytest.approx(clustered, abs=0.02)


def test_clustered_interval_pairs_the_measures_of_an_item() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 16, generator=generator)
    pair = torch.stack([base + 0.5, base], dim=-1)
    for value in clustered_interval(pair, lambda m: m[..., 0] - m[..., 1]):
        assert value == pytest.approx(0.5, abs=1e-5)
    ratio = clustered_interval(
        torch.stack([3 * base.abs(), base.abs()], dim=-1), lambda m: m[..., 0] / m[..., 1]
    )
    assert ratio == pytest.approx((3.0, 3.0, 3.0), abs=1e-5)


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        (torch.zeros(1, 1), {}),
        (torch.zeros(4), {}),
        (torch.zeros(2, 2, 2), {}),
        (torch.full((2, 2), torch.nan), {}),
        (torch.zeros(2, 2), {"confidence": 1.0}),
        (torch.zeros(2, 2), {"resamples": 0}),
    ],
)
def test_senseless_clustered_intervals_are_refused(values: torch.Tensor, settings: dict) -> None:
    with pytest.raises(PFStorerError):
        clustered_interval(values, **settings)
