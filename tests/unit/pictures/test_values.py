"""One policy for the values of pictures and masks."""

import pytest
import torch

from pfstorer_core.errors import PFStorerError
from pfstorer_core.pictures.values import unit_range


def test_overshoot_is_cut_off() -> None:
    given = torch.tensor([-0.12, 0.0, 0.5, 1.0, 1.22])
    assert torch.equal(unit_range(given, "x"), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    assert given[0] < 0, "what is given stays as it is"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (255.0, "The mask has values from 0 to 255, expected 0 to 1; check the node that made it."),
        (-3.0, "The mask has values from -3 to 0, expected 0 to 1; check the node that made it."),
        (float("nan"), "The mask has values that are not finite"),
        (float("inf"), "The mask has values that are not finite"),
    ],
)
def test_what_is_no_picture_is_refused(value: float, sentence: str) -> None:
    with pytest.raises(PFStorerError) as error:
        unit_range(torch.tensor([0.0, value]), "The mask")
    assert str(error.value).startswith(sentence)
