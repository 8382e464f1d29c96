import pytest
import torch

from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.intervals import bootstrap_interval, clustered_interval


def test_bootstrap_interval_of_many_values_is_the_normal_one() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 3.0 + 10.0
    mean, low, high = bootstrap_interval(values)
    assert mean == pytest.approx(float(values.mean()), abs=1e-5)
    half = 1.96 * float(values.std()) / 20.0
    assert mean - low == pytest.approx(half, rel=0.1)
    assert high - mean == pytest.approx(half, rel=0.1)
    assert (mean, low, high) == bootstrap_interval(values.tolist())
    assert (low, high) != bootstrap_interval(values, seed=1)[1:]


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(300):
        _, low, high = bootstrap_interval(
            torch.randn(40, generator=generator), confidence=0.8, resamples=400
        )
        covered += low <= 0.0 <= high
    assert 0.72 < covered / 300 < 0.86


def test_bootstrap_interval_of_equal_values_has_no_width() -> None:
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        ([1.0], {}),
        ([], {}),
        ([1.0, float("inf")], {}),
        ([1.0, 2.0], {"confidence": 1.0}),
        ([1.0, 2.0], {"resamples": 0}),
    ],
)
def test_senseless_intervals_are_refused(values: list[float], settings: dict) -> None:
    with pytest.raises(PFStorerError):
        bootstrap_interval(values, **settings)


def test_clustered_interval_covers_new_clusters_better_than_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = {"clustered": 0, "plain": 0}
    for _ in range(200):
        values = torch.randn(20, 1, generator=generator) + torch.randn(20, 8, generator=generator)
        settings = {"confidence": 0.8, "resamples": 400}
        _, low, high = clustered_interval(values, **settings)
        covered["clustered"] += low <= 0.0 <= high
        _, low, high = bootstrap_interval(values, **settings)
        covered["plain"] += low <= 0.0 <= high
    assert 0.70 < covered["clustered"] / 200 < 0.90
    assert covered["plain"] / 200 < 0.60


def test_clustered_interval_of_one_cluster_is_the_plain_one() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    clustered = clustered_interval(values[None])
    assert clustered == pytest.approx(bootstrap_interval(values), abs=0.02)
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
    ],
)
def test_senseless_clustered_intervals_are_refused(values: torch.Tensor, settings: dict) -> None:
    with pytest.raises(PFStorerError):
        clustered_interval(values, **settings)
