"""Tests of the bundled head detector, with its weights, on drawn people."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.drawn.groups import degrade_people, group_photo
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.people.detector import (
    HEAD_DETECTOR_PATH,
    MOST_PIXELS,
    HeadDetector,
    load_head_finder,
    save_head_detector,
)
from pfstorer_core.people.network import HeadNetwork, HeadNetworkConfig
from pfstorer_core.training.head_backgrounds import background
from pfstorer_core.training.head_pasting import HEAD, Person, Place, paste
from pfstorer_core.training.head_scenes import head_box
from pfstorer_core.weights.reading import read_weights
from pfstorer_core.weights.writing import write_safetensors

UNSEEN = 1_700_000  # persons that no training drew
SAME = 0.4  # intersection over union


@pytest.fixture(scope="module")
def finder() -> HeadDetector:
    return load_head_finder()


def share_found(finder: HeadDetector, picture: Tensor, masks: Tensor) -> float:
    """Returns the share of the heads with these masks that are found in a picture (3, H, W)."""
    boxes = torch.tensor([head.box for head in finder(picture)]).float().reshape(-1, 4)
    truth = torch.stack([box for mask in masks if (box := head_box(mask)) is not None])
    return float((box_iou(truth, boxes).amax(1) >= SAME).float().mean()) if len(boxes) else 0.0


def group(seed: int, height: int = 192, width: int = 480) -> tuple[Tensor, Tensor]:
    """Draws three people: the picture (3, H, W) and their masks."""
    photo = group_photo([UNSEEN + 3 * seed + k for k in range(3)], height, width, seed)
    return photo.picture[0], photo.masks


def test_drawn_groups_are_found(finder: HeadDetector) -> None:
    shares = [share_found(finder, *group(seed)) for seed in range(6)]
    assert sum(shares) / len(shares) >= 0.9


def test_grey_and_spoilt_groups_are_found(finder: HeadDetector, generator: torch.Generator) -> None:
    grey, spoilt = [], []
    for seed in range(4):
        picture, masks = group(seed)
        grey.append(share_found(finder, picture.mean(0).expand(3, -1, -1), masks))
        medium = degrade_people(picture[None], 160, PRESETS["medium"], generator)[0]
        spoilt.append(share_found(finder, medium, masks))
    assert sum(grey) / len(grey) >= 0.8
    assert sum(spoilt) / len(spoilt) >= 0.7


def test_masks_are_those_of_drawn_people(finder: HeadDetector) -> None:
    """A masked restoration takes the head's height from the mask's area."""
    for seed in range(3):
        picture, masks = group(seed)
        found = torch.stack([h.full_mask((192, 480)) for h in finder(picture)])  # (N, H, W)
        for mask in masks:
            both = torch.minimum(found, mask).sum((1, 2))
            either = torch.maximum(found, mask).sum((1, 2))
            best = int((both / either).argmax())
            if both[best] / either[best] >= SAME:
                assert 0.6 < found[best].sum() / mask.sum() < 1.5
                assert both[best] / either[best] > 0.6


def test_nobody_is_found_where_nobody_is(finder: HeadDetector, generator: torch.Generator) -> None:
    patterns = [background((200, 200), (), generator) for _ in range(20)]
    assert sum(len(finder(pattern)) for pattern in patterns) <= 3
    assert finder(torch.full((3, 64, 64), 0.5)) == []


def test_a_small_head_in_a_small_picture(finder: HeadDetector, generator: torch.Generator) -> None:
    found = []
    for number in range(8):
        person = Person.drawn(UNSEEN + number, generator)
        scene = torch.rand(3, 1, 1, generator=generator).expand(3, 64, 64).clone()
        masks = paste(scene, person, Place(30, 26, 11, 0.2), HEAD)[:1]
        found.append(share_found(finder, scene, masks))
    assert sum(found) / len(found) >= 0.7


def test_a_face_that_fills_the_frame(finder: HeadDetector) -> None:
    found = []
    for number in range(6):
        portrait = portrait_set(UNSEEN + number, 1, seed=number, size=300)[0]
        heads = finder(portrait[:, 60:250, 60:240])  # hair, ears and chin are cut off
        widths = [head.box[2] - head.box[0] for head in heads]
        found.append(max(widths, default=0) > 90)
    assert sum(found) >= 4


def test_the_largest_pictures_are_searched_in_tiles(finder: HeadDetector) -> None:
    picture = torch.full((3, 2600, 3900), 0.4)
    small, _ = group(1)
    picture[:, 1400:1592, 700:1180] = small  # across the border of two tiles
    seen: list[torch.Size] = []
    hook = finder.network.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    try:
        heads = finder(picture)
    finally:
        hook.remove()
    assert max(shape.numel() for shape in seen) <= 4 * 960**2, "memory does not grow with it"
    assert sum(shape.numel() for shape in seen) < 4 * 3 * MOST_PIXELS
    assert heads
    for head in heads:
        left, top, right, bottom = head.box
        assert left > 600 and top > 1300 and right < 1280 and bottom < 1700


def test_finds_lie_in_the_picture_and_repeat(finder: HeadDetector) -> None:
    picture, _ = group(2)
    first, second = finder(picture), finder(picture)
    assert [head.box for head in first] == [head.box for head in second]
    for head in first:
        left, top, right, bottom = head.box
        assert 0 <= left < right <= 480 and 0 <= top < bottom <= 192
        assert head.mask.min() >= 0 and head.mask.max() <= 1 and 0 < head.score <= 1


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (7, 9)])
def test_pictures_too_small_for_anybody(finder: HeadDetector, size: tuple[int, int]) -> None:
    assert isinstance(finder(torch.rand(3, *size)), list)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 8, 8), (3, 0, 8)])
def test_other_shapes_are_refused(finder: HeadDetector, shape: tuple[int, ...]) -> None:
    with pytest.raises(PFStorerError, match=r"give \(3, H, W\)"):
        finder(torch.zeros(shape))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    tensors, metadata = read_weights(HEAD_DETECTOR_PATH)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(HEAD_DETECTOR_PATH.read_bytes()[:2000])
    with pytest.raises(PFStorerError):
        load_head_finder(cut)
    foreign = tmp_path / "foreign.safetensors"
    write_safetensors(foreign, {"a": torch.zeros(1)}, {})
    with pytest.raises(PFStorerError, match="no head detector"):
        load_head_finder(foreign)
    tensors.pop("answers.bias")
    write_safetensors(foreign, tensors, metadata)
    with pytest.raises(PFStorerError, match="incomplete"):
        load_head_finder(foreign)


def test_a_network_survives_being_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = HeadNetwork(HeadNetworkConfig(widths=(4, 4, 8), blocks=(1, 1), features=8)).eval()
    save_head_detector(network, tmp_path / "net.safetensors")
    loaded = load_head_finder(tmp_path / "net.safetensors", threshold=0.0).network
    pictures = torch.rand(1, 4, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(network(pictures), loaded(pictures), strict=True):
            assert torch.allclose(ours, theirs, atol=0.05)


def test_the_file_is_small() -> None:
    assert HEAD_DETECTOR_PATH.stat().st_size < 800_000
