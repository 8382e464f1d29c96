import torch

from pfstorer_core.people.found import FoundHead
from pfstorer_core.people.people import FoundPeople
from pfstorer_core.people.preview import numbered_preview, numbered_previews

PICTURE = torch.full((3, 100, 200), 0.5)
HEADS = [
    FoundHead((20, 20, 60, 70), torch.ones(50, 40)),
    FoundHead((120, 30, 160, 80), torch.ones(50, 40)),
]


def place(preview: torch.Tensor, x: int, y: int) -> list[float]:
    """The colour at a place of the picture."""
    factor = preview.shape[2] / 200
    return preview[:, round(y * factor), round(x * factor)].tolist()


def test_heads_are_bright_outlined_and_labelled() -> None:
    preview = numbered_preview(PICTURE, HEADS, ["1 Ada", "2 ?"])
    assert preview.shape == (3, 384, 768), "enlarged, so that labels can be read"
    assert abs(place(preview, 40, 50)[0] - 0.5) < 0.02
    assert place(preview, 90, 50)[0] < 0.3, "darker where nobody is"
    known, unknown = place(preview, 19.5, 45), place(preview, 119.5, 55)
    assert known[1] > known[0] and known[1] > known[2], "green"
    assert unknown[0] > unknown[1] > unknown[2], "orange"
    plate = preview[:, :, 100:220]
    assert (plate.amax(0) < 0.1).any(), "black letters"


def test_labels_differ() -> None:
    one, other = (numbered_preview(PICTURE, HEADS[:1], [label]) for label in ("1", "2"))
    assert not torch.equal(one, other)


def test_labels_stay_in_the_picture() -> None:
    corner = [FoundHead((0, 0, 10, 10), torch.ones(10, 10))]
    preview = numbered_preview(PICTURE, corner, ["1 somebody with a long name"])
    black = (preview.amax(0) < 0.05).nonzero()
    assert len(black) and black.amin(0).min() > 0


def test_a_picture_without_heads_is_as_it_was() -> None:
    preview = numbered_preview(PICTURE, [], [])
    torch.testing.assert_close(preview, torch.full_like(preview, 0.5), atol=0.01, rtol=0)


def test_each_picture_of_a_batch_has_its_own_numbers() -> None:
    people = FoundPeople(((HEADS[0],), (HEADS[1],)), (100, 200))
    previews = numbered_previews(PICTURE.expand(2, -1, -1, -1), people, ["1", "2"])
    assert torch.equal(previews[0], numbered_preview(PICTURE, HEADS[:1], ["1"]))
    assert torch.equal(previews[1], numbered_preview(PICTURE, HEADS[1:], ["2"]))
