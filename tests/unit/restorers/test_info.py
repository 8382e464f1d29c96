import dataclasses
from pathlib import Path

import pytest
from small_restorers import SITES, TINY, Weights, description

from pfstorer_core.errors import PFStorerError
from pfstorer_core.restorers.base import BaseRestorer
from pfstorer_core.restorers.files import load, save
from pfstorer_core.restorers.info import RESTORER_FILE


def test_heads_come_from_the_description(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, num_heads=8)
    untrained = BaseRestorer.initialise(SITES, config, hidden=32)
    save(untrained, tmp_path / "r.safetensors")
    assert load(tmp_path / "r.safetensors").info.config.num_heads == 8


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"pfstorer_restorer": "{"}, "describes itself wrongly"),
        ({"pfstorer_restorer": "[]"}, "describes itself wrongly"),
        ({"pfstorer_restorer": "{}"}, "describes itself wrongly .*'format_version'"),
        (description(format_version=2), "format version 2, but this PFStorer reads .* update"),
        (
            description(prediction_type="x0"),
            "describes itself wrongly .*The prediction type is 'x0'",
        ),
        (description(encoder={"depth": 3}), "describes itself wrongly"),
        (description(encoder={"channel_mult": 3}), "describes itself wrongly"),
        (description(bundled=[1]), "describes itself wrongly .*bundled"),
        (description(encoder={"out_channels": 32}), "of a wrong shape|lacks"),
    ],
)
def test_broken_descriptions(metadata: dict[str, str], message: str, weights: Weights) -> None:
    with pytest.raises(PFStorerError, match=f"^This state dict .*({message})"):
        BaseRestorer.from_state_dict(weights, metadata)


def test_unknown_prediction_type() -> None:
    with pytest.raises(PFStorerError, match="'v'; expected one of epsilon, v_prediction"):
        BaseRestorer.initialise({"middle_block.0": 32}, TINY, prediction_type="v")


def test_a_description_nested_too_deeply(weights: Weights) -> None:
    deep = '{"format_version": 1, "name": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(PFStorerError, match=r"describes itself wrongly"):
        BaseRestorer.from_state_dict(weights, {RESTORER_FILE.key: deep})
