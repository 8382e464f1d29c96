"""Which family a file is of, as it says itself or as its weights tell."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from small_restorers import SITES, TINY, Weights, bundled, description

from pfstorer_core.errors import PFStorerError
from pfstorer_core.restorers.base import FAMILIES, FIRST_FAMILY, BaseRestorer
from pfstorer_core.restorers.files import save


def test_files_say_their_family(tmp_path: Path) -> None:
    save(BaseRestorer.initialise(SITES, TINY, hidden=32), tmp_path / "r.safetensors")
    with safe_open(tmp_path / "r.safetensors", "pt") as file:
        assert json.loads(file.metadata()["pfstorer_restorer"])["family"] == FIRST_FAMILY


def test_files_without_a_family_are_stablesrs(weights: Weights) -> None:
    content, metadata = bundled(weights)
    assert "family" not in json.loads(metadata["pfstorer_restorer"])
    for restorer in (
        BaseRestorer.from_state_dict(content, metadata),
        BaseRestorer.from_state_dict(weights),
    ):
        assert type(restorer) is FAMILIES[FIRST_FAMILY]


@pytest.mark.parametrize("family", ["supir", 3, None, ["stablesr"]])
def test_unknown_families_ask_for_an_update(family: object, weights: Weights) -> None:
    with pytest.raises(PFStorerError, match=r"^This state dict is of the family .* update PFS"):
        BaseRestorer.from_state_dict(weights, description(family=family))


@pytest.mark.parametrize("size", [768, None])
def test_the_size_of_the_training_is_kept(size: int | None, weights: Weights) -> None:
    restorer = BaseRestorer.from_state_dict(weights, description(size=size))
    assert restorer.info.size == size


def test_a_size_that_is_no_number_is_refused(weights: Weights) -> None:
    with pytest.raises(PFStorerError, match="size is neither a whole number nor null"):
        BaseRestorer.from_state_dict(weights, description(size="768"))
