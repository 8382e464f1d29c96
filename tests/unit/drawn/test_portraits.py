"""Tests of the procedural portraits."""

import pytest
import torch

from pfstorer_core.drawn.portraits import portrait_set, render, sample_identities, sample_views
from pfstorer_core.errors import PFStorerError


def views(count: int, seed: int = 0):
    return sample_views(count, torch.Generator().manual_seed(seed))


def test_pictures_are_finite_and_in_range():
    pictures = render(sample_identities(range(24)), views(24), 64)
    assert pictures.shape == (24, 3, 64, 64)
    assert pictures.isfinite().all()
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_seed_repeats_and_other_seed_differs():
    assert torch.equal(portrait_set(3, 2, seed=1, size=32), portrait_set(3, 2, seed=1, size=32))
    assert not torch.equal(portrait_set(3, 2, seed=1, size=32), portrait_set(3, 2, seed=2, size=32))


def test_row_does_not_depend_on_the_batch():
    generator = torch.Generator().manual_seed(5)
    both = sample_views(2, generator)
    alone = type(both)({k: t[1:] for k, t in both.values.items()})
    batch = render(sample_identities([1, 7]), both, 32)
    assert torch.allclose(batch[1:], render(sample_identities([7]), alone, 32), atol=1e-6)


def test_same_person_is_more_alike_than_another_under_the_same_view():
    """Under equal views only the identity differs: pictures are equal for equal persons alone."""
    one_view = views(1, seed=9)
    same = type(one_view)({k: t.repeat(2, *[1] * (t.ndim - 1)) for k, t in one_view.values.items()})
    twice = render(sample_identities([4, 4]), same, 48)
    assert torch.equal(twice[0], twice[1])
    others = render(sample_identities([4, 5]), same, 48)
    assert (others[0] - others[1]).abs().mean() > 0.01


def test_neighbouring_numbers_are_unrelated():
    """Parameters of successive identities must not correlate (a generator's nearby seeds may)."""
    values = sample_identities(range(400)).values
    for name in ("width", "eye_x", "hairline", "volume", "nose_w"):
        x = values[name] - values[name].mean()
        correlation = (x[:-1] * x[1:]).mean() / x.pow(2).mean()
        assert abs(correlation) < 0.2, name


def test_size_changes_the_sampling_only():
    """A large portrait shrunk is the small one, up to anti-aliasing."""
    large = portrait_set(2, 1, seed=3, size=256)
    small = portrait_set(2, 1, seed=3, size=64)
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert (shrunk - small).abs().mean() < 0.02


def test_moles_are_at_fixed_places():
    """A person with moles keeps their number and places in every view's parameters."""
    first, second = (sample_identities([n]).values for n in (11, 11))
    assert torch.equal(first["mole_x"], second["mole_x"])
    assert torch.equal(first["mole_r"], second["mole_r"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_identities([-1]), "negative"),
        (lambda: render(sample_identities([1, 2]), views(1)), "2 identities but 1 views"),
        (lambda: portrait_set(1, 1, 0, size=8), "at least 16"),
        (lambda: portrait_set(1, 0, 0), "At least one view"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(PFStorerError, match=message):
        call()
