"""Restorers and adapters that earlier versions wrote load, and make the pictures they made then."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_models import image

from pfstorer_core import host
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.restorers.files import load

KEPT = sorted(path for path in (Path(__file__).parents[1] / "kept").iterdir() if path.is_dir())
SETTINGS: dict[str, Any] = {"steps": 3, "seed": 5, "upscaling": "one pass"}
LARGE: dict[str, Any] = {"scale": 2.0, "tile_size": 48, "cfg": 2.0, "color_fix": "none"}
ROUNDING = 2e-3  # pictures are kept in half precision


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_files_of_earlier_versions_make_the_same_pictures(folder: Path) -> None:
    model, _, vae = host.load_base_restorer(folder / "restorer.safetensors")
    adapter = IdentityAdapter.load(folder / "adapter.safetensors")
    assert adapter.info.method == "pfstorer"
    person, faint = (host.apply_identity(model, adapter, gamma) for gamma in (1.0, 0.5))
    made = {
        "base": host.restore(model, vae, image(), **SETTINGS),
        "personalized": host.restore(person, vae, image(), **SETTINGS),
        "tiled": host.restore(faint, vae, image(), **SETTINGS, **LARGE),
    }
    kept = load_file(folder / "pictures.safetensors")
    assert kept.keys() == made.keys()
    for name, picture in kept.items():
        assert (made[name] - picture.float()).abs().max() < ROUNDING, name


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_their_restorers_are_of_the_first_family(folder: Path) -> None:
    restorer = load(folder / "restorer.safetensors")
    assert type(restorer).__name__ == "StableSRRestorer"
    assert (restorer.info.size, restorer.info.context_dim) == (None, None)
