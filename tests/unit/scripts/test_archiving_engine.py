"""How an archive's photos are divided among workers."""

import pytest
from archiving.engine import BLOCK, MOST_BLOCKS, blocks_of


@pytest.mark.parametrize(
    ("photos", "workers", "blocks"),
    [(1, 1, 1), (24, 2, 24), (99, 1, 99), (200, 2, 100), (201, 2, 101), (2000, 2, 250)],
)
def test_few_photos_come_one_by_one_and_many_together(
    photos: int, workers: int, blocks: int
) -> None:
    assert blocks_of(photos, workers) == blocks


def test_blocks_are_many_enough_to_end_together_and_not_too_many() -> None:
    for photos in range(1, MOST_BLOCKS, 7):
        for workers in (1, 2, 8, 100):
            blocks = blocks_of(photos, workers)
            assert photos / BLOCK <= blocks <= photos
            assert blocks >= min(photos, 50 * workers)
    assert blocks_of(40_000, 4) == MOST_BLOCKS
