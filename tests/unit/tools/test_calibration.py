"""Constants of the code, chosen by what was measured."""

import pytest
import torch
from evaluation.calibration import best_strength, fit_ramp


def test_a_ramp_is_found_again() -> None:
    levels = [0.0, 0.2, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0]
    for (low, high), (first, last) in (((0.4, 0.75), (0.85, 1.0)), ((0.1, 0.9), (-0.2, -0.3))):
        values = [first + (last - first) * min(max((x - low) / (high - low), 0), 1) for x in levels]
        between, ends = fit_ramp(levels, values)
        assert between == pytest.approx((low, high)) and ends == pytest.approx((first, last))


def test_points_on_one_height_make_a_flat_ramp() -> None:
    _, ends = fit_ramp([0.1, 0.5, 0.9], [0.7, 0.7, 0.7])
    assert ends == pytest.approx((0.7, 0.7))


def test_the_best_strength_is_the_truest_of_the_similar_ones() -> None:
    strengths = [0.0, 0.5, 1.0, 1.5]
    similarity = torch.tensor([0.2, 0.496, 0.5, 0.3])
    quality = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert best_strength(strengths, similarity, quality, tolerated=0.005) == 0.5
    assert best_strength(strengths, similarity, quality, tolerated=0.0) == 1.0
    assert best_strength(strengths, similarity, quality, tolerated=1.0) == 0.0
