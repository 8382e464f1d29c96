"""A restorer's MODEL and two people's adapters; `comfy` can be imported within fixtures only."""

from typing import Any

import pytest


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """MODEL, CLIP and VAE."""
    from tiny_models import write_bundled

    from pfstorer_core import host

    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def model(loaded: Any) -> Any:
    """A MODEL that restores one LQ latent."""
    from tiny_models import latents

    from pfstorer_core import host

    return host.condition_on_lq(loaded[0], latents(seed=7))


@pytest.fixture(scope="module")
def ada(model: Any) -> Any:
    """A person's adapter."""
    from tiny_models import random_adapter

    return random_adapter(model, 1, "Ada")


@pytest.fixture(scope="module")
def bob(model: Any) -> Any:
    """Another person's adapter."""
    from tiny_models import random_adapter

    return random_adapter(model, 2, "Bob")
