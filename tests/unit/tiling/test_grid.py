"""Tile grids, Gaussian weights and their aggregation."""

import itertools

import pytest
import torch
from golden_weights import TOLERANCE, Goldens, relative_l2

from pfstorer_core.errors import PFStorerError
from pfstorer_core.tiling.grid import Tile, TileBlend, gaussian_weight, tile_grid

CASES = ["a", "b", "c"]


@pytest.fixture
def tensors(goldens: Goldens) -> dict[str, torch.Tensor]:
    return goldens.tensors("gaussian_tiles")


def case(goldens: Goldens, name: str) -> dict:
    return next(c for c in goldens.items["gaussian_tiles"]["cases"] if c["case"] == name)


def grid(goldens: Goldens, name: str) -> list[Tile]:
    described = case(goldens, name)
    return tile_grid(*described["latent"], described["tile"], described["overlap"])


@pytest.mark.parametrize("name", CASES)
def test_golden_grid(goldens: Goldens, name: str) -> None:
    assert [list(tile) for tile in grid(goldens, name)] == case(goldens, name)["tiles_y0x0y1x1"]


@pytest.mark.parametrize("name", CASES)
def test_golden_weights(goldens: Goldens, tensors, name: str) -> None:
    side = case(goldens, name)["tile"]
    expected = tensors[f"{name}.weights"]
    assert relative_l2(gaussian_weight(side, side), expected) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_golden_sum_of_weights(goldens: Goldens, tensors, name: str) -> None:
    summed = torch.zeros(case(goldens, name)["latent"])
    for tile in grid(goldens, name):
        tile.crop(summed).add_(gaussian_weight(*tile.size))
    assert relative_l2(summed, tensors[f"{name}.summed_weights"]) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_golden_aggregation(goldens: Goldens, tensors, name: str) -> None:
    x, cond = tensors[f"{name}.x"], tensors[f"{name}.cond"]
    place = torch.arange(case(goldens, name)["tile"]) / case(goldens, name)["tile"]
    blend = TileBlend(tuple(x.shape))
    for tile in grid(goldens, name):
        blend.add(tile, 2 * tile.crop(x) + tile.crop(cond) + place + 10 * place[:, None])
    assert relative_l2(blend.mean(), tensors[f"{name}.out"]) < TOLERANCE


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [
        sizes
        for sizes in itertools.product([1, 7, 16, 33], [5, 16, 100], [1, 8, 16, 64], [0, 3, 15])
        if sizes[3] < sizes[2]
    ],
)
def test_a_grid_covers_everything_with_tiles_of_one_size(height, width, tile, overlap) -> None:
    tiles = tile_grid(height, width, tile, overlap)
    times = torch.zeros(height, width)
    for each in tiles:
        assert 0 <= each.y0 < each.y1 <= height and 0 <= each.x0 < each.x1 <= width
        times[each.y0 : each.y1, each.x0 : each.x1] += 1
    assert times.min() >= 1
    assert {each.size for each in tiles} == {(min(tile, height), min(tile, width))}
    assert len(set(tiles)) == len(tiles)
    for axis in (0, 1):
        starts = sorted({each[axis] for each in tiles})
        assert all(b - a <= tile - overlap for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize(
    "sizes", [(0, 8, 4, 0), (8, 0, 4, 0), (8, 8, 0, 0), (8, 8, 4, 4), (8, 8, 4, -1)]
)
def test_sizes_without_grid_are_refused(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(PFStorerError, match=r"cannot be cut into tiles of .*; choose a tile"):
        tile_grid(*sizes)


def test_a_window_of_a_larger_picture() -> None:
    tile = Tile(1, 2, 4, 8)
    assert tile.size == (3, 6)
    assert tile.scaled(8) == Tile(8, 16, 32, 64)
    assert isinstance(tile.scaled(8), Tile)
    whole = torch.arange(80.0).reshape(1, 8, 10)
    assert torch.equal(tile.crop(whole), whole[:, 1:4, 2:8])


class TestBlend:
    def test_the_mean_of_one_picture_is_the_picture(self) -> None:
        whole = torch.rand(2, 3, 20, 30)
        blend = TileBlend(tuple(whole.shape))
        for tile in tile_grid(20, 30, 8, 2):
            blend.add(tile, tile.crop(whole))
        torch.testing.assert_close(blend.mean(), whole)

    def test_items_one_by_one(self) -> None:
        whole = torch.rand(2, 3, 8, 12)
        blend = TileBlend(tuple(whole.shape))
        for tile in tile_grid(8, 12, 8, 4):
            for item in (1, 0):
                blend.add(tile, tile.crop(whole[item : item + 1]), item)
        torch.testing.assert_close(blend.mean(), whole)

    def test_a_tile_counts_most_in_its_middle(self) -> None:
        blend = TileBlend((1, 1, 8, 12))
        left, right = tile_grid(8, 12, 8, 4)
        blend.add(left, torch.zeros(1, 1, 8, 8))
        blend.add(right, torch.ones(1, 1, 8, 8))
        row = blend.mean()[0, 0, 4]
        assert torch.equal(row[:4], torch.zeros(4)) and torch.equal(row[8:], torch.ones(4))
        assert bool((row.diff() >= 0).all()) and row[4] < 0.1 and row[7] > 0.9

    def test_where_no_tile_lies(self) -> None:
        elsewhere = torch.rand(1, 3, 8, 12)
        for filling, expected in ((elsewhere, elsewhere), (0.0, torch.zeros(1, 3, 8, 12))):
            blend = TileBlend((2, 3, 8, 12))
            blend.add(Tile(0, 0, 8, 8), torch.full((1, 3, 8, 8), 5.0), 1)
            mean = blend.mean(filling)
            torch.testing.assert_close(mean[1, :, :, :8], torch.full((3, 8, 8), 5.0))
            assert torch.equal(mean[1, :, :, 8:], expected[0, :, :, 8:])
            assert torch.equal(mean[0], expected[0])

    def test_half_precision_is_summed_in_float32(self) -> None:
        blend = TileBlend((1, 1, 4, 4))
        for _ in range(3):
            blend.add(Tile(0, 0, 4, 4), torch.full((1, 1, 4, 4), 1 / 3, dtype=torch.float16))
        mean = blend.mean()
        assert mean.dtype == torch.float32
        torch.testing.assert_close(
            mean, torch.full((1, 1, 4, 4), float(torch.tensor(1 / 3).half()))
        )
