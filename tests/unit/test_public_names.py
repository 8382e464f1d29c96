"""The names that code outside of this repository builds on stay importable where they are."""

import importlib

import pytest

PUBLIC = {
    "adapter": ("AdapterInfo", "IdentityAdapter"),
    "color": ("adain_fix", "wavelet_fix"),
    "degradation": ("PRESETS", "DegradationConfig", "degrade"),
    "encoder": ("EncoderConfig", "TimeAwareEncoder"),
    "photos": ("load_photo",),
    "restorer": ("BaseRestorer", "load", "save"),
    "sft": ("SFTBlock",),
    "tiling": ("gaussian_weight", "tile_grid"),
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_importable(module: str) -> None:
    found = importlib.import_module(f"pfstorer_core.{module}")
    assert sorted(found.__all__) == sorted(PUBLIC[module])
    assert all(hasattr(found, name) for name in PUBLIC[module])
