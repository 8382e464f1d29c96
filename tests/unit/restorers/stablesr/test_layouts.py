import pytest
import torch
from golden_weights import Goldens

from pfstorer_core.errors import PFStorerError
from pfstorer_core.restorers.base import BaseRestorer
from pfstorer_core.restorers.stablesr.encoder import EncoderConfig


def test_official_keys_and_shapes(goldens: Goldens) -> None:
    layout = goldens.json("checkpoint_layout.json")
    expected = layout["structcond"] | layout["sft"]
    meta = {key: torch.empty(shape, device="meta") for key, shape in expected.items()}
    # Refused for having no values, hence after all keys and shapes were found to be right.
    with pytest.raises(PFStorerError, match="plain floating-point weights"):
        BaseRestorer.from_state_dict(meta)


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(4, 32, 64, 2, (4, 2, 1), (1, 1, 2, 2)),
        EncoderConfig(8, 32, 32, 1, (4,), (1, 2, 3)),
        EncoderConfig(16, 64, 32, 3, (), (1, 2)),
        EncoderConfig(4, 32, 96, 1, (8, 1), (2, 1, 1, 4)),
        EncoderConfig(4, 32, 32, 1, (1,), (1,)),
    ],
)
def test_encoder_is_inferred(config: EncoderConfig) -> None:
    untrained = BaseRestorer.initialise({"middle_block.0": 32}, config, hidden=8)
    assert BaseRestorer.from_state_dict(untrained.weights()).info.config == config
