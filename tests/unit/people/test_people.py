import torch

from pfstorer_core.people.found import FoundHead
from pfstorer_core.people.people import FoundPeople

SIZE = (40, 60)


def head(left: int, top: int = 10, side: int = 12) -> FoundHead:
    return FoundHead((left, top, left + side, top + side), torch.ones(side, side), 0.9)


PEOPLE = FoundPeople(((head(5), head(30)), (), (head(20),)), SIZE, "test")


def test_numbers_go_through_all_pictures() -> None:
    assert PEOPLE.count == 3
    assert PEOPLE.firsts() == [1, 3, 3]
    numbered = [(number, picture, found.box[0]) for number, picture, found in PEOPLE.numbered()]
    assert numbered == [(1, 0, 5), (2, 0, 30), (3, 2, 20)]
    assert [[box["label"] for box in boxes] for boxes in PEOPLE.boxes()] == [
        ["head 1", "head 2"],
        [],
        ["head 3"],
    ]
    assert PEOPLE.boxes()[0][1] == {
        "x": 30,
        "y": 10,
        "width": 12,
        "height": 12,
        "label": "head 2",
        "score": 0.9,
    }


def test_masks_are_those_of_all_heads_and_a_persons_one_for_each_picture() -> None:
    masks = PEOPLE.masks()
    assert masks.shape == (3, *SIZE)
    assert masks.flatten(1).sum(1).tolist() == [144, 144, 144]
    ada = PEOPLE.mask_of([2, 3])
    torch.testing.assert_close(ada, torch.stack([masks[1], torch.zeros(SIZE), masks[2]]))


def test_where_nobody_is_the_mask_is_empty() -> None:
    nobody = FoundPeople(((),), SIZE)
    assert nobody.masks().shape == (1, *SIZE)
    assert not nobody.masks().any()
    assert nobody.lines() == ["nobody was found; connect masks or boxes to say where"]


def test_it_says_who_was_found_in_each_picture_and_who_is_cut() -> None:
    cut = FoundPeople(((head(5), head(48, 20)),), SIZE, "test")
    assert cut.lines() == [
        "2 people found (test)",
        "Cut by the picture's edge: 2; what is left may be too little to recognise and to restore",
    ]
    assert PEOPLE.lines() == [
        "Picture 1: 2 people found (test)",
        "Picture 2: nobody was found (test); connect masks or boxes to say where",
        "Picture 3: 1 person found (test)",
    ]


def test_a_soft_rim_at_the_edge_is_not_cut() -> None:
    rim = torch.ones(12, 12)
    rim[:, 0] = 0.3
    found = FoundPeople(((FoundHead((0, 10, 12, 22), rim),),), SIZE)
    assert len(found.lines()) == 1
