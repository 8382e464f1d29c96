"""Where identities act, the soft edge of their masks, and what is told of them."""

from typing import Any

import pytest
import torch
from tiny_models import random_adapter, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.host.patch.applied import AppliedIdentity
from pfstorer_core.host.patch.model import restorer_wrapper
from pfstorer_core.host.restoring.regions import feathered, known_factor, mask_report, region_of
from pfstorer_core.host.tiles.layout import TileLayout
from pfstorer_core.host.tiles.padding import pad_masks

SIZE = (120, 160)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))[0]


@pytest.fixture(scope="module")
def adapter(model):
    return random_adapter(model, name="Ada")


def box(y0: int, x0: int, y1: int, x1: int, value: float = 1.0, batch: int = 1) -> Tensor:
    mask = torch.zeros(batch, *SIZE)
    mask[:, y0:y1, x0:x1] = value
    return mask


def masked(adapter: Any, *masks: Tensor | None) -> list[AppliedIdentity]:
    return [AppliedIdentity(adapter, mask=mask) for mask in masks]


def shares(identities: list[AppliedIdentity], feather: int, batch: int = 1) -> Tensor:
    return feathered(identities, (batch, 3, *SIZE), feather)


def test_the_region_is_the_union_of_all_masks(adapter) -> None:
    left, right = box(0, 0, 60, 80), box(30, 40, 90, 160, 0.5)
    region = region_of(masked(adapter, left, None, right), (1, 4, *SIZE))
    assert torch.equal(region[:, 0], torch.maximum(left, right))


def test_the_region_on_the_latent_misses_no_pixel(adapter) -> None:
    mask = box(57, 33, 58, 34)
    region = region_of(masked(adapter, mask), (1, 4, 30, 40))
    assert (region > 0).nonzero().tolist() == [[0, 0, 14, 8]]


def test_masks_of_a_batch(adapter) -> None:
    mask = torch.cat([box(0, 0, 8, 8), box(8, 8, 16, 16)])
    region = region_of(masked(adapter, mask, box(0, 0, 1, 1)), (2, 1, *SIZE))
    assert torch.equal(region[1, 0], torch.maximum(mask[1], box(0, 0, 1, 1)[0]))


class TestFeather:
    def test_it_rises_inside_the_mask_and_is_zero_outside(self, adapter) -> None:
        share = shares(masked(adapter, box(0, 40, 120, 160)), 16)[0, 0]
        assert not share[:, :40].any()
        assert torch.equal(share[:, 56:], torch.ones(120, 104))
        row = share[60, 40:56]
        assert bool((row.diff() > 0).all()) and 0 < row[0] < 0.1 and row[-1] > 0.9

    def test_without_feather_it_is_the_mask(self, adapter) -> None:
        mask = box(10, 20, 70, 90, 0.25)
        assert torch.equal(shares(masked(adapter, mask), 0)[:, 0], mask)

    @pytest.mark.parametrize("feather", [16, 100, 1000])
    def test_a_small_mask_is_restored_in_its_middle(self, adapter, feather: int) -> None:
        share = shares(masked(adapter, box(50, 50, 62, 62)), feather)[0, 0]
        assert share[55:57, 55:57].min() > 0.9
        assert not share[box(50, 50, 62, 62)[0] == 0].any()

    def test_a_small_face_beside_a_large_one(self, adapter) -> None:
        large, small = box(0, 0, 120, 80), box(50, 120, 62, 132)
        share = shares(masked(adapter, large, small), 16)[0, 0]
        assert share[56, 126] > 0.9
        assert torch.equal(share[:, 88:], shares(masked(adapter, small), 16)[0, 0, :, 88:])
        assert torch.equal(share[:, :80], shares(masked(adapter, large), 16)[0, 0, :, :80])

    def test_law_3_items_do_not_change_each_other(self, adapter) -> None:
        masks = torch.cat([box(0, 0, 120, 80), box(50, 120, 62, 132), box(0, 0, 0, 0)])
        together = shares(masked(adapter, masks), 16, 3)
        for item in range(3):
            alone = shares(masked(adapter, masks[item : item + 1]), 16)
            assert torch.equal(together[item : item + 1], alone)

    def test_faces_side_by_side_have_no_seam(self, adapter) -> None:
        share = shares(masked(adapter, box(0, 0, 120, 80), box(0, 80, 120, 160)), 16)[0, 0]
        assert torch.equal(share, torch.ones(SIZE))


class TestKnownFactor:
    """A head of 0.75 of the trained size is what the restorer knows."""

    def test_the_largest_face_counts(self, adapter) -> None:
        large, small = box(0, 0, 60, 48), box(100, 100, 110, 105)
        identities = masked(adapter, large, small)
        for scale in (1, 2):  # of the picture that the masks belong to
            size = (120 * scale, 160 * scale)
            factor = known_factor(identities, size, 128, False)
            assert factor == pytest.approx(0.75 * 128 / (60 * scale), rel=0.15)

    def test_items_of_a_batch_and_specks_do_not_make_a_head_larger(self, adapter) -> None:
        left, right = box(0, 0, 60, 48), box(60, 112, 120, 160)
        alone = known_factor(masked(adapter, left), SIZE, 128, False)
        both = known_factor(masked(adapter, torch.cat([left, right])), SIZE, 128, False)
        assert both == alone
        speck = left.clone()
        speck[0, -1, -1] = 1
        found = known_factor(masked(adapter, speck), SIZE, 128, False)
        assert found == pytest.approx(alone, rel=0.01)

    def test_law_1_gamma_0_and_a_mask_of_ones_change_no_size(self, adapter) -> None:
        unused = [AppliedIdentity(adapter, strength=0.0, mask=box(0, 0, 9, 9))]
        assert known_factor(unused, SIZE, 128, False) is None
        ones, unmasked = masked(adapter, box(0, 0, *SIZE)), masked(adapter, None)
        assert known_factor(ones, SIZE, 128, False) == known_factor(unmasked, SIZE, 128, False)

    def test_without_masks(self, adapter) -> None:
        assert known_factor([], SIZE, 128, False) is None
        assert known_factor([], SIZE, 128, True) == 128 / 160
        assert known_factor(masked(adapter, None), SIZE, 128, False) == 128 / 160

    def test_empty_masks_say_nothing(self, adapter) -> None:
        assert known_factor(masked(adapter, box(0, 0, 0, 0)), SIZE, 128, False) is None


class TestReport:
    LAYOUT = TileLayout(30, 40, 16, 0.25)  # 3 x 3 tiles: rows 0, 12, 14 and columns 0, 12, 24

    def test_every_identity_is_told_with_its_share_and_tiles(self, adapter) -> None:
        identities = [
            AppliedIdentity(adapter, strength=0.5),
            AppliedIdentity(adapter, mask=box(0, 0, 12, 16)),
            AppliedIdentity(adapter, strength=0.0, mask=box(0, 0, 120, 160)),
            AppliedIdentity(adapter, mask=box(0, 0, 0, 0)),
        ]
        assert mask_report(identities, (1, 4, 30, 40), self.LAYOUT) == [
            "Identity 1 (Ada), gamma 0.5: everywhere that is restored",
            "Identity 2 (Ada), gamma 1: mask of 1.0% of the picture, in 1 of 9 tiles",
            "Identity 3 (Ada), gamma 0: mask of 100.0% of the picture, in 9 of 9 tiles"
            " (gamma 0 is the base: the identity is not used)",
            "Identity 4 (Ada), gamma 1: mask of 0.0% of the picture, in 0 of 9 tiles"
            " (the mask is empty, so nothing is done for this person)",
        ]

    def test_tiles_of_all_items_are_counted(self, adapter) -> None:
        mask = torch.cat([box(0, 0, 12, 16), box(0, 0, 120, 160)])
        (line,) = mask_report(masked(adapter, mask), (2, 4, 30, 40), self.LAYOUT)
        assert line.endswith("in 10 of 18 tiles")

    def test_no_identity(self) -> None:
        assert mask_report([], (1, 4, 30, 40), self.LAYOUT) == []


def test_masks_of_a_padded_picture(model, adapter) -> None:
    """A mask of any resolution belongs to the picture, not to what is padded."""
    mask = torch.zeros(1, 30, 20)
    mask[:, :, 10:] = 1
    applied = host.apply_identity(model, adapter, 1.0, mask)
    people = restorer_wrapper(applied).identities
    padded = pad_masks(applied, people, (60, 50), (64, 64), (1, 4, 32, 32))
    (identity,) = restorer_wrapper(padded).identities
    assert identity.mask.shape == (1, 32, 32), "of the latent"
    expected = torch.zeros(25)
    expected[12] = 0.5
    expected[13:] = 1
    assert torch.equal(identity.mask[0, 5, :25], expected)
    assert torch.equal(identity.mask[0, 5, 25:], torch.ones(7))  # mirrored
    assert restorer_wrapper(applied).identities[0].mask.shape == (1, 30, 20)
    unmasked = host.apply_identity(model, adapter)
    people = restorer_wrapper(unmasked).identities
    assert pad_masks(unmasked, people, (60, 50), (64, 64), (1, 4, 32, 32)) is unmasked
