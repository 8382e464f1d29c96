"""Tests of how trials of archives reckon."""

import math
import random

import pytest
from archives.runs import speed


def test_speed_leaves_out_how_a_run_begins_and_ends():
    ends = [0.5 * number for number in range(100)]  # 120 a minute
    random.Random(0).shuffle(ends)
    assert speed(ends) == pytest.approx(120)
    slow_at_both_ends = [end - 600 if end < 4 else end + 600 if end > 46 else end for end in ends]
    assert speed(slow_at_both_ends) == pytest.approx(120)


def test_too_few_photos_have_no_speed():
    assert all(math.isnan(speed(ends)) for ends in ([], [1.0], [2.0, 2.0]))
