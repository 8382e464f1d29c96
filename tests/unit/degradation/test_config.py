import json

import pytest

from pfstorer_core.degradation.config import DegradationConfig
from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.errors import PFStorerError


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_survive_json(preset: str) -> None:
    config = PRESETS[preset]
    again = DegradationConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)


@pytest.mark.parametrize(
    "values",
    [
        {"blurriness": 3},
        {"first": {"sigma": [1, 2]}},
        {"first": [1, 2]},
        {"downsample": 4},
        {"downsample": [4, 2]},
        {"second_order_probability": 1.5},
        {"first": {"jpeg_quality": [0, 50]}},
        {"first": {"resize_weights": [0, 0, 0]}},
        {"second": {"noise_sigma": ["a", "b"]}},
    ],
)
def test_senseless_settings_are_refused(values: dict) -> None:
    with pytest.raises(PFStorerError):
        DegradationConfig.from_dict(values)
