"""Tests of the head detector's network; what it finds is tested with `detector`."""

import pytest
import torch

from pfstorer_core.errors import PFStorerError
from pfstorer_core.people.network import STRIDE, HeadNetwork, HeadNetworkConfig

SMALL = HeadNetworkConfig(widths=(4, 4, 8), blocks=(1, 1), features=8, mask=6)


def test_sizes_survive_being_written() -> None:
    assert HeadNetworkConfig.from_dict(SMALL.to_dict()) == SMALL


@pytest.mark.parametrize(
    "sizes", [{"mask": 0}, {"widths": (4, 4)}, {"features": 10**6}, {"depth": 3}, {"blocks": 2}]
)
def test_impossible_sizes_are_refused(sizes: dict[str, object]) -> None:
    with pytest.raises(PFStorerError, match="sizes"):
        HeadNetworkConfig.from_dict(sizes)


def test_every_cell_gets_an_answer() -> None:
    network = HeadNetwork(SMALL).eval()
    maps = network(torch.rand(2, 4, 48, 32))
    assert maps.scores.shape == (2, 48 // STRIDE, 32 // STRIDE)
    assert maps.boxes.shape == (2, 4, 12, 8)
    assert bool((maps.boxes > 0).all())
    assert network.masks(maps.features[0, :, 0, :3].T).shape == (3, 6, 6)


def test_what_is_beyond_the_border_has_no_colour() -> None:
    network = HeadNetwork(SMALL).eval()
    dark, bright = torch.zeros(1, 4, 32, 32), torch.ones(1, 4, 32, 32)
    bright[:, 3] = 0
    assert torch.equal(network(dark).features, network(bright).features)
