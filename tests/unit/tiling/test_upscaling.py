"""Sizes of the passes in which a picture is scaled up."""

import itertools

import pytest

from pfstorer_core.tiling.upscaling import UPSCALINGS, pass_sizes

SIZES = [((64, 64), (64, 64)), ((64, 48), (30, 20)), ((1, 1), (20, 20)), ((9, 700), (180, 14000))]


@pytest.mark.parametrize("known", [None, 0.3, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("one_size", [False, True])
@pytest.mark.parametrize(("size", "target"), SIZES)
@pytest.mark.parametrize("upscaling", UPSCALINGS)
def test_passes_grow_up_to_the_target(upscaling: str, size, target, known, one_size: bool) -> None:
    sizes = pass_sizes(size, target, upscaling, known, one_size)
    assert sizes
    for (h0, w0), (h1, w1) in itertools.pairwise(sizes):
        assert h0 <= h1 and w0 <= w1 and (h0, w0) != (h1, w1)
    if target > size:
        assert all(
            s >= a and s <= b for x in sizes for s, a, b in zip(x, size, target, strict=True)
        )
    if not (upscaling == "plain" or (upscaling == "auto" and one_size)):
        assert sizes[-1] == target


def test_one_pass() -> None:
    assert pass_sizes((32, 32), (640, 640), "one pass", 2.0) == [(640, 640)]


@pytest.mark.parametrize("upscaling", UPSCALINGS)
def test_a_smaller_target_takes_one_pass(upscaling: str) -> None:
    assert pass_sizes((64, 64), (16, 16), upscaling, None) == [(16, 16)]


def test_progressive_passes_have_the_same_factor_of_four_at_most() -> None:
    sizes = [(32, 48), *pass_sizes((32, 48), (640, 960), "progressive", None)]
    assert len(sizes) == 4
    factors = [b[0] / a[0] for a, b in itertools.pairwise(sizes)]
    assert max(factors) / min(factors) < 1.1 and max(factors) < 4
    assert all(abs(height / width - 2 / 3) < 0.01 for height, width in sizes)


def test_progressive_begins_where_the_face_is_known() -> None:
    first, *_, last = pass_sizes((64, 64), (1280, 1280), "progressive", 2.0)
    assert (first, last) == ((128, 128), (1280, 1280))


def test_plain_ends_where_the_face_is_known() -> None:
    assert pass_sizes((64, 48), (1280, 960), "plain", 2.0) == [(128, 96)]
    assert pass_sizes((64, 48), (1280, 960), "plain", 0.5) == [(64, 48)]
    assert pass_sizes((64, 48), (1280, 960), "plain", 50.0) == [(1280, 960)]


def test_auto() -> None:
    size, near, far = (64, 64), (180, 180), (1280, 1280)
    assert pass_sizes(size, near, "auto", 2.0) == [near]  # 1.4 times what is known
    assert pass_sizes(size, (256, 256), "auto", None) == [(256, 256)]
    for known in (None, 2.0):
        assert pass_sizes(size, far, "auto", known) == pass_sizes(size, far, "progressive", known)
        assert pass_sizes(size, far, "auto", known, True) == pass_sizes(size, far, "plain", known)
