"""People are found by the detectors that are there, or given by other nodes."""

from collections.abc import Iterator
from pathlib import Path

import folder_paths
import pytest
import safetensors.torch
import torch
from torch import Tensor

from pfstorer_core.drawn.groups import group_photo
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.measure.faces import POINTS
from pfstorer_core.host.people.finders import (
    AUTOMATIC,
    BUNDLED,
    MEDIAPIPE,
    GivenHeads,
    find_people,
    mediapipe_finder,
)

PHOTO = group_photo([5_000_000, 5_000_001, 5_000_004], 160, 400, 6)
IMAGE = PHOTO.picture.movedim(1, -1)
FACE = {"x": 40, "y": 30, "width": 40, "height": 50, "label": "face"}


@pytest.fixture
def mediapipe() -> Iterator[None]:
    """MediaPipe's model in ComfyUI's folder: it sees a face wherever a picture is bright."""
    pytest.importorskip("comfy_extras.mediapipe.face_landmarker")
    from face_detectors import landmarker_weights

    folder = Path(folder_paths.models_dir, "detection")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "faces.safetensors"
    weights = landmarker_weights()
    weights["mesh.head_landmarks.weight"].zero_()
    weights["mesh.head_landmarks.bias"].copy_(face_mesh().flatten())
    safetensors.torch.save_file(weights, file)
    yield
    file.unlink()


def face_mesh() -> Tensor:
    """Points (478, 3) of an upright oval face of 80 x 110 in MediaPipe's crop of 192 px."""
    angle = torch.linspace(0, 2 * torch.pi, 478)
    mesh = torch.stack([96 + 40 * angle.sin(), 96 - 55 * angle.cos(), 0 * angle], 1)
    places = ((76, 80), (116, 80), (96, 100), (80, 120), (112, 120))
    for part, (x, y) in zip(POINTS, places, strict=True):
        mesh[list(part)] = torch.tensor([x, y, 0.0])
    return mesh


def spots(*places: tuple[int, int]) -> Tensor:
    """A dark IMAGE (1, 240, 320, 3) with bright squares."""
    photo = torch.full((1, 240, 320, 3), 0.1)
    for top, left in places:
        photo[:, top : top + 12, left : left + 12] = 1.0
    return photo


def test_given_masks_are_taken_in_reading_order() -> None:
    people = find_people(IMAGE, given=GivenHeads(masks=PHOTO.masks.flip(0)))
    torch.testing.assert_close(people.masks(), PHOTO.masks * (PHOTO.masks > 0.1), atol=0.11, rtol=0)
    assert people.lines()[0] == "3 people found (given)"


def test_all_that_is_given_counts() -> None:
    box = {"x": 300, "y": 20, "width": 80, "height": 100}
    given = GivenHeads(masks=PHOTO.masks[:1], boxes=[[box]], segs=(PHOTO.masks.shape[1:], []))
    people = find_people(IMAGE, given=given)
    assert people.count == 2
    assert people.boxes()[0][1]["x"] == pytest.approx(296, abs=2)


def test_masks_of_several_pictures_are_one_for_each() -> None:
    batch = IMAGE.expand(2, -1, -1, -1)
    whole = PHOTO.masks.amax(0)
    people = find_people(batch, given=GivenHeads(masks=torch.stack([whole, PHOTO.masks[0]])))
    assert [len(heads) for heads in people.heads] == [3, 1]
    with pytest.raises(PFStorerError, match=r"3 masks of heads for 2 image\(s\)"):
        find_people(batch, given=GivenHeads(masks=PHOTO.masks))


def test_boxes_of_several_pictures_go_to_theirs_and_segs_are_of_one() -> None:
    batch = IMAGE.expand(2, -1, -1, -1)
    people = find_people(batch, given=GivenHeads(boxes=[[], [FACE]]))
    assert [len(heads) for heads in people.heads] == [0, 1]
    with pytest.raises(PFStorerError, match="SEGS are of one picture, but there are 2 images"):
        find_people(batch, given=GivenHeads(segs=(IMAGE.shape[1:3], [])))


def test_a_detector_that_is_not_there_is_said() -> None:
    with pytest.raises(PFStorerError, match="MediaPipe cannot be used: put ComfyUI's MediaPipe"):
        find_people(IMAGE, MEDIAPIPE)
    with pytest.raises(PFStorerError, match="detector is 'eyes'; choose one of automatic"):
        find_people(IMAGE, "eyes")


def test_mediapipe_gives_a_head_around_each_face(mediapipe: None) -> None:
    people = find_people(spots((60, 60), (170, 240)), MEDIAPIPE)
    assert people.count == 2
    assert people.lines()[0] == "2 people found (MediaPipe)"
    for (_, _, head), x, y in zip(people.numbered(), (66, 246), (66, 176), strict=True):
        left, top, right, bottom = head.box
        rows, columns = (head.mask > 0.5).nonzero().T
        width = float(columns.max() - columns.min() + 1)
        height = float(rows.max() - rows.min() + 1)
        # 1.36 x 80 wide and 1.5 x 110 high; MediaPipe looks below a face's middle for its crop
        assert height / width == pytest.approx(1.5 * 110 / (1.36 * 80), rel=0.05)
        assert left < x < right and abs((top + bottom) / 2 - y) < height
    assert all(0.5 < head.score <= 1 for _, _, head in people.numbered())


def test_without_its_model_there_is_no_mediapipe() -> None:
    assert mediapipe_finder() is None


@pytest.mark.parametrize("detector", [AUTOMATIC, BUNDLED])
def test_the_bundled_detector_finds_drawn_people(detector: str) -> None:
    people = find_people(IMAGE, detector)
    assert people.count == 3
    for found, true in zip(people.masks(), PHOTO.masks, strict=True):
        common = torch.minimum(found, true).sum() / torch.maximum(found, true).sum()
        assert common > 0.7


def test_automatic_asks_all_detectors_and_counts_nobody_twice(mediapipe: None) -> None:
    picture = IMAGE.clone() * 0.8
    picture[:, 130:142, 190:202] = 1.0  # what MediaPipe alone takes for a face, below the heads
    both = find_people(picture, AUTOMATIC)
    alone = find_people(picture, BUNDLED)
    assert both.count >= alone.count
    assert both.lines()[0].endswith("(bundled detector and MediaPipe)")
